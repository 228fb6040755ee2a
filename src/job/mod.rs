//! The life of one job: from an accepted event to an available archive or a parked job.
//!
//! ```text
//! accepted ──► capturing ──► finalizing ──► available
//!     │            │              │
//!     └────────────┴──────────────┴──► parked ──(replay)──► back to where its media stands
//!
//! available ──(more of its media comes)──► finalizing
//!
//! capturing ──(nobody publishes)──► waiting ──(a stream comes)──► accepted
//!     └──(the session ends)──► empty ◄──┘
//! empty ──(media of it comes)──► finalizing
//! ```
//!
//! [`presence`] is pure; one driver task owns each job. Captures wait for nobody: what must be told to
//! the catalog goes through the [`lease`], what must go to the store is shipped beside.

mod absence;
pub mod accept;
pub mod capture;
pub mod catalog_clock;
pub mod change;
mod contact;
pub mod desired;
pub mod driver;
mod enter;
pub mod finalize;
mod hand_over;
pub mod intake;
pub mod lease;
pub mod leftovers;
mod link;
mod live_composer;
mod make;
pub mod parked;
pub mod presence;
pub mod replay;
mod revision;
mod rollover;
mod room_session;
pub mod scheduler;
mod setbacks;
mod stage;
mod stream_ids;
mod subscribe;
mod track_health;
pub mod waiting;
pub mod worker_health;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::archive::StreamFiles;
use crate::archive::object::ArchiveDescriptor;
use crate::catalog::{ArchiveRow, JobRow, SharedCatalog};
use crate::config::Settings;
use crate::model::fault::{FaultKind, chain};
use crate::model::ids::WorkerId;
use crate::model::job_spec::JobSpec;
use crate::model::session::ArchiveMode;
use crate::model::time::Wallclock;
use crate::recording::history;
use crate::recording::spool::Spool;
use crate::router::Routers;
use crate::store::SharedStore;
use crate::store::keys::Keys;
use crate::webrtc::Engine;

/// What every job of a worker uses.
pub struct Context {
    /// The configuration.
    pub settings: Settings,
    /// This worker.
    pub worker: WorkerId,
    /// The catalog.
    pub catalog: SharedCatalog,
    /// The store.
    pub store: SharedStore,
    /// The capture threads.
    pub engine: Engine,
    /// The local disk.
    pub spool: Arc<Spool>,
    /// The media routers, by name.
    pub routers: Routers,
    /// Jobs here that have given their session to a successor, and do not count for the capacity any more.
    pub released_slots: AtomicUsize,
    /// Jobs here that capture nothing any more: their archives are made, or wait for the store. They do not count for the capacity either.
    pub finalizing: AtomicUsize,
    /// Archives that may be made at a time: each takes a processor.
    pub builds: Semaphore,
    /// Makes the archives' individual files.
    pub stream_files: Arc<dyn StreamFiles>,
    /// This worker has a place for a further session.
    pub takes: AtomicBool,
    /// Somebody told this worker to hand its sessions over, and to take none.
    pub drains: watch::Sender<bool>,
    /// Some jobs were kept at the stop: this worker alone can go on with them.
    pub keeps_jobs: AtomicBool,
    /// The catalog's clock.
    pub clock: catalog_clock::CatalogClock,
    /// Whether this worker can do its work.
    pub health: worker_health::WorkerHealth,
    /// The leases of the jobs that run here.
    pub leases: Arc<lease::Leases>,
    /// Archives whose logs are being sealed and shipped though their jobs are not this worker's.
    pub leftovers: leftovers::Underway,
    /// Counts what was put into the catalog for jobs that may be this worker's: they look there at once.
    pub wakes: watch::Sender<u64>,
}

impl Context {
    /// Makes this worker's jobs look into the catalog now instead of with their next heartbeat.
    pub fn wake(&self) {
        self.wakes.send_modify(|wakes| *wakes = wakes.wrapping_add(1));
    }
}

/// Why a job cannot go on by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobFailure {
    /// Its fault.
    pub kind: FaultKind,
    /// In words.
    pub detail: String,
}

impl JobFailure {
    fn of(error: &impl crate::model::fault::HasFault) -> Self {
        Self { kind: error.fault().kind, detail: crate::model::fault::chain(error) }
    }
}

/// How a driver's work on a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The archive is available.
    Available,
    /// It needs a person.
    Parked(JobFailure),
    /// Another owner has it.
    Fenced,
    /// The worker stops: the next owner continues it.
    HandedOver {
        /// Whether the session is captured, so that only the archive is to be made.
        captured: bool,
    },
    /// This machine cannot go on with it: another one may.
    HandedOn(JobFailure),
    /// Nobody publishes yet. It waits in the catalog, for a stream or for the session's end.
    Waiting,
    /// Its session ended before anybody published, as far as is known.
    Empty,
}

