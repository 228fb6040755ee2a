//! Where media comes from: a media router (SFU), behind one small trait.
//!
//! A router knows rooms; in a room are streams; a stream is subscribed to by a PeerConnection of its own.
//! The router side does signalling only: the offer goes to the capture engine, its answer comes back.

pub mod janus;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::model::fault::{Fault, FaultKind, HasFault};
use crate::model::ids::{RoomId, RouterName, SessionId, TrackKind};
use crate::model::media::VideoType;
use crate::model::session::RouterRoom;

/// What a router says of one track of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackInfo {
    /// The track's mid at the publisher.
    pub mid: String,
    /// Sound or picture.
    pub kind: TrackKind,
    /// The codec's name as the router writes it, in lower case (`vp8`, `opus`, …).
    pub codec: String,
    /// The publisher's description of the track.
    pub description: Option<String>,
    /// The track is announced but its media is switched off (Janus: `disabled` or `moderated`).
    pub muted: bool,
}

/// A stream as the router announces it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamInfo {
    /// The stream's id at the router.
    pub router_id: String,
    /// The stream's id as the platform gave it, where that is not the router's.
    pub stream_id: Option<String>,
    /// The name that people see.
    pub name: Option<String>,
    /// What the client's token carried.
    pub connection_data: Option<String>,
    /// What it shows.
    pub video_type: VideoType,
    /// At most one of each kind is archived.
    pub tracks: Vec<TrackInfo>,
}

/// What happens in a room. Every event is an idempotent statement of how things are.
#[derive(Debug, Clone, PartialEq)]
pub enum RoomEvent {
    /// A stream is there, or is different from before.
    StreamPresent(StreamInfo),
    /// A stream is gone: unpublished, left or was removed.
    StreamGone {
        /// Its id at the router.
        router_id: String,
    },
    /// The clients in the room, publishing or not, without us and other archivers.
    Clients {
        /// How many.
        count: usize,
    },
    /// A client began or ceased to talk, as the router hears it.
    Talking {
        /// The stream.
        router_id: String,
        /// Whether it talks.
        talking: bool,
    },
    /// The router wants a new answer for a running subscription.
    Renegotiate(Offer),
    /// A subscription is dead: its PeerConnection must be made anew.
    SubscriptionLost {
        /// Which.
        subscription: SubscriptionId,
    },
    /// The layer that is sent has changed.
    LayerChanged {
        /// Which subscription.
        subscription: SubscriptionId,
        /// The spatial layer or simulcast substream, 0 is the lowest.
        spatial: Option<u32>,
        /// The temporal layer.
        temporal: Option<u32>,
    },
    /// Signalling is lost; the adapter reconnects by itself. Media may go on.
    Disconnected,
    /// Signalling is back. All present streams are announced anew after it. Subscriptions live on, except those that were
    /// said to be lost.
    Reconnected,
    /// The room was removed at the router; no more events follow until it is there again.
    RoomDestroyed,
}

/// Names a subscription within one room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriptionId(pub u64);

/// A subscription that waits for our answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Its name.
    pub subscription: SubscriptionId,
    /// The router's SDP offer.
    pub sdp: String,
    /// The track each mid *of the offer* carries.
    pub mids: Vec<(String, TrackKind)>,
}

/// Why the router cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// No connection, or none any more.
    #[error("media router {router} cannot be reached while it should {doing}")]
    Unavailable {
        /// Its configured name.
        router: String,
        /// The operation.
        doing: &'static str,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("media router {router} did not answer in {after_ms} ms while it should {doing}")]
    Timeout {
        /// Its configured name.
        router: String,
        /// The operation.
        doing: &'static str,
        /// How long we waited.
        after_ms: u64,
    },
    /// The room is not there.
    #[error("room {room} does not exist at media router {router}")]
    RoomNotFound {
        /// Its configured name.
        router: String,
        /// The room.
        room: RoomId,
    },
    /// A stream that was asked for is not there any more.
    #[error("stream {stream} is not in the room any more")]
    StreamNotFound {
        /// The stream's id at the router.
        stream: String,
    },
    /// Secret, pin or token are wrong.
    #[error("media router {router} refused to {doing}: {text} (code {code})")]
    Refused {
        /// Its configured name.
        router: String,
        /// The operation.
        doing: &'static str,
        /// The router's code.
        code: i64,
        /// The router's words.
        text: String,
    },
    /// An answer that does not fit the protocol.
    #[error("media router {router} sent something unexpected while it should {doing}: {what}")]
    Protocol {
        /// Its configured name.
        router: String,
        /// The operation.
        doing: &'static str,
        /// What.
        what: String,
    },
}

