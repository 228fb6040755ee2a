//! The engine's handle: what the job driver may ask of the capture threads.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::{PeerError, log_thread, media_thread};
use crate::model::ids::{ArchiveId, Epoch, StreamId, TrackId, TrackKind};
use crate::model::media::GapCause;
use crate::model::time::{ClockAnchor, MediaTime, Wallclock};
use crate::recording::spool::Spool;
use crate::recording::{LogOptions, SealedSegment};
use crate::rtp::track::TrackOptions;

/// Commands that may wait for the media thread.
const COMMANDS_MAX: usize = 1024;
/// Events of one session that may wait for its driver.
pub const EVENTS_MAX: usize = 4096;
/// Batches of frames that may wait for a slow disk: at one batch each 5 ms about 10 s.
const BATCHES_MAX: usize = 2048;

/// Changes a candidate's address; for media routers behind an address translation, and for tests.
pub type CandidateMap = Arc<dyn Fn(SocketAddr) -> SocketAddr + Send + Sync>;

/// What the engine needs to know.
#[derive(Clone)]
pub struct EngineConfig {
    /// Local address of the media socket; port 0 takes a free one.
    pub bind: SocketAddr,
    /// The address that media routers see, where it is not the local one.
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

/// Names a capture within the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CaptureKey(pub(super) u64);

/// Names a peer within the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerKey(pub(crate) u64);

/// What a capture needs to know.
#[derive(Debug, Clone)]
pub struct CaptureOptions {
    /// Whose media it is.
    pub archive: ArchiveId,
    /// The archive's folder in the spool.
    pub dir: PathBuf,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// Media time zero.
    pub origin: Wallclock,
    /// How parts are written.
    pub log: LogOptions,
    /// The track rules' limits.
    pub track: TrackOptions,
    /// All tracks are sealed together, so often.
    pub segment: Duration,
    /// Where earlier epochs' tracks end: what is missing since then is a gap of the worker.
    pub earlier: BTreeMap<TrackId, MediaTime>,
    /// Told how far the log is complete: all that arrived before this moment is written.
    pub complete: watch::Sender<MediaTime>,
}

/// What a capture has to tell.
#[derive(Debug)]
pub enum CaptureEvent {
    /// ICE and DTLS of a peer are up.
    Connected {
        /// Which.
        peer: PeerKey,
    },
    /// A peer is dead and gone; its tracks wait for another one.
    PeerLost {
        /// Which.
        peer: PeerKey,
        /// Why.
        why: String,
    },
    /// The first part of a track in this epoch is on disk.
    FirstMedia {
        /// Which.
        track: TrackId,
    },
    /// All tracks were sealed at one moment; these have new segments, fsynced.
    Sealed {
        /// The segments.
        segments: Vec<SealedSegment>,
    },
    /// A track's log cannot be written. It tries again by itself; the loss will be a gap.
    StorageFailed {
        /// Which.
        track: TrackId,
        /// Why.
        why: String,
    },
}

pub(super) enum Command {
    Open {
        key: CaptureKey,
        options: Box<CaptureOptions>,
        events: mpsc::Sender<CaptureEvent>,
        done: oneshot::Sender<()>,
    },
    AddPeer {
        key: PeerKey,
        capture: CaptureKey,
        stream: StreamId,
        offer: String,
        mids: Vec<(String, TrackKind)>,
        done: oneshot::Sender<Result<String, PeerError>>,
    },
    Renegotiate {
        key: PeerKey,
        offer: String,
        mids: Vec<(String, TrackKind)>,
        done: oneshot::Sender<Result<String, PeerError>>,
    },
    RemovePeer {
        key: PeerKey,
        cause: GapCause,
    },
    Muted {
        capture: CaptureKey,
        track: TrackId,
        muted: bool,
    },
    Selected {
        capture: CaptureKey,
        track: TrackId,
    },
    Close {
        key: CaptureKey,
        done: oneshot::Sender<()>,
    },
    Shutdown,
}

/// The capture threads of a worker. Dropping it ends them after everything was written.
pub struct Engine {
    commands: SyncSender<Command>,
    next_key: AtomicU64,
    local: SocketAddr,
    threads: Vec<JoinHandle<()>>,
}

/// The engine's threads are gone: the process is ending, or they panicked.
#[derive(Debug, thiserror::Error)]
#[error("the capture threads have ended")]
pub struct EngineGone;

impl Engine {
    /// Binds the socket and starts the threads.
    ///
    /// # Errors
    /// When the socket cannot be bound or a thread cannot be started.
    pub fn start(config: EngineConfig, spool: Arc<Spool>) -> std::io::Result<Self> {
        let anchor = ClockAnchor::now();
        let (commands, command_queue) = sync_channel(COMMANDS_MAX);
        let (batches, batch_queue) = sync_channel(BATCHES_MAX);
        let (syncs, sync_queue) = sync_channel(BATCHES_MAX);
        let media = media_thread::MediaThread::new(config, command_queue, batches, anchor)?;
        let local = media.local();
        let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let threads = vec![
            named("media").spawn(move || media.run())?,
            named("log").spawn(move || log_thread::run_log(&batch_queue, &syncs, &spool, anchor))?,
            named("sync").spawn(move || log_thread::run_sync(&sync_queue))?,
        ];
        Ok(Self { commands, next_key: AtomicU64::new(1), local, threads })
    }

