//! What a job tells the catalog while media flows: its lease and its archive's status. A task of its own, so
//! that a catalog that is away delays nothing; only the newest status matters.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::Context;
use crate::catalog::{ArchiveRow, CatalogError, JobRow, StoredDesired};
use crate::model::desired::Desired;
use crate::model::fault::chain;
use crate::model::time::Wallclock;

/// Heartbeats in a lease.
const BEATS_A_LEASE: u32 = 4;

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

/// Keeps the lease of a job until `stop`. `wanted` is the archive's newest status; `control` passes on what
/// somebody wants of it. When another owner has the job, `fenced` is cancelled.
pub async fn keep(
    context: Arc<Context>,
    job: JobRow,
    mut wanted: watch::Receiver<Option<ArchiveRow>>,
    control: ControlSenders,
    fenced: CancellationToken,
    stop: CancellationToken,
) {
    let lease = context.settings.worker.lease.0;
    let mut beat = interval(lease / BEATS_A_LEASE);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut away_since: Option<Wallclock> = None;
    let mut unwritten = false;
    let mut asked = job.desired.clone();
    let mut wakes = context.wakes.subscribe();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            // The sender is in the context, which lives.
            Ok(()) = wakes.changed() => beat.reset_immediately(),
            _ = beat.tick() => {
                let now = Wallclock::now();
                match context.catalog.heartbeat(job.job, job.epoch, now, lease).await {
                    Ok(row) => {
                        if let Some(since) = away_since.take() {
                            tracing::info!(away_s = now.since(since).as_secs(), "the catalog is back");
                        }
                        control.heard(&row, &mut asked);
                    }
                    Err(CatalogError::Fenced { .. }) => {
                        tracing::warn!("another owner has the job");
                        return fenced.cancel();
                    }
                    Err(error) => {
                        if away_since.is_none() {
                            tracing::warn!("the lease cannot be kept for now: {}", chain(&error));
                        }
                        away_since.get_or_insert(now);
                        continue;
                    }
                }
            }
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                unwritten = true;
            }
        }
        if unwritten {
            let row = wanted.borrow_and_update().clone();
            if let Some(row) = row {
                // What fails now is tried again with the next beat.
                unwritten = context.catalog.put_own_archive(&row, job.epoch).await.is_err();
            }
        }
    }
}

/// How long a lease may be without a beat before somebody else may have the job.
#[must_use]
pub fn beat(lease: Duration) -> Duration {
    lease / BEATS_A_LEASE
}
