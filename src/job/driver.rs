//! The driver of one job: capture, then finalize; parks what cannot go on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::live_composer::Composing;
use super::presence::MAX_DURATION_EXCEEDED;
use super::rollover::roll_over;
use super::stage::{CaptureOutcome, ControlReceivers, Transition, advance, bug};
use super::worker_health::is_of_this_worker;
use super::{Context, Ended, Job, JobFailure, capture, finalize, hand_over, lease, revision, waiting};
use crate::catalog::{ArchiveRow, CatalogError, Claimed, HeldLease, JobRow, JobState, NewParked};
use crate::model::archive_options::ArchiveOptions;
use crate::model::cancellable::Cancellable;
use crate::model::fault::{FaultKind, chain};
use crate::model::time::Wallclock;
use crate::recording::reader::LogReader;
use crate::recording::upload;
use crate::runtime::metrics::metrics;
use crate::runtime::retry::{CATALOG, retry_until_cancelled};

/// An archive that is being made when the worker stops has so long to become available.
const FINISH_MAX: Duration = Duration::from_secs(8);
/// The end of the log of a job that is handed over has so long to reach the store.
const SHIP_MAX: Duration = Duration::from_secs(5);

/// A worker that is told to stop may start again within this time, and gets the jobs that it alone can go on with.
const RESTART_MAX: Duration = Duration::from_secs(120);

/// Does everything for a claimed job.
pub async fn run(context: Arc<Context>, claimed: Claimed, drain: CancellationToken) -> Ended {
    if claimed.takeover {
        metrics().takeovers.inc();
    }
    let row = claimed.job;
    tracing::info!(state = row.state.as_str(), takeover = claimed.takeover, "job begins");
    let job = match Job::new(Arc::clone(&context), row.clone(), claimed.owner_seen, drain) {
        Ok(job) => job,
        Err(failure) => return park(&context, &row, failure, &CancellationToken::new()).await,
    };
    let (status, wanted) = watch::channel(None);
    let (end_reason, ends) = watch::channel(row.end_reason.clone());
    let (desired, wanted_of_it) = watch::channel(lease::desired(&row));
    let control = lease::ControlSenders { end_reason, desired };
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let kept = context.leases.keep(&row, control, job.fenced.clone());
    tasks.spawn(lease::tell_status(Arc::clone(&context), row.epoch, wanted, stop.clone()));
    tasks.close();
    let mut composing = None;
    let control = ControlReceivers { end_reason: ends, desired: wanted_of_it };
    let ended = tokio::select! {
        ended = stages(&job, &status, control, &mut composing) => ended,
        never = give_up_late(&job) => never,
    };
    // Another worker has taken the job that was offered, and the session has ended meanwhile.
    let ended = match ended {
        Ok(Ended::Fenced) if job.is_offered() && !job.fenced.is_cancelled() => {
            Ok(Ended::HandedOver { captured: false })
        }
        ended => ended,
    };
    if let Some(composing) = composing {
        composing.call_off().await;
    }
    // Unless another worker took the offer, the lease is kept until the log is shipped.
    let is_left = matches!(&ended, Ok(Ended::HandedOver { .. }))
        || matches!(&ended, Err(failure) if is_of_this_worker(failure.kind));
    let shipped = is_left && ship_log(&job).await;
    if job.is_offered() && (shipped || !is_left) {
        hand_over::clear_offers(&job, row.epoch).await;
    }
    if shipped {
        revision::ask_if_made(&job).await;
    }
    stop.cancel();
    tasks.wait().await;
    let is_captured = job.finalizing.load(Ordering::Relaxed);
    match ended {
        Ok(Ended::HandedOver { .. }) | Err(_) if job.fenced.is_cancelled() => Ended::Fenced,
        Err(failure) if is_of_this_worker(failure.kind) => {
            tracing::error!(fault.kind = %failure.kind, "this worker cannot go on with the job for now: {}; {}", failure.detail, failure.kind.advice());
            context.health.suspect();
            // Another worker may go on with a session. It cannot make an archive of what this disk alone has.
            if is_captured && !shipped {
                kept.keep_until_driven_again();
            } else {
                drop(kept);
                release(&context, &row).await;
            }
            Ended::HandedOn(failure)
        }
        Err(failure) => {
            drop(kept);
            park(&context, &row, failure, &job.fenced).await
        }
        // Only this machine has the end of the session: this worker gets the job if it starts again in time.
        Ok(Ended::HandedOver { captured: true }) if !shipped => {
            drop(kept);
            keep_for_restart(&context, &row).await;
            Ended::HandedOver { captured: true }
        }
        Ok(Ended::HandedOver { captured }) => {
            drop(kept);
            release(&context, &row).await;
            Ended::HandedOver { captured }
        }
        Ok(ended) => ended,
    }
}

