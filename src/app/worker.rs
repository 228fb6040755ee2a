//! A worker: takes events while there is room, owns jobs, answers for its health. Shutdown in this order:
//! leave the queue, seal and hand over the jobs, then the rest.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::archive::retention::run_retention;
use crate::broker::{BrokerState, Delivery, Outcome};
use crate::catalog::{Accepted, ApplicationRow, ArchiveRow, CatalogError, JobRow, JobState, NewJob, NewParked};
use crate::config::Settings;
use crate::event::policy::{Decision, Skip, decide};
use crate::event::{SessionEvent, parse};
use crate::job::accept;
use crate::job::accept::accept;
use crate::job::driver;
use crate::job::{Context, Ended};
use crate::model::fault::{FaultKind, HasFault, Retry, chain};
use crate::model::ids::{Epoch, JobId};
use crate::model::time::Wallclock;
use crate::notify::{Telling, keep_telling_events};
use crate::recording::spool::Spool;
use crate::runtime::metrics::{EventLabels, EventOutcome, metrics};
use crate::runtime::supervise::{panicked, restart_on_panic};
use crate::services::{Services, ServicesError};
use crate::webrtc::{Engine, EngineConfig};

/// How often jobs without an owner are looked for.
const CLAIM_EVERY: Duration = Duration::from_secs(1);
/// A job that is asked to end does so within this, if its worker lives.
const ENDING_MAX: Duration = Duration::from_secs(1);
/// Handing over takes at most this long.
const DRAIN_MAX: Duration = Duration::from_secs(20);

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
    tracing::info!(worker = %context.worker, region = %context.settings.worker.region, media = %context.engine.local(),
        store = context.store.describe(), "worker begins");
    let (state, seen) = watch::channel(BrokerState::Disconnected);
    let jobs = Arc::new(AtomicUsize::new(0));
    let status = Status { broker: seen, jobs: Arc::clone(&jobs) };
    let (room, free) = watch::channel(context.settings.worker.capacity);
    let nudge = Arc::new(Notify::new());
    let tasks = TaskTracker::new();
    let events = Arc::clone(&broker);
    let (leave_queue, stop_http) = (stop.child_token(), CancellationToken::new());
    let ready: crate::api::health::Ready = Arc::new(move || Box::pin(std::future::ready(status.ready())));
    tasks.spawn(crate::api::health::serve(context.settings.http.bind, ready, stop_http.clone()));
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
    own_jobs(&context, &nudge, &room, &jobs, &stop).await;
    stop_http.cancel();
    tasks.close();
    tasks.wait().await;
    // Dropping the engine writes and seals what is left, which blocks.
    tokio::task::spawn_blocking(move || drop(context)).await.unwrap_or_default();
    tracing::info!("worker ends");
}

/// The jobs that run here, by the task that drives them.
type Owned = HashMap<tokio::task::Id, JobId>;

