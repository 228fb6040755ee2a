//! A worker process: takes events while it has capacity, runs jobs, and serves health checks. At shutdown it first stops consuming
//! events, then seals and hands over its jobs, then ends the rest.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::health;
use super::services::{Services, ServicesError};
use super::worker_name::{NameError, give_name_back, take_name};
use crate::archive::StreamFiles;
use crate::archive::retention::run_retention;
use crate::broker::BrokerState;
use crate::catalog::{ApplicationRow, ArchiveRow, WorkerInstance};
use crate::config::Settings;
use crate::job::Context;
use crate::job::catalog_clock::CatalogClock;
use crate::job::intake::handle;
use crate::job::lease::run_leases;
use crate::job::leftovers::{Underway, run_leftovers};
use crate::job::scheduler::run_scheduler;
use crate::job::waiting::run_waiting;
use crate::job::worker_health::{WorkerHealth, run_probes};
use crate::media::Pipelines;
use crate::model::cancellable::Cancellable;
use crate::model::ids::WorkerId;
use crate::model::time::Wallclock;
use crate::notify::{self, Dispatcher};
use crate::reconcile::run_reconciler;
use crate::recording::spool::Spool;
use crate::runtime::data_folder::{DataFolder, DataFolderError};
use crate::runtime::supervise::{panicked, restart_on_panic};
use crate::webrtc::{Engine, EngineConfig};

/// How long a data folder that another process uses is waited for, in addition to `offer`: a worker that is told to stop needs up to 40 s after
/// its offer.
const FOLDER_MAX: Duration = Duration::from_secs(45);
const FOLDER_LOOK_EVERY: Duration = Duration::from_millis(250);