/// One job in the hands of its driver.
pub struct Job {
    context: Arc<Context>,
    row: JobRow,
    /// When the catalog heard from the owner before for the last time, if that did not give the job back.
    owner_seen: Option<Wallclock>,
    spec: JobSpec,
    dir: PathBuf,
    keys: Keys,
    /// The worker stops: seal, hand over.
    drain: CancellationToken,
    /// Another owner has the job, which was not offered: stop, and touch nothing.
    fenced: CancellationToken,
    /// Cancels what makes the archive: the lease is lost, or the worker stops and leaves the archive to the next owner.
    given_up: CancellationToken,
    /// A successor has its session.
    released_slots: AtomicBool,
    /// It captures nothing any more.
    finalizing: AtomicBool,
    /// The worker stops, and the job was offered to others.
    offered: AtomicBool,
    /// Another worker has taken the offer.
    taken: AtomicBool,
}

impl Drop for Job {
    fn drop(&mut self) {
        // The worker drops drivers that do not end in time. Their work on other threads must not delay the end of the process.
        self.fenced.cancel();
        if *self.released_slots.get_mut() {
            self.context.released_slots.fetch_sub(1, Ordering::Relaxed);
        }
        if *self.finalizing.get_mut() {
            self.context.finalizing.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Job {
    /// A claimed job. Its event was read when it was accepted, so it can be read again.
    ///
    /// # Errors
    /// When the catalog's copy of the event cannot be read.
    pub fn new(
        context: Arc<Context>,
        row: JobRow,
        owner_seen: Option<Wallclock>,
        drain: CancellationToken,
    ) -> Result<Self, JobFailure> {
        let spec = row.spec().map_err(JobFailure::of)?.clone();
        let dir = context.spool.archive_dir(row.archive);
        let keys = Keys::new(row.application.clone(), row.archive);
        let fenced = CancellationToken::new();
        Ok(Self {
            context,
            row,
            owner_seen,
            spec,
            dir,
            keys,
            drain,
            given_up: fenced.child_token(),
            fenced,
            released_slots: AtomicBool::new(false),
            finalizing: AtomicBool::new(false),
            offered: AtomicBool::new(false),
            taken: AtomicBool::new(false),
        })
    }

    /// Whether the session is recorded by itself. Then another archive follows when this one has become as long as one may, and a job
    /// in whose first minute nobody publishes waits. An archive that somebody started ends there.
    fn is_automatic(&self) -> bool {
        self.spec.archive_mode == ArchiveMode::Always
    }

    /// The job captures nothing any more: its place is another session's, however long the store is away. That of a successor it has
    /// given away already.
    fn captures_no_more(&self) {
        if !self.finalizing.swap(true, Ordering::Relaxed) {
            self.context.finalizing.fetch_add(1, Ordering::Relaxed);
        }
        if self.released_slots.swap(false, Ordering::Relaxed) {
            self.context.released_slots.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether the worker stops, and the job was offered to others.
    fn is_offered(&self) -> bool {
        self.offered.load(Ordering::Relaxed)
    }

    /// Whether another worker has taken the job that was offered, and notes what happens in the room.
    fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Relaxed)
    }

    /// A successor needs a place of this worker's room: this job's will do.
    fn release_slot(&self) {
        if !self.finalizing.load(Ordering::Relaxed) && !self.released_slots.swap(true, Ordering::Relaxed) {
            self.context.released_slots.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether this machine has the history of every earlier epoch, and with it all their media.
    async fn has_all_before(&self) -> Result<bool, JobFailure> {
        let (dir, epoch) = (self.dir.clone(), self.row.epoch);
        let read = tokio::task::spawn_blocking(move || history::read(&dir)).await;
        let events = read
            .map_err(|e| JobFailure { kind: FaultKind::Bug, detail: chain(&e) })?
            .map_err(|e| JobFailure::of(&e))?;
        Ok(history::has_all_before(&events, epoch))
    }

    /// Whose archive it is.
    #[must_use]
    pub fn descriptor(&self) -> ArchiveDescriptor {
        ArchiveDescriptor {
            archive: self.row.archive,
            job: self.row.job,
            session: self.row.session.clone(),
            application: self.row.application.clone(),
            name: self.spec.archive.name.clone(),
            origin: self.row.origin,
            ended_at: self.row.ended_at,
            options: self.spec.archive.clone(),
            clip: None,
            ignore_layout_history: false,
        }
    }

    /// Its archive, as it is while media flows.
    fn archive_row(&self, now: Wallclock) -> ArchiveRow {
        ArchiveRow::started(&self.row, self.spec.archive.clone(), now)
    }
}
