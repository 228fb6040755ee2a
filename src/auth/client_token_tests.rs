//! Client tokens: the claims that each SDK really sends, and what is refused.

use archiver_testkit::sdk_tokens;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use serde_json::json;

use super::super::token::tests::{after, application};
use super::*;

const NOW: Wallclock = Wallclock(1_800_000_000_000_000);
const SECONDS: i64 = 1_800_000_000;

fn keys() -> Keys {
    Keys::Legacy(vec!["secret of a project".into()])
}

fn jwt(claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", part(&json!({ "alg": "HS256" })), part(claims));
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(b"secret of a project").expect("key");
    mac.update(text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

fn t1(query: &str) -> String {
    let mut mac = Hmac::<Sha1>::new_from_slice(b"secret of a project").expect("key");
    mac.update(query.as_bytes());
    let hex: String = mac.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect();
    format!("T1=={}", STANDARD.encode(format!("partner_id=123456&sig={hex}:{query}")))
}

fn claims(change: impl FnOnce(&mut Value)) -> Value {
    let mut claims = json!({
        "iss": "123456", "ist": "project", "session_id": "2_MX4", "role": "publisher", "nonce": 0.5, "iat": SECONDS,
        "exp": SECONDS + 3600, "scope": "session.connect", "initial_layout_class_list": "focus big",
        "connection_data": "name=Alice",
    });
    change(&mut claims);
    claims
}

#[test]
fn tokens_of_each_form_say_the_same() {
    let list = claims(|c| c["initial_layout_class_list"] = json!(["focus", "big"]));
    let old = format!(
        "session_id=2_MX4&create_time={SECONDS}&nonce=0.5&role=publisher&expire_time={}&connection_data=name%3DAlice\
         &initial_layout_class_list=focus+big",
        SECONDS + 3600
    );
    for (form, token) in [("JWT", jwt(&claims(|_| {}))), ("with a list", jwt(&list)), ("T1", t1(&old))] {
        let token = ClientToken::parse(&token).unwrap_or_else(|e| panic!("{form}: {e}"));
        assert_eq!(token.verify(&keys(), NOW), Ok(()), "{form}");
        assert_eq!((token.application.as_str(), token.session.as_str()), ("123456", "2_MX4"), "{form}");
        assert_eq!((token.role, token.connection_data.as_str()), (Role::Publisher, "name=Alice"), "{form}");
        assert_eq!(
            (token.classes.join(" "), token.validity.expires_at()),
            ("focus big".to_owned(), after(3600)),
            "{form}"
        );
    }
}

const HOURS_24: i64 = 24 * 3600;
const DAYS_30: i64 = 30 * HOURS_24;

fn verified(token: &str) -> Result<(), TokenError> {
    ClientToken::parse(token).and_then(|token| token.verify(&keys(), NOW))
}

/// Verifies a JWT whose claims were changed.
fn changed(change: impl FnOnce(&mut Value)) -> Result<(), TokenError> {
    verified(&jwt(&claims(change)))
}

#[test]
fn a_token_of_each_sdk_is_valid_from_its_issue_to_its_end() {
    for made in sdk_tokens::CLIENT {
        let (application, keys) = application(made.is_unified());
        let token = ClientToken::parse(&made.issue(&application, "2_MX4", SECONDS as u64));
        let token = token.unwrap_or_else(|e| panic!("{}: {e}", made.sdk));
        let found = (token.application.as_str(), token.session.as_str(), token.role);
        assert_eq!(found, (application.id.as_str(), "2_MX4", Role::Publisher), "{}", made.sdk);
        let (end, ended) = match made.lifetime {
            Some(seconds) => (seconds as i64, ValidityError::Expired),
            None => (HOURS_24, ValidityError::TooOld(LIFETIME.default)),
        };
        assert_eq!(token.validity.expires_at(), after(end), "{}", made.sdk);
        assert_eq!(token.verify(&keys, after(0)), Ok(()), "{}", made.sdk);
        for (seconds, expected) in [
            (-61, Err(ValidityError::NotYetValid)),
            (-59, Ok(())),
            (end + 59, Ok(())),
            (end + 61, Err(ended)),
            (DAYS_30 + 61, Err(ended)),
        ] {
            assert_eq!(token.validity.check(after(seconds)), expected, "{}: {seconds} s after iat", made.sdk);
        }
    }
}

#[test]
fn the_claims_decide_from_when_and_how_long() {
    let too_long = Err(ValidityError::LifetimeTooLong(LIFETIME.max));
    let too_old = Err(ValidityError::TooOld(LIFETIME.default));
    let rows = [
        (json!({}), Err(ValidityError::NoExpiry)),
        (json!({ "iat": null, "exp": null, "create_time": null, "expire_time": null }), Err(ValidityError::NoExpiry)),
        (json!({ "iat": SECONDS, "exp": null }), Ok(())),
        (json!({ "iat": null, "create_time": SECONDS }), Ok(())),
        (json!({ "iat": SECONDS - HOURS_24 - 59 }), Ok(())),
        (json!({ "iat": SECONDS - HOURS_24 - 61 }), too_old),
        (json!({ "create_time": SECONDS - HOURS_24 - 59 }), Ok(())),
        (json!({ "create_time": SECONDS - HOURS_24 - 61 }), too_old),
        (json!({ "iat": SECONDS, "exp": SECONDS - 59 }), Ok(())),
        (json!({ "iat": SECONDS, "exp": SECONDS - 61 }), Err(ValidityError::Expired)),
        (json!({ "iat": SECONDS, "exp": null, "expire_time": SECONDS - 61 }), Err(ValidityError::Expired)),
        (json!({ "iat": SECONDS + 59 }), Ok(())),
        (json!({ "iat": SECONDS + 61 }), Err(ValidityError::NotYetValid)),
        (json!({ "create_time": SECONDS + 61 }), Err(ValidityError::NotYetValid)),
        (json!({ "iat": SECONDS, "nbf": SECONDS + 61 }), Err(ValidityError::NotYetValid)),
        (json!({ "iat": SECONDS, "exp": SECONDS + DAYS_30 + 59 }), Ok(())),
        (json!({ "iat": SECONDS, "exp": SECONDS + DAYS_30 + 61 }), too_long),
        // However little of a long life is left.
        (json!({ "iat": SECONDS - 29 * HOURS_24, "exp": SECONDS + 3600 }), Ok(())),
        (json!({ "iat": SECONDS - 30 * HOURS_24, "exp": SECONDS + 3600 }), too_long),
        (json!({ "iat": SECONDS - 1000 * HOURS_24, "exp": SECONDS + 3600 }), too_long),
        (json!({ "exp": SECONDS + DAYS_30 + 59 }), Ok(())),
        (json!({ "exp": SECONDS + DAYS_30 + 61 }), too_long),
        (json!({ "iat": SECONDS, "exp": "soon" }), Err(ValidityError::NotSeconds("exp"))),
        (json!({ "create_time": SECONDS.to_string() }), Err(ValidityError::NotSeconds("create_time"))),
    ];
    for (times, expected) in rows {
        let claims = claims(|claims| {
            let claims = claims.as_object_mut().expect("claims");
            claims.retain(|name, _| !["iat", "exp"].contains(&name.as_str()));
            claims.extend(times.as_object().expect("times").clone());
        });
        assert_eq!(verified(&jwt(&claims)), expected.map_err(TokenError::Validity), "{times}");
    }
}

#[test]
fn a_t1_token_ends_at_expire_time_or_a_day_after_create_time() {
    let too_long = Err(ValidityError::LifetimeTooLong(LIFETIME.max));
    let rows = [
        (String::new(), Err(ValidityError::NoExpiry)),
        ("&create_time=&expire_time=".to_owned(), Err(ValidityError::NoExpiry)),
        (format!("&create_time={SECONDS}"), Ok(())),
        (format!("&create_time={SECONDS}&expire_time="), Ok(())),
        (format!("&create_time={SECONDS}.5"), Ok(())),
        (format!("&create_time={}", SECONDS - HOURS_24 - 59), Ok(())),
        (format!("&create_time={}", SECONDS - HOURS_24 - 61), Err(ValidityError::TooOld(LIFETIME.default))),
        (format!("&create_time={}", SECONDS + 61), Err(ValidityError::NotYetValid)),
        (format!("&create_time={SECONDS}&expire_time={}", SECONDS - 61), Err(ValidityError::Expired)),
        (format!("&create_time={SECONDS}&expire_time={}", SECONDS + DAYS_30 + 59), Ok(())),
        (format!("&create_time={SECONDS}&expire_time={}", SECONDS + DAYS_30 + 61), too_long),
        (format!("&expire_time={}", SECONDS + DAYS_30 + 59), Ok(())),
        (format!("&expire_time={}", SECONDS + DAYS_30 + 61), too_long),
        (format!("&create_time=-1e30&expire_time={}", SECONDS + 60), too_long),
        (format!("&create_time={SECONDS}&expire_time=1e300"), too_long),
        ("&create_time=NaN".to_owned(), Err(ValidityError::NotSeconds("create_time"))),
        (format!("&create_time={SECONDS}&expire_time=inf"), Err(ValidityError::NotSeconds("expire_time"))),
        (format!("&create_time={SECONDS}&expire_time=never"), Err(ValidityError::NotSeconds("expire_time"))),
    ];
    for (times, expected) in rows {
        let token = t1(&format!("session_id=2_MX4{times}"));
        assert_eq!(verified(&token), expected.map_err(TokenError::Validity), "{times}");
    }
}

#[test]
fn a_t1_token_is_read_in_both_alphabets_of_base64() {
    let token = t1(&format!("session_id=2_MX4&create_time={SECONDS}&connection_data=???>>>~~~"));
    let inner = STANDARD.decode(&token[4..]).expect("base64");
    let url_safe = format!("T1=={}", URL_SAFE.encode(inner));
    assert!(token.contains('+') && token.contains('/') && token != url_safe, "{token} shows no difference");
    for token in [token, url_safe] {
        let token = ClientToken::parse(&token).unwrap_or_else(|e| panic!("{token}: {e}"));
        assert_eq!((token.verify(&keys(), NOW), token.connection_data.as_str()), (Ok(()), "???>>>~~~"));
    }
}

#[test]
fn the_issuer_is_a_string_or_a_whole_number() {
    let rows = [
        (json!("123456"), Ok(())),
        (json!(123_456), Ok(())),
        (json!(123_456.0), Ok(())),
        (json!(123_456.5), Err(TokenError::Malformed)),
        (json!(-123_456), Err(TokenError::Malformed)),
        (json!(null), Err(TokenError::Malformed)),
    ];
    for (iss, expected) in rows {
        let parsed = ClientToken::parse(&jwt(&claims(|c| c["iss"] = iss.clone())));
        let application = parsed.map(|token| assert_eq!(token.application.as_str(), "123456", "{iss}"));
        assert_eq!(application, expected, "{iss}");
    }
}

#[test]
fn null_is_absent_in_every_claim() {
    let token = jwt(&json!({
        "application_id": null, "iss": "123456", "ist": null, "scope": null, "role": null, "nbf": null, "data": null,
        "connection_data": null, "initial_layout_class_list": null, "session_id": "2_MX4", "iat": SECONDS,
    }));
    let token = ClientToken::parse(&token).expect("a token");
    assert_eq!((token.role, token.connection_data.as_str()), (Role::Publisher, ""));
    assert_eq!(token.verify(&keys(), NOW), Ok(()));
}

#[test]
fn claims_of_another_type_or_purpose_are_refused() {
    assert_eq!(changed(|c| c["scope"] = json!("else")), Err(TokenError::Purpose));
    assert_eq!(changed(|c| c["scope"] = json!(5)), Err(TokenError::Malformed));
    assert_eq!(changed(|c| c["session_id"] = json!(null)), Err(TokenError::Purpose));
    assert_eq!(changed(|c| c["session_id"] = json!(5)), Err(TokenError::Malformed));
    assert_eq!(changed(|c| c["role"] = json!("king")), Err(TokenError::Malformed));
    assert_eq!(changed(|c| c["role"] = json!(5)), Err(TokenError::Malformed));
    // Of no consequence for who gets in.
    assert_eq!(changed(|c| c["connection_data"] = json!({ "name": "Alice" })), Ok(()));
    assert_eq!(changed(|c| c["initial_layout_class_list"] = json!(5)), Ok(()));
    for bad in ["", "T1==", "T1==????", "a.b", "a.b.c", "T1==cGFydG5lcl9pZD0x"] {
        assert!(ClientToken::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn only_the_applications_key_signs() {
    let other = Keys::Legacy(vec!["another secret".into()]);
    let token = ClientToken::parse(&jwt(&claims(|_| {}))).expect("a token");
    assert_eq!(token.verify(&other, NOW), Err(TokenError::Signature));
    let token = t1(&format!("session_id=2_MX4&create_time={SECONDS}"));
    let text = String::from_utf8(STANDARD.decode(&token[4..]).expect("base64")).expect("text");
    let tampered = format!("T1=={}", STANDARD.encode(text.replace("2_MX4", "2_MX5")));
    assert_eq!(verified(&tampered), Err(TokenError::Signature));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "(T1==)?[ -~]{0,200}", query in "[ -~]{0,200}", claims in "\\{[ -~]{0,100}\\}") {
        let coded = URL_SAFE_NO_PAD.encode(&claims);
        for token in [text, t1(&query), format!("{coded}.{coded}.{coded}"), jwt(&claims.into())] {
            if let Ok(token) = ClientToken::parse(&token) {
                token.verify(&keys(), NOW).unwrap_or_default();
            }
        }
    }
}
