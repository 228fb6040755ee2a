//! Parses Janus's JSON. Pure. The input is untrusted: fields of a wrong type count as missing, and the length of strings is limited.

use secrecy::SecretString;
use serde_json::Value;

use super::OBSERVER_PREFIX;
use crate::model::ids::{RoomId, TrackKind};
use crate::model::media::VideoType;
use crate::router::{ListedRoom, Participant, RouterError, Signature, StreamInfo, TrackInfo};
use crate::session::identity::Identity;

/// Longest text that is kept, in characters.
const TEXT_CHARS_MAX: usize = 1000;
/// Longest connection data that is kept, in characters: as many as a client's token may bring.
const DATA_CHARS_MAX: usize = 1024;
/// Tracks of one publisher that are read.
const TRACKS_MAX: usize = 64;
/// Publishers in one message that are read.
const PUBLISHERS_MAX: usize = 1000;
/// Longest candidate that is read, in bytes. Janus's have at most 200.
const CANDIDATE_BYTES_MAX: usize = 500;
/// Packets that Janus should keep for retransmission, in milliseconds.
const NACK_QUEUE_MS: u64 = 1000;
/// Rooms of one router that are read.
const ROOMS_MAX: usize = 20_000;
/// VideoRoom's error code: a room with this id exists.
const ROOM_EXISTS: i64 = 427;
/// VideoRoom's error code: no such room.
const NO_SUCH_ROOM: i64 = 426;
/// VideoRoom's error code: no such feed, or no such mid of a feed.
const NO_SUCH_FEED: i64 = 428;
/// VideoRoom's error code: an element is missing in the request.
const MISSING_ELEMENT: i64 = 429;
/// VideoRoom's error code: an element of the request is invalid.
const INVALID_ELEMENT: i64 = 430;
/// Error codes of refusals: without or with a wrong secret (403), a token that does not permit the plugin (405) or is unknown (470), and
/// VideoRoom's (433): wrong pin, secret, token or private id, or kicked. (`apierror.h` and `janus_videoroom.c` of Janus 1.1.2.)
const REFUSED: [i64; 4] = [403, 405, 433, 470];
/// The elements of requests that are credentials.
const CREDENTIALS: [&str; 5] = ["pin", "secret", "token", "admin_key", "private_id"];

/// An id that may be a text or a number (`string_ids`).
#[must_use]
pub fn id(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() && text.len() <= 255 => Some(text.clone()),
        Value::Number(number) => number.as_u64().map(|n| n.to_string()),
        _ => None,
    }
}

fn text(value: Option<&Value>) -> Option<String> {
    text_of(value, TEXT_CHARS_MAX)
}

/// A text without control characters, cut to a number of characters.
fn text_of(value: Option<&Value>, chars_max: usize) -> Option<String> {
    let clean: String = value?.as_str()?.chars().filter(|c| !c.is_control()).take(chars_max).collect();
    (!clean.is_empty()).then_some(clean)
}

/// The kind of video that a text names.
pub fn video_type(value: Option<&Value>) -> Option<VideoType> {
    match value?.as_str()? {
        "camera" => Some(VideoType::Camera),
        "screen" => Some(VideoType::Screen),
        "custom" => Some(VideoType::Custom),
        _ => None,
    }
}

fn flag(value: &Value, name: &str) -> bool {
    value.get(name).and_then(Value::as_bool).unwrap_or(false)
}

/// Whether a participant is an archiver's observer. Observers never publish, so a client with an observer's name that publishes is
/// recorded.
#[must_use]
pub fn is_observer(participant: &Value, name: &str) -> bool {
    let display = participant.get("display").and_then(Value::as_str);
    let named = display.is_some_and(|display| display == name || display.starts_with(OBSERVER_PREFIX));
    let streams = participant.get("streams").and_then(Value::as_array).is_some_and(|streams| !streams.is_empty());
    named && !streams && !flag(participant, "publisher")
}

/// Settings in Janus's `info` that cost a recorder media, with the values that do not.
#[must_use]
pub fn hindrances(info: &Value) -> Vec<String> {
    let number = |name: &str| info.get(name).and_then(Value::as_u64);
    let mut found = Vec::new();
    if let Some(ms) = number("min-nack-queue").filter(|ms| *ms < NACK_QUEUE_MS) {
        found.push(format!(
            "min_nack_queue = {NACK_QUEUE_MS} instead of {ms}, so that a lost packet can be asked for more than once"
        ));
    }
    if number("reclaim-session-timeout") == Some(0) {
        found.push("reclaim_session_timeout = 30, so that a lost WebSocket interrupts no media".to_owned());
    }
    if info.get("accepting-new-sessions") == Some(&Value::Bool(false)) {
        found.push("accepting new sessions, which it does not now".to_owned());
    }
    found
}

/// The publishers that a message announces.
#[must_use]
pub fn publishers(data: &Value, view: &RoomView<'_>) -> Vec<StreamInfo> {
    let list = data.get("publishers").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let publisher = |value| publisher(value, view);
    list.iter().take(PUBLISHERS_MAX).filter(|p| !is_observer(p, view.observer_name)).filter_map(publisher).collect()
}

