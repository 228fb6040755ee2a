//! Media routers (SFUs): the trait [`MediaRouter`], and its implementations.
//!
//! A router has rooms, and a room has streams. Each stream is subscribed to with its own PeerConnection. A router's implementation does
//! signalling only: the offer goes to the capture engine, and the engine's answer goes back.

pub mod janus;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::model::fault::{Fault, FaultKind, HasFault};
use crate::model::ids::{RoomId, RouterName, SessionId, TrackKind};
use crate::model::media::VideoType;
use crate::model::session::RouterRoom;

/// A track of a stream, as the router announces it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackInfo {
    /// The track's mid at the publisher.
    pub mid: String,
    /// Audio or video.
    pub kind: TrackKind,
    /// The codec's name as the router writes it, in lower case (`vp8`, `opus`, …).
    pub codec: String,
    /// The publisher's description of the track.
    pub description: Option<String>,
    /// The track is announced, but sends no media (Janus: `disabled` or `moderated`).
    pub muted: bool,
}

/// Whether what a client says of itself is signed by this program (`session::identity`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Signature {
    /// Nothing is signed: anybody can have said it.
    #[default]
    Absent,
    /// The stream id and the connection data are what this program gave out for this feed.
    Valid,
    /// There is a signature of something else, such as one that was copied from another client.
    Invalid,
}

/// A stream as the router announces it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamInfo {
    /// The stream's id at the router.
    pub router_id: String,
    /// The platform's id of the stream, if it differs from the router's.
    pub stream_id: Option<String>,
    /// The display name.
    pub name: Option<String>,
    /// The connection data of the client's token.
    pub connection_data: Option<String>,
    /// Whether stream id and connection data are signed.
    #[serde(default)]
    pub signature: Signature,
    /// The kind of its video.
    pub video_type: VideoType,
    /// At most one of each kind is archived.
    pub tracks: Vec<TrackInfo>,
}

impl StreamInfo {
    /// The first track of each kind, sound first.
    pub fn first_tracks(&self) -> impl Iterator<Item = &TrackInfo> {
        let first = |kind| self.tracks.iter().find(move |track| track.kind == kind);
        [TrackKind::Audio, TrackKind::Video].into_iter().filter_map(first)
    }

    /// The mids of the first track of each kind, sound first.
    #[must_use]
    pub fn mids(&self) -> Vec<String> {
        self.first_tracks().map(|track| track.mid.clone()).collect()
    }
}

/// An event in a room. Every event states the current state, so that it can be repeated.
#[derive(Debug, Clone, PartialEq)]
pub enum RoomEvent {
    /// A stream is present, or has changed.
    StreamPresent(StreamInfo),
    /// A stream is gone: unpublished, left or was removed.
    StreamGone {
        /// Its id at the router.
        router_id: String,
    },
    /// The number of clients in the room, publishing or not, without archivers.
    Clients {
        /// The number of clients.
        count: usize,
    },
    /// A client started or stopped talking, as the router detects it.
    Talking {
        /// The stream.
        router_id: String,
        /// Whether the client talks.
        talking: bool,
    },
    /// The router wants a new answer for a running subscription.
    Renegotiate(Offer),
    /// A subscription is lost: a new one is needed, with a new PeerConnection.
    SubscriptionLost {
        /// The lost subscription.
        subscription: SubscriptionId,
    },
    /// The router sends another layer.
    LayerChanged {
        /// The subscription.
        subscription: SubscriptionId,
        /// The spatial layer or simulcast substream, 0 is the lowest.
        spatial: Option<u32>,
        /// The temporal layer.
        temporal: Option<u32>,
    },
    /// The room's publishers must encrypt end to end, as the router says: all media of the room is encrypted.
    EncryptionRequired,
    /// Signalling is lost; the room reconnects by itself. Media may continue.
    Disconnected,
    /// Signalling is back. Events about all present streams follow. Subscriptions continue, except those that were reported lost.
    Reconnected,
    /// The room was removed at the router. No further events follow until it exists again.
    RoomDestroyed,
}

/// The id of a subscription within one room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriptionId(pub u64);

/// The router's offer of a subscription, to be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The subscription.
    pub subscription: SubscriptionId,
    /// The router's SDP offer.
    pub sdp: String,
    /// The mids of the offer, each with the kind of its track.
    pub mids: Vec<(String, TrackKind)>,
    /// Whether the router says that the media is encrypted end to end. Janus does from version 1.3 on.
    pub encrypted: bool,
}

/// Takes the router's candidates that come after its offer, each as the text of a `candidate` attribute.
pub type CandidateSink = Arc<dyn Fn(String) + Send + Sync>;

