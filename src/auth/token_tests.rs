//! Request tokens: the claims that each SDK really sends, and what is refused.

use std::sync::LazyLock;

use archiver_testkit::api::{Application, rsa_key, signed_text};
use archiver_testkit::sdk_tokens;
use proptest::prelude::*;
use serde_json::json;

use super::*;

const SECONDS: u64 = 1_800_000_000;
const MINUTES_15: i64 = 15 * 60;
const HOURS_24: i64 = 24 * 3600;

const UNIFIED: &str = "78d335fa-323d-4114-9c3d-d6f0d48968cf";
const LEGACY: &str = "123456";
const SECRET: &str = "a secret of forty characters, more or less";

/// A private key, and its public key. Made once: it takes its time.
static RSA: LazyLock<(String, String)> = LazyLock::new(|| rsa_key().expect("an RSA key"));

pub(in crate::auth) fn application(is_unified: bool) -> (Application, Keys) {
    if is_unified {
        let (private, public) = RSA.clone();
        return (Application { id: UNIFIED.to_owned(), key: private }, Keys::Unified(vec![public]));
    }
    (Application { id: LEGACY.to_owned(), key: SECRET.to_owned() }, Keys::Legacy(vec![SECRET.into()]))
}

/// Seconds after the tokens' `iat`.
pub(in crate::auth) fn after(seconds: i64) -> Wallclock {
    Wallclock((SECONDS as i64 + seconds) * 1_000_000)
}

