//! The engine's handle: what the job driver may ask of the capture threads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use super::messages::{CaptureEvent, CaptureKey, CaptureOptions, Command, EngineConfig, PeerKey};
use super::{PeerError, log_thread, media_thread};
use crate::model::ids::{StreamId, TrackId, TrackKind};
use crate::model::media::GapCause;
use crate::model::time::ClockAnchor;
use crate::recording::spool::Spool;

/// Commands that may wait for the media thread.
const COMMANDS_MAX: usize = 1024;
/// Events of one session that may wait for its driver.
pub const EVENTS_MAX: usize = 4096;
/// Batches of frames that may wait for a slow disk: at one batch each 5 ms about 10 s.
const BATCHES_MAX: usize = 2048;

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

    /// Takes the router's candidates for a peer that come after its offer, each as the text of a `candidate` attribute. What is no UDP
    /// candidate is passed over, as is everything after the peer's end.
    #[must_use]
    pub fn candidate_sink(&self, key: PeerKey) -> Arc<dyn Fn(String) + Send + Sync> {
        let commands = self.commands.clone();
        Arc::new(move |candidate| {
            if commands.try_send(Command::AddCandidate { key, candidate }).is_err() {
                tracing::warn!("a candidate of the media router is lost: the capture threads are busy or have ended");
            }
        })
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
