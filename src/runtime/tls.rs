//! TLS: the crypto provider of the process, and certificates.

use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Makes *ring* the default crypto provider of this process. May be called repeatedly.
pub fn choose_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Fails if another thread has installed the same provider meanwhile.
        drop(rustls::crypto::ring::default_provider().install_default());
    }
}

/// The TLS configuration of an HTTP/1.1 server with a certificate chain and its key (PEM). Blocks.
///
/// # Errors
/// A message that says why they cannot be used.
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