/// Checks a legacy project's token with these claims, byte by byte.
fn checked(claims: &str) -> Result<(), TokenError> {
    let (application, keys) = application(false);
    let token = signed_text(r#"{"alg":"HS256"}"#, claims, &application.key);
    Unverified::parse(&token)?.verify(&keys, after(0))
}

#[test]
fn a_token_of_each_sdk_is_valid_from_its_issue_to_its_end() {
    for made in sdk_tokens::REQUEST {
        let (application, keys) = application(made.is_unified());
        let token = Unverified::parse(&made.issue(&application, "", SECONDS));
        let token = token.unwrap_or_else(|e| panic!("{}: {e}", made.sdk));
        assert_eq!(token.application.as_str(), application.id, "{}", made.sdk);
        assert!(token.signed.is_by(&keys), "{}: it is signed with the application's key", made.sdk);
        let (end, ended) = match made.lifetime {
            Some(seconds) => (seconds as i64, ValidityError::Expired),
            None => (MINUTES_15, ValidityError::TooOld(LIFETIME.default)),
        };
        for (seconds, expected) in [
            (-61, Err(ValidityError::NotYetValid)),
            (-59, Ok(())),
            (0, Ok(())),
            (end + 59, Ok(())),
            (end + 61, Err(ended)),
            (HOURS_24 + 61, Err(ended)),
        ] {
            assert_eq!(token.validity.check(after(seconds)), expected, "{}: {seconds} s after iat", made.sdk);
        }
    }
}

#[test]
fn a_token_is_verified_by_signature_and_time() {
    for is_unified in [true, false] {
        let (application, keys) = application(is_unified);
        let made = if is_unified { sdk_tokens::JAVA_UNIFIED } else { sdk_tokens::JAVA_LEGACY };
        let token = Unverified::parse(&made.issue(&application, "", SECONDS)).expect("a token");
        assert_eq!(token.verify(&keys, after(0)), Ok(()), "{}", made.sdk);
        assert!(matches!(token.verify(&keys, after(3600)), Err(TokenError::Validity(_))), "{}", made.sdk);
        let others = if is_unified { Keys::Unified(Vec::new()) } else { Keys::Legacy(vec!["another".into()]) };
        // Whoever cannot sign learns nothing about times.
        assert_eq!(token.verify(&others, after(3600)), Err(TokenError::Signature), "{}", made.sdk);
    }
}

#[test]
fn the_claims_decide_from_when_and_how_long() {
    let rows = [
        (json!({}), Err(ValidityError::NoExpiry)),
        (json!({ "iat": null, "exp": null }), Err(ValidityError::NoExpiry)),
        (json!({ "nbf": SECONDS }), Err(ValidityError::NoExpiry)),
        (json!({ "iat": SECONDS, "exp": null, "nbf": null }), Ok(())),
        (json!({ "iat": SECONDS - 900 - 59 }), Ok(())),
        (json!({ "iat": SECONDS - 900 - 61 }), Err(ValidityError::TooOld(LIFETIME.default))),
        (json!({ "iat": SECONDS + 59 }), Ok(())),
        (json!({ "iat": SECONDS + 61 }), Err(ValidityError::NotYetValid)),
        (json!({ "iat": SECONDS, "nbf": SECONDS + 61 }), Err(ValidityError::NotYetValid)),
        (json!({ "iat": SECONDS, "exp": SECONDS + 24 * 3600 + 59 }), Ok(())),
        (json!({ "iat": SECONDS, "exp": SECONDS + 24 * 3600 + 61 }), Err(ValidityError::LifetimeTooLong(LIFETIME.max))),
        (json!({ "iat": null, "exp": SECONDS + 24 * 3600 + 59 }), Ok(())),
        (json!({ "exp": SECONDS + 24 * 3600 + 61 }), Err(ValidityError::LifetimeTooLong(LIFETIME.max))),
        (json!({ "exp": SECONDS - 59 }), Ok(())),
        (json!({ "exp": SECONDS - 61 }), Err(ValidityError::Expired)),
        (json!({ "iat": SECONDS as f64 + 0.5, "exp": SECONDS as f64 + 300.5 }), Ok(())),
        (json!({ "iat": SECONDS, "exp": (SECONDS + 300).to_string() }), Err(ValidityError::NotSeconds("exp"))),
        (json!({ "iat": SECONDS.to_string() }), Err(ValidityError::NotSeconds("iat"))),
        (json!({ "iat": SECONDS, "nbf": false }), Err(ValidityError::NotSeconds("nbf"))),
        (json!({ "iat": -1e300 }), Err(ValidityError::TooOld(LIFETIME.default))),
        (json!({ "iat": SECONDS, "exp": u64::MAX }), Err(ValidityError::LifetimeTooLong(LIFETIME.max))),
    ];
    for (mut claims, expected) in rows {
        claims["iss"] = json!(LEGACY);
        assert_eq!(checked(&claims.to_string()), expected.map_err(TokenError::Validity), "{claims}");
    }
}

#[test]
fn the_issuer_is_a_string_or_a_whole_number() {
    let rows = [
        (r#""123456""#, Ok(LEGACY)),
        ("123456", Ok(LEGACY)),
        ("123456.0", Ok(LEGACY)),
        ("1.23456e5", Ok(LEGACY)),
        ("18446744073709551615", Ok("18446744073709551615")),
        ("123456.5", Err(TokenError::Malformed)),
        ("-123456", Err(TokenError::Malformed)),
        ("-123456.0", Err(TokenError::Malformed)),
        // Above 2^53, floats do not tell integers apart.
        ("1e16", Err(TokenError::Malformed)),
        ("18446744073709551616", Err(TokenError::Malformed)),
        ("1e400", Err(TokenError::Malformed)),
        ("null", Err(TokenError::Malformed)),
        ("true", Err(TokenError::Malformed)),
        ("[123456]", Err(TokenError::Malformed)),
        (r#""""#, Err(TokenError::Malformed)),
    ];
    for (iss, expected) in rows {
        let claims = format!(r#"{{"iss":{iss},"iat":{SECONDS}}}"#);
        let token = Unverified::parse(&signed_text(r#"{"alg":"HS256"}"#, &claims, SECRET));
        let application = token.map(|token| token.application.to_string());
        assert_eq!(application, expected.map(str::to_owned), "{claims}");
    }
}

#[test]
fn an_application_id_comes_before_an_issuer() {
    for iss in ["\"other\"", "5", "null", "{}"] {
        let claims = format!(r#"{{"application_id":"{UNIFIED}","iss":{iss},"iat":{SECONDS}}}"#);
        let token = Unverified::parse(&signed_text(r#"{"alg":"HS256"}"#, &claims, SECRET)).expect("a token");
        assert_eq!(token.application.as_str(), UNIFIED, "{claims}");
    }
}

#[test]
fn null_is_absent_in_every_claim() {
    let claims = json!({
        "application_id": null, "iss": LEGACY, "ist": null, "scope": null, "session_id": null, "iat": SECONDS,
    });
    assert_eq!(checked(&claims.to_string()), Ok(()));
    // Then the header's `ist` counts, where opentok-ruby has it.
    let claims = claims.to_string();
    for (ist, expected) in [("project", None), ("account", Some(TokenError::Purpose))] {
        let header = format!(r#"{{"ist":"{ist}","alg":"HS256"}}"#);
        let token = Unverified::parse(&signed_text(&header, &claims, SECRET));
        assert_eq!(token.err(), expected, "{header}");
    }
}

#[test]
fn claims_of_another_type_or_purpose_are_refused() {
    let rows = [
        (json!({ "application_id": 5 }), TokenError::Malformed),
        (json!({ "ist": 5 }), TokenError::Malformed),
        (json!({ "scope": [] }), TokenError::Malformed),
        (json!({ "session_id": 5 }), TokenError::Malformed),
        (json!({ "ist": "account" }), TokenError::Purpose),
        (json!({ "scope": "session.connect" }), TokenError::Purpose),
        (json!({ "session_id": "2_MX4" }), TokenError::Purpose),
    ];
    for (mut claims, expected) in rows {
        claims["iss"] = json!(LEGACY);
        claims["iat"] = json!(SECONDS);
        assert_eq!(checked(&claims.to_string()), Err(expected), "{claims}");
    }
    for bad in ["", ".", "..", "a.b", "a.b.c", "e30.e30.e30", &"a".repeat(TOKEN_BYTES_MAX + 1)] {
        assert_eq!(Unverified::parse(bad).err(), Some(TokenError::Malformed), "{bad}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "[ -~]{0,200}", claims in "\\{[ -~]{0,100}\\}", value in "[-+.eE0-9]{0,20}") {
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#);
        let (_, keys) = application(false);
        let number = format!(r#"{{"iss":{value},"iat":{value},"exp":{value}}}"#);
        for token in [text, format!("{header}.{}.", URL_SAFE_NO_PAD.encode(claims)), signed_text(r#"{"alg":"HS256"}"#, &number, SECRET)] {
            if let Ok(token) = Unverified::parse(&token) {
                token.verify(&keys, after(0)).unwrap_or_default();
            }
        }
    }
}
