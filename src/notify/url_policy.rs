//! Which URLs callbacks may go to. A URL is checked when it is set, and again before each connection, with the address that is
//! connected to.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;
use url::{Host, Url};

use super::retry_policy::may_connect;
use crate::config::CallbacksSection;
use crate::model::fault::{Fault, FaultKind, HasFault};
use crate::model::network::Network;

/// Longest callback URL, in bytes.
pub const URL_BYTES_MAX: usize = 2048;
/// Time limit of resolving a name.
const RESOLVE_MAX: Duration = Duration::from_secs(10);

/// Why callbacks may not go to a URL. Messages do not contain the addresses that a name resolves to: they would let the
/// application look into our network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Not a URL.
    #[error("this is not a URL: {0}")]
    Malformed(String),
    /// Longer than [`URL_BYTES_MAX`].
    #[error("the URL is longer than {URL_BYTES_MAX} bytes")]
    TooLong,
    /// Neither http nor https.
    #[error("callbacks go to http:// and https:// only, not to {0}:")]
    Scheme(String),
    /// With a user or a password, which the catalog would hold in plain text.
    #[error("the URL has a user or a password: callbacks are signed instead")]
    UserInfo,
    /// The host name cannot be resolved.
    #[error("the name {0} cannot be resolved")]
    Unresolved(String),
    /// The host name resolves to an address that callbacks may not go to.
    #[error(
        "the name {host} stands for an address that callbacks may not go to: they go to public addresses, and to the networks in callbacks.allow"
    )]
    Forbidden {
        /// The host name.
        host: String,
        /// The address; shown to operators only.
        address: IpAddr,
    },
    /// The host is an address that callbacks may not go to.
    #[error("callbacks may not go to {0}: they go to public addresses, and to the networks in callbacks.allow")]
    ForbiddenAddress(IpAddr),
}

impl HasFault for UrlError {
    fn fault(&self) -> Fault {
        match self {
            Self::Malformed(_)
            | Self::TooLong
            | Self::Scheme(_)
            | Self::UserInfo
            | Self::Unresolved(_)
            | Self::Forbidden { .. }
            | Self::ForbiddenAddress(_) => FaultKind::RequestInvalid,
        }
        .fault()
    }
}

/// Resolves host names.
#[async_trait]
pub trait Resolver: Send + Sync + 'static {
    /// All addresses of a name.
    ///
    /// # Errors
    /// When there is none, or no name server answers.
    async fn addresses(&self, host: &str) -> std::io::Result<Vec<IpAddr>>;
}

/// The operating system's resolver.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

#[async_trait]
impl Resolver for SystemResolver {
    async fn addresses(&self, host: &str) -> std::io::Result<Vec<IpAddr>> {
        // Tokio calls `getaddrinfo` on a blocking thread.
        Ok(tokio::net::lookup_host((host, 0)).await?.map(|found| found.ip()).collect())
    }
}

/// The networks that the configuration allows. Its check has refused those that cannot be read.
#[must_use]
pub fn allowed(section: &CallbacksSection) -> Vec<Network> {
    section.allow.0.iter().filter_map(|text| text.parse().ok()).collect()
}