/// Claims jobs while there is room, and waits for their drivers.
async fn own_jobs(
    context: &Arc<Context>,
    nudge: &Notify,
    room: &watch::Sender<usize>,
    jobs: &AtomicUsize,
    stop: &CancellationToken,
) {
    let mut drivers: JoinSet<Ended> = JoinSet::new();
    let mut owned: Owned = HashMap::new();
    let drain = CancellationToken::new();
    loop {
        if !stop.is_cancelled() {
            claim(context, &mut drivers, &mut owned, &drain).await;
        }
        let free = context.settings.worker.capacity.saturating_sub(owned.len());
        let free = if context.spool.admits() && !stop.is_cancelled() { free } else { 0 };
        room.send_if_modified(|known| std::mem::replace(known, free) != free);
        jobs.store(owned.len(), Ordering::Relaxed);
        let m = metrics();
        m.jobs_active.set(i64::try_from(owned.len()).unwrap_or(0));
        m.capacity_free.set(i64::try_from(free).unwrap_or(0));
        m.spool_bytes.set(i64::try_from(context.spool.used()).unwrap_or(0));
        tokio::select! {
            Some(done) = drivers.join_next_with_id() => {
                let task = done.as_ref().map_or_else(tokio::task::JoinError::id, |(task, _)| *task);
                let job = owned.remove(&task).map(|job| job.to_string()).unwrap_or_default();
                match done {
                    Ok((_, ended)) => tracing::info!(job, ?ended, "job ends here"),
                    // Its lease expires, and then it is taken up again, here or elsewhere.
                    Err(error) => tracing::error!(fault.kind = "bug", job, "a driver panicked: {error}"),
                }
            }
            () = nudge.notified() => {}
            () = sleep(CLAIM_EVERY) => {}
            () = stop.cancelled(), if !drain.is_cancelled() => {
                tracing::info!(jobs = owned.len(), "handing over");
                drain.cancel();
            }
        }
        if drain.is_cancelled() {
            let all = async { while drivers.join_next().await.is_some() {} };
            if timeout(DRAIN_MAX, all).await.is_err() {
                tracing::error!("jobs did not hand over in time, their leases will expire");
            }
            return;
        }
    }
}

async fn claim(context: &Arc<Context>, drivers: &mut JoinSet<Ended>, owned: &mut Owned, drain: &CancellationToken) {
    let capacity = context.settings.worker.capacity + context.given_on.load(Ordering::Relaxed);
    let free = capacity.saturating_sub(owned.len());
    if free == 0 {
        return;
    }
    let (now, ttl) = (Wallclock::now(), context.settings.worker.lease.0);
    let limit = u32::try_from(free + owned.len()).unwrap_or(u32::MAX);
    let found = context.catalog.claimable(&context.worker, &context.settings.worker.region, now, limit).await;
    let found = match found {
        Ok(found) => found,
        // The broker's side says aloud that the catalog is away; a row that cannot be read stops all claims.
        Err(error) if error.fault().retry == Retry::Never => {
            return tracing::error!(fault.kind = %error.fault().kind, "no jobs can be claimed: {}", chain(&error));
        }
        Err(error) => return tracing::debug!("no jobs can be claimed for now: {}", chain(&error)),
    };
    // Archives that requests start come this way alone: a nearly full spool takes none that has no media yet, unless it goes on
    // from one that is recorded here.
    let admits = context.spool.admits() || context.given_on.load(Ordering::Relaxed) > 0;
    let takes = |job: &JobRow| {
        let is_new = job.state == JobState::Accepted && job.epoch == Epoch(0);
        (admits || !is_new) && !owned.values().any(|owned| *owned == job.job)
    };
    for job in found.into_iter().filter(takes).take(free).collect::<Vec<_>>() {
        match context.catalog.claim(job.job, &context.worker, Wallclock::now(), ttl).await {
            Ok(Some(claimed)) => {
                let span = tracing::info_span!("job", job = %job.job, archive = %job.archive, session = %job.session, epoch = claimed.job.epoch.0);
                let task = drivers.spawn(driver::run(Arc::clone(context), claimed, drain.clone()).instrument(span));
                owned.insert(task.id(), job.job);
            }
            Ok(None) => {}
            Err(error) => return tracing::debug!("a job cannot be claimed for now: {}", chain(&error)),
        }
    }
}

fn count(outcome: EventOutcome) {
    metrics().events.get_or_create(&EventLabels { outcome }).inc();
}

/// What is done with an event.
async fn handle(context: &Context, nudge: &Notify, delivery: Delivery) -> Outcome {
    match decided(context, nudge, &delivery).await {
        Ok(outcome) => {
            count(outcome);
            if outcome == EventOutcome::Accepted { Outcome::Accepted } else { Outcome::Done }
        }
        Err(error) => {
            count(EventOutcome::Retried);
            tracing::warn!(attempt = delivery.attempt, "an event cannot be handled for now: {}", chain(&error));
            Outcome::Later
        }
    }
}

