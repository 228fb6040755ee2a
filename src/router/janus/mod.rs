//! Janus's VideoRoom plugin over its WebSocket API.
//!
//! Each joined room has its own WebSocket and Janus session, so that rooms do not affect each other. The session has one *observer*
//! handle, which joins as a publisher that publishes nothing (Janus notifies only publishers about others), and one subscriber
//! handle for each stream.
//!
//! Janus keeps a session whose WebSocket was lost for `reclaim_session_timeout` seconds, 0 by default. With 30, a lost WebSocket
//! interrupts no media. Set `min_nack_queue = 1000`, too: by default Janus keeps packets for 200 ms, too short for a second
//! retransmission. Until Janus knows the round trip time of a subscription (up to 2 s after its first packet), it keeps no packets
//! with any setting (`ice.c`, `nack_queue_ms`), so losses in that time cannot be repaired.
//!
//! # Metadata of a stream
//! Janus 1.1.2 has no metadata of publishers. `display` is either the name, or a JSON object
//! `{"name": …, "connectionData": …, "streamId": …, "videoType": "camera"|"screen"|"custom"}`; the
//! `description` of a video track may be such a `videoType`, too. The `metadata` object of newer versions of Janus has the same
//! fields, and takes precedence over `display`. A feed's further tracks of a kind are streams of their own (`feeds.rs`).

mod control;
mod encryption;
mod feeds;
mod room;
mod rooms;
mod roster;
mod socket;
mod trickle;
pub mod wire;

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;
use serde_json::json;

use super::{MediaRouter, Publication, Room, RouterError};
use crate::model::ids::RoomId;
use crate::model::session::{RoomAccess, RouterRoom};
use crate::session::room::derived_pin;

/// Prefix of an observer's `display`, unless the configuration names it otherwise. Participants with it are not clients: archivers of
/// other versions have it, too.
pub(crate) const OBSERVER_PREFIX: &str = "archiver:";
/// An observer's `display`, unless the configuration names it otherwise.
const OBSERVER_NAME: &str = "archiver:recorder";

/// How to reach one Janus.
#[derive(Debug, Clone)]
pub struct JanusConfig {
    /// Its name in events and logs.
    pub name: String,
    /// `ws://` or `wss://`.
    pub url: String,
    /// Janus's `api_secret`.
    pub api_secret: Option<SecretString>,
    /// The `token` of each request, and of rooms with a list of tokens unless `room_tokens` has another.
    pub token: Option<SecretString>,
    /// Tokens of rooms with a list of tokens (`allowed`) or with `signed_tokens`.
    pub room_tokens: BTreeMap<RoomId, SecretString>,
    /// The pin of rooms that have one.
    pub pin: Option<SecretString>,
    /// Janus's `admin_key`, to create and list rooms with.
    pub admin_key: Option<SecretString>,
    /// The key from which the pins of rooms are derived that this program created.
    pub room_key: Option<SecretString>,
    /// Whether rooms and feeds have names (`string_ids = true`) or numbers.
    pub string_ids: bool,
    /// What observers call themselves in rooms, for the other participants to see. The same in all processes of a deployment.
    pub observer_name: String,
    /// Whether the participants of rooms that this program creates are told who joins (`notify_joining`).
    pub announces_joins: bool,
    /// Time limit of Janus's answers.
    pub timeout: Duration,
    /// Interval of listing the participants, which also finds what notifications missed.
    pub poll: Duration,
}

impl JanusConfig {
    /// The defaults for a Janus at an address.
    #[must_use]
    pub fn new(name: &str, url: &str) -> Self {
        Self {
            name: name.to_owned(),
            url: url.to_owned(),
            api_secret: None,
            token: None,
            room_tokens: BTreeMap::new(),
            pin: None,
            admin_key: None,
            room_key: None,
            string_ids: true,
            observer_name: OBSERVER_NAME.to_owned(),
            announces_joins: true,
            timeout: Duration::from_secs(5),
            poll: Duration::from_secs(2),
        }
    }
}

impl JanusConfig {
    /// What is known of a room beside Janus's messages.
    fn view<'a>(&'a self, room: &'a RoomId) -> wire::RoomView<'a> {
        wire::RoomView { room, key: self.room_key.as_ref(), observer_name: &self.observer_name }
    }

    /// This configuration with the pin of one room.
    fn of_room(&self, place: &RouterRoom) -> Result<Self, RouterError> {
        if place.access == RoomAccess::Shared {
            return Ok(self.clone());
        }
        let Some(key) = &self.room_key else {
            return Err(RouterError::Refused {
                router: self.name.clone(),
                doing: "let us into the room",
                code: 0,
                text: "the room has a pin of its own, and the configuration has no room_key to make it of".to_owned(),
            });
        };
        Ok(Self { pin: Some(derived_pin(key, &place.room).into()), ..self.clone() })
    }
}

/// A Janus server.
#[derive(Debug)]
pub struct JanusRouter {
    config: JanusConfig,
    pool: rooms::ConnectionPool,
}

impl JanusRouter {
    /// Connects only when it is used.
    #[must_use]
    pub const fn new(config: JanusConfig) -> Self {
        Self { config, pool: rooms::ConnectionPool::new() }
    }
}

#[async_trait]
impl MediaRouter for JanusRouter {
    fn name(&self) -> &str {
        &self.config.name
    }

    async fn probe(&self) -> Result<String, RouterError> {
        let mut socket = socket::Socket::connect(&self.config).await?;
        let info = socket.request_ok(json!({ "janus": "info" }), "ask for its version").await?;
        let session = socket.create_session().await?;
        socket.attach(session).await?;
        socket.close().await;
        let version = info.get("version_string").and_then(|v| v.as_str()).unwrap_or("unknown version");
        let hindrances = wire::hindrances(&info);
        let but = if hindrances.is_empty() { String::new() } else { format!(" (better: {})", hindrances.join(", ")) };
        Ok(format!("Janus {version} with VideoRoom{but}"))
    }

    async fn publish(&self, place: &RouterRoom, offer: String) -> Result<Publication, RouterError> {
        self.publish_stream(place, offer).await
    }

    async fn join(&self, place: &RouterRoom) -> Result<Box<dyn Room>, RouterError> {
        let config = self.config.of_room(place)?;
        room::JanusRoom::join(config, place).await.map(|room| Box::new(room) as Box<dyn Room>)
    }
}
