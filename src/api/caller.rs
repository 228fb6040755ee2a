//! Who asks: from the token of a request to the application that it is of.
//!
//! Whoever is not let in gets 403 and the reason in general terms; which applications there are is not told.

use axum::http::{HeaderMap, header};
use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;

use super::error::ApiError;
use crate::auth::token::{Keys, TokenError, Unverified};
use crate::catalog::{ApplicationKind, ApplicationRow, Catalog};
use crate::model::time::Wallclock;

/// The header of `OpenTok`'s SDKs.
pub const OPENTOK: &str = "x-opentok-auth";

/// Somebody who may ask in the name of an application.
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

/// The keys that an application's requests may be signed with now.
#[must_use]
pub fn keys(application: &ApplicationRow, now: Wallclock) -> Keys {
    let good = application.keys.iter().filter(|key| key.is_good(now)).map(|key| key.key.clone());
    match application.kind {
        ApplicationKind::Unified => Keys::Unified(good.map(|key| key.expose_secret().to_owned()).collect()),
        ApplicationKind::Legacy => Keys::Legacy(good.collect()),
    }
}

/// A token as it stands in the headers. PHP's shim puts a unified one into `OpenTok`'s header.
///
/// # Errors
/// When there is none.
pub fn bearer(headers: &HeaderMap) -> Result<&str, TokenError> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let authorization = text(header::AUTHORIZATION.as_str()).and_then(|value| {
        let (scheme, token) = value.trim().split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    authorization.or_else(|| text(OPENTOK).map(str::trim)).filter(|token| !token.is_empty()).ok_or(TokenError::Missing)
}

/// Who sends a request with these headers.
///
/// # Errors
/// 403 when nobody does who may, 503 when the catalog cannot be asked.
pub async fn caller(catalog: &dyn Catalog, headers: &HeaderMap, now: Wallclock) -> Result<Caller, ApiError> {
    let token = Unverified::parse(bearer(headers)?)?;
    let application = catalog.application(&token.application).await?.ok_or(TokenError::Unknown)?;
    token.verify(&keys(&application, now), now)?;
    Ok(Caller { application })
}

/// Whether the headers have the operators' token.
#[must_use]
pub fn is_operator(headers: &HeaderMap, token: Option<&secrecy::SecretString>) -> bool {
    let (Some(token), Ok(given)) = (token, bearer(headers)) else { return false };
    token.expose_secret().as_bytes().ct_eq(given.as_bytes()).into()
}

impl From<TokenError> for ApiError {
    fn from(error: TokenError) -> Self {
        let told = match error {
            // Whether it is the key or the application that is not known is nobody's business.
            TokenError::Unknown | TokenError::Signature => {
                "the token is not signed with a key of an application that is known here".to_owned()
            }
            other => other.to_string(),
        };
        Self::forbidden(told)
    }
}
