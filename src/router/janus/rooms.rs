//! Rooms at Janus: made, listed, looked into, removed.
//!
//! Connections for it are kept while they are used now and then; each request has one for itself. A room that this program
//! creates is private, so that clients cannot list it, and has a secret, without which Janus lets every client remove it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::control::{data, room_value, with_pin};
use super::link::{Socket, late};
use super::{JanusRouter, OBSERVER_PREFIX, wire};
use crate::model::ids::{RoomId, SessionId};
use crate::model::session::RouterRoom;
use crate::router::{ListedRoom, Participant, Rooms, RouterError, StreamInfo};
use crate::session::room::derived_secret;

/// Connections that are kept.
const IDLE_MAX: usize = 4;
/// One that was not used for so long is not used again: Janus drops a session that is silent for a minute.
const IDLE_FOR: Duration = Duration::from_secs(30);
/// Publishers that a room takes at a time.
const PUBLISHERS_MAX: u32 = 100;
/// Keyframes are asked for when they are needed; never by the clock.
const FIR_FREQ: u32 = 0;

/// A connection with a session and a handle.
struct Open {
    socket: Socket,
    session: u64,
    handle: u64,
    used: Instant,
}

/// Connections that nobody uses now. The lock is held to put and take only.
pub(super) struct Idle(Mutex<Vec<Open>>);

impl std::fmt::Debug for Idle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Idle")
    }
}

impl Idle {
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    fn take(&self) -> Option<Open> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|open| open.used.elapsed() < IDLE_FOR);
        idle.pop()
    }

    fn put(&self, mut open: Open) {
        open.used = Instant::now();
        // What Janus says unasked is for nobody here.
        open.socket.early.clear();
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(open);
        }
    }
}

impl Open {
    async fn ask(&mut self, body: Value, doing: &'static str) -> Result<Value, RouterError> {
        let request = json!({ "janus": "message", "session_id": self.session, "handle_id": self.handle, "body": body });
        self.socket.answer_to(request, doing).await
    }
}

/// Whether the connection is to blame: it may have been lost, or its session forgotten, while nobody used it.
fn is_stale(answer: &Result<Value, RouterError>) -> bool {
    match answer {
        Ok(answer) => answer.get("janus").and_then(Value::as_str) == Some("error"),
        Err(error) => matches!(error, RouterError::Unavailable { .. }),
    }
}

impl JanusRouter {
    async fn open(&self) -> Result<Open, RouterError> {
        let mut socket = Socket::connect(&self.config).await?;
        let session = socket.create_session().await?;
        let handle = socket.attach(session).await?;
        Ok(Open { socket, session, handle, used: Instant::now() })
    }

    /// Asks the plugin, and returns its answer whatever that says.
    async fn ask(&self, body: Value, doing: &'static str) -> Result<Value, RouterError> {
        let asking = async {
            if let Some(mut open) = self.idle.take() {
                let answer = open.ask(body.clone(), doing).await;
                if !is_stale(&answer) {
                    let answer = answer?;
                    self.idle.put(open);
                    return Ok(answer);
                }
            }
            let mut open = self.open().await?;
            let answer = open.ask(body, doing).await?;
            self.idle.put(open);
            Ok(answer)
        };
        timeout(self.config.timeout * 2, asking).await.map_err(|_| late(&self.config, doing))?
    }

    /// Asks the plugin; an answer that says no is an error.
    async fn told(&self, body: Value, room: Option<&RoomId>, doing: &'static str) -> Result<Value, RouterError> {
        let answer = self.ask(body, doing).await?;
        match wire::error(&self.config.name, room, doing, &answer) {
            Some(error) => Err(error),
            None => Ok(answer),
        }
    }

    fn unexpected(&self, doing: &'static str) -> RouterError {
        RouterError::Protocol { router: self.config.name.clone(), doing, what: "the answer has no list".to_owned() }
    }

    fn with_admin_key(&self, mut body: Value) -> Value {
        if let Some(key) = &self.config.admin_key {
            body["admin_key"] = json!(key.expose_secret());
        }
        body
    }

    /// With the secret that rooms of ours have.
    fn with_secret(&self, mut body: Value, room: &RoomId) -> Value {
        if let Some(key) = self.config.room_key.as_ref().or(self.config.admin_key.as_ref()) {
            body["secret"] = json!(derived_secret(key, room));
        }
        body
    }

    /// Enters a room as an observer, and leaves it again.
    async fn visit(&self, place: &RouterRoom) -> Result<Vec<StreamInfo>, RouterError> {
        const DOING: &str = "tell what is published";
        let config = self.config.of_room(place)?;
        let mut open = self.open().await?;
        let body = json!({
            "request": "join", "ptype": "publisher", "room": room_value(&config, place.room.as_str()),
            "display": format!("{OBSERVER_PREFIX}visitor"),
        });
        let answer = open.ask(with_pin(&config, body), DOING).await?;
        // The observer leaves with its session, whatever became of the visit.
        let destroy = json!({ "janus": "destroy", "session_id": open.session });
        if let Err(error) = open.socket.ask(destroy, "end the session").await {
            tracing::debug!(router = self.config.name, "{error}");
        }
        open.socket.close().await;
        match wire::error(&self.config.name, Some(&place.room), DOING, &answer) {
            Some(error) => Err(error),
            None => Ok(data(&answer).map(wire::publishers).unwrap_or_default()),
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
            "notify_joining": true,
            // Only who has the admin key can list it then; without one, nobody could.
            "is_private": config.admin_key.is_some(),
        });
        let body = self.with_secret(self.with_admin_key(with_pin(&config, body)), &place.room);
        let answer = self.ask(body, DOING).await?;
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
        let answer = self.told(self.with_admin_key(json!({ "request": "list" })), None, DOING).await?;
        data(&answer).and_then(wire::rooms).ok_or_else(|| self.unexpected(DOING))
    }

    async fn participants(&self, room: &RoomId) -> Result<Vec<Participant>, RouterError> {
        const DOING: &str = "list the participants";
        let body = json!({ "request": "listparticipants", "room": room_value(&self.config, room.as_str()) });
        let answer = self.told(body, Some(room), DOING).await?;
        data(&answer).and_then(wire::clients).ok_or_else(|| self.unexpected(DOING))
    }

    async fn streams(&self, place: &RouterRoom) -> Result<Vec<StreamInfo>, RouterError> {
        if !self.participants(&place.room).await?.iter().any(|client| client.publishing) {
            return Ok(Vec::new());
        }
        timeout(self.config.timeout * 2, self.visit(place))
            .await
            .map_err(|_| late(&self.config, "tell what is published"))?
    }

    async fn remove_room(&self, place: &RouterRoom) -> Result<bool, RouterError> {
        const DOING: &str = "remove a room";
        let body = json!({ "request": "destroy", "room": room_value(&self.config, place.room.as_str()) });
        let answer = self.ask(self.with_secret(body, &place.room), DOING).await?;
        if wire::is_not_there(&answer) {
            return Ok(false);
        }
        match wire::error(&self.config.name, None, DOING, &answer) {
            Some(error) => Err(error),
            None => Ok(true),
        }
    }
}