    /// Where media arrives.
    #[must_use]
    pub const fn local(&self) -> SocketAddr {
        self.local
    }

    fn key(&self) -> u64 {
        self.next_key.fetch_add(1, Ordering::Relaxed)
    }

    // The queue is only ever full when the media thread hangs; then waiting a little is right, for ever is not.
    fn send(&self, command: Command) -> Result<(), EngineGone> {
        self.commands.try_send(command).map_err(|_| EngineGone)
    }

    /// Opens a capture: its tracks' logs are recovered and continued when media for them arrives.
    ///
    /// # Errors
    /// When the threads are gone.
    pub async fn open(
        &self,
        options: CaptureOptions,
    ) -> Result<(CaptureKey, mpsc::Receiver<CaptureEvent>), EngineGone> {
        let key = CaptureKey(self.key());
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let (done, opened) = oneshot::channel();
        self.send(Command::Open { key, options: Box::new(options), events, done })?;
        opened.await.map_err(|_| EngineGone)?;
        Ok((key, receiver))
    }

    /// Makes a PeerConnection from the router's offer. Returns its name and the SDP answer.
    ///
    /// # Errors
    /// The outer one when the threads are gone, the inner one when the offer cannot be used.
    pub async fn add_peer(
        &self,
        capture: CaptureKey,
        stream: StreamId,
        offer: String,
        mids: Vec<(String, TrackKind)>,
    ) -> Result<Result<(PeerKey, String), PeerError>, EngineGone> {
        let key = PeerKey(self.key());
        let (done, answer) = oneshot::channel();
        self.send(Command::AddPeer { key, capture, stream, offer, mids, done })?;
        Ok(answer.await.map_err(|_| EngineGone)?.map(|answer| (key, answer)))
    }

    /// Gives a further offer to a peer. Returns the SDP answer.
    ///
    /// # Errors
    /// As for [`Engine::add_peer`].
    pub async fn renegotiate(
        &self,
        key: PeerKey,
        offer: String,
        mids: Vec<(String, TrackKind)>,
    ) -> Result<Result<String, PeerError>, EngineGone> {
        let (done, answer) = oneshot::channel();
        self.send(Command::Renegotiate { key, offer, mids, done })?;
        answer.await.map_err(|_| EngineGone)
    }

    /// Ends a peer. What its tracks miss until another peer brings them is put down to `cause`.
    ///
    /// # Errors
    /// When the threads are gone.
    pub fn remove_peer(&self, key: PeerKey, cause: GapCause) -> Result<(), EngineGone> {
        self.send(Command::RemovePeer { key, cause })
    }

    /// Tells that the publisher switched a track off or on.
    ///
    /// # Errors
    /// When the threads are gone.
    pub fn muted(&self, capture: CaptureKey, track: TrackId, muted: bool) -> Result<(), EngineGone> {
        self.send(Command::Muted { capture, track, muted })
    }

    /// From now on a track is in the archive.
    ///
    /// # Errors
    /// When the threads are gone.
    pub fn selected(&self, capture: CaptureKey, track: TrackId) -> Result<(), EngineGone> {
        self.send(Command::Selected { capture, track })
    }

    /// Ends a capture: its peers are closed, what waits for a retransmission is given up, and every
    /// track is sealed and fsynced when this returns. The last [`CaptureEvent::Sealed`] comes before it.
    ///
    /// # Errors
    /// When the threads are gone.
    pub async fn close(&self, key: CaptureKey) -> Result<(), EngineGone> {
        let (done, closed) = oneshot::channel();
        self.send(Command::Close { key, done })?;
        closed.await.map_err(|_| EngineGone)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // A full queue ends too: the sender is dropped with us, and the thread sees it.
        self.commands.try_send(Command::Shutdown).unwrap_or_default();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a capture thread panicked");
            }
        }
    }
}

/// A moment of a capture on its time line.
#[must_use]
pub(super) fn media_time(at: Wallclock, origin: Wallclock) -> MediaTime {
    MediaTime::from_wallclock(at, origin)
}
