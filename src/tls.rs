//! The one provider of cryptography for TLS, and whether a certificate can be used.

use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Makes *ring* the provider of all TLS in this process that does not choose one itself. Harmless to repeat.
pub fn choose_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Another thread may have been quicker, with the same one.
        drop(rustls::crypto::ring::default_provider().install_default());
    }
}

/// Whether a certificate chain and its key (PEM) can be used. Blocks.
///
/// # Errors
/// Why not, in words.
pub fn check(certificate: &Path, key: &Path) -> Result<(), String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect);
    let chain = chain.map_err(|e| format!("{}: {e}", certificate.display()))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|e| format!("{}: {e}", key.display()))?;
    choose_provider();
    let server = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
    server.map(drop).map_err(|e| e.to_string())
}
