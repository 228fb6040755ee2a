//! The one provider of cryptography for TLS.

/// Makes *ring* the provider of all TLS in this process that does not choose one itself. Harmless to repeat.
pub fn choose_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Another thread may have been quicker, with the same one.
        drop(rustls::crypto::ring::default_provider().install_default());
    }
}
