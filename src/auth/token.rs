//! Request tokens: the JSON Web Tokens (RFC 7519) that the SDKs of Vonage and OpenTok create for requests. Pure.
//!
//! Unified applications sign with RS256 and send `Authorization: Bearer`; legacy ones sign with HS256 and send
//! `X-OPENTOK-AUTH`. The kind of the application alone determines the algorithm, never the token. Otherwise a token that is signed
//! with HS256 and a public key as the secret would be valid (RFC 8725, 2.1).

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, crypto};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Map, Number, Value};

use super::validity::{Lifetime, Times, Validity, ValidityError, claimed};
use crate::model::ids::ApplicationId;
use crate::model::time::Wallclock;

/// Longest token, in bytes. Real ones have less than 1,500.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;
/// Request tokens: Vonage's limits. The SDKs that set `exp` set it to 3 to 15 minutes after `iat`.
const LIFETIME: Lifetime = Lifetime { default: Duration::from_secs(15 * 60), max: Duration::from_secs(24 * 3600) };
/// The largest integer up to which floats are exact.
const WHOLE_FLOAT_MAX: f64 = 9_007_199_254_740_991.0;

/// The keys that verify an application's tokens. There are several while a key is rotated.
#[derive(Debug, Clone)]
pub enum Keys {
    /// Public keys (PEM) of a unified application: RS256.
    Unified(Vec<String>),
    /// Secrets of a legacy project: HS256.
    Legacy(Vec<SecretString>),
}

/// Why a token is refused. The texts go to the client that sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The request has no token.
    #[error("there is no token: send it as `Authorization: Bearer` or as `X-OPENTOK-AUTH`")]
    Missing,
    /// The text is not a token.
    #[error("the token cannot be read")]
    Malformed,
    /// No such application.
    #[error("the token's application is not known here")]
    Unknown,
    /// None of the application's keys verifies the signature.
    #[error("the token is not signed with the application's key")]
    Signature,
    /// The token is expired, not valid yet, or lasts too long.
    #[error(transparent)]
    Validity(#[from] ValidityError),
    /// A token of another kind: of a client or of an account.
    #[error("the token is not one for requests of a server")]
    Purpose,
}

/// The signed parts of a JSON Web Token.
#[derive(Debug)]
pub struct Signed {
    text: String,
    signature: String,
    algorithm: String,
}

impl Signed {
    /// Parses a token. Also returns its claims; `ist` of the header, where opentok-ruby writes it, is added to them.
    ///
    /// # Errors
    /// If the text is not a token.
    pub fn parse(token: &str) -> Result<(Self, Map<String, Value>), TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Malformed);
        }
        let (text, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = text.split_once('.').ok_or(TokenError::Malformed)?;
        let header: Header = part(header)?;
        let mut claims: Map<String, Value> = part(claims)?;
        if let Some(ist) = header.ist
            && claims.get("ist").is_none_or(Value::is_null)
        {
            claims.insert("ist".to_owned(), ist.into());
        }
        let signed = Self { text: text.to_owned(), signature: signature.to_owned(), algorithm: header.alg };
        Ok((signed, claims))
    }

    /// Whether one of the application's keys verifies the signature.
    #[must_use]
    pub fn is_by(&self, keys: &Keys) -> bool {
        let signed_by = |key: DecodingKey, algorithm: Algorithm| {
            crypto::verify(&self.signature, self.text.as_bytes(), &key, algorithm).unwrap_or(false)
        };
        match keys {
            Keys::Unified(pems) if self.algorithm == "RS256" => pems
                .iter()
                .any(|pem| DecodingKey::from_rsa_pem(pem.as_bytes()).is_ok_and(|key| signed_by(key, Algorithm::RS256))),
            Keys::Legacy(secrets) if self.algorithm == "HS256" => secrets
                .iter()
                .any(|secret| signed_by(DecodingKey::from_secret(secret.expose_secret().as_bytes()), Algorithm::HS256)),
            Keys::Unified(_) | Keys::Legacy(_) => false,
        }
    }
}

/// A request token that is parsed but not verified.
#[derive(Debug)]
pub struct Unverified {
    signed: Signed,
    validity: Validity,
    /// The application that it claims.
    pub application: ApplicationId,
}

#[derive(Debug, Deserialize)]
struct Header {
    alg: String,
    ist: Option<String>,
}

/// Claims of a request token, except for its times. `null` is the same as absent; another type than these is malformed.
#[derive(Debug, Deserialize)]
struct Claims {
    application_id: Option<String>,
    iss: Option<Value>,
    ist: Option<String>,
    scope: Option<String>,
    session_id: Option<String>,
}

impl Unverified {
    /// Parses a request token.
    ///
    /// # Errors
    /// If the text is not a token, is of another kind, or has neither `exp` nor `iat`.
    pub fn parse(token: &str) -> Result<Self, TokenError> {
        let (signed, claims) = Signed::parse(token)?;
        let times = Times {
            issued_at: claimed(&claims, &["iat"])?,
            not_before: claimed(&claims, &["nbf"])?,
            expires_at: claimed(&claims, &["exp"])?,
        };
        let claims: Claims = serde_json::from_value(Value::Object(claims)).map_err(|_| TokenError::Malformed)?;
        let other = claims.ist.as_deref().is_some_and(|ist| ist != "project");
        if other || claims.scope.is_some() || claims.session_id.is_some() {
            return Err(TokenError::Purpose);
        }
        let application = application_of(claims.application_id, claims.iss)?;
        Ok(Self { signed, validity: Validity::new(times, LIFETIME)?, application })
    }

    /// Checks the signature with the application's keys, and the validity at `now`.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn verify(&self, keys: &Keys, now: Wallclock) -> Result<(), TokenError> {
        if !self.signed.is_by(keys) {
            return Err(TokenError::Signature);
        }
        Ok(self.validity.check(now)?)
    }
}

/// The application that a token claims: `application_id`, else `iss`, a string or a whole number.
///
/// # Errors
/// When neither is an application's id.
pub(super) fn application_of(id: Option<String>, iss: Option<Value>) -> Result<ApplicationId, TokenError> {
    let text = id.or_else(|| match iss {
        Some(Value::String(text)) => Some(text),
        // opentok-php sends its API key as it was given: `new OpenTok(123456, …)`.
        Some(Value::Number(number)) => whole(&number).map(|number| number.to_string()),
        _ => None,
    });
    text.and_then(|text| text.parse().ok()).ok_or(TokenError::Malformed)
}

/// A non-negative integer, also if an encoder wrote it as `123456.0` or `1.23456e5`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(number: &Number) -> Option<u64> {
    let is_whole = |number: &f64| number.fract() == 0.0 && (0.0..=WHOLE_FLOAT_MAX).contains(number);
    number.as_u64().or_else(|| number.as_f64().filter(is_whole).map(|number| number as u64))
}

/// Whether a text is an RSA public key in PEM, as unified applications have.
#[must_use]
pub fn is_public_key(pem: &str) -> bool {
    pem.contains("PUBLIC KEY") && DecodingKey::from_rsa_pem(pem.as_bytes()).is_ok()
}

fn part<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| TokenError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| TokenError::Malformed)
}

#[cfg(test)]
#[path = "token_tests.rs"]
pub(super) mod tests;
