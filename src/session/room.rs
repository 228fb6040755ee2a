//! The room of a session: its id at the media router, its pin, its secret.

use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::model::ids::{RoomId, SessionId};

/// Length of a derived pin or secret: 128 bits in hex.
const DERIVED_CHARS: usize = 32;

/// The id of a session's room: the session's id, or a hash of it where the router uses numeric ids (`string_ids = false`). The
/// number is 1 to 2^53 - 1, which every JSON reader keeps exactly. The catalog refuses a second session with the same number.
///
/// # Panics
/// Never: every session id is a valid room id.
#[must_use]
pub fn room_of(session: &SessionId, string_ids: bool) -> RoomId {
    if string_ids {
        return session.as_str().parse().expect("every session id is a valid room id");
    }
    let hash = Sha256::digest(session.as_str());
    let number = hash.iter().take(8).fold(0_u64, |number, byte| (number << 8) | u64::from(*byte)) >> 11;
    number.max(1).to_string().parse().expect("digits are a valid room id")
}

/// A new id for a room or a feed: a UUID behind `prefix`, or a number where the router uses numeric ids.
#[must_use]
pub fn random_id(prefix: &str, string_ids: bool) -> String {
    let random = uuid::Uuid::new_v4();
    if string_ids {
        return format!("{prefix}{random}");
    }
    // Every JSON reader keeps a number of 53 bits exactly.
    (random.as_u64_pair().1 & ((1 << 53) - 1)).max(1).to_string()
}

/// The pin of a room that this program created, derived from the router's `room_key`.
#[must_use]
pub fn derived_pin(room_key: &SecretString, room: &RoomId) -> String {
    derived(room_key, room.as_str())
}

/// The secret of a room that this program created. Janus requires it to change or remove the room, or to kick participants; without
/// a secret, every client could do so.
#[must_use]
pub fn derived_secret(key: &SecretString, room: &RoomId) -> String {
    // Different from the text of every pin: a room id has no space.
    derived(key, &format!("secret of {room}"))
}

fn derived(key: &SecretString, text: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose_secret().as_bytes()).expect("a key of any length");
    mac.update(text.as_bytes());
    let hex: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    hex[..DERIVED_CHARS].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_is_called_as_its_session_or_has_its_number() {
        let session: SessionId = "2_MX4xMjM0NTY-fn5-".parse().expect("id");
        assert_eq!(room_of(&session, true).as_str(), session.as_str());
        let number: u64 = room_of(&session, false).as_str().parse().expect("a number");
        assert!((1..1 << 53).contains(&number));
        assert_eq!(room_of(&session, false), room_of(&session, false));
        assert_ne!(room_of(&session, false), room_of(&"another".parse().expect("id"), false));
        let longest: SessionId = "s".repeat(255).parse().expect("id");
        assert_eq!(room_of(&longest, true).as_str(), longest.as_str());
    }

    #[test]
    fn a_new_id_is_a_text_or_a_number_and_always_another() {
        let text = random_id("check-", true);
        assert!(text.starts_with("check-") && text != random_id("check-", true));
        let number = random_id("check-", false);
        assert!((1..1 << 53).contains(&number.parse::<u64>().expect("a number")) && number != random_id("", false));
    }

    #[test]
    fn each_room_has_a_pin_and_a_secret_of_its_own() {
        let (key, other) = (SecretString::from("key"), SecretString::from("other key"));
        let (a, b): (RoomId, RoomId) = ("a".parse().expect("room"), "b".parse().expect("room"));
        // openssl: printf a | openssl dgst -sha256 -hmac key
        assert_eq!(derived_pin(&key, &a), "780c3db4ce3de5b9e55816fba98f5906");
        let all = [derived_pin(&key, &a), derived_pin(&key, &b), derived_pin(&other, &a), derived_secret(&key, &a)];
        for (n, one) in all.iter().enumerate() {
            assert!(one.len() == DERIVED_CHARS && !all[..n].contains(one), "{all:?}");
        }
    }
}