/// What is known of a room beside Janus's messages.
#[derive(Debug, Clone, Copy)]
pub struct RoomView<'a> {
    /// The room.
    pub room: &'a RoomId,
    /// The key of the clients' signatures; without one none is valid.
    pub key: Option<&'a SecretString>,
    /// What observers call themselves.
    pub observer_name: &'a str,
}

impl RoomView<'_> {
    fn signature(
        &self,
        feed: &str,
        stream: Option<&str>,
        connection_data: Option<&str>,
        signature: Option<&str>,
    ) -> Signature {
        let Some(signature) = signature else { return Signature::Absent };
        let (stream, connection_data) = (stream.unwrap_or_default(), connection_data.unwrap_or_default());
        let identity = Identity { room: self.room, feed, stream, connection_data };
        match self.key {
            Some(key) if identity.is_signed(key, signature) => Signature::Valid,
            _ => Signature::Invalid,
        }
    }
}

fn publisher(value: &Value, view: &RoomView<'_>) -> Option<StreamInfo> {
    let router_id = id(value.get("id")?)?;
    let streams = value.get("streams").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let tracks: Vec<TrackInfo> = streams.iter().take(TRACKS_MAX).filter_map(track).collect();
    let display = value.get("display");
    let in_display = display.and_then(Value::as_str).and_then(|d| serde_json::from_str::<Value>(d).ok());
    let in_display = in_display.filter(Value::is_object);
    let sources = [value.get("metadata").filter(|m| m.is_object()), in_display.as_ref()];
    let find = |name: &str| sources.iter().flatten().find_map(|s| s.get(name));
    let described = tracks.iter().find(|t| t.kind == TrackKind::Video).and_then(|t| t.description.as_ref());
    let described = described.and_then(|d| video_type(Some(&Value::from(d.as_str()))));
    let name = text(find("name")).or_else(|| if in_display.is_some() { None } else { text(display) });
    let (stream_id, connection_data) = (text(find("streamId")), text_of(find("connectionData"), DATA_CHARS_MAX));
    let signature = text(find("signature"));
    let signature = view.signature(&router_id, stream_id.as_deref(), connection_data.as_deref(), signature.as_deref());
    Some(StreamInfo {
        router_id,
        stream_id,
        name,
        connection_data,
        signature,
        video_type: video_type(find("videoType")).or(described).unwrap_or_default(),
        tracks,
    })
}

fn track(value: &Value) -> Option<TrackInfo> {
    let kind = match value.get("type")?.as_str()? {
        "audio" => TrackKind::Audio,
        "video" => TrackKind::Video,
        _ => return None,
    };
    if flag(value, "disabled") && value.get("codec").is_none() {
        // Janus keeps the entry of a removed track.
        return None;
    }
    Some(TrackInfo {
        mid: text(value.get("mid"))?,
        kind,
        codec: text(value.get("codec")).unwrap_or_default().to_lowercase(),
        description: text(value.get("description")),
        muted: flag(value, "disabled") || flag(value, "moderated"),
    })
}

/// Who is in a room.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Participants {
    /// The number of clients, publishing or not.
    pub clients: usize,
    /// The ids of the clients that publish.
    pub publishing: Vec<String>,
    /// The ids of archivers.
    pub observers: Vec<String>,
}

/// Reads a list of participants.
#[must_use]
pub fn participants(data: &Value, observer_name: &str) -> Option<Participants> {
    let mut found = Participants::default();
    for participant in data.get("participants")?.as_array()? {
        let id = participant.get("id").and_then(id);
        if is_observer(participant, observer_name) {
            found.observers.extend(id);
            continue;
        }
        found.clients += 1;
        if flag(participant, "publisher") {
            found.publishing.extend(id);
        }
    }
    Some(found)
}

/// The clients in a list of participants.
#[must_use]
pub fn clients(data: &Value, view: &RoomView<'_>) -> Option<Vec<Participant>> {
    let list = data.get("participants")?.as_array()?.iter().filter(|p| !is_observer(p, view.observer_name));
    let client = |value: &Value| {
        let StreamInfo { router_id, name, connection_data, .. } = publisher(value, view)?;
        Some(Participant { router_id, name, connection_data, publishing: flag(value, "publisher") })
    };
    Some(list.take(PUBLISHERS_MAX).filter_map(client).collect())
}

/// Reads a list of rooms. Rooms whose ids this program does not accept are skipped.
#[must_use]
pub fn rooms(data: &Value) -> Option<Vec<ListedRoom>> {
    let room = |value: &Value| {
        Some(ListedRoom {
            room: id(value.get("room")?)?.parse().ok()?,
            about: text(value.get("description")).unwrap_or_default(),
            participants: value
                .get("num_participants")
                .and_then(Value::as_u64)
                .and_then(|n| usize::try_from(n).ok())?,
        })
    };
    Some(data.get("list")?.as_array()?.iter().take(ROOMS_MAX).filter_map(room).collect())
}

