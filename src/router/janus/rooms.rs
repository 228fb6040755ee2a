//! Creates, lists, inspects and removes rooms at Janus.
//!
//! Each request has a connection of its own; idle ones are kept for further requests. A room that this program creates is private, so
//! that clients cannot list it, and has a secret, without which Janus lets every client remove it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::control::{data, room_value, with_access, with_admin_key, with_pin};
use super::feeds::Feeds;
use super::socket::{Socket, timed_out};
use super::{JanusRouter, wire};
use crate::model::ids::{RoomId, SessionId};
use crate::model::session::RouterRoom;
use crate::router::{ListedRoom, Participant, Publication, Rooms, RouterError, StreamInfo};
use crate::session::room::derived_secret;

/// Idle connections that are kept.
const IDLE_MAX: usize = 4;
/// Idle connections older than this are closed: Janus destroys a session after 60 s without a message.
const IDLE_FOR: Duration = Duration::from_secs(30);
/// Publishers of a room at a time.
const PUBLISHERS_MAX: u32 = 100;
/// No periodic keyframe requests: archiver requests keyframes when it needs them.
const FIR_FREQ: u32 = 0;

/// A connection with a session and a handle of the VideoRoom plugin.
struct PluginConnection {
    socket: Socket,
    session: u64,
    handle: u64,
    last_used: Instant,
}

/// Idle connections. The lock is held only to put and take.
pub(super) struct ConnectionPool(Mutex<Vec<PluginConnection>>);

impl std::fmt::Debug for ConnectionPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ConnectionPool")
    }
}

impl ConnectionPool {
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    fn take(&self) -> Option<PluginConnection> {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pool.retain(|connection| connection.last_used.elapsed() < IDLE_FOR);
        pool.pop()
    }

    fn put(&self, mut connection: PluginConnection) {
        connection.last_used = Instant::now();
        // Nobody reads unsolicited messages of this connection.
        connection.socket.unsolicited.clear();
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pool.len() < IDLE_MAX {
            pool.push(connection);
        }
    }
}

impl PluginConnection {
    async fn request(&mut self, body: Value, doing: &'static str) -> Result<Value, RouterError> {
        let request = json!({ "janus": "message", "session_id": self.session, "handle_id": self.handle, "body": body });
        self.socket.request(request, doing).await
    }
}

/// Candidates of one connection that are read, in bytes.
const CANDIDATES_BYTES_MAX: usize = 16 << 10;

impl PluginConnection {
    /// The candidates that follow an answer without any (`full_trickle`), as lines of SDP. They belong to its last media section, and with
    /// BUNDLE to all.
    async fn later_candidates(&mut self) -> Result<String, RouterError> {
        let config = self.socket.config().clone();
        let collecting = async {
            let mut lines = String::new();
            loop {
                let message = match self.socket.unsolicited.pop_front() {
                    Some(message) => message,
                    None => self.socket.next().await?,
                };
                let is_ours = message.get("sender").and_then(serde_json::Value::as_u64) == Some(self.handle);
                if !is_ours || message.get("janus").and_then(serde_json::Value::as_str) != Some("trickle") {
                    continue;
                }
                match wire::trickled(&message) {
                    // Janus has a few for each of its addresses.
                    Some(_) if lines.len() > CANDIDATES_BYTES_MAX => return Ok(lines),
                    Some(candidate) => lines += &format!("a={}\r\n", candidate.trim_start_matches("a=")),
                    None => return Ok(lines),
                }
            }
        };
        let late = |_| timed_out(&config, "send its candidates");
        timeout(config.timeout, collecting).await.map_err(late)?
    }
}

/// Whether a request may have failed because the connection or its session was lost while idle.
fn is_stale(answer: &Result<Value, RouterError>) -> bool {
    match answer {
        Ok(answer) => answer.get("janus").and_then(Value::as_str) == Some("error"),
        Err(error) => matches!(error, RouterError::Unavailable { .. }),
    }
}

impl JanusRouter {
    async fn connect(&self) -> Result<PluginConnection, RouterError> {
        let mut socket = Socket::connect(&self.config).await?;
        let session = socket.create_session().await?;
        let handle = socket.attach(session).await?;
        Ok(PluginConnection { socket, session, handle, last_used: Instant::now() })
    }

    /// Sends a request to the plugin. The answer may contain an error.
    async fn request(&self, body: Value, doing: &'static str) -> Result<Value, RouterError> {
        let requesting = async {
            if let Some(mut connection) = self.pool.take() {
                let answer = connection.request(body.clone(), doing).await;
                if !is_stale(&answer) {
                    let answer = answer?;
                    self.pool.put(connection);
                    return Ok(answer);
                }
            }
            let mut connection = self.connect().await?;
            let answer = connection.request(body, doing).await?;
            self.pool.put(connection);
            Ok(answer)
        };
        timeout(self.config.timeout * 2, requesting).await.map_err(|_| timed_out(&self.config, doing))?
    }

    /// Sends a request to the plugin. An error in the answer is returned as an error.
    async fn request_ok(&self, body: Value, room: Option<&RoomId>, doing: &'static str) -> Result<Value, RouterError> {
        let answer = self.request(body, doing).await?;
        match wire::error(&self.config.name, room, doing, &answer) {
            Some(error) => Err(error),
            None => Ok(answer),
        }
    }

    fn unexpected(&self, doing: &'static str) -> RouterError {
        RouterError::Protocol { router: self.config.name.clone(), doing, problem: "the answer has no list".to_owned() }
    }

