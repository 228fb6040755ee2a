//! Client tokens, as the SDKs' token methods create them: RS256 of unified applications, HS256 of legacy projects, and the older
//! `T1==` form. Pure.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::Value;
use sha1::Sha1;

use super::token::{Keys, Signed, TOKEN_BYTES_MAX, TokenError, application_of};
use super::validity::{Lifetime, Times, Validity, ValidityError, claimed, instant};
use crate::job::change::{CLASSES_MAX, check_classes};
use crate::model::ids::{ApplicationId, SessionId};
use crate::model::time::Wallclock;

/// Longest connection data, in characters (Vonage: 1,000; some SDKs check 1,024).
const DATA_CHARS_MAX: usize = 1024;
/// Client tokens: Vonage's limits. The SDKs that set no `exp` document 24 hours.
const LIFETIME: Lifetime =
    Lifetime { default: Duration::from_secs(24 * 3600), max: Duration::from_secs(30 * 24 * 3600) };

/// What a client may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Publish and subscribe.
    Publisher,
    /// Subscribe.
    Subscriber,
    /// Publish, subscribe, and send others out.
    Moderator,
    /// Publish.
    PublisherOnly,
}

impl Role {
    fn of(text: &str) -> Option<Self> {
        match text {
            "publisher" | "" => Some(Self::Publisher),
            "subscriber" => Some(Self::Subscriber),
            "moderator" => Some(Self::Moderator),
            "publisheronly" => Some(Self::PublisherOnly),
            _ => None,
        }
    }
}

/// A client token that is parsed but not verified.
#[derive(Debug)]
pub struct ClientToken {
    signed: Signature,
    /// The application that it claims.
    pub application: ApplicationId,
    /// The session that the client may join.
    pub session: SessionId,
    /// The client's role.
    pub role: Role,
    /// Data of the client for the other clients.
    pub connection_data: String,
    /// The initial layout classes of its streams.
    pub classes: Vec<String>,
    /// When it is valid.
    pub validity: Validity,
}

/// Claims of a client's JSON Web Token, except for its times. `null` is the same as absent; another type than these is
/// malformed.
#[derive(Debug, Deserialize)]
struct Claims {
    application_id: Option<String>,
    iss: Option<Value>,
    scope: Option<String>,
    session_id: Option<String>,
    role: Option<String>,
    // These do not decide who may join: another type counts as absent.
    connection_data: Option<Value>,
    data: Option<Value>,
    initial_layout_class_list: Option<Value>,
}

/// The content of a token of either form.
#[derive(Debug)]
struct Content<'a> {
    application: ApplicationId,
    session: &'a str,
    role: &'a str,
    connection_data: &'a str,
    classes: Vec<String>,
    times: Times,
}

#[derive(Debug)]
enum Signature {
    Jwt(Signed),
    /// The older form: HMAC-SHA1 of a query.
    T1 {
        query: String,
        hmac: Vec<u8>,
    },
}

impl ClientToken {
    /// Parses a client token.
    ///
    /// # Errors
    /// If the text is not a token, or is one of another kind.
    pub fn parse(token: &str) -> Result<Self, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Malformed);
        }
        match token.strip_prefix("T1==") {
            Some(rest) => Self::t1(rest),
            None => Self::jwt(token),
        }
    }

    fn jwt(token: &str) -> Result<Self, TokenError> {
        let (signed, claims) = Signed::parse(token)?;
        let times = Times {
            issued_at: claimed(&claims, &["iat", "create_time"])?,
            not_before: claimed(&claims, &["nbf"])?,
            expires_at: claimed(&claims, &["exp", "expire_time"])?,
        };
        let claims: Claims = serde_json::from_value(Value::Object(claims)).map_err(|_| TokenError::Malformed)?;
        if claims.scope.is_some_and(|scope| scope != "session.connect") {
            return Err(TokenError::Purpose);
        }
        let classes = match claims.initial_layout_class_list {
            // vonage-python sends a list.
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            Some(Value::String(words)) => words.split_whitespace().map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        let data = [&claims.connection_data, &claims.data].into_iter().flatten().find_map(Value::as_str);
        let content = Content {
            session: claims.session_id.as_deref().ok_or(TokenError::Purpose)?,
            application: application_of(claims.application_id, claims.iss)?,
            role: claims.role.as_deref().unwrap_or_default(),
            connection_data: data.unwrap_or_default(),
            classes,
            times,
        };
        Self::new(Signature::Jwt(signed), content)
    }

    fn t1(coded: &str) -> Result<Self, TokenError> {
        // opentok-java writes the URL-safe alphabet, with padding.
        let text = STANDARD.decode(coded.replace('-', "+").replace('_', "/")).ok();
        let text = text.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or(TokenError::Malformed)?;
        let (head, query) = text.split_once(':').ok_or(TokenError::Malformed)?;
        let fields = |text: &str| -> Vec<(String, String)> {
            url::form_urlencoded::parse(text.as_bytes()).into_owned().collect()
        };
        let (head, values) = (fields(head), fields(query));
        let find = |list: &[(String, String)], name: &str| {
            list.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
        };
        let value = |name: &str| find(&values, name);
        let time = |name: &'static str| match value(name).filter(|text| !text.is_empty()) {
            None => Ok(None),
            Some(text) => text.parse().ok().and_then(instant).map(Some).ok_or(ValidityError::NotSeconds(name)),
        };
        let hmac = find(&head, "sig").and_then(|hex| unhex(&hex)).ok_or(TokenError::Malformed)?;
        let (role, data) = (value("role").unwrap_or_default(), value("connection_data").unwrap_or_default());
        let content = Content {
            application: application_of(find(&head, "partner_id"), None)?,
            session: &value("session_id").ok_or(TokenError::Malformed)?,
            role: &role,
            connection_data: &data,
            classes: value("initial_layout_class_list")
                .unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
            times: Times { issued_at: time("create_time")?, not_before: None, expires_at: time("expire_time")? },
        };
        Self::new(Signature::T1 { query: query.to_owned(), hmac }, content)
    }

    fn new(signed: Signature, content: Content<'_>) -> Result<Self, TokenError> {
        let Content { application, session, role, connection_data, mut classes, times } = content;
        // An unusable class must not keep a client out of its session.
        classes.retain(|class| check_classes(std::slice::from_ref(class)).is_ok());
        classes.truncate(CLASSES_MAX);
        Ok(Self {
            signed,
            application,
            session: session.parse().map_err(|_| TokenError::Malformed)?,
            role: Role::of(role).ok_or(TokenError::Malformed)?,
            connection_data: connection_data.chars().filter(|c| !c.is_control()).take(DATA_CHARS_MAX).collect(),
            classes,
            validity: Validity::new(times, LIFETIME)?,
        })
    }

    /// Checks the signature with the application's keys, and the validity at `now`.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn verify(&self, keys: &Keys, now: Wallclock) -> Result<(), TokenError> {
        let good = match (&self.signed, keys) {
            (Signature::Jwt(signed), keys) => signed.is_by(keys),
            (Signature::T1 { query, hmac }, Keys::Legacy(secrets)) => secrets.iter().any(|secret| {
                let mac = Hmac::<Sha1>::new_from_slice(secret.expose_secret().as_bytes());
                let mut mac = mac.expect("a key of any length will do");
                mac.update(query.as_bytes());
                mac.verify_slice(hmac).is_ok()
            }),
            (Signature::T1 { .. }, Keys::Unified(_)) => false,
        };
        if !good {
            return Err(TokenError::Signature);
        }
        Ok(self.validity.check(now)?)
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) || text.len() > 64 {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
#[path = "client_token_tests.rs"]
mod tests;
