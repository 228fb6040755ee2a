//! A worker process: takes events while it has capacity, runs jobs, and serves health checks. At shutdown it first stops consuming
//! events, then seals and hands over its jobs, then ends the rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::health;
use super::services::{Services, ServicesError};
use crate::archive::retention::run_retention;
use crate::broker::BrokerState;
use crate::catalog::{ApplicationRow, ArchiveRow};
use crate::config::Settings;
use crate::job::Context;
use crate::job::intake::handle;
use crate::job::scheduler::run_scheduler;
use crate::job::waiting::run_waiting;
use crate::model::cancellable::Cancellable;
use crate::notify::{self, Dispatcher};
use crate::recording::spool::Spool;
use crate::runtime::supervise::{panicked, restart_on_panic};
use crate::webrtc::{Engine, EngineConfig};

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
    /// The reason why it does not.
    pub fn ready(&self) -> Result<String, String> {
        let jobs = self.jobs.load(Ordering::Relaxed);
        match *self.broker.borrow() {
            BrokerState::Connected => Ok(format!("ready, {jobs} jobs")),
            BrokerState::Disconnected => Err(format!("no broker, {jobs} jobs go on")),
        }
    }
}

/// Opens the spool, the media socket and the services of a configuration, and runs a worker until `stop`.
///
/// # Errors
/// When the worker cannot start. Later failures are retried.
pub async fn open_and_run(
    settings: Settings,
    engine: EngineConfig,
    stop: CancellationToken,
) -> Result<(), WorkerStartError> {
    settings.for_worker()?;
    let (dir, quota, percent) = (settings.spool_dir(), settings.spool.quota.0, settings.spool.admission_percent);
    let spool = tokio::task::spawn_blocking(move || Spool::open(&dir, quota, percent)).await;
    let spool = Arc::new(spool.expect("opening the spool does not panic")?);
    let bind = engine.bind;
    let engine =
        Engine::start(engine, Arc::clone(&spool)).map_err(|source| WorkerStartError::Socket { bind, source })?;
    let Cancellable::Done(services) = Services::open(&settings, &stop).await? else { return Ok(()) };
    run(settings, services, engine, spool, stop).await;
    Ok(())
}

/// Runs a worker with these services until `stop`, then hands its jobs over.
pub async fn run(settings: Settings, services: Services, engine: Engine, spool: Arc<Spool>, stop: CancellationToken) {
    let Services { catalog, store, routers, broker } = services;
    let context = Arc::new(Context {
        worker: settings.worker_id(),
        store,
        routers,
        catalog,
        engine,
        spool,
        settings,
        released_slots: AtomicUsize::new(0),
        wakes: watch::channel(0).0,
    });
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
    let ready: health::Readiness = Arc::new(move || Box::pin(std::future::ready(status.ready())));
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
    run_scheduler(&context, &wake, &capacity_sender, &jobs, &stop).await;
    stop_http.cancel();
    tasks.close();
    tasks.wait().await;
    // Dropping the engine writes and seals the remaining media, which blocks.
    tokio::task::spawn_blocking(move || drop(context)).await.unwrap_or_default();
    tracing::info!("worker stopped");
}
