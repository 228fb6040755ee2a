//! What a client needs to join a session's room at the media router. Never contains the router's `api_secret`. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::Value;
use sha1::Sha1;

use super::room::derived_pin;
use crate::config::RouterSection;
use crate::model::session::{RoomAccess, RouterRoom};
use crate::model::time::Wallclock;

/// The realm and the plugin that a token permits.
const SCOPE: &str = "janus,janus.plugin.videoroom";

/// What a client needs to join a room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientAccess {
    /// `wss://` of Janus.
    pub url: String,
    /// The room as Janus wants it in requests: a text, or a number where `string_ids = false`.
    pub room: Value,
    /// The room's pin, for the `join` request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pin: Option<String>,
    /// The `token` of each request to Janus. Absent if the configuration has no `token_secret`; then Janus must accept requests without
    /// a token, because clients never get the `api_secret`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// When the token expires, in seconds since 1970. Janus disconnects clients with an expired token, so the client needs another one
    /// before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<i64>,
}

/// The access of a client whose token ends at `expires`.
#[must_use]
pub fn client_access(router: &RouterSection, place: &RouterRoom, expires: Wallclock) -> ClientAccess {
    let room = router_value(router, place.room.as_str());
    let shared = || router.pin.as_ref().map(|pin| pin.expose_secret().to_owned());
    let pin = match (place.access, &router.room_key) {
        (RoomAccess::Derived, Some(key)) => Some(derived_pin(key, &place.room)),
        _ => shared(),
    };
    let token = router.token_secret.as_ref().map(|secret| signed_token(secret, expires));
    ClientAccess {
        url: router.public_url.clone().unwrap_or_else(|| router.url.clone()),
        room,
        pin,
        expires: token.is_some().then(|| expires.0.div_euclid(1_000_000)),
        token,
    }
}

/// The id of a room or a feed as Janus wants it: a text, or a number where `string_ids = false`.
#[must_use]
pub fn router_value(router: &RouterSection, id: &str) -> Value {
    match id.parse::<u64>() {
        Ok(number) if !router.string_ids => number.into(),
        _ => id.into(),
    }
}

/// The kind of pin that new rooms at a router have.
#[must_use]
pub const fn access_at(router: &RouterSection) -> RoomAccess {
    if router.room_key.is_some() { RoomAccess::Derived } else { RoomAccess::Shared }
}

/// A token for Janus's signed mode (`token_auth_secret`; `auth.c` of Janus 1.1.2): expiry, realm and plugin, signed with HMAC-SHA1.
#[must_use]
pub fn signed_token(secret: &SecretString, expires: Wallclock) -> String {
    let text = format!("{},{SCOPE}", expires.0.div_euclid(1_000_000));
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.expose_secret().as_bytes()).expect("a key of any length");
    mac.update(text.as_bytes());
    format!("{text}:{}", STANDARD.encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const EXPIRES: Wallclock = Wallclock(1_800_000_000_900_000);

    fn router(more: &str) -> RouterSection {
        toml::from_str(&format!("name = \"j\"\nurl = \"ws://inside:8188\"\napi_secret = \"never told\"\n{more}"))
            .expect("section")
    }

    fn place(room: &str, access: RoomAccess) -> RouterRoom {
        RouterRoom { name: "j".parse().expect("name"), room: room.parse().expect("room"), access }
    }

    #[test]
    fn a_client_is_given_what_the_router_needs_and_no_more() {
        let bare = client_access(&router(""), &place("r", RoomAccess::Shared), EXPIRES);
        assert_eq!(serde_json::to_value(bare).expect("json"), json!({ "url": "ws://inside:8188", "room": "r" }));
        let full = router(
            "pin = \"1234\"\nroom_key = \"key\"\ntoken_secret = \"secret\"\npublic_url = \"wss://out\"\nstring_ids = false",
        );
        let derived = client_access(&full, &place("77", RoomAccess::Derived), EXPIRES);
        assert_eq!((derived.url.as_str(), &derived.room), ("wss://out", &json!(77)));
        assert_eq!(derived.pin, Some(derived_pin(&"key".into(), &"77".parse().expect("room"))));
        assert_eq!(derived.expires, Some(1_800_000_000));
        let shared = client_access(&full, &place("77", RoomAccess::Shared), EXPIRES);
        assert_eq!(shared.pin.as_deref(), Some("1234"));
        assert!(!serde_json::to_string(&derived).expect("json").contains("never told"));
        assert_eq!((access_at(&full), access_at(&router(""))), (RoomAccess::Derived, RoomAccess::Shared));
    }

    #[test]
    fn a_token_is_signed_as_janus_checks_it() {
        // openssl: printf 1800000000,janus,janus.plugin.videoroom | openssl dgst -sha1 -hmac secret -binary | base64
        let expected = "1800000000,janus,janus.plugin.videoroom:zPm/xOEn0v9cOn0lYlqikmKIXLM=";
        assert_eq!(signed_token(&"secret".into(), EXPIRES), expected);
    }
}
