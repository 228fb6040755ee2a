//! Claims jobs while the worker has room, runs their drivers, and hands the jobs over at shutdown.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::contact::Contact;
use super::setbacks::{Attempt, Setbacks};
use super::{Context, Ended, JobFailure, driver, lease, rollover};
use crate::catalog::{Claimed, JobRow, JobState};
use crate::model::fault::{FaultKind, HasFault, Retry, chain};
use crate::model::ids::{Epoch, JobId};
use crate::runtime::metrics::metrics;

/// How often jobs without an owner are looked for.
const CLAIM_EVERY: Duration = Duration::from_secs(1);
/// Jobs whose media has ended, and whose archives are made or wait for the store.
const FINALIZING_MAX: usize = 256;
/// After the time of the offer: the next owner joins, the log is sealed and sent, and the job is given back within this.
const DRAIN_MAX: Duration = Duration::from_secs(40);

/// Claims jobs while there is room and waits for their drivers, until `stop`. Reports the free `room`, and the number of `jobs`
/// that run here. Returns whether all jobs ended in time.
pub async fn run_scheduler(
    context: &Arc<Context>,
    nudge: &Notify,
    room: &watch::Sender<usize>,
    jobs: &AtomicUsize,
    stop: &CancellationToken,
) -> bool {
    let mut scheduler = Scheduler::new(Arc::clone(context));
    let mut drains = context.drains.subscribe();
    while !stop.is_cancelled() {
        let drain = *drains.borrow_and_update();
        if std::mem::replace(&mut scheduler.drains, drain) != drain {
            let jobs = scheduler.owned.len();
            match drain {
                true => tracing::info!(jobs, "told to drain: sessions are handed over, and none is taken"),
                false => tracing::info!(jobs, "told to resume: sessions are taken again"),
            }
            context.wake();
        }
        scheduler.claim().await;
        let takes = context.spool.admits() && !context.health.is_sick() && !drain;
        let free = if takes { scheduler.free_for_events() } else { 0 };
        scheduler.report(room, jobs, free);
        tokio::select! {
            Some(done) = scheduler.drivers.join_next_with_id() => scheduler.note_end(done),
            () = nudge.notified() => {}
            // The sender is in the context, which lives.
            Ok(()) = drains.changed() => {}
            () = sleep(CLAIM_EVERY) => {}
            () = stop.cancelled() => {}
        }
    }
    scheduler.report(room, jobs, 0);
    scheduler.drain().await
}

/// Whether a job goes on from one that is recorded here or elsewhere: its session is running.
fn is_successor(job: &JobRow) -> bool {
    job.spec().is_ok_and(|spec| rollover::is_successor(&spec.event))
}

/// The jobs that run here.
struct Scheduler {
    context: Arc<Context>,
    drivers: JoinSet<Ended>,
    /// By the task that drives each.
    owned: HashMap<tokio::task::Id, JobId>,
    setbacks: Setbacks,
    contact: Contact,
    /// Somebody told the worker to take no sessions.
    drains: bool,
    drain: CancellationToken,
}

impl Scheduler {
    fn new(context: Arc<Context>) -> Self {
        Self {
            context,
            drivers: JoinSet::new(),
            owned: HashMap::new(),
            setbacks: Setbacks::default(),
            contact: Contact::default(),
            drains: false,
            drain: CancellationToken::new(),
        }
    }

    /// Jobs that capture.
    fn capturing(&self) -> usize {
        self.owned.len().saturating_sub(self.context.finalizing.load(Ordering::Relaxed))
    }

    /// Places for sessions that are claimed. Jobs whose session has a successor have given theirs to it.
    fn free(&self) -> usize {
        let released = self.context.released_slots.load(Ordering::Relaxed);
        (self.context.settings.worker.capacity + released).saturating_sub(self.capturing())
    }

    /// Places for sessions of which an event tells: successors keep theirs.
    fn free_for_events(&self) -> usize {
        self.context.settings.worker.capacity.saturating_sub(self.capturing())
    }

    /// Further jobs whose media has ended.
    fn free_to_finalize(&self) -> usize {
        FINALIZING_MAX.saturating_sub(self.context.finalizing.load(Ordering::Relaxed))
    }

    fn report(&self, room: &watch::Sender<usize>, jobs: &AtomicUsize, free: usize) {
        room.send_if_modified(|known| std::mem::replace(known, free) != free);
        self.context.takes.store(free > 0, Ordering::Relaxed);
        jobs.store(self.owned.len(), Ordering::Relaxed);
        let m = metrics();
        m.jobs_active.set(i64::try_from(self.owned.len()).unwrap_or(0));
        m.capacity_free.set(i64::try_from(free).unwrap_or(0));
        m.spool_bytes.set(i64::try_from(self.context.spool.used()).unwrap_or(0));
    }

