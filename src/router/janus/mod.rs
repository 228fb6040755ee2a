//! Janus's VideoRoom plugin over its WebSocket API.
//!
//! Each joined room has a WebSocket and a Janus session of its own, so that rooms cannot disturb each other.
//! On it are one *observer* handle, which joins as a publisher that publishes nothing (only publishers are
//! told who comes and goes), and one subscriber handle a stream.
//!
//! Janus keeps a session whose WebSocket was lost for `reclaim_session_timeout` seconds, 0 by default: set it
//! to 30, and a lost WebSocket interrupts no media. Set `min_nack_queue = 1000` too: Janus forgets packets after
//! 200 ms by default, and then a second retransmission can never be had. Until it knows a subscription's round
//! trip time (some 1.5 s from its first packet) it keeps none at all, whatever is set (`ice.c`, `nack_queue_ms`):
//! what is lost in that time stays lost.
//!
//! # What a stream is called
//! Janus 1.1.2 knows no metadata of a publisher. `display` is either the name, or a JSON object
//! `{"name": …, "connectionData": …, "streamId": …, "videoType": "camera"|"screen"|"custom"}`; the
//! `description` of a video track may be such a `videoType` too. A newer Janus's `metadata` object is
//! read with the same names and goes before `display`.

mod control;
mod link;
mod room;
mod rooms;
mod roster;
pub mod wire;

use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;
use serde_json::json;

use super::{MediaRouter, Room, RouterError};
use crate::model::session::{RoomAccess, RouterRoom};
use crate::session::room::derived_pin;

/// The marks of an observer's `display`; participants with it are no clients.
pub(crate) const OBSERVER_PREFIX: &str = "archiver:";

/// How to reach one Janus.
#[derive(Debug, Clone)]
pub struct JanusConfig {
    /// Its name in events and logs.
    pub name: String,
    /// `ws://` or `wss://`.
    pub url: String,
    /// Janus's `api_secret`.
    pub api_secret: Option<SecretString>,
    /// A token for Janus's stored-token authentication.
    pub token: Option<SecretString>,
    /// The pin of rooms that have one.
    pub pin: Option<SecretString>,
    /// Janus's `admin_key`, to create and list rooms with.
    pub admin_key: Option<SecretString>,
    /// What the pins of rooms that this program created are made of.
    pub room_key: Option<SecretString>,
    /// Whether rooms and feeds have names (`string_ids = true`) or numbers.
    pub string_ids: bool,
    /// How long Janus may take to answer.
    pub timeout: Duration,
    /// How often the participants are listed; also finds what notifications do not tell.
    pub poll: Duration,
}

impl JanusConfig {
    /// A Janus at an address, with the defaults.
    #[must_use]
    pub fn new(name: &str, url: &str) -> Self {
        Self {
            name: name.to_owned(),
            url: url.to_owned(),
            api_secret: None,
            token: None,
            pin: None,
            admin_key: None,
            room_key: None,
            string_ids: true,
            timeout: Duration::from_secs(5),
            poll: Duration::from_secs(2),
        }
    }
}

impl JanusConfig {
    /// The same with the pin of one room.
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

/// A Janus.
#[derive(Debug)]
pub struct JanusRouter {
    config: JanusConfig,
    idle: rooms::Idle,
}

impl JanusRouter {
    /// Connects to nothing yet.
    #[must_use]
    pub const fn new(config: JanusConfig) -> Self {
        Self { config, idle: rooms::Idle::new() }
    }
}

#[async_trait]
impl MediaRouter for JanusRouter {
    fn name(&self) -> &str {
        &self.config.name
    }

    async fn probe(&self) -> Result<String, RouterError> {
        let mut socket = link::Socket::connect(&self.config).await?;
        let info = socket.ask(json!({ "janus": "info" }), "ask for its version").await?;
        let session = socket.create_session().await?;
        socket.attach(session).await?;
        let version = info.get("version_string").and_then(|v| v.as_str()).unwrap_or("unknown version");
        Ok(format!("Janus {version} with VideoRoom"))
    }

    async fn join(&self, place: &RouterRoom, observer: &str) -> Result<Box<dyn Room>, RouterError> {
        let config = self.config.of_room(place)?;
        room::JanusRoom::join(config, place.room.clone(), format!("{OBSERVER_PREFIX}{observer}"))
            .await
            .map(|room| Box::new(room) as Box<dyn Room>)
    }
}