/// Keeps the lease of a job that this machine alone can go on with, so long that the worker can start again.
async fn keep_for_restart(context: &Context, row: &JobRow) {
    context.keeps_jobs.store(true, Ordering::Relaxed);
    let held = HeldLease { job: row.job, epoch: row.epoch };
    let kept = async {
        let now = context.clock.read(context.catalog.as_ref()).await?.now;
        context.catalog.heartbeat(&[held], now, RESTART_MAX).await
    };
    if let Err(error) = kept.await {
        tracing::warn!("the lease is not kept, and will expire: {}", chain(&error));
    }
}

async fn release(context: &Context, row: &JobRow) {
    if let Err(error) = context.catalog.release(row.job, row.epoch, Wallclock::now()).await {
        tracing::warn!("the lease is not given back, it will expire: {}", chain(&error));
    }
}

/// When the worker stops, what makes the archive may go on for `FINISH_MAX`. Then the next owner makes the archive.
async fn give_up_late(job: &Job) -> Result<Ended, JobFailure> {
    job.drain.cancelled().await;
    sleep(FINISH_MAX).await;
    job.given_up.cancel();
    std::future::pending().await
}

/// The next owner may be on another machine, and finds there what is in the store: the end of the log goes there before the lease is
/// given back. Returns whether all of the log is there.
async fn ship_log(job: &Job) -> bool {
    let store = job.context.store.as_ref();
    let ship = async {
        let (at, spool) = (job.dir.clone(), Arc::clone(&job.context.spool));
        let seal = move || {
            upload::seal_open(&at, &spool)?;
            LogReader::open_present(&at).map(|log| !log.tracks.is_empty())
        };
        let has_tracks = tokio::task::spawn_blocking(seal).await.map_err(|e| bug(&e))?;
        if has_tracks.map_err(|e| JobFailure::of(&e))? {
            let rest = upload::ship_rest(store, &job.keys, &job.dir, job.row.epoch, &job.fenced).await;
            if matches!(rest.map_err(|e| JobFailure::of(&e))?, Cancellable::Cancelled) {
                return Ok(Cancellable::Cancelled);
            }
        }
        let at = job.dir.clone();
        let left = tokio::task::spawn_blocking(move || upload::unshipped_epoch(&at)).await.map_err(|e| bug(&e))?;
        match left.map_err(|e| JobFailure::of(&e))? {
            None => Ok(Cancellable::Done(())),
            Some(_) => {
                let detail = "it is not noted which segments are shipped".to_owned();
                Err(JobFailure { kind: FaultKind::SpoolIo, detail })
            }
        }
    };
    match timeout(SHIP_MAX, ship).await {
        Ok(Ok(Cancellable::Done(()))) => return true,
        Ok(Ok(Cancellable::Cancelled)) => {}
        Ok(Err(failure)) => tracing::warn!("the end of the log is on this disk alone: {}", failure.detail),
        Err(_) => {
            tracing::warn!("the end of the log is on this disk alone: the store did not take it within {SHIP_MAX:?}");
        }
    }
    false
}