/// Whether a list of rooms says that a room's publishers must encrypt end to end (`require_e2ee`). A room that is not listed need not.
#[must_use]
pub fn requires_encryption(data: &Value, room: &crate::model::ids::RoomId) -> bool {
    let is_it = |value: &&Value| value.get("room").and_then(id).is_some_and(|id| id == room.as_str());
    let listed = data.get("list").and_then(Value::as_array).and_then(|list| list.iter().find(is_it));
    listed.and_then(|room| room.get("require_e2ee")).and_then(Value::as_bool) == Some(true)
}

fn plugin_code(answer: &Value) -> Option<i64> {
    answer.get("plugindata")?.get("data")?.get("error_code")?.as_i64()
}

/// Whether an answer says that the room to create exists.
#[must_use]
pub fn is_there_already(answer: &Value) -> bool {
    plugin_code(answer) == Some(ROOM_EXISTS)
}

/// Whether an answer says that there is no such room.
#[must_use]
pub fn is_not_there(answer: &Value) -> bool {
    plugin_code(answer) == Some(NO_SUCH_ROOM)
}

/// The private id in the answer to a join: what rooms with `require_pvtid` want of the subscriptions of who joined.
#[must_use]
pub fn private_id(joined: &Value) -> Option<u64> {
    joined.get("private_id")?.as_u64()
}

/// The candidate in a `trickle` message; `None` for the one that says that there are no more.
#[must_use]
pub fn trickled(message: &Value) -> Option<&str> {
    let candidate = message.get("candidate")?.get("candidate")?.as_str()?;
    let good = candidate.len() <= CANDIDATE_BYTES_MAX && !candidate.contains(char::is_control);
    good.then_some(candidate)
}

/// A track that a moderator switched off or on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moderation {
    /// The stream.
    pub router_id: String,
    /// The track.
    pub mid: String,
    /// Whether it is off now.
    pub muted: bool,
}

/// The moderation that a message reports.
#[must_use]
pub fn moderation(data: &Value) -> Option<Moderation> {
    let muted = match data.get("moderation")?.as_str()? {
        "muted" => true,
        "unmuted" => false,
        _ => return None,
    };
    Some(Moderation { router_id: id(data.get("id")?)?, mid: text(data.get("mid"))?, muted })
}

/// A message's SDP offer, and whether its media is encrypted end to end. Janus says so from version 1.3 on (`janus_videoroom.c`,
/// `subscriber->e2ee`).
#[must_use]
pub fn offer(message: &Value) -> Option<(&str, bool)> {
    let jsep = message.get("jsep").filter(|jsep| jsep.get("type").and_then(Value::as_str) == Some("offer"))?;
    Some((jsep.get("sdp")?.as_str()?, jsep.get("e2ee").and_then(Value::as_bool) == Some(true)))
}

/// The mids of a subscription's offer, with the track each carries.
#[must_use]
pub fn offer_mids(data: &Value) -> Vec<(String, TrackKind)> {
    let streams = data.get("streams").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let mid = |s: &Value| {
        let track = track(s)?;
        (s.get("active").and_then(Value::as_bool) != Some(false)).then_some((track.mid, track.kind))
    };
    streams.iter().take(TRACKS_MAX).filter_map(mid).collect()
}

/// The error in an answer, of Janus or of the plugin.
#[must_use]
pub fn error(
    router: &str,
    room: Option<&crate::model::ids::RoomId>,
    doing: &'static str,
    answer: &Value,
) -> Option<RouterError> {
    let plugin = answer.get("plugindata").and_then(|p| p.get("data"));
    let (code, reason) = if answer.get("janus").and_then(Value::as_str) == Some("error") {
        let error = answer.get("error")?;
        (error.get("code"), error.get("reason"))
    } else {
        (Some(plugin?.get("error_code")?), plugin?.get("error"))
    };
    let code = code.and_then(Value::as_i64).unwrap_or(0);
    let problem = text(reason).unwrap_or_default();
    let router = router.to_owned();
    Some(match (code, room) {
        (NO_SUCH_ROOM, Some(room)) => RouterError::RoomNotFound { router, room: room.clone() },
        (NO_SUCH_FEED, _) => RouterError::StreamNotFound { stream: problem },
        _ if is_refusal(code, &problem) => RouterError::Refused { router, doing, code, text: problem },
        _ => RouterError::Protocol { router, doing, problem: format!("error {code}: {problem}") },
    })
}

/// Whether an error says that the credentials of the request are not enough. Janus has one code for all elements of a request that are
/// missing, a needed pin as well as a mid; its text names the element.
fn is_refusal(code: i64, text: &str) -> bool {
    let mut words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    REFUSED.contains(&code)
        || ([MISSING_ELEMENT, INVALID_ELEMENT].contains(&code) && words.any(|word| CREDENTIALS.contains(&word)))
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
