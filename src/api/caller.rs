//! Authentication: from the token of a request to its application.
//!
//! Invalid credentials: 403 with a reason in general terms, which does not tell whether an application exists.

use axum::http::{HeaderMap, header};
use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;

use super::error::ApiError;
use crate::auth::token::{Keys, TokenError, Unverified};
use crate::catalog::{ApplicationKind, ApplicationRow, Catalog};
use crate::model::time::Wallclock;

/// The header of `OpenTok`'s SDKs.
pub const OPENTOK_HEADER: &str = "x-opentok-auth";

/// An authenticated sender of requests.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The application.
    pub application: ApplicationRow,
}

impl Caller {
    /// Whether the application in a request's path is the caller's.
    ///
    /// # Errors
    /// 403 when it is not.
    pub fn owns(&self, in_path: &str) -> Result<(), ApiError> {
        if self.application.application.as_str() == in_path {
            return Ok(());
        }
        Err(ApiError::forbidden("the application in the address is not the one that the token is of"))
    }
}

/// The keys with which an application may sign its requests now.
#[must_use]
pub fn keys(application: &ApplicationRow, now: Wallclock) -> Keys {
    let good = application.keys.iter().filter(|key| key.is_good(now)).map(|key| key.key.clone());
    match application.kind {
        ApplicationKind::Unified => Keys::Unified(good.map(|key| key.expose_secret().to_owned()).collect()),
        ApplicationKind::Legacy => Keys::Legacy(good.collect()),
    }
}

/// The token in the headers. PHP's shim sends the token of a unified application in `OpenTok`'s header.
///
/// # Errors
/// Without a token.
pub fn bearer(headers: &HeaderMap) -> Result<&str, TokenError> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let authorization = text(header::AUTHORIZATION.as_str()).and_then(|value| {
        let (scheme, token) = value.trim().split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    authorization
        .or_else(|| text(OPENTOK_HEADER).map(str::trim))
        .filter(|token| !token.is_empty())
        .ok_or(TokenError::Missing)
}

/// Authenticates the sender of a request with these headers.
///
/// # Errors
/// 403 without a valid token, 503 when the catalog is unavailable.
pub async fn authenticate(catalog: &dyn Catalog, headers: &HeaderMap, now: Wallclock) -> Result<Caller, ApiError> {
    let token = Unverified::parse(bearer(headers)?)?;
    let application = catalog.application(&token.application).await?.ok_or(TokenError::Unknown)?;
    token.verify(&keys(&application, now), now)?;
    Ok(Caller { application })
}

/// Whether the headers contain the operators' token.
#[must_use]
pub fn is_operator(headers: &HeaderMap, token: Option<&secrecy::SecretString>) -> bool {
    let (Some(token), Ok(given)) = (token, bearer(headers)) else { return false };
    token.expose_secret().as_bytes().ct_eq(given.as_bytes()).into()
}

impl From<TokenError> for ApiError {
    fn from(error: TokenError) -> Self {
        let message = match error {
            // The answer does not tell whether the key or the application is unknown.
            TokenError::Unknown | TokenError::Signature => {
                "the token is not signed with a key of an application that is known here".to_owned()
            }
            other => other.to_string(),
        };
        Self::forbidden(message)
    }
}
