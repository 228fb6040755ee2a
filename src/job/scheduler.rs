//! Claims jobs while the worker has room, runs their drivers, and hands the jobs over at shutdown.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{Context, Ended, driver};
use crate::catalog::{JobRow, JobState};
use crate::model::fault::{HasFault, Retry, chain};
use crate::model::ids::{Epoch, JobId};
use crate::model::time::Wallclock;
use crate::runtime::metrics::metrics;

/// How often jobs without an owner are looked for.
const CLAIM_EVERY: Duration = Duration::from_secs(1);
/// Handing over takes at most this long.
const DRAIN_MAX: Duration = Duration::from_secs(20);

/// The jobs that run here, by the task that drives them.
type Owned = HashMap<tokio::task::Id, JobId>;

/// Claims jobs while there is room and waits for their drivers, until `stop`. Reports the free `room`, and the number of `jobs`
/// that run here.
pub async fn run_scheduler(
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
            Some(done) = drivers.join_next_with_id() => note_end(&mut owned, done),
            () = nudge.notified() => {}
            () = sleep(CLAIM_EVERY) => {}
            () = stop.cancelled(), if !drain.is_cancelled() => {
                tracing::info!(jobs = owned.len(), "handing over");
                drain.cancel();
            }
        }
        if drain.is_cancelled() {
            let all = async {
                while let Some(done) = drivers.join_next_with_id().await {
                    note_end(&mut owned, done);
                }
            };
            if timeout(DRAIN_MAX, all).await.is_err() {
                tracing::error!(
                    jobs = owned.len(),
                    "jobs did not hand over in time: their leases will expire, and the ends of their logs may be on this disk alone"
                );
            }
            return;
        }
    }
}

/// Notes how a driver's work on its job ended.
fn note_end(owned: &mut Owned, done: Result<(tokio::task::Id, Ended), tokio::task::JoinError>) {
    let task = done.as_ref().map_or_else(tokio::task::JoinError::id, |(task, _)| *task);
    let job = owned.remove(&task).map(|job| job.to_string()).unwrap_or_default();
    match done {
        Ok((_, ended)) => tracing::info!(job, ?ended, "job ends here"),
        // Its lease expires, and then it is taken up again, here or elsewhere.
        Err(error) => tracing::error!(fault.kind = "bug", job, "a driver panicked: {error}"),
    }
}

async fn claim(context: &Arc<Context>, drivers: &mut JoinSet<Ended>, owned: &mut Owned, drain: &CancellationToken) {
    let capacity = context.settings.worker.capacity + context.released_slots.load(Ordering::Relaxed);
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
    let admits = context.spool.admits() || context.released_slots.load(Ordering::Relaxed) > 0;
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