/// Why a worker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum WorkerStartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigErrors),
    /// The spool.
    #[error(transparent)]
    Spool(#[from] crate::recording::LogError),
    /// Catalog, store or broker.
    #[error(transparent)]
    Services(#[from] ServicesError),
    /// The data folder.
    #[error(transparent)]
    DataFolder(#[from] DataFolderError),
    /// The worker's name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Another process took the worker's name while this one did not keep it.
    #[error("another worker took the name {worker} while this one stood still, and has its jobs; this one has stopped")]
    NameLost {
        /// The name.
        worker: WorkerId,
    },
    /// The media socket.
    #[error("the media socket cannot be opened at {bind}")]
    Socket {
        /// The local address.
        bind: std::net::SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// The state of a worker, for health checks and tests.
#[derive(Debug, Clone)]
pub struct Status {
    /// Whether the consumer of events is connected.
    pub broker: watch::Receiver<BrokerState>,
    /// The number of running jobs.
    pub jobs: Arc<AtomicUsize>,
}

impl Status {
    /// Whether this worker takes events, as text.
    ///
    /// # Errors
    /// The reason why it does not. `drains`: somebody told it so.
    pub fn ready(&self, drains: bool) -> Result<String, String> {
        let jobs = self.jobs.load(Ordering::Relaxed);
        if drains {
            return Err(format!("drained, {jobs} jobs go on; `archiver workers resume` ends that"));
        }
        match *self.broker.borrow() {
            BrokerState::Connected => Ok(format!("ready, {jobs} jobs")),
            BrokerState::Disconnected => Err(format!("no broker, {jobs} jobs go on")),
        }
    }
}

/// Opens the data folder. If another process uses it, that process may be about to end: it is waited for.
async fn open_folder(
    dir: PathBuf,
    offer: Duration,
    stop: &CancellationToken,
) -> Result<Cancellable<DataFolder>, DataFolderError> {
    let deadline = Instant::now() + FOLDER_MAX + offer;
    loop {
        let at = dir.clone();
        let opened = tokio::task::spawn_blocking(move || DataFolder::open(&at)).await;
        match opened.expect("opening the data folder does not panic") {
            Err(DataFolderError::InUse { .. }) if Instant::now() < deadline => {}
            opened => return opened.map(Cancellable::Done),
        }
        if stop.run_until_cancelled(sleep(FOLDER_LOOK_EVERY)).await.is_none() {
            return Ok(Cancellable::Cancelled);
        }
    }
}

/// Archives that are made at a time. More would only make each one later.
fn builds_max() -> usize {
    std::thread::available_parallelism().map_or(2, |processors| processors.get().max(2))
}

/// Opens the data folder, the media socket and the services of a configuration, and runs a worker until `stop`.
///
/// # Errors
/// When the worker cannot start, or another process has its name. Other failures are retried.
pub async fn open_and_run(
    settings: Settings,
    engine: EngineConfig,
    stop: CancellationToken,
) -> Result<(), WorkerStartError> {
    settings.for_worker()?;
    let data_dir = settings.worker.data_dir.clone();
    let Cancellable::Done(folder) = open_folder(data_dir, settings.worker.offer.0, &stop).await? else { return Ok(()) };
    let (dir, quota, percent) = (settings.spool_dir(), settings.spool.quota.0, settings.spool.admission_percent);
    let spool = tokio::task::spawn_blocking(move || Spool::open(&dir, quota, percent)).await;
    let spool = spool.expect("opening the spool does not panic")?.with_free_min(settings.spool.free_min.0);
    let spool = Arc::new(spool);
    let bind = engine.bind;
    let engine =
        Engine::start(engine, Arc::clone(&spool)).map_err(|source| WorkerStartError::Socket { bind, source })?;
    let Cancellable::Done(services) = Services::open(&settings, &stop).await? else { return Ok(()) };
    let name = WorkerInstance { worker: settings.worker_id(), instance: folder.id(), since: Wallclock::now() };
    let stream_files = Arc::new(Pipelines::new(settings.pipelines.dir.clone(), settings.pipelines.stall.0));
    run_as(settings, services, Machine { engine, spool, stream_files }, name, stop).await
}

/// Takes the worker's name, runs the worker until `stop`, and gives the name back.
///
/// # Errors
/// When another process has the name.
pub async fn run_as(
    settings: Settings,
    services: Services,
    machine: Machine,
    name: WorkerInstance,
    stop: CancellationToken,
) -> Result<(), WorkerStartError> {
    let catalog = services.catalog.clone();
    let taken = take_name(catalog.as_ref(), &name, settings.lease(), &stop).await?;
    let Cancellable::Done(drains) = taken else { return Ok(()) };
    match run(settings, services, machine, name.clone(), drains, stop).await {
        Stopped::NameLost => return Err(WorkerStartError::NameLost { worker: name.worker }),
        Stopped::HandedOver => give_name_back(catalog.as_ref(), &name).await,
        // The name's lease runs on: until it expires, no other process of this name takes these jobs, and this worker can start again.
        Stopped::KeepsJobs => {}
    }
    Ok(())
}

/// How a worker stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    /// All its jobs are other workers'.
    HandedOver,
    /// It alone can go on with some jobs.
    KeepsJobs,
    /// Another process took its name.
    NameLost,
}

/// What a worker has of its machine.
pub struct Machine {
    /// The capture threads.
    pub engine: Engine,
    /// The disk.
    pub spool: Arc<Spool>,
    /// Makes individual files.
    pub stream_files: Arc<dyn StreamFiles>,
}

/// Runs a worker with these services until `stop`, then hands its jobs over.
async fn run(
    settings: Settings,
    services: Services,
    machine: Machine,
    name: WorkerInstance,
    drains: bool,
    stop: CancellationToken,
) -> Stopped {
    let Services { catalog, store, routers, broker } = services;
    let Machine { engine, spool, stream_files } = machine;
    // The worker also stops when another process has its name.
    let stop = stop.child_token();
    let (name_lost, stop_leases) = (CancellationToken::new(), CancellationToken::new());
    let context = Arc::new(Context {
        worker: name.worker.clone(),
        store,
        routers,
        catalog,
        engine,
        spool,
        settings,
        released_slots: AtomicUsize::new(0),
        finalizing: AtomicUsize::new(0),
        builds: Semaphore::new(builds_max()),
        stream_files,
        takes: AtomicBool::new(false),
        drains: watch::channel(drains).0,
        keeps_jobs: AtomicBool::new(false),
        clock: CatalogClock::default(),
        health: WorkerHealth::default(),
        leases: Arc::default(),
        leftovers: Underway::default(),
        wakes: watch::channel(0).0,
    });
    // Its name was taken a moment ago.
    context.leases.confirm_name(Instant::now());
    tracing::info!(worker = %context.worker, region = %context.settings.worker.region, media = %context.engine.local_addr(),
        store = context.store.describe(), "worker started");
    let (state, seen) = watch::channel(BrokerState::Disconnected);
    let jobs = Arc::new(AtomicUsize::new(0));
    let status = Status { broker: seen, jobs: Arc::clone(&jobs) };
    let (capacity_sender, capacity) = watch::channel(context.settings.worker.capacity);
    let wake = Arc::new(Notify::new());
    let tasks = TaskTracker::new();
    let events = Arc::clone(&broker);
    let (leave_queue, stop_http) = (stop.child_token(), CancellationToken::new());
    tasks.spawn({
        let (context, lost, cancel) = (Arc::clone(&context), name_lost.clone(), stop_leases.clone());
        let keeping = move || run_leases(Arc::clone(&context), name.clone(), lost.clone(), cancel.clone());
        restart_on_panic("keeping leases", stop_leases.clone(), keeping)
    });
    tasks.spawn({
        let (lost, stop) = (name_lost.clone(), stop.clone());
        async move {
            if stop.run_until_cancelled(lost.cancelled()).await.is_some() {
                stop.cancel();
            }
        }
    });
    tasks.spawn({
        let (context, cancel) = (Arc::clone(&context), stop.clone());
        let probing = move || run_probes(Arc::clone(&context), cancel.clone());
        restart_on_panic("probing the disk", stop.clone(), probing)
    });
    let ready: health::Readiness = Arc::new({
        let context = Arc::downgrade(&context);
        move || {
            let context = context.upgrade();
            let trouble = context.as_ref().and_then(|context| context.health.trouble());
            let drains = context.is_some_and(|context| *context.drains.borrow());
            Box::pin(std::future::ready(trouble.map_or_else(|| status.ready(drains), Err)))
        }
    });
    tasks.spawn(health::serve(context.settings.http.bind, ready, stop_http.clone()));
    tasks.spawn({
        let (context, wake, cancel) = (Arc::clone(&context), Arc::clone(&wake), leave_queue.clone());
        let broker = Arc::clone(&broker);
        async move {
            let on_wakeup = || {
                wake.notify_one();
                context.wake();
            };
            while panicked("consuming wake-ups", &cancel, broker.consume_wakeups(&on_wakeup, &cancel)).await {}
        }
    });
    tasks.spawn({
        let (context, wake, cancel) = (Arc::clone(&context), Arc::clone(&wake), leave_queue.clone());
        async move {
            let handle = |delivery| handle(&context, &wake, delivery);
            let consuming = || broker.consume(capacity.clone(), &state, &cancel, &handle);
            while panicked("consuming events", &cancel, consuming()).await {
                state.send_replace(BrokerState::Disconnected);
            }
        }
    });
    tasks.spawn({
        let (context, wake, cancel) = (Arc::clone(&context), Arc::clone(&wake), leave_queue.clone());
        async move {
            while panicked("looking at waiting jobs", &cancel, run_waiting(&context, &wake, &cancel)).await {}
        }
    });
    // The API sends callbacks. The worker publishes events, too, so that they do not wait for an API.
    let no_body = |_: &ArchiveRow, _: &ApplicationRow| serde_json::Value::Null;
    let section = &context.settings.callbacks;
    let dispatcher = Dispatcher::new(context.catalog.clone(), section, Some(events), Arc::new(no_body));
    tasks.spawn({
        let cancel = leave_queue.clone();
        restart_on_panic("the notification dispatcher", leave_queue.clone(), move || {
            notify::run_events(dispatcher.clone(), cancel.clone())
        })
    });
    tasks.spawn({
        let (store, catalog, cancel) = (Arc::clone(&context.store), Arc::clone(&context.catalog), stop.clone());
        let keep = context.settings.store.keep_segments.0;
        let retention = move || run_retention(Arc::clone(&store), Arc::clone(&catalog), keep, cancel.clone());
        restart_on_panic("retention", stop.clone(), retention)
    });
    tasks.spawn({
        let (catalog, routers, cancel) = (Arc::clone(&context.catalog), context.routers.clone(), stop.clone());
        let reconciling = move || run_reconciler(Arc::clone(&catalog), routers.clone(), cancel.clone());
        restart_on_panic("the reconciler", stop.clone(), reconciling)
    });
    tasks.spawn({
        let (context, cancel) = (Arc::clone(&context), stop.clone());
        let leftovers = move || run_leftovers(Arc::clone(&context), cancel.clone());
        restart_on_panic("shipping what is left in the spool", stop.clone(), leftovers)
    });
    let all_ended = run_scheduler(&context, &wake, &capacity_sender, &jobs, &stop).await;
    stop_http.cancel();
    stop_leases.cancel();
    tasks.close();
    tasks.wait().await;
    let keeps_jobs = !all_ended || context.keeps_jobs.load(Ordering::Relaxed) || !context.leases.is_empty();
    // Dropping the engine writes and seals the remaining media, which blocks.
    tokio::task::spawn_blocking(move || drop(context)).await.unwrap_or_default();
    tracing::info!("worker stopped");
    match (name_lost.is_cancelled(), keeps_jobs) {
        (true, _) => Stopped::NameLost,
        (false, true) => Stopped::KeepsJobs,
        (false, false) => Stopped::HandedOver,
    }
}
