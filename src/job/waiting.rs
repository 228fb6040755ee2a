//! Automatic jobs in whose first minute nobody publishes. Such a job gives its place back and waits in the catalog. The bridge resumes it
//! when somebody publishes. Where no bridge runs, the workers look at its room from time to time. It ends with its room, or with its
//! session. What is published between the last look that has shown nobody and the job's owner is not recorded, which its archive says.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::live_composer::Composing;
use super::presence::EndReason;
use super::stage::{Transition, advance, bug};
use super::{Context, Ended, Job, JobFailure, leftovers};
use crate::catalog::{CatalogError, JobRow, JobState, Wait};
use crate::model::cancellable::Cancellable;
use crate::model::fault::{FaultKind, chain};
use crate::model::ids::{JobId, RouterName};
use crate::model::time::Wallclock;
use crate::recording::LogError;
use crate::router::RouterError;
use crate::runtime::retry::{CATALOG, retry_until_cancelled};

/// Between two questions which jobs are due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Rooms that one worker looks at before it asks again.
const LOOKS_MAX: u32 = 64;
/// A router that answers later is looked at again.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// A disk that takes longer hangs: it is another machine's chance.
const FORGET_MAX: Duration = Duration::from_secs(8);
/// Between two looks at one room: at first, and after twelve minutes.
const INTERVAL_MIN: Duration = Duration::from_secs(2);
const INTERVAL_MAX: Duration = Duration::from_secs(7);

/// The time between two looks at the room of a job that has waited so long: a hundredth of that, within limits.
fn look_interval(waited: Duration) -> Duration {
    (waited / 100).clamp(INTERVAL_MIN, INTERVAL_MAX)
}

/// Ends the capture of a job for whose session nobody has published: it waits for a stream, or is empty if its session has ended. Returns
/// nothing if it has an archive all the same, which an earlier owner began. `left_at`: until then the job's owner saw that nobody publishes.
pub(super) async fn leave_empty(
    job: &Job,
    reason: &str,
    left_at: Wallclock,
    composing: &mut Option<Composing>,
) -> Result<Option<Ended>, JobFailure> {
    let context = &job.context;
    let read = || context.catalog.archive(job.row.archive);
    match retry_until_cancelled("look for an archive", CATALOG, &job.fenced, read).await {
        Ok(Cancellable::Done(None)) => {}
        Ok(Cancellable::Cancelled) => return Ok(Some(Ended::Fenced)),
        Ok(Cancellable::Done(Some(_))) => return Ok(None),
        Err(error) => return Err(JobFailure::of(&error)),
    }
    if let Some(composing) = composing.take() {
        composing.call_off().await;
    }
    let (spool, archive) = (Arc::clone(&context.spool), job.row.archive);
    let is_over = reason != EndReason::NeverPublished.vonage();
    match tokio::task::spawn_blocking(move || spool.remove_without_media(archive)).await {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => return Ok(None),
        // There may be media.
        Ok(Err(error)) if is_over => {
            tracing::warn!(
                "it cannot be seen whether anything was captured, so the archive is made: {}",
                chain(&error)
            );
            return Ok(None);
        }
        Ok(Err(error)) => tracing::warn!("the folder of an archive of nothing stays: {}", chain(&error)),
        Err(panic) => tracing::error!(fault.kind = "bug", "the folder of an archive of nothing stays: {panic}"),
    }
    if is_over {
        tracing::info!(reason, "the session is over and nothing of it was recorded: there is no archive");
        let moved = advance(job, JobState::Empty, Some(reason)).await?;
        return Ok(Some(if moved == Transition::Made { Ended::Empty } else { Ended::Fenced }));
    }
    let wait = async || {
        let now = context.catalog.clock().await?;
        let wait = Wait { without_stream_at: left_at.min(now), look_at: now + INTERVAL_MIN };
        context.catalog.wait_for_stream(job.row.job, job.row.epoch, wait, now).await
    };
    match retry_until_cancelled("let a job wait", CATALOG, &job.fenced, wait).await {
        Ok(Cancellable::Done(())) => {
            tracing::info!("nobody publishes: the job gives its place back and waits for the session's first stream");
            Ok(Some(Ended::Waiting))
        }
        Ok(Cancellable::Cancelled) | Err(CatalogError::Fenced { .. }) => Ok(Some(Ended::Fenced)),
        Err(error) => Err(JobFailure::of(&error)),
    }
}

