//! The identity of a client in a room: a signature that ties the feed, the stream id and the connection data that the API gave out to
//! one another. Anybody in a room can copy what another client says of itself; nobody but this program can sign it. Pure.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use crate::model::ids::RoomId;

/// What is signed. The room is the session's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity<'a> {
    /// The room.
    pub room: &'a RoomId,
    /// The id with which the client joins the room: new at each join, so a copied signature is worth nothing.
    pub feed: &'a str,
    /// The id of the stream that the client publishes.
    pub stream: &'a str,
    /// The data of the client's token.
    pub connection_data: &'a str,
}

impl Identity<'_> {
    fn mac(&self, room_key: &SecretString) -> Hmac<Sha256> {
        let mut mac = Hmac::new_from_slice(room_key.expose_secret().as_bytes()).expect("a key of any length");
        // A JSON list says where each part ends. No pin and no secret is made of such a text.
        let parts = serde_json::json!(["identity", self.room, self.feed, self.stream, self.connection_data]);
        mac.update(parts.to_string().as_bytes());
        mac
    }

    /// The signature, made with the router's `room_key`: 43 characters.
    #[must_use]
    pub fn sign(&self, room_key: &SecretString) -> String {
        URL_SAFE_NO_PAD.encode(self.mac(room_key).finalize().into_bytes())
    }

    /// Whether `signature` is the one of this identity.
    #[must_use]
    pub fn is_signed(&self, room_key: &SecretString, signature: &str) -> bool {
        URL_SAFE_NO_PAD.decode(signature).is_ok_and(|bytes| self.mac(room_key).verify_slice(&bytes).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_of_all_its_parts_and_of_the_key() {
        let (key, other_key) = (SecretString::from("key"), SecretString::from("other"));
        let (room, other_room): (RoomId, RoomId) = ("r".parse().expect("room"), "s".parse().expect("room"));
        let identity = Identity { room: &room, feed: "f", stream: "st", connection_data: "u=1" };
        let signature = identity.sign(&key);
        assert!(signature.len() == 43 && identity.is_signed(&key, &signature));
        for (name, other) in [
            ("room", Identity { room: &other_room, ..identity }),
            ("feed", Identity { feed: "g", ..identity }),
            ("stream", Identity { stream: "s", ..identity }),
            ("data", Identity { connection_data: "u=2", ..identity }),
            ("a part moved", Identity { feed: "fs", stream: "t", ..identity }),
        ] {
            assert!(!other.is_signed(&key, &signature), "{name}");
        }
        assert!(!identity.is_signed(&other_key, &signature));
        for wrong in ["", "x", &signature[1..], &format!("{signature}A"), "ü"] {
            assert!(!identity.is_signed(&key, wrong), "{wrong:?}");
        }
    }
}