/// Parses a callback URL and makes all checks that need no resolver. Unusual spellings of an address (`http://2130706433/`) are
/// checked as the address.
///
/// # Errors
/// See [`UrlError`].
pub fn parse_url(text: &str, allowed: &[Network]) -> Result<Url, UrlError> {
    if text.len() > URL_BYTES_MAX {
        return Err(UrlError::TooLong);
    }
    let url = Url::parse(text).map_err(|e| UrlError::Malformed(e.to_string()))?;
    if !["http", "https"].contains(&url.scheme()) {
        return Err(UrlError::Scheme(url.scheme().to_owned()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(UrlError::UserInfo);
    }
    let address = match url.host() {
        Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
        Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
        Some(Host::Domain(_)) => None,
        None => return Err(UrlError::Malformed("it has no host".to_owned())),
    };
    match address {
        Some(address) if !may_connect(address, allowed) => Err(UrlError::ForbiddenAddress(address)),
        _ => Ok(url),
    }
}

/// Checks a callback URL: its form, and every address that its host name resolves to now. For when a URL is set; each connection
/// checks its address again.
///
/// # Errors
/// See [`UrlError`].
pub async fn check_url(text: &str, allowed: &[Network]) -> Result<Url, UrlError> {
    check_url_with(text, allowed, &SystemResolver).await
}

/// Like [`check_url`], with another resolver.
///
/// # Errors
/// See [`UrlError`].
pub async fn check_url_with(text: &str, allowed: &[Network], resolver: &dyn Resolver) -> Result<Url, UrlError> {
    let url = parse_url(text, allowed)?;
    let Some(Host::Domain(host)) = url.host() else { return Ok(url) };
    let found = resolve_host(resolver, host).await?;
    match found.into_iter().find(|address| !may_connect(*address, allowed)) {
        Some(address) => Err(UrlError::Forbidden { host: host.to_owned(), address }),
        None => Ok(url),
    }
}

/// The addresses of a host name, at least one.
async fn resolve_host(resolver: &dyn Resolver, host: &str) -> Result<Vec<IpAddr>, UrlError> {
    match timeout(RESOLVE_MAX, resolver.addresses(host)).await {
        Ok(Ok(found)) if !found.is_empty() => Ok(found),
        _ => Err(UrlError::Unresolved(host.to_owned())),
    }
}

/// The HTTP client's resolver. The client connects to the returned addresses only.
pub(super) struct CheckedResolver {
    pub(super) resolver: Arc<dyn Resolver>,
    pub(super) allowed: Arc<[Network]>,
}

impl reqwest::dns::Resolve for CheckedResolver {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let (resolver, allowed) = (Arc::clone(&self.resolver), Arc::clone(&self.allowed));
        Box::pin(async move {
            let host = name.as_str();
            let found = resolve_host(resolver.as_ref(), host).await?;
            let (allowed_addresses, refused): (Vec<IpAddr>, Vec<IpAddr>) =
                found.into_iter().partition(|address| may_connect(*address, &allowed));
            if let (true, Some(address)) = (allowed_addresses.is_empty(), refused.first()) {
                return Err(UrlError::Forbidden { host: host.to_owned(), address: *address }.into());
            }
            // The client replaces port 0 by the URL's port.
            let addresses = allowed_addresses.into_iter().map(|address| std::net::SocketAddr::new(address, 0));
            Ok(Box::new(addresses) as reqwest::dns::Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Vec<IpAddr>);

    #[async_trait]
    impl Resolver for Fixed {
        async fn addresses(&self, _: &str) -> std::io::Result<Vec<IpAddr>> {
            Ok(self.0.clone())
        }
    }

    #[test]
    fn a_url_is_read_as_what_it_means() {
        for (text, good) in [
            ("https://example.com/callback?key=1", true),
            ("http://example.com:8080", true),
            ("https://93.184.216.34/x", true),
            ("https://[2606:2800:220:1::1]/x", true),
            ("ftp://example.com/", false),
            ("file:///etc/passwd", false),
            ("javascript:alert(1)", false),
            ("example.com/x", false),
            ("https://", false),
            ("https://user@example.com/", false),
            ("https://user:secret@example.com/", false),
            ("http://127.0.0.1/", false),
            ("http://2130706433/", false),
            ("http://0x7f.1/", false),
            ("http://017700000001/", false),
            ("http://127.1/", false),
            ("http://%31%32%37.0.0.1/", false),
            ("http://１２７.0.0.1/", false),
            ("http://[::1]/", false),
            ("http://[::ffff:127.0.0.1]/", false),
            ("http://[::ffff:7f00:1]/", false),
            ("http://[64:ff9b::10.0.0.1]/", false),
            ("http://169.254.169.254/latest/meta-data", false),
            ("http://0/", false),
            (&format!("https://example.com/{}", "x".repeat(URL_BYTES_MAX)), false),
        ] {
            assert_eq!(parse_url(text, &[]).is_ok(), good, "{text}: {:?}", parse_url(text, &[]));
        }
        let allowed = ["127.0.0.0/8".parse().expect("network")];
        assert!(parse_url("http://2130706433/", &allowed).is_ok());
        assert!(parse_url("http://10.0.0.1/", &allowed).is_err());
    }

    #[tokio::test]
    async fn every_address_of_a_name_must_be_public() {
        let (public, private) = ("93.184.216.34".parse().expect("ip"), "10.0.0.7".parse().expect("ip"));
        let check = async |found: Vec<IpAddr>| check_url_with("https://example.com/x", &[], &Fixed(found)).await;
        assert!(check(vec![public]).await.is_ok());
        assert_eq!(check(vec![]).await, Err(UrlError::Unresolved("example.com".to_owned())));
        let both = check(vec![public, private]).await.expect_err("private");
        assert_eq!(both, UrlError::Forbidden { host: "example.com".to_owned(), address: private });
        assert!(!both.to_string().contains("10.0.0.7"), "{both}");
        let own = check_url("http://localhost:9/", &[]).await.expect_err("loopback");
        assert!(matches!(own, UrlError::Forbidden { .. }), "{own}");
    }
}
