//! Media that comes after its archive was made: the archive is made again.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::stage::bug;
use super::{Context, Job, JobFailure};
use crate::archive::retention::REVISED_WITHIN;
use crate::catalog::{JobRow, JobState};
use crate::model::ids::Epoch;
use crate::model::log_read::LogRead;
use crate::recording::upload::named_bundles;
use crate::store::keys::Keys;

/// Whoever has given a job back, or made an archive, waits for an answer for so long.
const ASK_MAX: Duration = Duration::from_secs(5);

/// What becomes of an archive of which this disk has media.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Revision {
    /// All that this disk has was read when the archive was made, or the archive is being made.
    NotNeeded,
    /// The archive is to be made again.
    Asked,
    /// The archive is too old, was made too often, or was made by a version that does not say what it read; or the store no longer has
    /// the log.
    TooLate,
}

/// Asks for an archive to be made again if the log on this disk was not read to its end when the archive was made. The caller has shipped
/// that log. `is_new`: some of it came to the store just now.
pub(super) async fn ask(context: &Context, row: &JobRow, dir: &Path, is_new: bool) -> Result<Revision, JobFailure> {
    let failed = |e| JobFailure::of(&e);
    let archive = context.catalog.archive(row.archive).await.map_err(failed)?;
    let (JobState::Available, Some(archive)) = (row.state, archive) else { return Ok(Revision::NotNeeded) };
    let Some(read) = archive.log_read else {
        return Ok(if is_new { Revision::TooLate } else { Revision::NotNeeded });
    };
    let at = dir.to_owned();
    let named = tokio::task::spawn_blocking(move || named_bundles(&at)).await.map_err(|e| bug(&e))?;
    let mut unread = named.map_err(|e| JobFailure::of(&e))?;
    unread.retain(|(epoch, number)| !read.has(*epoch, *number));
    if unread.is_empty() {
        return Ok(Revision::NotNeeded);
    }
    let keys = Keys::new(row.application.clone(), row.archive);
    let there = bundles(context, &keys).await?;
    if unread.intersection(&there).next().is_none() {
        return Ok(Revision::TooLate);
    }
    reopen(context, row).await
}

/// Asks for an archive that this worker has just made to be made again, if more of its log has come to the store meanwhile. Whoever sent that
/// saw the archive being made, did not ask, and may be gone.
pub(super) async fn ask_for_what_came_meanwhile(job: &Job, read: &LogRead) {
    let asked = async {
        let there = bundles(&job.context, &job.keys).await?;
        match there.iter().all(|(epoch, number)| read.has(*epoch, *number)) {
            true => Ok(Revision::NotNeeded),
            false => reopen(&job.context, &job.row).await,
        }
    };
    told_in_time(asked).await;
}

/// The same for an owner that has given its job back and sent its log: the next owner may have made the archive meanwhile.
pub(super) async fn ask_if_made(job: &Job) {
    let asked = async {
        let row = job.context.catalog.job(job.row.job).await.map_err(|e| JobFailure::of(&e))?;
        match row {
            Some(row) => ask(&job.context, &row, &job.dir, true).await,
            None => Ok(Revision::NotNeeded),
        }
    };
    told_in_time(asked).await;
}

/// Waits for an answer, but not for long: a worker may be stopping.
async fn told_in_time(asked: impl Future<Output = Result<Revision, JobFailure>>) {
    match tokio::time::timeout(ASK_MAX, asked).await {
        Ok(Ok(Revision::NotNeeded | Revision::Asked)) => {}
        Ok(Ok(Revision::TooLate)) => tracing::warn!("the end of the log came too late for the archive"),
        Ok(Err(failure)) => {
            tracing::warn!("it is not known whether the archive has the end of the log: {}", failure.detail);
        }
        Err(_) => tracing::warn!("it is not known whether the archive has the end of the log: no answer in time"),
    }
}

/// The bundles that are in the store.
async fn bundles(context: &Context, keys: &Keys) -> Result<BTreeSet<(Epoch, u32)>, JobFailure> {
    let there = context.store.list(&keys.segments()).await.map_err(|e| JobFailure::of(&e))?;
    Ok(there.iter().filter_map(|object| Keys::parse_bundle(&object.key)).collect())
}

async fn reopen(context: &Context, row: &JobRow) -> Result<Revision, JobFailure> {
    let failed = |e| JobFailure::of(&e);
    let now = context.clock.read(context.catalog.as_ref()).await.map_err(failed)?.now;
    let since = now.before(REVISED_WITHIN);
    if context.catalog.reopen_job(row.job, since, context.worker.as_str(), now).await.map_err(failed)? {
        tracing::info!(archive = %row.archive, "media came after its archive was made: the archive is made again");
        return Ok(Revision::Asked);
    }
    // Somebody else may have asked, or the answer to an earlier try was lost.
    let now = context.catalog.job(row.job).await.map_err(failed)?;
    let is_made = now.is_some_and(|now| now.state == JobState::Available && now.epoch == row.epoch);
    Ok(if is_made { Revision::TooLate } else { Revision::Asked })
}
