//! Session ids in the form that the SDKs of Vonage and OpenTok parse.
//!
//! `1_` or `2_`, then URL-safe base64 without padding of fields separated by `~`: version, application, location hint or nothing,
//! time, random number, flags. opentok-node reads the second field before it creates a client token, .NET expects a number there, and
//! PHP decodes the pieces between `-`.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::model::ids::{ApplicationId, SessionId};
use crate::model::time::Wallclock;

/// The fields of a session id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionIdFields {
    /// The session's application.
    pub application: ApplicationId,
    /// The location hint: the address of its first client.
    pub location: Option<IpAddr>,
    /// When it was created, to the millisecond.
    pub created_at: Wallclock,
}

/// A new id. `random` makes it unique: 128 bits from a source that cannot be guessed.
///
/// # Panics
/// Never: the fields are short, and ids may have all characters of base64.
#[must_use]
pub fn encode(fields: &SessionIdFields, random: u128) -> SessionId {
    let SessionIdFields { application, location, created_at } = fields;
    let location = location.map(|ip| ip.to_string()).unwrap_or_default();
    let text = format!("1~{application}~{location}~{}~{random:032x}~P~~", created_at.as_millis());
    format!("2_{}", URL_SAFE_NO_PAD.encode(text)).parse().expect("base64 is an id")
}

/// Reads an id of [`encode`] or of Vonage. `None` for other ids: any short name may be a session's id.
#[must_use]
pub fn decode(id: &SessionId) -> Option<SessionIdFields> {
    let coded = id.as_str().strip_prefix("1_").or_else(|| id.as_str().strip_prefix("2_"))?;
    let bytes = URL_SAFE_NO_PAD.decode(coded.trim_end_matches('=')).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let mut fields = text.split('~').skip(1);
    let application = fields.next()?.parse().ok()?;
    let location = fields.next()?.parse().ok();
    // Older ids have a textual time there.
    let created = fields.next()?.parse::<i64>().map_or(0, |ms| ms.saturating_mul(1000));
    Some(SessionIdFields { application, location, created_at: Wallclock(created) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_tells_what_it_was_made_of() {
        for (application, location) in [
            ("123456", None),
            ("123456", Some("203.0.113.7")),
            ("a98e12ca-5b2f-4cc3-9d5b-fd4b5f30b9e9", None),
            ("a98e12ca-5b2f-4cc3-9d5b-fd4b5f30b9e9", Some("2001:db8::1")),
        ] {
            let fields = SessionIdFields {
                application: application.parse().expect("id"),
                location: location.map(|ip| ip.parse().expect("address")),
                created_at: Wallclock(1_727_870_434_974_000),
            };
            let id = encode(&fields, 7);
            assert_eq!(decode(&id), Some(fields), "{id}");
            assert!(id.as_str().starts_with("2_MX"), "{id}");
        }
    }

    #[test]
    fn the_sdks_find_the_application_in_it() {
        let fields = SessionIdFields {
            application: "45828062".parse().expect("id"),
            location: None,
            created_at: Wallclock(1_727_870_434_974_000),
        };
        let id = encode(&fields, u128::MAX);
        // opentok-node: without the prefix, in the ordinary alphabet, the second field is the key.
        let ordinary = id.as_str()[2..].replace('-', "+").replace('_', "/");
        let text = base64::engine::general_purpose::STANDARD_NO_PAD.decode(ordinary).expect("base64");
        assert_eq!(String::from_utf8(text).expect("text").split('~').nth(1), Some("45828062"));
        // opentok-php: the piece up to the first `-` has the key.
        let piece = id.as_str()[2..].split('-').next().expect("a piece");
        // As lenient as PHP: what is left of the last byte is passed over.
        let lenient = base64::engine::GeneralPurposeConfig::new()
            .with_decode_allow_trailing_bits(true)
            .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent);
        let lenient = base64::engine::GeneralPurpose::new(&base64::alphabet::URL_SAFE, lenient);
        let text = String::from_utf8(lenient.decode(piece).expect("base64")).expect("text");
        assert_eq!(text.split('~').nth(1), Some("45828062"), "{id}");
    }

    #[test]
    fn ids_of_vonage_are_read_and_others_are_not_theirs() {
        let coded = |text: &str| format!("1_{}", URL_SAFE_NO_PAD.encode(text)).parse::<SessionId>().expect("id");
        let old = decode(&coded("1~100~127.0.0.1~Tue Jan 28 15:48:40 PST 2014~0.7602962~")).expect("fields");
        assert_eq!((old.application.as_str(), old.created_at), ("100", Wallclock(0)));
        assert_eq!(old.location, Some("127.0.0.1".parse().expect("address")));
        for other in ["meeting-7", "1_", "2_????", "1_MX4", "3_MX4xMDB-fg"] {
            if let Ok(id) = other.parse() {
                assert_eq!(decode(&id), None, "{other}");
            }
        }
    }
}
