//! What a worker tells the catalog while media flows: that it keeps its jobs and its name, and the archives' status. Tasks of their own,
//! so that a catalog that is away delays nothing; only the newest status matters.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::Context;
use crate::catalog::{ArchiveRow, CatalogError, HeldLease, JobRow, NameLease, StoredDesired, WorkerInstance};
use crate::model::desired::Desired;
use crate::model::fault::chain;
use crate::model::ids::{Epoch, JobId};

/// Heartbeats in a lease.
const BEATS_A_LEASE: u32 = 4;

/// The time between two heartbeats.
#[must_use]
pub fn beat(lease: Duration) -> Duration {
    lease / BEATS_A_LEASE
}

/// What somebody wants of a job, as the catalog tells it.
#[derive(Debug)]
pub struct ControlSenders {
    /// Why it should end.
    pub end_reason: watch::Sender<Option<String>>,
    /// What its archive should be like.
    pub desired: watch::Sender<Desired>,
}

impl ControlSenders {
    fn heard(&self, row: &JobRow, before: &mut Option<StoredDesired>) {
        self.end_reason.send_if_modified(|known| {
            let new = known.is_none() && row.end_reason.is_some();
            if new {
                known.clone_from(&row.end_reason);
            }
            new
        });
        if row.desired != *before {
            before.clone_from(&row.desired);
            self.desired.send_replace(desired(row));
        }
    }
}

/// What a job's archive should be like.
#[must_use]
pub fn desired(row: &JobRow) -> Desired {
    match row.desired.as_ref().map(StoredDesired::value) {
        None => Desired::default(),
        Some(Ok(desired)) => desired.clone(),
        Some(Err(error)) => {
            tracing::warn!("what is desired of the archive cannot be read, and is left: {error}");
            Desired::default()
        }
    }
}

/// The leases that this worker keeps.
#[derive(Debug, Default)]
pub struct Leases {
    jobs: Mutex<BTreeMap<JobId, KeptLease>>,
    /// When the catalog last confirmed that this worker has its name.
    name_confirmed: Mutex<Option<Instant>>,
}

/// One job's lease.
#[derive(Debug)]
struct KeptLease {
    epoch: Epoch,
    control: ControlSenders,
    /// What was desired when it was heard last.
    asked: Option<StoredDesired>,
    /// Cancelled when another owner has the job, unless that was offered.
    fenced: CancellationToken,
    offered: bool,
    /// A driver of this worker works on the job.
    is_driven: bool,
    /// Another owner has the job. Until the driver here has ended, the log is being written.
    is_lost: bool,
}

impl Leases {
    /// Keeps a job's lease until the guard is dropped. `control` passes on what somebody wants of the job; `fenced` is cancelled
    /// when another owner has it.
    pub(super) fn keep(
        self: &Arc<Self>,
        job: &JobRow,
        control: ControlSenders,
        fenced: CancellationToken,
    ) -> LeaseGuard {
        let lease = KeptLease {
            epoch: job.epoch,
            control,
            asked: job.desired.clone(),
            fenced,
            offered: false,
            is_driven: true,
            is_lost: false,
        };
        self.lock().insert(job.job, lease);
        LeaseGuard { leases: Arc::clone(self), held: HeldLease { job: job.job, epoch: job.epoch } }
    }

    /// The job is offered to other workers: when one has it, this one is not fenced.
    pub(super) fn offer(&self, job: JobId) {
        if let Some(kept) = self.lock().get_mut(&job) {
            kept.offered = true;
        }
    }

    /// The job is not offered any more.
    pub(super) fn take_back(&self, job: JobId) {
        if let Some(kept) = self.lock().get_mut(&job) {
            kept.offered = false;
        }
    }

    /// The catalog confirmed at a moment that this worker has its name.
    pub fn confirm_name(&self, at: Instant) {
        *self.name_confirmed.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
    }

    /// Whether the catalog has confirmed within `lease` that this worker has its name. A process that stood still may have lost it, and all
    /// its jobs with it.
    pub(super) fn has_name(&self, lease: Duration) -> bool {
        let confirmed = *self.name_confirmed.lock().unwrap_or_else(PoisonError::into_inner);
        confirmed.is_some_and(|at| at.elapsed() < lease)
    }

    /// Whether no job of this worker has a lease that is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Whether this worker works on a job, or keeps it for its next driver. Then nobody else here may touch the job's log.
    pub(super) fn has(&self, job: JobId) -> bool {
        self.lock().contains_key(&job)
    }

    fn held(&self) -> Vec<HeldLease> {
        let kept = self.lock();
        let held = kept.iter().filter(|(_, kept)| !kept.is_lost);
        held.map(|(job, kept)| HeldLease { job: *job, epoch: kept.epoch }).collect()
    }

