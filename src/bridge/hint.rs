//! Reads hints from the messages of Janus's event handler. Pure. A hint is a reason to look at a room, never the truth about it.

use serde_json::Value;

use crate::model::ids::RoomId;
use crate::router::janus::wire;

/// Largest message that is read, in bytes. Janus groups up to a hundred events, some of them with all their tracks.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Events of one message that are read. Janus groups a hundred at most.
const EVENTS_MAX: usize = 1000;
/// Types of events (`events.h` of Janus): of a plugin, of Janus itself.
const PLUGIN_EVENT: u64 = 64;
const CORE_EVENT: u64 = 256;
/// The subtype of the event that Janus sends when it starts.
const STARTED_SUBTYPE: u64 = 1;
/// Events of VideoRoom after which the bridge may have to act on the room.
const RELEVANT_EVENTS: &[&str] = &["created", "joined", "published", "unpublished", "leaving", "kicked", "destroyed"];

/// A reason to look at rooms.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hint {
    /// At one room.
    Room(RoomId),
    /// At all rooms: Janus has just started, and has lost its rooms.
    AllRooms,
}

/// Reads a message: one event, or an array of events. `None` when it is not a message of Janus.
#[must_use]
pub fn read(body: &[u8]) -> Option<Vec<Hint>> {
    if body.len() > MESSAGE_BYTES_MAX {
        return None;
    }
    // serde_json limits the depth.
    match serde_json::from_slice::<Value>(body).ok()? {
        Value::Array(events) => Some(events.iter().take(EVENTS_MAX).filter_map(hint).collect()),
        event @ Value::Object(_) => Some(hint(&event).into_iter().collect()),
        _ => None,
    }
}

fn hint(event: &Value) -> Option<Hint> {
    let number = |key: &str| event.get(key).and_then(Value::as_u64);
    match number("type")? {
        CORE_EVENT if number("subtype") == Some(STARTED_SUBTYPE) => Some(Hint::AllRooms),
        PLUGIN_EVENT => {
            let data = event.get("event")?.get("data")?;
            let name = data.get("event")?.as_str()?;
            let room = RELEVANT_EVENTS.contains(&name).then(|| wire::id(data.get("room")?))??;
            room.parse().ok().map(Hint::Room)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn hints(message: &Value) -> Option<Vec<Hint>> {
        read(message.to_string().as_bytes())
    }

    fn plugin(data: &Value) -> Value {
        json!({ "emitter": "e", "type": 64, "timestamp": 1, "event": { "plugin": "janus.plugin.videoroom", "data": data } })
    }

    fn room(name: &str) -> Hint {
        Hint::Room(name.parse().expect("room"))
    }

    #[test]
    fn rooms_are_named_by_one_event_or_by_many() {
        let joined = plugin(&json!({ "event": "joined", "room": "r", "id": "bob" }));
        let left = plugin(&json!({ "event": "leaving", "room": 77, "id": 5 }));
        let begun = json!({ "type": 256, "subtype": 1, "event": { "status": "started" } });
        assert_eq!(hints(&joined), Some(vec![room("r")]));
        assert_eq!(hints(&json!([joined, left, begun])), Some(vec![room("r"), room("77"), Hint::AllRooms]));
    }

    #[test]
    fn what_says_nothing_of_a_room_is_passed_over_and_what_is_none_of_janus_is_refused() {
        for (message, expected) in [
            (plugin(&json!({ "event": "subscribed", "room": 0 })), Some(vec![])),
            (plugin(&json!({ "event": "joined", "room": "a/b" })), Some(vec![])),
            (plugin(&json!({ "event": "joined", "room": {} })), Some(vec![])),
            (plugin(&json!({ "event": 7 })), Some(vec![])),
            (json!({ "type": 256, "subtype": 2 }), Some(vec![])),
            (json!({ "type": "64" }), Some(vec![])),
            (json!([1, null, [], { "type": 64 }]), Some(vec![])),
            (json!("text"), None),
            (json!(7), None),
        ] {
            assert_eq!(hints(&message), expected, "{message}");
        }
        assert_eq!(read(b"\xff"), None);
        assert_eq!(read(b""), None);
        assert_eq!(read(&b"[".repeat(10_000)), None);
        assert_eq!(read(&[&b"[]"[..], &b" ".repeat(MESSAGE_BYTES_MAX)].concat()), None);
    }
}
