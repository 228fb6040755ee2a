//! Whether a room's publishers must encrypt end to end.
//!
//! Janus before 1.3 tells subscribers nothing of encryption, but its list of rooms has `require_e2ee`: private rooms are listed only with
//! the admin key. Nobody waits for the answer, which may be long.

use serde_json::{Value, json};

use super::control::{data, with_admin_key};
use super::{JanusConfig, wire};
use crate::model::fault::chain;
use crate::model::ids::RoomId;

/// The transaction of the question.
pub(super) const TRANSACTION: &str = "rooms";
/// A list that breaks the connection each time must not keep a room from being recorded.
const ASKED_MAX: u8 = 3;

/// The question, and how often it was asked.
#[derive(Debug, Default)]
pub(super) struct Question {
    asked: u8,
}

impl Question {
    /// The message that asks once more; `None` if it was asked often enough.
    pub fn ask(&mut self, config: &JanusConfig, room: &RoomId, session: u64, handle: u64) -> Option<Value> {
        if self.asked >= ASKED_MAX {
            return None;
        }
        self.asked += 1;
        if self.asked == ASKED_MAX {
            tracing::warn!(
                router = config.name, %room,
                "the list of rooms is asked for the last time: without it, encrypted sound without pictures is mixed as noise"
            );
        }
        Some(json!({
            "janus": "message", "session_id": session, "handle_id": handle, "transaction": TRANSACTION,
            "body": with_admin_key(config, json!({ "request": "list" })),
        }))
    }
}

/// Reads the answer; `None` when it does not say.
pub(super) fn answer(config: &JanusConfig, room: &RoomId, answer: &Value) -> Option<bool> {
    match wire::error(&config.name, None, "list the rooms", answer) {
        None => Some(data(answer).is_some_and(|data| wire::requires_encryption(data, room))),
        Some(error) => {
            tracing::warn!(router = config.name, %room, "it is not known whether the room requires encryption: {}", chain(&error));
            None
        }
    }
}
