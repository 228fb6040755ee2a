//! Clients' tokens, as the SDKs' token methods make them (`vonage-api.md` 1.9): RS256 of unified applications, HS256 of legacy
//! projects, and the older `T1==` form. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use secrecy::ExposeSecret;
use serde_json::Value;
use sha1::Sha1;

use super::token::{Keys, Signed, TOKEN_BYTES_MAX, TokenError};
use crate::ids::{ApplicationId, SessionId};
use crate::ops::desire::{CLASSES_MAX, check_classes};
use crate::time::Wallclock;

/// Longest connection data, in characters (Vonage: 1,000; some SDKs check 1,024).
const DATA_CHARS_MAX: usize = 1024;
/// A client's token is valid for so long at most, in seconds (Vonage: 30 days).
const LIFETIME_MAX: i64 = 30 * 24 * 3600;
/// A `T1==` token that does not say when it ends does so after this, in seconds (`OpenTok`: 24 hours).
const LIFETIME: i64 = 24 * 3600;
/// Clocks may differ by so much, in seconds.
const SKEW: i64 = 60;

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

/// A token that was taken apart, and is not believed yet.
#[derive(Debug)]
pub struct ClientToken {
    signed: Signature,
    /// The application that it says it is of.
    pub application: ApplicationId,
    /// The session that it lets into.
    pub session: SessionId,
    /// What its client may do.
    pub role: Role,
    /// What others are told of its client.
    pub connection_data: String,
    /// The layout classes that its streams begin with.
    pub classes: Vec<String>,
    /// Seconds since 1970.
    pub expires: i64,
    begins: i64,
    /// When it was made, if it says so.
    issued: Option<i64>,
}

#[derive(Debug)]
enum Signature {
    Jwt(Signed),
    /// The text that is signed, and its HMAC-SHA1.
    T1(String, Vec<u8>),
}

impl ClientToken {
    /// Takes a token apart.
    ///
    /// # Errors
    /// When it is none, or one of something else.
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
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        if text("scope").is_some_and(|scope| scope != "session.connect") {
            return Err(TokenError::Purpose);
        }
        let seconds = |name: &str| claims.get(name).and_then(Value::as_f64).filter(|s| s.is_finite());
        let session = text("session_id").ok_or(TokenError::Purpose)?;
        let application = text("application_id").or_else(|| text("iss")).ok_or(TokenError::Malformed)?;
        let expires = seconds("exp").or_else(|| seconds("expire_time")).ok_or(TokenError::Endless)?;
        let begins = [seconds("iat"), seconds("nbf"), seconds("create_time")].into_iter().flatten().fold(0.0, f64::max);
        let issued = seconds("iat").or_else(|| seconds("create_time")).map(whole);
        let classes = match claims.get("initial_layout_class_list") {
            // vonage-python sends a list.
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            Some(Value::String(words)) => words.split_whitespace().map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        let data = text("connection_data").or_else(|| text("data")).unwrap_or_default();
        Self::checked(
            Signature::Jwt(signed),
            (application, session, text("role").unwrap_or_default(), data),
            classes,
            (whole(begins), whole(expires), issued),
        )
    }

    fn t1(coded: &str) -> Result<Self, TokenError> {
        let text = STANDARD.decode(coded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let text = text.ok_or(TokenError::Malformed)?;
        let (head, query) = text.split_once(':').ok_or(TokenError::Malformed)?;
        let fields = |text: &str| -> Vec<(String, String)> {
            url::form_urlencoded::parse(text.as_bytes()).into_owned().collect()
        };
        let find = |list: &[(String, String)], name: &str| {
            list.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
        };
        let (head, values) = (fields(head), fields(query));
        let application = find(&head, "partner_id").ok_or(TokenError::Malformed)?;
        let signature = find(&head, "sig").and_then(|hex| unhex(&hex)).ok_or(TokenError::Malformed)?;
        let session = find(&values, "session_id").ok_or(TokenError::Malformed)?;
        let number = |name: &str| find(&values, name).and_then(|text| text.parse::<f64>().ok());
        let begins = whole(number("create_time").ok_or(TokenError::Endless)?);
        let expires = number("expire_time").map_or(begins.saturating_add(LIFETIME), whole);
        let words = find(&values, "initial_layout_class_list").unwrap_or_default();
        let (role, data) = (find(&values, "role"), find(&values, "connection_data"));
        Self::checked(
            Signature::T1(query.to_owned(), signature),
            (&application, &session, role.as_deref().unwrap_or_default(), data.as_deref().unwrap_or_default()),
            words.split_whitespace().map(str::to_owned).collect(),
            (begins, expires, Some(begins)),
        )
    }

    fn checked(
        signed: Signature,
        (application, session, role, data): (&str, &str, &str, &str),
        mut classes: Vec<String>,
        (begins, expires, issued): (i64, i64, Option<i64>),
    ) -> Result<Self, TokenError> {
        // Classes that cannot be some must not keep a client out of its session.
        classes.retain(|class| check_classes(std::slice::from_ref(class)).is_ok());
        classes.truncate(CLASSES_MAX);
        Ok(Self {
            signed,
            application: application.parse().map_err(|_| TokenError::Malformed)?,
            session: session.parse().map_err(|_| TokenError::Malformed)?,
            role: Role::of(role).ok_or(TokenError::Malformed)?,
            connection_data: data.chars().filter(|c| !c.is_control()).take(DATA_CHARS_MAX).collect(),
            classes,
            expires,
            begins,
            issued,
        })
    }

    /// Whether one of the application's keys has signed it, and whether it is valid now.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn verify(&self, keys: &Keys, now: Wallclock) -> Result<(), TokenError> {
        let good = match (&self.signed, keys) {
            (Signature::Jwt(signed), keys) => signed.is_by(keys),
            (Signature::T1(text, signature), Keys::Legacy(secrets)) => secrets.iter().any(|secret| {
                let mac = Hmac::<Sha1>::new_from_slice(secret.expose_secret().as_bytes());
                let mut mac = mac.expect("a key of any length will do");
                mac.update(text.as_bytes());
                mac.verify_slice(signature).is_ok()
            }),
            (Signature::T1(..), Keys::Unified(_)) => false,
        };
        if !good {
            return Err(TokenError::Signature);
        }
        let now = now.as_millis() / 1000;
        if self.expires.saturating_add(SKEW) < now {
            return Err(TokenError::Expired);
        }
        if self.begins > now + SKEW {
            return Err(TokenError::Future);
        }
        let lifetime = self.expires.saturating_sub(self.issued.unwrap_or(now));
        if lifetime > LIFETIME_MAX + SKEW { Err(TokenError::Endless) } else { Ok(()) }
    }
}