    /// Adds the secret that the rooms of this program have.
    fn with_secret(&self, mut body: Value, room: &RoomId) -> Value {
        if let Some(key) = self.config.room_key.as_ref().or(self.config.admin_key.as_ref()) {
            body["secret"] = json!(derived_secret(key, room));
        }
        body
    }

    /// Joins a room as a publisher, and publishes a stream with the offer's tracks.
    pub(super) async fn publish_stream(&self, place: &RouterRoom, offer: String) -> Result<Publication, RouterError> {
        const DOING: &str = "publish a stream";
        let config = self.config.of_room(place)?;
        let mut connection = self.connect().await?;
        let body = json!({
            "request": "joinandconfigure", "ptype": "publisher", "room": room_value(&config, place.room.as_str()),
            "display": "archiver check",
        });
        let request = json!({
            "janus": "message", "session_id": connection.session, "handle_id": connection.handle,
            "body": with_access(&config, &place.room, body), "jsep": { "type": "offer", "sdp": offer },
        });
        let answer = connection.socket.request(request, DOING).await?;
        if let Some(error) = wire::error(&self.config.name, Some(&place.room), DOING, &answer) {
            return Err(error);
        }
        let sdp = answer.get("jsep").and_then(|jsep| jsep.get("sdp")).and_then(serde_json::Value::as_str);
        let sdp = sdp.ok_or_else(|| RouterError::Protocol {
            router: self.config.name.clone(),
            doing: DOING,
            problem: "the answer has no SDP".to_owned(),
        })?;
        let mut sdp = sdp.to_owned();
        if !sdp.contains("a=candidate:") {
            sdp += &connection.later_candidates().await?;
        }
        Ok(Publication::new(sdp, Box::new(connection)))
    }

    /// Joins a room as an observer to read its publishers, and leaves.
    async fn visit(&self, place: &RouterRoom) -> Result<Vec<StreamInfo>, RouterError> {
        const DOING: &str = "list the streams";
        let config = self.config.of_room(place)?;
        let mut connection = self.connect().await?;
        let body = json!({
            "request": "join", "ptype": "publisher", "room": room_value(&config, place.room.as_str()),
            "display": config.observer_name,
        });
        let answer = connection.request(with_access(&config, &place.room, body), DOING).await?;
        // Destroying the session removes the observer from the room, also after a failure.
        let destroy = json!({ "janus": "destroy", "session_id": connection.session });
        if let Err(error) = connection.socket.request_ok(destroy, "end the session").await {
            tracing::debug!(router = self.config.name, "{error}");
        }
        connection.socket.close().await;
        match wire::error(&self.config.name, Some(&place.room), DOING, &answer) {
            Some(error) => Err(error),
            None => {
                let view = config.view(&place.room);
                let feeds = data(&answer).map(|joined| wire::publishers(joined, &view)).unwrap_or_default();
                Ok(feeds.iter().flat_map(|feed| Feeds::default().streams(feed)).collect())
            }
        }
    }
}

#[async_trait]
impl Rooms for JanusRouter {
    async fn create_room(&self, place: &RouterRoom, session: &SessionId) -> Result<bool, RouterError> {
        const DOING: &str = "create a room";
        let config = self.config.of_room(place)?;
        let body = json!({
            "request": "create", "room": room_value(&config, place.room.as_str()), "description": session.as_str(),
            "permanent": false, "publishers": PUBLISHERS_MAX, "bitrate": 0, "fir_freq": FIR_FREQ,
            "notify_joining": config.announces_joins,
            // Private rooms can be listed only with the admin key.
            "is_private": config.admin_key.is_some(),
        });
        let body = self.with_secret(with_admin_key(&config, with_pin(&config, body)), &place.room);
        let answer = self.request(body, DOING).await?;
        if wire::is_there_already(&answer) {
            return Ok(false);
        }
        match wire::error(&self.config.name, None, DOING, &answer) {
            Some(error) => Err(error),
            None => Ok(true),
        }
    }

    async fn list_rooms(&self) -> Result<Vec<ListedRoom>, RouterError> {
        const DOING: &str = "list the rooms";
        let answer = self.request_ok(with_admin_key(&self.config, json!({ "request": "list" })), None, DOING).await?;
        data(&answer).and_then(wire::rooms).ok_or_else(|| self.unexpected(DOING))
    }

    async fn participants(&self, room: &RoomId) -> Result<Vec<Participant>, RouterError> {
        const DOING: &str = "list the participants";
        let body = json!({ "request": "listparticipants", "room": room_value(&self.config, room.as_str()) });
        let answer = self.request_ok(body, Some(room), DOING).await?;
        data(&answer)
            .and_then(|list| wire::clients(list, &self.config.view(room)))
            .ok_or_else(|| self.unexpected(DOING))
    }

    async fn streams(&self, place: &RouterRoom) -> Result<Vec<StreamInfo>, RouterError> {
        if !self.participants(&place.room).await?.iter().any(|client| client.publishing) {
            return Ok(Vec::new());
        }
        timeout(self.config.timeout * 2, self.visit(place))
            .await
            .map_err(|_| timed_out(&self.config, "list the streams"))?
    }

    async fn remove_room(&self, place: &RouterRoom) -> Result<bool, RouterError> {
        const DOING: &str = "remove a room";
        let body = json!({ "request": "destroy", "room": room_value(&self.config, place.room.as_str()) });
        let answer = self.request(self.with_secret(body, &place.room), DOING).await?;
        if wire::is_not_there(&answer) {
            return Ok(false);
        }
        match wire::error(&self.config.name, None, DOING, &answer) {
            Some(error) => Err(error),
            None => Ok(true),
        }
    }
}
