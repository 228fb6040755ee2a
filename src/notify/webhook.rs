//! One callback: a POST that goes where it may, and no further.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use reqwest::redirect::Policy;

use super::url_policy::{Guard, Resolver, UrlError, parse_url};
use crate::model::fault::{Fault, FaultKind, HasFault, chain};
use crate::model::ids::NoticeId;
use crate::model::network::Network;

/// The header with the notice's id.
pub const NOTICE_ID: &str = "x-archiver-notice-id";
/// Connections to one receiver that are kept for the next callback.
const IDLE_MAX: usize = 4;
const IDLE: Duration = Duration::from_secs(30);

/// Why a callback was not delivered.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// It may not go there.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// The receiver answered otherwise than with 2xx.
    #[error("the receiver answered {0}{note}", note = if (300..400).contains(.0) { ", and redirects are not followed" } else { "" })]
    Status(u16),
    /// It did not answer in time.
    #[error("the receiver did not answer within {0} s")]
    Timeout(u64),
    /// It could not be reached, or broke off.
    #[error("the receiver cannot be reached: {0}")]
    Unreachable(String),
}

impl HasFault for SendError {
    fn fault(&self) -> Fault {
        match self {
            Self::Url(error) => return error.fault(),
            Self::Status(_) | Self::Timeout(_) | Self::Unreachable(_) => FaultKind::CallbackFailed,
        }
        .fault()
    }
}

/// What is sent.
#[derive(Debug)]
pub struct Post<'a> {
    /// Where to, as the application has it.
    pub url: &'a str,
    /// The notice.
    pub notice: NoticeId,
    /// Its signature.
    pub token: Option<String>,
    /// JSON.
    pub body: Vec<u8>,
}

/// Sends callbacks.
#[derive(Debug, Clone)]
pub struct Sender {
    client: reqwest::Client,
    allowed: Arc<[Network]>,
    timeout: Duration,
}

impl Sender {
    /// One that goes to public addresses and to `allowed` networks, and waits for `timeout` in all.
    ///
    /// # Panics
    /// Without a TLS library, which this program always has.
    #[must_use]
    pub fn new(allowed: Vec<Network>, timeout: Duration, resolver: Arc<dyn Resolver>) -> Self {
        crate::runtime::tls::choose_provider();
        let allowed: Arc<[Network]> = allowed.into();
        let client = reqwest::Client::builder()
            .user_agent(concat!("archiver/", env!("CARGO_PKG_VERSION")))
            // A proxy would connect for us, to wherever it likes.
            .no_proxy()
            .redirect(Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            .timeout(timeout)
            .pool_max_idle_per_host(IDLE_MAX)
            .pool_idle_timeout(IDLE)
            .dns_resolver(Arc::new(Guard { resolver, allowed: Arc::clone(&allowed) }))
            .build()
            .expect("a client of constant settings");
        Self { client, allowed, timeout }
    }

    /// Sends one. What the receiver answers is not read, but for its status.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn send(&self, post: Post<'_>) -> Result<(), SendError> {
        let url = parse_url(post.url, &self.allowed)?;
        let mut request = self
            .client
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .header(NOTICE_ID, post.notice.to_string())
            .body(post.body);
        if let Some(token) = post.token {
            let mut value = reqwest::header::HeaderValue::try_from(format!("Bearer {token}")).expect("base64");
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let answer = request.send().await.map_err(|error| self.failed(error))?;
        if answer.status().is_success() { Ok(()) } else { Err(SendError::Status(answer.status().as_u16())) }
    }

    /// Without the URL, which may have secrets in its query.
    fn failed(&self, error: reqwest::Error) -> SendError {
        let error = error.without_url();
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(one) = cause {
            if let Some(error) = one.downcast_ref::<UrlError>() {
                return error.clone().into();
            }
            cause = one.source();
        }
        if error.is_timeout() {
            SendError::Timeout(self.timeout.as_secs())
        } else {
            SendError::Unreachable(chain(&error))
        }
    }
}