#[allow(clippy::cast_possible_truncation)]
const fn whole(seconds: f64) -> i64 {
    // A cast of a float saturates.
    seconds as i64
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) || text.len() > 64 {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::json;

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
            assert_eq!((token.classes.join(" "), token.expires), ("focus big".to_owned(), SECONDS + 3600), "{form}");
        }
    }

    #[test]
    fn who_may_not_come_in_does_not() {
        let verified = |token: &str, keys: &Keys| ClientToken::parse(token).and_then(|t| t.verify(keys, NOW));
        let of = |change: fn(&mut Value)| verified(&jwt(&claims(change)), &keys());
        assert_eq!(of(|c| c["exp"] = json!(SECONDS - 61)), Err(TokenError::Expired));
        assert_eq!(of(|c| c["iat"] = json!(SECONDS + 61)), Err(TokenError::Future));
        assert_eq!(of(|c| c["exp"] = json!(SECONDS + LIFETIME_MAX + 61)), Err(TokenError::Endless));
        assert_eq!(of(|c| drop(c.as_object_mut().and_then(|c| c.remove("exp")))), Err(TokenError::Endless));
        // It was made long ago to last for long: that it has not much time left does not make it a good one.
        let made_ago = |c: &mut Value, days: i64| {
            c["iat"] = json!(SECONDS - days * 24 * 3600);
            c["exp"] = json!(SECONDS + 3600);
        };
        let cases = [(29, Ok(())), (30, Err(TokenError::Endless)), (1000, Err(TokenError::Endless))];
        for (days, expected) in cases {
            assert_eq!(verified(&jwt(&claims(|c| made_ago(c, days))), &keys()), expected, "{days} days");
        }
        // Without that, from now on.
        let silent = |c: &mut Value, exp: i64| {
            c.as_object_mut().expect("claims").remove("iat");
            c["exp"] = json!(exp);
        };
        for (exp, expected) in [(LIFETIME_MAX, Ok(())), (LIFETIME_MAX + 61, Err(TokenError::Endless))] {
            assert_eq!(verified(&jwt(&claims(|c| silent(c, SECONDS + exp))), &keys()), expected, "{exp}");
        }
        let extreme = t1(&format!("session_id=2_MX4&create_time=-1e30&expire_time={}", SECONDS + 60));
        assert_eq!(verified(&extreme, &keys()), Err(TokenError::Endless));
        assert_eq!(of(|c| c["scope"] = json!("else")), Err(TokenError::Purpose));
        assert_eq!(of(|c| drop(c.as_object_mut().and_then(|c| c.remove("session_id")))), Err(TokenError::Purpose));
        assert_eq!(of(|c| c["role"] = json!("king")), Err(TokenError::Malformed));
        let other = Keys::Legacy(vec!["another secret".into()]);
        assert_eq!(verified(&jwt(&claims(|_| {})), &other), Err(TokenError::Signature));
        let old = t1(&format!("session_id=2_MX4&create_time={}", SECONDS - LIFETIME - 61));
        assert_eq!(verified(&old, &keys()), Err(TokenError::Expired));
        let tampered = t1("session_id=2_MX4&create_time=1800000000");
        let text = STANDARD.decode(&tampered[4..]).expect("base64");
        let text = String::from_utf8(text).expect("text").replace("2_MX4", "2_MX5");
        assert_eq!(verified(&format!("T1=={}", STANDARD.encode(text)), &keys()), Err(TokenError::Signature));
        for bad in ["", "T1==", "T1==????", "a.b", "a.b.c", "T1==cGFydG5lcl9pZD0x"] {
            assert!(ClientToken::parse(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_comes_makes_it_panic(text in "(T1==)?[ -~]{0,200}", query in "[ -~]{0,200}", claims in "\\{[ -~]{0,100}\\}") {
            let coded = URL_SAFE_NO_PAD.encode(&claims);
            for token in [text, t1(&query), format!("{coded}.{coded}.{coded}"), jwt(&claims.into())] {
                if let Ok(token) = ClientToken::parse(&token) {
                    token.verify(&keys(), NOW).unwrap_or_default();
                }
            }
        }
    }
}