async fn decided(context: &Context, nudge: &Notify, delivery: &Delivery) -> Result<EventOutcome, CatalogError> {
    if delivery.dead {
        let detail = "RabbitMQ gave it up: it was delivered too often without an answer; look at the worker's log";
        return refused(context, delivery, FaultKind::Bug, detail, None).await;
    }
    let event = match parse(&delivery.body) {
        Ok(event) => event,
        Err(error) => return refused(context, delivery, error.fault().kind, &error.to_string(), None).await,
    };
    let event = match event {
        SessionEvent::Started(event) => event,
        SessionEvent::Ended(event) => {
            let reason = crate::job::capture::session_ended();
            let (application, session, now) = (&event.data.application_id, &event.data.session_id, Wallclock::now());
            let at = event.at().unwrap_or(now);
            if !context.catalog.request_end(application, session, reason, at, now).await? {
                tracing::info!(%session, ended_at = %at, "a session's end changes nothing: it is not recorded, or was used again since");
            }
            context.look_now();
            return Ok(EventOutcome::Ended);
        }
    };
    if delivery.headers.contains_key(crate::job::replay::REPLAYED_BY)
        && let Some(job) = context.catalog.job(event.job()).await?
        && job.state == JobState::Parked
    {
        // A job that was accepted is not decided on again: one that somebody started over the API is of a manual session.
        context.catalog.unpark_job(job.job, Wallclock::now()).await?;
        nudge.notify_one();
        return Ok(EventOutcome::Duplicate);
    }
    match decide(&event.data, |name| context.routers.contains_key(name)) {
        Decision::Skip(Skip::Relayed) => Ok(EventOutcome::SkippedRelayed),
        Decision::Skip(Skip::Manual) => Ok(EventOutcome::SkippedManual),
        Decision::Refuse(kind, detail) => refused(context, delivery, kind, &detail, Some(event.job())).await,
        Decision::Archive => {
            let new = NewJob {
                job: event.job(),
                session: event.data.session_id.clone(),
                application: event.data.application_id.clone(),
                region: event.data.region.clone(),
                event: String::from_utf8_lossy(&delivery.body).into_owned(),
                started_at: event.at().unwrap_or_else(Wallclock::now),
                tag: event.data.archive.multi_archive_tag.clone().unwrap_or_default(),
                is_conversation: true,
            };
            let outcome = match accept(context.catalog.as_ref(), &new, ENDING_MAX).await? {
                Accepted::New(job) => {
                    context.catalog.resolve_parked(job.job).await?;
                    give_classes(context, &job).await;
                    EventOutcome::Accepted
                }
                Accepted::Duplicate(_) => EventOutcome::Duplicate,
                Accepted::SessionBusy(_) => EventOutcome::SessionBusy,
            };
            nudge.notify_one();
            Ok(outcome)
        }
    }
}

/// An archive begins with the layout classes that the session's first clients brought with their tokens.
async fn give_classes(context: &Context, job: &JobRow) {
    let given = async {
        let session = context.catalog.session(&job.application, &job.session).await?;
        match session {
            Some(session) => accept::give_classes(context.catalog.as_ref(), job, &session.classes).await,
            None => Ok(()),
        }
    };
    if let Err(error) = given.await {
        tracing::warn!(job = %job.job, "the archive begins without layout classes: {}", chain(&error));
    }
}

async fn refused(
    context: &Context,
    delivery: &Delivery,
    kind: FaultKind,
    detail: &str,
    job: Option<JobId>,
) -> Result<EventOutcome, CatalogError> {
    let detail = format!("{detail}; {}", kind.advice());
    let entry =
        NewParked { job, fault: kind, detail: &detail, routing_key: &delivery.routing_key, body: &delivery.body };
    let parked = context.catalog.park(&entry, Wallclock::now()).await?;
    metrics().jobs_parked.get_or_create(&kind.into()).inc();
    tracing::warn!(%parked, fault.kind = %kind, "an event is parked: {detail}");
    Ok(EventOutcome::Parked)
}
