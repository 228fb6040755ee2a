//! Whether a room's publishers must encrypt end to end.
//!
//! Janus before 1.3 tells subscribers nothing of encryption, but its list of rooms has `require_e2ee`: private rooms are listed only with
//! the admin key.

use serde_json::json;

use super::control::{data, with_admin_key};
use super::socket::Socket;
use super::{JanusConfig, wire};
use crate::model::fault::chain;
use crate::model::ids::RoomId;

const DOING: &str = "list the rooms";

/// Asks Janus; `None` when it does not say.
pub(super) async fn is_required(
    config: &JanusConfig,
    room: &RoomId,
    socket: &mut Socket,
    session: u64,
    handle: u64,
) -> Option<bool> {
    let body = with_admin_key(config, json!({ "request": "list" }));
    let request = json!({ "janus": "message", "session_id": session, "handle_id": handle, "body": body });
    let listed = socket
        .request(request, DOING)
        .await
        .and_then(|answer| wire::error(&config.name, None, DOING, &answer).map_or(Ok(answer), Err));
    match listed {
        Ok(answer) => Some(data(&answer).is_some_and(|data| wire::requires_encryption(data, room))),
        Err(error) => {
            tracing::debug!(router = config.name, %room, "{}", chain(&error));
            None
        }
    }
}
