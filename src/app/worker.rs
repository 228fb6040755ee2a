//! A worker: takes events while there is room, owns jobs, answers for its health. Shutdown in this order:
//! leave the queue, seal and hand over the jobs, then the rest.

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
use crate::notify::{Telling, keep_telling_events};
use crate::recording::spool::Spool;
use crate::runtime::supervise::{panicked, restart_on_panic};
use crate::webrtc::{Engine, EngineConfig};

/// What must be there before a worker can work.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
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
        /// Where.
        bind: std::net::SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// What happens to a worker, for health and tests.
#[derive(Debug, Clone)]
pub struct Status {
    /// Whether events come.
    pub broker: watch::Receiver<BrokerState>,
    /// Jobs that run here.
    pub jobs: Arc<AtomicUsize>,
}

impl Status {
    /// Whether this worker takes events.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn ready(&self) -> Result<String, String> {
        let jobs = self.jobs.load(Ordering::Relaxed);
        match *self.broker.borrow() {
            BrokerState::Connected => Ok(format!("ready, {jobs} jobs")),
            BrokerState::Disconnected => Err(format!("no broker, {jobs} jobs go on")),
        }
    }
}

/// Runs a worker until `stop`, then hands its jobs over.
///
/// # Errors
/// When it cannot start. What fails later is met with retries.
pub async fn work(settings: Settings, engine: EngineConfig, stop: CancellationToken) -> Result<(), StartError> {
    settings.for_worker()?;
    let (dir, quota, percent) = (settings.spool_dir(), settings.spool.quota.0, settings.spool.admission_percent);
    let spool = tokio::task::spawn_blocking(move || Spool::open(&dir, quota, percent)).await;
    let spool = Arc::new(spool.expect("opening the spool does not panic")?);
    let bind = engine.bind;
    let engine = Engine::start(engine, Arc::clone(&spool)).map_err(|source| StartError::Socket { bind, source })?;
    let Some(services) = Services::open(&settings, &stop).await? else { return Ok(()) };
    run(settings, services, engine, spool, stop).await;
    Ok(())
}

/// Runs a worker with these parts until `stop`, then hands its jobs over.
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
        given_on: AtomicUsize::new(0),
        news: watch::channel(0).0,
    });
    tracing::info!(worker = %context.worker, region = %context.settings.worker.region, media = %context.engine.local_addr(),
        store = context.store.describe(), "worker begins");
    let (state, seen) = watch::channel(BrokerState::Disconnected);
    let jobs = Arc::new(AtomicUsize::new(0));
    let status = Status { broker: seen, jobs: Arc::clone(&jobs) };
    let (room, free) = watch::channel(context.settings.worker.capacity);
    let nudge = Arc::new(Notify::new());
    let tasks = TaskTracker::new();
    let events = Arc::clone(&broker);
    let (leave_queue, stop_http) = (stop.child_token(), CancellationToken::new());
    let ready: health::Ready = Arc::new(move || Box::pin(std::future::ready(status.ready())));
    tasks.spawn(health::serve(context.settings.http.bind, ready, stop_http.clone()));
    tasks.spawn({
        let (context, nudge, cancel) = (Arc::clone(&context), Arc::clone(&nudge), leave_queue.clone());
        let broker = Arc::clone(&broker);
        async move {
            let nudged = || {
                nudge.notify_one();
                context.look_now();
            };
            while panicked("hearing nudges", &cancel, broker.hear_nudges(&nudged, &cancel)).await {}
        }
    });
    tasks.spawn({
        let (context, nudge, cancel) = (Arc::clone(&context), Arc::clone(&nudge), leave_queue.clone());
        async move {
            let handle = |delivery| handle(&context, &nudge, delivery);
            let consuming = || broker.consume(free.clone(), &state, &cancel, &handle);
            while panicked("taking events", &cancel, consuming()).await {
                state.send_replace(BrokerState::Disconnected);
            }
        }
    });
    // Callbacks are the API's to send; events must not pile up where there is none.
    let nothing = |_: &ArchiveRow, _: &ApplicationRow| serde_json::Value::Null;
    let section = &context.settings.callbacks;
    let telling = Telling::new(context.catalog.clone(), section, Some(events), Arc::new(nothing));
    tasks.spawn({
        let cancel = leave_queue.clone();
        restart_on_panic("telling of archives", leave_queue.clone(), move || {
            keep_telling_events(telling.clone(), cancel.clone())
        })
    });
    tasks.spawn({
        let (store, catalog, cancel) = (Arc::clone(&context.store), Arc::clone(&context.catalog), stop.clone());
        let keep = context.settings.store.keep_segments.0;
        let sweeping = move || run_retention(Arc::clone(&store), Arc::clone(&catalog), keep, cancel.clone());
        restart_on_panic("sweeping", stop.clone(), sweeping)
    });
    run_scheduler(&context, &nudge, &room, &jobs, &stop).await;
    stop_http.cancel();
    tasks.close();
    tasks.wait().await;
    // Dropping the engine writes and seals what is left, which blocks.
    tokio::task::spawn_blocking(move || drop(context)).await.unwrap_or_default();
    tracing::info!("worker ends");
}