/// Why an operation of a media router failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages name the fields")]
pub enum RouterError {
    /// Not connected, or the connection was lost.
    #[error("media router {router} cannot be reached while it should {doing}")]
    Unavailable {
        router: String,
        doing: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("media router {router} did not answer in {after_ms} ms while it should {doing}")]
    Timeout { router: String, doing: &'static str, after_ms: u64 },
    /// The room does not exist.
    #[error("room {room} does not exist at media router {router}")]
    RoomNotFound { router: String, room: RoomId },
    /// The stream is not in the room any more.
    #[error("stream {stream} is not in the room any more")]
    StreamNotFound { stream: String },
    /// Refused: wrong secret, pin or token.
    #[error("media router {router} refused to {doing}: {text} (code {code})")]
    Refused { router: String, doing: &'static str, code: i64, text: String },
    /// An answer that violates the protocol.
    #[error("media router {router} sent something unexpected while it should {doing}: {problem}")]
    Protocol { router: String, doing: &'static str, problem: String },
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

/// A room in a router's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedRoom {
    /// Its id.
    pub room: RoomId,
    /// Its description: for a room that this program created, the session's id.
    pub about: String,
    /// Participants, archivers included.
    pub participants: usize,
}

/// A client in a room, publishing or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Participant {
    /// Its id at the router.
    pub router_id: String,
    /// The display name.
    pub name: Option<String>,
    /// The connection data of the client's token.
    pub connection_data: Option<String>,
    /// Whether it publishes.
    pub publishing: bool,
}

/// The rooms of a router. All operations are idempotent and have a time limit.
#[async_trait]
pub trait Rooms: Send + Sync {
    /// Creates a session's room unless it exists. Returns whether it was created.
    async fn create_room(&self, place: &RouterRoom, session: &SessionId) -> Result<bool, RouterError>;

    /// All rooms.
    async fn list_rooms(&self) -> Result<Vec<ListedRoom>, RouterError>;

    /// The clients in a room, without archivers.
    async fn participants(&self, room: &RoomId) -> Result<Vec<Participant>, RouterError>;

    /// The streams that are published in a room. May join the room as an observer for a moment, so it is not for polling.
    async fn streams(&self, place: &RouterRoom) -> Result<Vec<StreamInfo>, RouterError>;

    /// Removes a room with all participants. Returns whether it existed.
    async fn remove_room(&self, place: &RouterRoom) -> Result<bool, RouterError>;
}

/// A stream that this program publishes. It ends when this is dropped, or with its room.
pub struct Publication {
    /// The router's SDP answer.
    pub answer: String,
    /// Keeps the router's session.
    _session: Box<dyn std::any::Any + Send>,
}

impl Publication {
    /// A stream that lasts as long as `session`.
    #[must_use]
    pub fn new(answer: String, session: Box<dyn std::any::Any + Send>) -> Self {
        Self { answer, _session: session }
    }
}

/// The media routers of a configuration, by name.
pub type Routers = BTreeMap<RouterName, Arc<dyn MediaRouter>>;

/// A media router: one for each entry of the configuration.
#[async_trait]
pub trait MediaRouter: Rooms {
    /// Its name in the configuration.
    fn name(&self) -> &str;

    /// Checks that the router can be used, and returns its name and version. For `archiver check`.
    async fn probe(&self) -> Result<String, RouterError>;

    /// Publishes a stream in a room, to see that its media comes back. For `archiver check`.
    async fn publish(&self, place: &RouterRoom, offer: String) -> Result<Publication, RouterError>;

    /// Joins a room as an observer, which publishes nothing. Its name marks it as an archiver, so that other archivers do not count it as a
    /// client.
    async fn join(&self, place: &RouterRoom) -> Result<Box<dyn Room>, RouterError>;
}

/// A joined room. Dropping it leaves the room; `leave` also waits for the end.
#[async_trait]
pub trait Room: Send {
    /// The next event; `None` after the room was left. The room reconnects by itself with back-off, without a limit. Cancel-safe.
    async fn next_event(&mut self) -> Option<RoomEvent>;

    /// Commands to the room; usable while another task waits for events.
    fn control(&self) -> std::sync::Arc<dyn RoomControl>;

    /// Leaves the room and ends all subscriptions.
    async fn leave(self: Box<Self>);
}

/// Commands to a room.
#[async_trait]
pub trait RoomControl: Send + Sync {
    /// Subscribes to tracks of a stream, at most one of each kind. `mids` are those at the publisher. Returns the router's offer.
    async fn subscribe(&self, router_id: &str, mids: &[String]) -> Result<Offer, RouterError>;

    /// From now on `sink` takes the candidates of a subscription that its offers do not have. Those that came before are passed on at once.
    /// A router whose offers are complete never calls it.
    fn on_candidate(&self, _subscription: SubscriptionId, _sink: CandidateSink) {}

    /// Answers the first offer, or a renegotiation.
    async fn answer(&self, subscription: SubscriptionId, sdp: String) -> Result<(), RouterError>;

    /// Selects the highest simulcast or SVC layer. No effect if there is only one.
    async fn prefer_highest_layer(&self, subscription: SubscriptionId) -> Result<(), RouterError>;

    /// Ends a subscription. No effect if it has ended.
    async fn unsubscribe(&self, subscription: SubscriptionId);
}