/// Removes what was noted here before the job waited: its media time began again when it was resumed, and what an earlier owner saw of an
/// empty room says nothing of that. A log with streams is set aside: here its media would have a wrong time.
pub(super) async fn forget_before_wait(job: &Job) -> Result<(), JobFailure> {
    let (spool, dir, row) = (Arc::clone(&job.context.spool), job.dir.clone(), job.row.clone());
    let forget = move || -> Result<Option<PathBuf>, LogError> {
        let before = leftovers::read_descriptor(&dir).filter(|before| before.origin != row.origin);
        let Some(before) = before else { return Ok(None) };
        if spool.remove_if_nothing_seen(row.archive)? {
            return Ok(None);
        }
        let aside = dir.with_extension(format!("before-{}", before.origin.0));
        std::fs::rename(&dir, &aside).map_err(LogError::io("rename", &dir))?;
        Ok(Some(aside))
    };
    let hangs = |_| JobFailure {
        kind: FaultKind::SpoolIo,
        detail: "the log of the time before the wait is not read".to_owned(),
    };
    let forgotten = timeout(FORGET_MAX, tokio::task::spawn_blocking(forget)).await.map_err(hangs)?;
    if let Some(path) = forgotten.map_err(|e| bug(&e))?.map_err(|e| JobFailure::of(&e))? {
        leftovers::tell_of_other_origin(&job.row, &path);
    }
    Ok(())
}

/// What a look at a waiting job's room has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Publishing,
    NobodyPublishes,
    RoomMissing,
    /// The router cannot be asked, or is one of other workers.
    Unknown,
}

/// What becomes of a waiting job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Waits,
    Resumed,
    Over,
}

/// Since when the rooms of waiting jobs are missing.
#[derive(Debug, Default)]
struct MissingRooms(HashMap<JobId, Instant>);

impl MissingRooms {
    /// A room may be missing for a moment, as after a restart of its router: its session is over when it has been missing for
    /// `missing_max`.
    fn judge(&mut self, job: JobId, look: Look, now: Instant, missing_max: Duration) -> Verdict {
        match look {
            Look::Unknown => return Verdict::Waits,
            Look::RoomMissing => {
                let since = *self.0.entry(job).or_insert(now);
                if now - since < missing_max {
                    return Verdict::Waits;
                }
            }
            Look::Publishing | Look::NobodyPublishes => {}
        }
        self.0.remove(&job);
        match look {
            Look::Publishing => Verdict::Resumed,
            Look::RoomMissing => Verdict::Over,
            Look::NobodyPublishes | Look::Unknown => Verdict::Waits,
        }
    }

    /// Forgets jobs that nobody has looked at for so long that they cannot be waiting any more.
    fn forget(&mut self, now: Instant, missing_max: Duration) {
        self.0.retain(|_, since| now - *since < missing_max * 4 + INTERVAL_MAX * 4);
    }
}

/// Routers that cannot be asked at the moment: what is published there is not recorded meanwhile, so each outage is told once, and its end.
#[derive(Debug, Default)]
struct Outages(BTreeSet<RouterName>);

impl Outages {
    fn note(&mut self, router: &RouterName, problem: Option<&str>) {
        match problem {
            Some(problem) if self.0.insert(router.clone()) => tracing::warn!(
                %router,
                "the rooms of waiting jobs cannot be looked at, and a first stream there is not recorded for now: {problem}"
            ),
            None if self.0.remove(router) => {
                tracing::info!(%router, "the rooms of waiting jobs can be looked at again");
            }
            Some(_) | None => {}
        }
    }
}

/// Looks at the rooms of waiting jobs until `stop`. `nudge` wakes the scheduler when there is a job to claim.
pub async fn run_waiting(context: &Context, nudge: &Notify, stop: &CancellationToken) {
    let (mut missing, mut outages) = (MissingRooms::default(), Outages::default());
    while stop.run_until_cancelled(sleep(LOOK_EVERY)).await.is_some() {
        let looked = stop.run_until_cancelled(look_at_due(context, nudge, &mut missing, &mut outages)).await;
        if let Some(Err(error)) = looked {
            tracing::debug!("waiting jobs are not looked at for now: {}", chain(&error));
        }
        missing.forget(Instant::now(), context.settings.limits.never_published.0);
    }
}

