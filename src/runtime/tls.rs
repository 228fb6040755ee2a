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

/// A server's side of TLS for HTTP/1.1, of a certificate chain and its key (PEM). Blocks.
///
/// # Errors
/// Why they cannot be used, in words.
pub fn server(certificate: &Path, key: &Path) -> Result<rustls::ServerConfig, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect);
    let chain = chain.map_err(|e| format!("{}: {e}", certificate.display()))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|e| format!("{}: {e}", key.display()))?;
    choose_provider();
    let server = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
    let mut server = server.map_err(|e| e.to_string())?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(server)
}