impl HasFault for RouterError {
    fn fault(&self) -> Fault {
        match self {
            Self::Unavailable { .. } | Self::Timeout { .. } => FaultKind::RouterUnavailable,
            Self::RoomNotFound { .. } => FaultKind::RoomNotFound,
            Self::Refused { .. } => FaultKind::RouterRefused,
            Self::StreamNotFound { .. } | Self::Protocol { .. } => FaultKind::RouterProtocol,
        }
        .fault()
    }
}

/// A room, as a router's list has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedRoom {
    /// Its name.
    pub room: RoomId,
    /// What it was created for: of a room that this program made, its session's id.
    pub about: String,
    /// Who is in it, archivers included.
    pub participants: usize,
}

/// A client in a room, publishing or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Participant {
    /// Its id at the router.
    pub router_id: String,
    /// The name that people see.
    pub name: Option<String>,
    /// What the client's token carried.
    pub connection_data: Option<String>,
    /// Whether it publishes.
    pub publishing: bool,
}

/// The rooms of a router. All of it may be done again without harm, and each has a deadline.
#[async_trait]
pub trait Rooms: Send + Sync {
    /// Creates a session's room, if it is not there. Returns whether it was not.
    async fn create_room(&self, place: &RouterRoom, session: &SessionId) -> Result<bool, RouterError>;

    /// All rooms.
    async fn list_rooms(&self) -> Result<Vec<ListedRoom>, RouterError>;

    /// The clients in a room, without archivers.
    async fn participants(&self, room: &RoomId) -> Result<Vec<Participant>, RouterError>;

    /// The streams that are published in a room. It may need a short visit to the room as an observer: not for every second.
    async fn streams(&self, place: &RouterRoom) -> Result<Vec<StreamInfo>, RouterError>;

    /// Removes a room; whoever is in it is sent out. Returns whether it was there.
    async fn remove_room(&self, place: &RouterRoom) -> Result<bool, RouterError>;
}

/// The media routers of a configuration, by their names.
pub type Routers = BTreeMap<RouterName, Arc<dyn MediaRouter>>;

/// A media router: one for each entry of the configuration.
#[async_trait]
pub trait MediaRouter: Rooms {
    /// Its name in the configuration.
    fn name(&self) -> &str;

    /// Says whether the router can be used, and what it is (name, version). For `archiver check`.
    async fn probe(&self) -> Result<String, RouterError>;

    /// Enters a room as an invisible observer. The observer's `display` names the archive, so that
    /// another archiver, or this one after a restart, is not counted as a client.
    async fn join(&self, place: &RouterRoom, observer: &str) -> Result<Box<dyn Room>, RouterError>;
}

/// A room that was entered. Dropping it leaves the room; `leave` waits for it.
#[async_trait]
pub trait Room: Send {
    /// The next event; `None` once the room was left. The adapter reconnects by itself, for ever, with
    /// back-off. Cancel-safe.
    async fn next_event(&mut self) -> Option<RoomEvent>;

    /// Commands, usable while another task waits for events.
    fn control(&self) -> std::sync::Arc<dyn RoomControl>;

    /// Leaves the room and ends all subscriptions.
    async fn leave(self: Box<Self>);
}

/// Commands to a room.
#[async_trait]
pub trait RoomControl: Send + Sync {
    /// Asks for a stream; the router answers with an offer. At most one track of each kind is subscribed to.
    async fn subscribe(&self, router_id: &str) -> Result<Offer, RouterError>;

    /// Gives our answer, to the first offer or to a renegotiation.
    async fn answer(&self, subscription: SubscriptionId, sdp: String) -> Result<(), RouterError>;

    /// Asks for the highest simulcast or SVC layer. Harmless where there is only one.
    async fn prefer_highest_layer(&self, subscription: SubscriptionId) -> Result<(), RouterError>;

    /// Ends a subscription. Harmless if it is gone.
    async fn unsubscribe(&self, subscription: SubscriptionId);
}
