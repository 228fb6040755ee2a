//! The engine's handle: the job driver's requests to the capture threads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use super::formats::Answer;
use super::messages::{CaptureEvent, CaptureKey, CaptureOptions, Command, EngineConfig, PeerKey};
use super::{PeerError, log_thread, media_thread};
use crate::model::ids::{StreamId, TrackId, TrackKind};
use crate::model::media::GapCause;
use crate::recording::spool::Spool;

/// Commands that may wait for the media thread.
const COMMANDS_MAX: usize = 1024;
/// Events of one session that may wait for its driver.
pub const EVENTS_MAX: usize = 4096;
/// Batches of frames that may wait for a slow disk: at one batch each 5 ms about 10 s.
const BATCHES_MAX: usize = 2048;

/// Where an engine's commands go.
#[derive(Clone)]
enum CommandQueue {
    /// To the media thread.
    Thread(SyncSender<Command>),
    /// To whoever stands for it, as a simulation does.
    StandIn(mpsc::Sender<Command>),
}

impl CommandQueue {
    // The queue is full only when its reader hangs. Waiting for it would hang the caller, too.
    fn send(&self, command: Command) -> Result<(), EngineGone> {
        match self {
            Self::Thread(queue) => queue.try_send(command).map_err(|_| EngineGone),
            Self::StandIn(queue) => queue.try_send(command).map_err(|_| EngineGone),
        }
    }
}

/// The capture threads of a worker. Dropping it ends them after everything was written.
pub struct Engine {
    commands: CommandQueue,
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
        let (commands, command_queue) = sync_channel(COMMANDS_MAX);
        let (batches, batch_queue) = sync_channel(BATCHES_MAX);
        let (syncs, sync_queue) = sync_channel(BATCHES_MAX);
        let media = media_thread::MediaThread::new(config, command_queue, batches)?;
        let local = media.local();
        let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let threads = vec![
            named("media").spawn(move || media.run())?,
            named("log").spawn(move || log_thread::run_log(&batch_queue, &syncs, &spool))?,
            named("sync").spawn(move || log_thread::run_sync(&sync_queue))?,
        ];
        Ok(Self { commands: CommandQueue::Thread(commands), next_key: AtomicU64::new(1), local, threads })
    }

    /// An engine without threads and socket, and the commands that it is given: whoever reads them stands for the threads. For simulations.
    #[must_use]
    pub fn stand_in() -> (Self, mpsc::Receiver<Command>) {
        let (commands, queue) = mpsc::channel(COMMANDS_MAX);
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let commands = CommandQueue::StandIn(commands);
        (Self { commands, next_key: AtomicU64::new(1), local, threads: Vec::new() }, queue)
    }

    /// The address at which media arrives.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local
    }

    fn new_key(&self) -> u64 {
        self.next_key.fetch_add(1, Ordering::Relaxed)
    }

    fn send(&self, command: Command) -> Result<(), EngineGone> {
        self.commands.send(command)
    }

    /// Opens a capture. A track's log is recovered and continued when media for it arrives.
    ///
    /// # Errors
    /// When the threads are gone.
    pub async fn open(
        &self,
        options: CaptureOptions,
    ) -> Result<(CaptureKey, mpsc::Receiver<CaptureEvent>), EngineGone> {
        let key = CaptureKey(self.new_key());
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let (done, opened) = oneshot::channel();
        self.send(Command::Open { key, options: Box::new(options), events, done })?;
        opened.await.map_err(|_| EngineGone)?;
        Ok((key, receiver))
    }

    /// Makes a PeerConnection from the router's offer. Returns its key and the answer.
    ///
    /// # Errors
    /// When the threads are gone, or the offer cannot be used.
    pub async fn add_peer(
        &self,
        capture: CaptureKey,
        stream: StreamId,
        offer: String,
        mids: Vec<(String, TrackKind)>,
    ) -> Result<(PeerKey, Answer), PeerError> {
        let key = PeerKey(self.new_key());
        let (done, answer) = oneshot::channel();
        self.send(Command::AddPeer { key, capture, stream, offer, mids, done })?;
        Ok((key, answer.await.map_err(|_| EngineGone)??))
    }

    /// Applies a further offer to a peer. Returns the answer.
    ///
    /// # Errors
    /// As for [`Engine::add_peer`].
    pub async fn renegotiate(
        &self,
        key: PeerKey,
        offer: String,
        mids: Vec<(String, TrackKind)>,
    ) -> Result<Answer, PeerError> {
        let (done, answer) = oneshot::channel();
        self.send(Command::Renegotiate { key, offer, mids, done })?;
        answer.await.map_err(|_| EngineGone)?
    }

    /// Takes the router's candidates for a peer that come after its offer, each as the text of a `candidate` attribute. What is no UDP
    /// candidate is passed over, as is everything after the peer's end.
    #[must_use]
    pub fn candidate_sink(&self, key: PeerKey) -> Arc<dyn Fn(String) + Send + Sync> {
        let commands = self.commands.clone();
        Arc::new(move |candidate| {
            if commands.send(Command::AddCandidate { key, candidate }).is_err() {
                tracing::warn!("a candidate of the media router is lost: the capture threads are busy or have ended");
            }
        })
    }

    /// Ends a peer. The gap of its tracks until another peer brings them has the cause `cause`.
    ///
    /// # Errors
    /// When the threads are gone.
    pub fn remove_peer(&self, key: PeerKey, cause: GapCause) -> Result<(), EngineGone> {
        self.send(Command::RemovePeer { key, cause })
    }

    /// Notes that the publisher switched a track off or on.
    ///
    /// # Errors
    /// When the threads are gone.
    pub fn set_muted(&self, capture: CaptureKey, track: TrackId, muted: bool) -> Result<(), EngineGone> {
        self.send(Command::Muted { capture, track, muted })
    }

    /// Notes that a track is in the archive from now on: its file begins with a keyframe, which is requested.
    ///
    /// # Errors
    /// When the threads are gone.
    pub fn track_selected(&self, capture: CaptureKey, track: TrackId) -> Result<(), EngineGone> {
        self.send(Command::Selected { capture, track })
    }

    /// Ends a capture that nobody waits for any more.
    pub fn abandon(&self, key: CaptureKey) {
        let (done, _) = oneshot::channel();
        if self.send(Command::Close { key, done }).is_err() {
            tracing::error!("a capture is not closed: the capture threads are busy or have ended");
        }
    }

    /// Ends a capture: closes its peers, gives up packets that wait for a retransmission, and seals all tracks. Returns
    /// when all segments are fsynced. The last [`CaptureEvent::Sealed`] comes before that.
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
        // With a full queue the thread ends, too: it sees that the sender is dropped.
        self.commands.send(Command::Shutdown).unwrap_or_default();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a capture thread panicked");
            }
        }
    }
}