async fn look_at_due(
    context: &Context,
    nudge: &Notify,
    missing: &mut MissingRooms,
    outages: &mut Outages,
) -> Result<(), CatalogError> {
    let (catalog, region) = (&context.catalog, &context.settings.worker.region);
    for job in catalog.due_looks(region, catalog.clock().await?, LOOKS_MAX).await? {
        let looked_at = catalog.clock().await?;
        if !catalog.take_look(&job, looked_at + look_interval(looked_at.since(job.updated_at))).await? {
            continue;
        }
        let look = look(context, &job, outages).await;
        let missing_max = context.settings.limits.never_published.0;
        let (who, now) = (context.worker.as_str(), catalog.clock().await?);
        if matches!(look, Look::NobodyPublishes | Look::RoomMissing) {
            catalog.note_no_stream(job.job, looked_at).await?;
        }
        match missing.judge(job.job, look, Instant::now(), missing_max) {
            Verdict::Waits => {}
            Verdict::Resumed => {
                if catalog.resume_job(job.job, who, None, now).await? {
                    tracing::info!(job = %job.job, session = %job.session, "somebody publishes: the waiting job goes on");
                    nudge.notify_one();
                }
            }
            Verdict::Over => {
                if catalog.end_waiting(job.job, EndReason::NeverPublished.vonage(), who, now).await? {
                    tracing::info!(job = %job.job, session = %job.session, "the room is gone and nobody has published: there is no archive");
                }
            }
        }
    }
    Ok(())
}

async fn look(context: &Context, job: &JobRow, outages: &mut Outages) -> Look {
    let place = job.spec().ok().and_then(|spec| spec.router.as_ref());
    let Some((place, router)) = place.and_then(|place| Some((place, context.routers.get(&place.name)?))) else {
        return Look::Unknown;
    };
    let asked = timeout(ANSWER_MAX, router.participants(&place.room)).await;
    let (look, problem) = match asked {
        Ok(Ok(list)) if list.iter().any(|client| client.publishing) => (Look::Publishing, None),
        Ok(Ok(_)) => (Look::NobodyPublishes, None),
        Ok(Err(RouterError::RoomNotFound { .. })) => (Look::RoomMissing, None),
        Ok(Err(error)) => (Look::Unknown, Some(chain(&error))),
        Err(_) => (Look::Unknown, Some(format!("no answer within {} s", ANSWER_MAX.as_secs()))),
    };
    outages.note(&place.name, problem.as_deref());
    look
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_is_looked_at_less_often_the_longer_its_job_waits() {
        for (waited, interval) in [(0, 2.0), (60, 2.0), (200, 2.0), (500, 5.0), (1000, 7.0), (86_400, 7.0)] {
            assert_eq!(look_interval(Duration::from_secs(waited)).as_secs_f64(), interval, "{waited} s");
        }
    }

    #[test]
    fn a_waiting_job_is_resumed_by_a_stream_and_over_when_its_room_stays_away() {
        use Look::{NobodyPublishes, Publishing, RoomMissing, Unknown};
        use Verdict::{Over, Resumed, Waits};
        for (looks, verdict) in [
            (&[(0, NobodyPublishes)][..], Waits),
            (&[(0, NobodyPublishes), (5, Publishing)], Resumed),
            (&[(0, Unknown), (500, Unknown)], Waits),
            (&[(0, RoomMissing), (59, RoomMissing)], Waits),
            (&[(0, RoomMissing), (60, RoomMissing)], Over),
            (&[(0, RoomMissing), (30, Unknown), (60, RoomMissing)], Over),
            (&[(0, RoomMissing), (30, NobodyPublishes), (60, RoomMissing)], Waits),
            (&[(0, RoomMissing), (60, Publishing)], Resumed),
        ] {
            let (mut missing, begin) = (MissingRooms::default(), Instant::now());
            let job = "00000000-0000-5000-8000-000000000001".parse().expect("id");
            let last = looks.iter().fold(Waits, |_, (second, look)| {
                missing.judge(job, *look, begin + Duration::from_secs(*second), Duration::from_secs(60))
            });
            assert_eq!(last, verdict, "{looks:?}");
        }
    }
}