    /// Claims as many jobs as there are places.
    async fn claim(&mut self) {
        let context = Arc::clone(&self.context);
        let lease = context.settings.lease();
        // A sick worker's contact with the catalog begins anew afterwards: it takes over nothing at once. One that may have lost its name
        // may have lost its jobs.
        if context.health.is_sick() || !context.leases.has_name(lease) {
            return self.contact.failed();
        }
        let time = match context.clock.read(context.catalog.as_ref()).await {
            Ok(time) => time,
            Err(error) => {
                self.contact.failed();
                return tracing::debug!("no jobs can be claimed for now: {}", chain(&error));
            }
        };
        if time.was_set {
            tracing::warn!(
                "the catalog's clock was set, or another server answers: no jobs are taken over for a while"
            );
            self.contact.failed();
        }
        let (mut free, mut free_to_finalize) = (self.free(), self.free_to_finalize());
        let now = time.now;
        let limit = u32::try_from(free + free_to_finalize + self.owned.len()).unwrap_or(u32::MAX);
        let found = context.catalog.claimable(&context.worker, &context.settings.worker.region, now, limit).await;
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                self.contact.failed();
                // The broker's side says aloud that the catalog is away.
                return match error.fault() {
                    fault if fault.retry == Retry::Never => {
                        tracing::error!(fault.kind = %fault.kind, "no jobs can be claimed: {}", chain(&error));
                    }
                    _ => tracing::debug!("no jobs can be claimed for now: {}", chain(&error)),
                };
            }
        };
        self.contact.answered(Instant::now());
        let mut has_place = |job: &JobRow| {
            let free = if job.state == JobState::Finalizing { &mut free_to_finalize } else { &mut free };
            let has_place = *free > 0;
            *free = free.saturating_sub(1);
            has_place
        };
        let taken: Vec<JobRow> = found.into_iter().filter(|job| self.takes(job) && has_place(job)).collect();
        for job in taken {
            let claimed = async {
                let now = context.clock.read(context.catalog.as_ref()).await?.now;
                context.catalog.claim(job.job, &context.worker, now, lease).await
            };
            match claimed.await {
                Ok(Some(claimed)) => self.drive(claimed),
                Ok(None) => {}
                Err(error) => return tracing::debug!("a job cannot be claimed for now: {}", chain(&error)),
            }
        }
    }

    /// Whether this worker should have a job now.
    fn takes(&self, job: &JobRow) -> bool {
        let (context, now) = (&self.context, Instant::now());
        let lease = context.settings.lease();
        // Archives that requests start come this way alone: a nearly full spool takes none that has no media yet, unless it goes on
        // from one that is recorded here.
        let is_new = job.state == JobState::Accepted && job.epoch == Epoch(0) && !is_successor(job);
        let admits = context.spool.admits();
        let is_foreign = job.owner.as_ref().is_some_and(|owner| *owner != context.worker);
        // A drained worker goes on with its own until another one has them.
        let goes_on = job.owner.as_ref() == Some(&context.worker) || is_successor(job);
        let may_take_over = self.contact.has_lasted(lease + lease::beat(lease), now);
        (admits || !is_new)
            && (!self.drains || goes_on)
            && (may_take_over || !is_foreign)
            && self.setbacks.attempt(job.job, now) != Attempt::Wait
            && !context.leftovers.contains(job.archive)
            && !self.owned.values().any(|owned| *owned == job.job)
    }

    fn drive(&mut self, claimed: Claimed) {
        let job = &claimed.job;
        let (id, span) = (
            job.job,
            tracing::info_span!("job", job = %job.job, archive = %job.archive, session = %job.session, epoch = job.epoch.0),
        );
        let context = Arc::clone(&self.context);
        let task = match self.setbacks.attempt(id, Instant::now()) {
            Attempt::Park(failure) => {
                self.drivers.spawn(driver::park_failing(context, claimed, failure).instrument(span))
            }
            Attempt::Run | Attempt::Wait => {
                self.drivers.spawn(driver::run(context, claimed, self.drain.clone()).instrument(span))
            }
        };
        self.owned.insert(task.id(), id);
    }

    /// Notes how a driver's work on its job ended.
    fn note_end(&mut self, done: Result<(tokio::task::Id, Ended), tokio::task::JoinError>) {
        let task = done.as_ref().map_or_else(tokio::task::JoinError::id, |(task, _)| *task);
        let Some(job) = self.owned.remove(&task) else { return };
        match done {
            Ok((_, ended)) => {
                match &ended {
                    Ended::HandedOn(failure) => self.setbacks.failed(job, failure.clone(), Instant::now()),
                    _ => self.setbacks.ended(job),
                }
                tracing::info!(%job, ?ended, "job ends here");
            }
            // It is taken up again after a pause, here or, when its lease has expired, elsewhere.
            Err(error) => {
                tracing::error!(fault.kind = "bug", %job, "a driver panicked: {error}");
                let detail = "its driver panics each time; the log has the message".to_owned();
                self.setbacks.failed(job, JobFailure { kind: FaultKind::Bug, detail }, Instant::now());
            }
        }
    }

    /// The worker stops: every driver hands its job over.
    async fn drain(mut self) -> bool {
        tracing::info!(jobs = self.owned.len(), "handing over");
        // That it takes none any more is told with a heartbeat.
        self.context.wake();
        self.drain.cancel();
        let drain_max = self.context.settings.worker.offer.0 + DRAIN_MAX;
        let all = async {
            while let Some(done) = self.drivers.join_next_with_id().await {
                self.note_end(done);
            }
        };
        let all_ended = timeout(drain_max, all).await.is_ok();
        if !all_ended {
            tracing::error!(
                jobs = self.owned.len(),
                "jobs did not hand over in time: their leases will expire, and the ends of their logs may be on this disk alone"
            );
        }
        all_ended
    }
}