    /// What the catalog says of the leases that it was told of.
    fn heard(&self, held: &[HeldLease], rows: &BTreeMap<JobId, Option<JobRow>>) {
        let mut kept = self.lock();
        for lease in held {
            let Some(own) = kept.get_mut(&lease.job).filter(|own| own.epoch == lease.epoch) else { continue };
            match rows.get(&lease.job) {
                Some(Some(row)) => own.control.heard(row, &mut own.asked),
                // The lease is kept, though the row cannot be read.
                Some(None) => {}
                None => {
                    if own.offered {
                        tracing::info!(job = %lease.job, "another worker has taken the job");
                    } else {
                        tracing::warn!(job = %lease.job, "another owner has the job");
                        own.fenced.cancel();
                    }
                    own.is_lost = true;
                    if !own.is_driven {
                        kept.remove(&lease.job);
                    }
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<JobId, KeptLease>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a lease as long as it lives.
#[derive(Debug)]
pub(super) struct LeaseGuard {
    leases: Arc<Leases>,
    held: HeldLease,
}

impl LeaseGuard {
    /// Goes on keeping the lease until this worker drives the job again: nobody else can go on with it.
    pub fn keep_until_driven_again(self) {
        let mut kept = self.leases.lock();
        if let Some(own) = kept.get_mut(&self.held.job).filter(|own| own.epoch == self.held.epoch && !own.is_lost) {
            own.is_driven = false;
            drop(kept);
            std::mem::forget(self);
        }
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        let mut kept = self.leases.lock();
        if kept.get(&self.held.job).is_some_and(|own| own.epoch == self.held.epoch) {
            kept.remove(&self.held.job);
        }
    }
}

/// Keeps the leases of this worker's jobs, and its name, until `stop`. When another process has the name, `lost` is cancelled.
pub async fn run_leases(context: Arc<Context>, name: WorkerInstance, lost: CancellationToken, stop: CancellationToken) {
    let mut ticks = interval(beat(context.settings.lease()));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut wakes = context.wakes.subscribe();
    let mut away_since: Option<Instant> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            // The sender is in the context, which lives.
            Ok(()) = wakes.changed() => {
                ticks.reset_immediately();
                continue;
            }
            _ = ticks.tick() => {}
        }
        match stop.run_until_cancelled(keep_all(&context, &name, &lost)).await {
            None => return,
            Some(Ok(())) => {
                if let Some(since) = away_since.take() {
                    tracing::info!(away_s = since.elapsed().as_secs(), "the catalog is back");
                }
            }
            Some(Err(error)) => {
                if away_since.is_none() {
                    tracing::warn!("leases cannot be kept for now: {}", chain(&error));
                }
                away_since.get_or_insert_with(Instant::now);
            }
        }
    }
}

/// One heartbeat: the jobs first, because media depends on them.
async fn keep_all(context: &Context, name: &WorkerInstance, lost: &CancellationToken) -> Result<(), CatalogError> {
    let (lease, asked) = (context.settings.lease(), Instant::now());
    let now = context.clock.read(context.catalog.as_ref()).await?.now;
    let held = context.leases.held();
    if !held.is_empty() {
        let rows = context.catalog.heartbeat(&held, now, lease).await?;
        context.leases.heard(&held, &rows);
    }
    let takes = context.takes.load(Ordering::Relaxed).then_some(&context.settings.worker.region);
    match context.catalog.hold_name(name, takes, now, lease).await? {
        NameLease::Held { drains } => {
            context.leases.confirm_name(asked);
            context.drains.send_if_modified(|known| std::mem::replace(known, drains) != drains);
        }
        NameLease::Others { since } if !lost.is_cancelled() => {
            tracing::error!(worker = %name.worker, %since, "another worker has this worker's name: this one stops");
            lost.cancel();
        }
        NameLease::Others { .. } => {}
    }
    Ok(())
}

/// Writes the newest status of a job's archive, until `stop`.
pub(super) async fn tell_status(
    context: Arc<Context>,
    epoch: Epoch,
    mut wanted: watch::Receiver<Option<ArchiveRow>>,
    stop: CancellationToken,
) {
    let pause = beat(context.settings.lease());
    let mut told = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = wanted.changed() => if changed.is_err() { return },
        }
        loop {
            let row = wanted.borrow_and_update().clone();
            let Some(row) = row else { break };
            match context.catalog.put_own_archive(&row, epoch).await {
                // Not written when the lease is lost: the heartbeat learns that, too, and ends the job.
                Ok(_) => {
                    told = false;
                    break;
                }
                Err(error) if !told => {
                    told = true;
                    tracing::warn!("the archive's status is not written for now: {}", chain(&error));
                }
                Err(_) => {}
            }
            if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(leases: &Arc<Leases>, fenced: &CancellationToken) -> LeaseGuard {
        let (end_reason, desired) = (watch::Sender::new(None), watch::Sender::new(Desired::default()));
        leases.keep(&JobRow::capturing(), ControlSenders { end_reason, desired }, fenced.clone())
    }

    #[test]
    fn a_log_is_its_driver_s_until_that_has_ended_whoever_has_the_job() {
        for is_offered in [false, true] {
            let (leases, fenced, job) =
                (Arc::new(Leases::default()), CancellationToken::new(), JobRow::capturing().job);
            let guard = kept(&leases, &fenced);
            if is_offered {
                leases.offer(job);
            }
            let held = leases.held();
            assert_eq!(held.len(), 1);
            leases.heard(&held, &BTreeMap::new());
            assert_eq!(fenced.is_cancelled(), !is_offered);
            assert_eq!((leases.held().len(), leases.has(job)), (0, true), "the driver has not ended");
            drop(guard);
            assert!(!leases.has(job));
        }
    }

    #[test]
    fn a_lease_without_a_driver_is_kept_until_another_owner_has_the_job() {
        let (leases, job) = (Arc::new(Leases::default()), JobRow::capturing().job);
        kept(&leases, &CancellationToken::new()).keep_until_driven_again();
        let held = leases.held();
        leases.heard(&held, &BTreeMap::from([(job, Some(JobRow::capturing()))]));
        assert!(leases.has(job));
        leases.heard(&held, &BTreeMap::new());
        assert!(leases.is_empty());
        // Another owner has it before the driver lets go.
        let guard = kept(&leases, &CancellationToken::new());
        leases.heard(&leases.held(), &BTreeMap::new());
        guard.keep_until_driven_again();
        assert!(leases.is_empty());
    }
}
