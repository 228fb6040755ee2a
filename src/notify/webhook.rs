//! Sends one callback as an HTTP POST: to allowed addresses only, without redirects.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use reqwest::redirect::Policy;

use super::url_policy::{CheckedResolver, Resolver, UrlError, parse_url};
use crate::model::fault::{Fault, FaultKind, HasFault, chain};
use crate::model::ids::NoticeId;
use crate::model::network::Network;

/// The header with the notification's id.
pub const NOTICE_ID: &str = "x-archiver-notice-id";
/// Idle connections that are kept for each receiver.
const IDLE_MAX: usize = 4;
const IDLE: Duration = Duration::from_secs(30);

/// Why a callback was not delivered.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Callbacks may not go to this URL.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// The receiver answered with a status other than 2xx.
    #[error("the receiver answered {0}{note}", note = if (300..400).contains(.0) { ", and redirects are not followed" } else { "" })]
    Status(u16),
    /// The receiver did not answer in time.
    #[error("the receiver did not answer within {0} s")]
    Timeout(u64),
    /// The receiver could not be reached, or closed the connection.
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

/// One callback.
#[derive(Debug)]
pub struct WebhookRequest<'a> {
    /// The application's callback URL.
    pub url: &'a str,
    /// The notification.
    pub notice: NoticeId,
    /// The signature, a JSON Web Token.
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
    /// Connects to public addresses and to `allowed` networks only. `timeout` limits each request in all.
    ///
    /// # Panics
    /// Without a TLS library, which this program always has.
    #[must_use]
    pub fn new(allowed: Vec<Network>, timeout: Duration, resolver: Arc<dyn Resolver>) -> Self {
        crate::runtime::tls::choose_provider();
        let allowed: Arc<[Network]> = allowed.into();
        let client = reqwest::Client::builder()
            .user_agent(concat!("archiver/", env!("CARGO_PKG_VERSION")))
            // A proxy would resolve the name itself, past the check of the address.
            .no_proxy()
            .redirect(Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            .timeout(timeout)
            .pool_max_idle_per_host(IDLE_MAX)
            .pool_idle_timeout(IDLE)
            .dns_resolver(Arc::new(CheckedResolver { resolver, allowed: Arc::clone(&allowed) }))
            .build()
            .expect("a client of constant settings");
        Self { client, allowed, timeout }
    }

    /// Sends one callback. Of the response only the status is read.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn send(&self, webhook: WebhookRequest<'_>) -> Result<(), SendError> {
        let url = parse_url(webhook.url, &self.allowed)?;
        let mut request = self
            .client
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .header(NOTICE_ID, webhook.notice.to_string())
            .body(webhook.body);
        if let Some(token) = webhook.token {
            let mut value = reqwest::header::HeaderValue::try_from(format!("Bearer {token}")).expect("base64");
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let answer = request.send().await.map_err(|error| self.failed(error))?;
        if answer.status().is_success() { Ok(()) } else { Err(SendError::Status(answer.status().as_u16())) }
    }

    /// Leaves the URL out, because its query may have secrets.
    fn failed(&self, error: reqwest::Error) -> SendError {
        let error = error.without_url();
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<UrlError>() {
                return error.clone().into();
            }
            cause = error.source();
        }
        if error.is_timeout() {
            SendError::Timeout(self.timeout.as_secs())
        } else {
            SendError::Unreachable(chain(&error))
        }
    }
}
