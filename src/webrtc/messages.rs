//! Commands, events and options that pass between the engine, its threads and its users.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::PeerError;
use super::formats::Answer;
use crate::model::ids::{ArchiveId, Epoch, StreamId, TrackId, TrackKind};
use crate::model::media::{GapCause, TrackStats};
use crate::model::time::{MediaClock, MediaTime};
use crate::recording::{LogOptions, SealedSegment, UnsyncedSegment};
use crate::rtp::track::{Output, TrackOptions};

/// Changes a candidate's address; for media routers behind an address translation, and for tests.
pub type CandidateMap = Arc<dyn Fn(SocketAddr) -> SocketAddr + Send + Sync>;

/// The engine's settings.
#[derive(Clone)]
pub struct EngineConfig {
    /// Local address of the media socket; port 0 takes a free one. All addresses of IPv6, `[::]`, are those of IPv4, too.
    pub bind: SocketAddr,
    /// The address that media routers see, where it is not the local one. It stands for the local ones of its own family.
    pub advertise: Option<IpAddr>,
    /// UDP receive buffer to ask for, in bytes. The kernel's default of 208 KiB overflows at ten streams.
    pub receive_buffer_bytes: usize,
    /// How long datagrams may wait in the socket before they are read. A recorder has no hurry, and
    /// waking up for each packet costs more than reading it.
    pub batch: Duration,
    /// A connection that does not come up within this time is given up.
    pub connect_max: Duration,
    /// A connection without a working path for this time is given up.
    pub disconnected_max: Duration,
    /// Changes the router's candidate addresses before they are used.
    pub candidate_map: Option<CandidateMap>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from(([0, 0, 0, 0], 0)),
            advertise: None,
            receive_buffer_bytes: 4 << 20,
            batch: Duration::from_millis(5),
            connect_max: Duration::from_secs(10),
            disconnected_max: Duration::from_secs(5),
            candidate_map: None,
        }
    }
}

/// A capture's key within the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CaptureKey(pub(super) u64);

/// A peer's key within the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerKey(pub(crate) u64);

/// A capture's settings.
#[derive(Debug, Clone)]
pub struct CaptureOptions {
    /// The archive that the media is for.
    pub archive: ArchiveId,
    /// The archive's folder in the spool.
    pub dir: PathBuf,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// Its clock: media arrives at its times.
    pub clock: MediaClock,
    /// How parts are written.
    pub log: LogOptions,
    /// The track rules' limits.
    pub track: TrackOptions,
    /// Length of a segment. All tracks are sealed together.
    pub segment: Duration,
    /// Where earlier epochs' tracks end. The time since then is a gap of the worker.
    pub prior_ends: BTreeMap<TrackId, MediaTime>,
    /// The watermark of the log: all media that arrived before it is written.
    pub watermark: watch::Sender<MediaTime>,
}

/// An event of a capture, for the job's driver.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum CaptureEvent {
    /// ICE and DTLS of a peer are up.
    Connected { peer: PeerKey },
    /// A peer was removed. Its tracks wait for another one.
    PeerLost { peer: PeerKey, reason: String },
    /// Media of a track is missing although it seems to be sent; without a cause it no longer is.
    TrackStarved { track: TrackId, cause: Option<GapCause> },
    /// The first part of a track in this epoch is on disk.
    FirstMedia { track: TrackId },
    /// All tracks were sealed at one moment. These segments are new and fsynced.
    Sealed { segments: Vec<SealedSegment> },
    /// A track's log cannot be written. Writing is retried, and the loss will be a gap.
    StorageFailed { track: TrackId, reason: String },
    /// A track's log can be written again.
    StorageRecovered { track: TrackId },
}

/// What a driver asks of its worker's engine. The answers go to `done`.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Command {
    /// Open a capture.
    Open {
        key: CaptureKey,
        options: Box<CaptureOptions>,
        events: mpsc::Sender<CaptureEvent>,
        done: oneshot::Sender<()>,
    },
    /// Make a PeerConnection from the router's offer.
    AddPeer {
        key: PeerKey,
        capture: CaptureKey,
        stream: StreamId,
        offer: String,
        mids: Vec<(String, TrackKind)>,
        done: oneshot::Sender<Result<Answer, PeerError>>,
    },
    /// Apply a further offer.
    Renegotiate {
        key: PeerKey,
        offer: String,
        mids: Vec<(String, TrackKind)>,
        done: oneshot::Sender<Result<Answer, PeerError>>,
    },
    /// A candidate of the router, which came after its offer.
    AddCandidate { key: PeerKey, candidate: String },
    /// End a PeerConnection.
    RemovePeer { key: PeerKey, cause: GapCause },
    /// The publisher switched a track off or on.
    Muted { capture: CaptureKey, track: TrackId, muted: bool },
    /// A track is in the archive from now on.
    Selected { capture: CaptureKey, track: TrackId },
    /// Seal all tracks of a capture, and end it.
    Close { key: CaptureKey, done: oneshot::Sender<()> },
    /// The engine is dropped.
    Shutdown,
}

/// An entry for a track's log.
pub(super) struct LogEntry {
    pub capture: CaptureKey,
    pub track: TrackId,
    pub data: EntryData,
}

pub(super) enum EntryData {
    Output(Output),
    Stats(TrackStats),
}

impl LogEntry {
    pub const fn stats(capture: CaptureKey, track: TrackId, stats: TrackStats) -> Self {
        Self { capture, track, data: EntryData::Stats(stats) }
    }
}

pub(super) enum LogCommand {
    Open { key: CaptureKey, options: Box<CaptureOptions>, events: mpsc::Sender<CaptureEvent> },
    Entries { entries: Vec<LogEntry>, watermarks: Vec<(CaptureKey, MediaTime)> },
    Close { key: CaptureKey, done: oneshot::Sender<()> },
}

pub(super) enum SyncCommand {
    Sync { segments: Vec<UnsyncedSegment>, events: mpsc::Sender<CaptureEvent> },
    Done(oneshot::Sender<()>),
}

/// Sends an event to the job's driver. The driver reads events at once; a full queue means that it hangs. Then the event
/// is lost, but no media.
pub(super) fn send_event(events: &mpsc::Sender<CaptureEvent>, event: CaptureEvent) {
    if let Err(mpsc::error::TrySendError::Full(event)) = events.try_send(event) {
        tracing::warn!(?event, "the job's driver does not read its events");
    }
}
