//! The room of a session: its name at the router, its pin, its secret. Pure.

use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::model::ids::{RoomId, SessionId};

/// Characters of a pin or secret that is derived: 128 bits in hex.
const DERIVED_CHARS: usize = 32;

/// The room of a session: called as the session, or with a number made from its id where the router knows numbers only
/// (`string_ids = false`). The number is 1 to 2^53 - 1, so that every JSON reader has it exactly; two sessions with one number
/// are as good as impossible, and the catalog refuses the second.
///
/// # Panics
/// Never: what a session may be called a room may be called, too.
#[must_use]
pub fn room_of(session: &SessionId, string_ids: bool) -> RoomId {
    if string_ids {
        return session.as_str().parse().expect("rooms may be called as sessions");
    }
    let hash = Sha256::digest(session.as_str());
    let number = hash.iter().take(8).fold(0_u64, |number, byte| (number << 8) | u64::from(*byte)) >> 11;
    number.max(1).to_string().parse().expect("digits are a name")
}

/// The pin of a room that this program created, made of the router's `room_key`.
#[must_use]
pub fn derived_pin(room_key: &SecretString, room: &RoomId) -> String {
    derived(room_key, room.as_str())
}

/// The secret of a room that this program created: with it a room is changed or removed, and people are sent out of it. Janus
/// lets everybody do that in a room that has none.
#[must_use]
pub fn derived_secret(key: &SecretString, room: &RoomId) -> String {
    // No room is called so: a name has no space.
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
