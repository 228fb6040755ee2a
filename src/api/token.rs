//! Whose request it is: the JSON Web Tokens (RFC 7519) that the SDKs of Vonage and OpenTok make for each request. Pure.
//!
//! Unified applications sign with RS256 and send `Authorization: Bearer`; legacy ones sign with HS256 and send
//! `X-OPENTOK-AUTH`. The kind of an application alone decides how its tokens are signed, never the token: one that is signed
//! by HS256 with somebody's public key as the secret is nobody's.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, crypto};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::ids::ApplicationId;
use crate::time::Wallclock;

/// Longest token, in bytes. Real ones have less than 1,500.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;
/// Clocks may differ by so much.
pub const SKEW: Duration = Duration::from_secs(60);
/// No token of a request is valid for longer; the SDKs ask for 3 to 15 minutes.
pub const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);

/// What an application signs with. Several while its key is changed: each of them is good.
#[derive(Debug, Clone)]
pub enum Keys {
    /// Public keys (PEM) of a unified application: RS256.
    Unified(Vec<String>),
    /// Secrets of a legacy project: HS256.
    Legacy(Vec<SecretString>),
}

/// Why a token is nobody's. What a caller is told is the same for most of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// No token came.
    #[error("there is no token: send it as `Authorization: Bearer` or as `X-OPENTOK-AUTH`")]
    Missing,
    /// It is not a token at all.
    #[error("the token cannot be read")]
    Malformed,
    /// Nobody has this application.
    #[error("the token's application is not known here")]
    Unknown,
    /// Its signature is not that of the application's keys.
    #[error("the token is not signed with the application's key")]
    Signature,
    /// It is not valid any more.
    #[error("the token has expired: look at the clock of the machine that made it")]
    Expired,
    /// It is not valid yet.
    #[error("the token is of the future: look at the clock of the machine that made it")]
    Future,
    /// It does not end, or too late.
    #[error("the token says no `exp`, or one that is more than a day away")]
    Endless,
    /// It is for something else: a client's token, or one of an account.
    #[error("the token is not one for requests of a server")]
    Purpose,
}

/// A JSON Web Token that was taken apart: what is signed, by which algorithm, and the signature.
#[derive(Debug)]
pub struct Signed {
    text: String,
    signature: String,
    algorithm: String,
}

impl Signed {
    /// Takes a token apart. Returns its claims, too, and `ist` where opentok-ruby has it: in the header.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(token: &str) -> Result<(Self, Value), TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Malformed);
        }
        let (text, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = text.split_once('.').ok_or(TokenError::Malformed)?;
        let header: Header = part(header)?;
        let mut claims: Map<String, Value> = part(claims)?;
        if let Some(ist) = header.ist {
            claims.entry("ist").or_insert(ist.into());
        }
        let signed = Self { text: text.to_owned(), signature: signature.to_owned(), algorithm: header.alg };
        Ok((signed, Value::Object(claims)))
    }

    /// Whether one of an application's keys has signed it.
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

/// The token of a request that was taken apart, and is not believed yet.
#[derive(Debug)]
pub struct Unverified {
    signed: Signed,
    claims: Claims,
    /// The application that it says it is of.
    pub application: ApplicationId,
}

#[derive(Debug, Deserialize)]
struct Header {
    alg: String,
    ist: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Claims {
    application_id: Option<String>,
    iss: Option<String>,
    ist: Option<String>,
    exp: Option<f64>,
    iat: Option<f64>,
    nbf: Option<f64>,
    scope: Option<String>,
    session_id: Option<String>,
}

impl Unverified {
    /// Takes a token apart.
    ///
    /// # Errors
    /// When it is none, or for something else than requests.
    pub fn parse(token: &str) -> Result<Self, TokenError> {
        let (signed, claims) = Signed::parse(token)?;
        let claims: Claims = serde_json::from_value(claims).map_err(|_| TokenError::Malformed)?;
        let other = claims.ist.as_deref().is_some_and(|ist| ist != "project");
        if other || claims.scope.is_some() || claims.session_id.is_some() {
            return Err(TokenError::Purpose);
        }
        let application = claims.application_id.as_deref().or(claims.iss.as_deref()).ok_or(TokenError::Malformed)?;
        let application = application.parse().map_err(|_| TokenError::Malformed)?;
        Ok(Self { signed, claims, application })
    }

    /// Whether one of the application's keys has signed it, and whether it is valid now.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn verify(&self, keys: &Keys, now: Wallclock) -> Result<(), TokenError> {
        if !self.signed.is_by(keys) {
            return Err(TokenError::Signature);
        }
        self.is_timely(now)
    }

    #[allow(clippy::cast_precision_loss)]
    fn is_timely(&self, now: Wallclock) -> Result<(), TokenError> {
        let (now, skew) = (now.0 as f64 / 1e6, SKEW.as_secs_f64());
        let exp = self.claims.exp.filter(|exp| exp.is_finite()).ok_or(TokenError::Endless)?;
        if exp + skew < now {
            return Err(TokenError::Expired);
        }
        if exp - now > LIFETIME_MAX.as_secs_f64() + skew {
            return Err(TokenError::Endless);
        }
        let begins = self.claims.iat.into_iter().chain(self.claims.nbf).fold(f64::MIN, f64::max);
        if begins > now + skew { Err(TokenError::Future) } else { Ok(()) }
    }
}

/// Whether a text is a public key that a unified application may have.
#[must_use]
pub fn is_public_key(pem: &str) -> bool {
    pem.contains("PUBLIC KEY") && DecodingKey::from_rsa_pem(pem.as_bytes()).is_ok()
}

fn part<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| TokenError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| TokenError::Malformed)
}
