//! Signs callbacks with a JSON Web Token in the form of Vonage's signed webhooks, which the SDKs' `verifySignature` accepts. Pure.

use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::catalog::{ApplicationKind, ApplicationRow};
use crate::model::ids::NoticeId;
use crate::model::time::Wallclock;

/// Validity of a signature. The clocks of receivers must differ by less.
pub const VALID: Duration = Duration::from_secs(300);

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'static str,
    iat: i64,
    exp: i64,
    jti: String,
    payload_hash: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    application_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key: Option<&'a str>,
}

/// The token for a body, signed with HS256 and the application's secret. It names the application and the notification, and has the
/// SHA-256 of the body.
#[must_use]
pub fn token(
    application: &ApplicationRow,
    secret: &SecretString,
    notice: NoticeId,
    body: &[u8],
    now: Wallclock,
) -> String {
    let id = application.application.as_str();
    let issued = now.0.div_euclid(1_000_000);
    let claims = Claims {
        iss: "archiver",
        iat: issued,
        exp: issued + VALID.as_secs().cast_signed(),
        jti: notice.to_string(),
        payload_hash: Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect(),
        application_id: (application.kind == ApplicationKind::Unified).then_some(id),
        api_key: (application.kind == ApplicationKind::Legacy).then_some(id),
    };
    let key = EncodingKey::from_secret(secret.expose_secret().as_bytes());
    encode(&Header::new(Algorithm::HS256), &claims, &key).expect("any text is a key of HS256")
}