async fn stages(
    job: &Job,
    status: &watch::Sender<Option<ArchiveRow>>,
    control: ControlReceivers,
    composing: &mut Option<Composing>,
) -> Result<Ended, JobFailure> {
    waiting::forget_before_wait(job).await?;
    let reason = if job.row.state == JobState::Finalizing {
        job.captures_no_more();
        job.row.end_reason.clone().unwrap_or_else(|| "session ended".to_owned())
    } else {
        if advance(job, JobState::Capturing, None).await? == Transition::Fenced {
            return Ok(Ended::Fenced);
        }
        match capture::capture(job, status, control, composing).await? {
            CaptureOutcome::Ended(reason) => reason,
            CaptureOutcome::Empty { reason, left_at } => {
                match waiting::leave_empty(job, &reason, left_at, composing).await? {
                    Some(ended) => return Ok(ended),
                    // An earlier owner captured something, or tried to.
                    None => reason,
                }
            }
            CaptureOutcome::Fenced => return Ok(Ended::Fenced),
            CaptureOutcome::Drained => return Ok(Ended::HandedOver { captured: false }),
            CaptureOutcome::Failing(detail) => return Err(JobFailure { kind: FaultKind::SpoolIo, detail }),
        }
    };
    let now = Wallclock::now();
    status.send_replace(Some(job.archive_row(now).stopped(&reason, now)));
    let before = if job.row.state == JobState::Finalizing { finalize::made_before(job).await? } else { None };
    // The session of an archive that is made again goes on in another one, or is over.
    let is_made = before.as_ref().is_some_and(finalize::is_made);
    let transition = match reason == MAX_DURATION_EXCEEDED && !is_made {
        true => roll_over(job, &reason).await?,
        false => advance(job, JobState::Finalizing, Some(&reason)).await?,
    };
    if transition == Transition::Fenced {
        return Ok(Ended::Fenced);
    }
    job.captures_no_more();
    finalize::finalize(job, &reason, composing.take(), before).await
}

/// Parks a claimed job whose driver fails here each time.
pub async fn park_failing(context: Arc<Context>, claimed: Claimed, failure: JobFailure) -> Ended {
    park(&context, &claimed.job, failure, &CancellationToken::new()).await
}

async fn park(context: &Context, row: &JobRow, failure: JobFailure, fenced: &CancellationToken) -> Ended {
    tracing::error!(fault.kind = %failure.kind, "job is parked: {}; {}", failure.detail, failure.kind.advice());
    metrics().jobs_parked.get_or_create(&failure.kind.into()).inc();
    let detail = format!("{}; {}", failure.detail, failure.kind.advice());
    let routing_key = format!("{}.{}", crate::broker::STARTED_KEY, row.region);
    let entry = NewParked {
        job: Some(row.job),
        fault: failure.kind,
        detail: &detail,
        routing_key: &routing_key,
        body: row.event.text().as_bytes(),
    };
    let act = || async {
        let now = Wallclock::now();
        context.catalog.park(&entry, now).await?;
        // Before the job: should we die between the two, its next owner parks it, or makes the archive after all.
        fail_archive(context, row, now).await?;
        context.catalog.park_job(row.job, row.epoch, failure.kind.as_str(), &detail, now).await
    };
    match retry_until_cancelled("park a job", CATALOG, fenced, act).await {
        Ok(Cancellable::Done(())) => Ended::Parked(failure),
        Ok(Cancellable::Cancelled) | Err(_) => Ended::Fenced,
    }
}

/// Developers hear that an archive failed; a replay of its job takes it on from there.
async fn fail_archive(context: &Context, row: &JobRow, now: Wallclock) -> Result<(), CatalogError> {
    let archive = match context.catalog.archive(row.archive).await {
        Ok(Some(known)) => known.failed(now),
        Ok(None) => unknown_archive(row, now).failed(now),
        // A damaged row must not keep its job from being parked.
        Err(CatalogError::Corrupt { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    // Not written when another owner has the job, or when the archive is there already.
    context.catalog.put_own_archive(&archive, row.epoch).await.map(drop)
}

/// The archive of a job that was parked before it was written for the first time.
fn unknown_archive(row: &JobRow, now: Wallclock) -> ArchiveRow {
    let options = row.spec().map_or_else(|_| ArchiveOptions::default(), |spec| spec.archive.clone());
    ArchiveRow::started(row, options, now)
}
