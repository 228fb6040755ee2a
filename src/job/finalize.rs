//! From a finished log to an available archive: make it, publish it, and only then let go of the local copy. Safe to begin again at any
//! point. An archive of which media came late is made again the same way.

use std::sync::Arc;

use super::live_composer::Composing;
use super::make::{Delivered, Made, make};
use super::stage::{Transition, advance, bug};
use super::{Ended, Job, JobFailure, hand_over, revision};
use crate::archive::delete;
use crate::catalog::{ArchiveFile, ArchiveRow, ArchiveStatus, CatalogError, JobState};
use crate::model::cancellable::Cancellable;
use crate::model::fault::{FaultKind, chain};
use crate::model::ids::Epoch;
use crate::model::media::MissingMedia;
use crate::model::time::Wallclock;
use crate::recording::spool::ProvedInStore;
use crate::recording::upload;
use crate::runtime::metrics::metrics;
use crate::runtime::retry::{CATALOG, STORE, retry_until_cancelled};

/// How the job ends when the archive is not made here.
fn given_up(job: &Job) -> Ended {
    if job.fenced.is_cancelled() { Ended::Fenced } else { Ended::HandedOver { captured: true } }
}

/// The archive if it was made, or deleted, before: media came late, or its last owner died when it had written the archive.
pub(super) async fn made_before(job: &Job) -> Result<Option<ArchiveRow>, JobFailure> {
    let read = || job.context.catalog.archive(job.row.archive);
    match retry_until_cancelled("read an archive", CATALOG, &job.given_up, read).await {
        Ok(Cancellable::Done(row)) => Ok(row.filter(|row| is_made(row) || is_gone(row))),
        // A damaged row must not keep its archive from being made. One that is given up makes nothing.
        Ok(Cancellable::Cancelled) | Err(CatalogError::Corrupt { .. }) => Ok(None),
        Err(error) => Err(JobFailure::of(&error)),
    }
}

/// Whether an archive can be fetched.
pub(super) const fn is_made(row: &ArchiveRow) -> bool {
    matches!(row.status, ArchiveStatus::Available | ArchiveStatus::Uploaded)
}

const fn is_gone(row: &ArchiveRow) -> bool {
    matches!(row.status, ArchiveStatus::Deleted | ArchiveStatus::Expired)
}

/// Makes the archive available, unless the job is given up before. `before`: the archive as it was made, or deleted, before.
pub(super) async fn finalize(
    job: &Job,
    reason: &str,
    composing: Option<Composing>,
    before: Option<ArchiveRow>,
) -> Result<Ended, JobFailure> {
    let began = Wallclock::now();
    let live_output = match composing {
        Some(composing) => composing.end().await,
        None => None,
    };
    if !hand_over::wait_for_prior_owners(job).await && !job.given_up.is_cancelled() {
        tracing::warn!("an earlier owner does not say that it has sent all: what it has comes later, or is missing");
        // Once is enough.
        if let Err(error) = job.context.catalog.clear_offers(job.row.job, None, job.row.epoch).await {
            tracing::debug!("the offers of the job are not cleared: {}", chain(&error));
        }
    }
    if let Some(gone) = before.as_ref().filter(|before| is_gone(before)) {
        return remove_gone(job, gone).await;
    }
    // What this disk alone has of an archive of several owners goes to the store first: a later revision then reads at least as much.
    let mut is_shipped = false;
    if job.row.epoch > Epoch(1) {
        let Cancellable::Done(shipped) = ship_own(job).await? else { return Ok(given_up(job)) };
        is_shipped = shipped;
    }
    let delivered = match make(job, reason, live_output, before.as_ref()).await? {
        Made::Archive(delivered) => delivered,
        Made::NothingMore(row) => return leave_as_it_is(job, &row).await,
        Made::GivenUp => return Ok(given_up(job)),
    };
    if job.row.epoch <= Epoch(1) {
        // The store is there: what is left of the log goes to it too, and the archive can be made again from there.
        match ship_own(job).await? {
            Cancellable::Done(shipped) => is_shipped = shipped,
            Cancellable::Cancelled if job.fenced.is_cancelled() => return Ok(Ended::Fenced),
            // The archive is delivered. Another owner would only make it again.
            Cancellable::Cancelled => tracing::warn!("the end of the log is not in the store yet: the worker stops"),
        }
    }
    let row = made_row(job, reason, &delivered)?;
    if let Some(ended) = publish(job, &row).await? {
        return Ok(ended);
    }
    tell_made(&row, &delivered, before.is_some(), began);
    if job.row.epoch > Epoch(1) {
        revision::ask_for_what_came_meanwhile(job, &delivered.log).await;
    }
    if is_shipped {
        remove_local(job).await;
    }
    Ok(Ended::Available)
}

/// Ships what is left of the log on this disk. Returns whether all of it is in the store: what is not stays on the disk, for whoever looks
/// through the spool.
async fn ship_own(job: &Job) -> Result<Cancellable<bool>, JobFailure> {
    let (at, spool) = (job.dir.clone(), Arc::clone(&job.context.spool));
    let sealed = tokio::task::spawn_blocking(move || upload::seal_open(&at, &spool)).await.map_err(|e| bug(&e))?;
    if let Err(error) = sealed {
        tracing::warn!("a log is not sealed: {}", chain(&error));
        return Ok(Cancellable::Done(false));
    }
    let store = job.context.store.as_ref();
    match upload::ship_rest(store, &job.keys, &job.dir, job.row.epoch, &job.given_up).await {
        Ok(shipped) => Ok(shipped.map(|()| true)),
        Err(error) => {
            tracing::warn!("the end of the log is not in the store yet: {}", chain(&error));
            Ok(Cancellable::Done(false))
        }
    }
}

/// The archive's row once it is delivered.
fn made_row(job: &Job, reason: &str, delivered: &Delivered) -> Result<ArchiveRow, JobFailure> {
    let Delivered { built, manifest, log } = delivered;
    // An archive is at least one object.
    let main = built
        .objects
        .first()
        .ok_or_else(|| JobFailure { kind: FaultKind::Bug, detail: "no file was made".to_owned() })?;
    let file = ArchiveFile {
        duration_s: manifest.duration_s.round() as i64,
        size: i64::try_from(main.size).unwrap_or(i64::MAX),
        sha256: main.sha256.clone(),
        object_key: Some(job.keys.key(main.kind)),
        missing: manifest.missing.clone(),
        revision: manifest.revision,
        log_read: Some(log.clone()),
    };
    let now = Wallclock::now();
    Ok(job.archive_row(now).stopped(reason, now).available(file, now))
}

/// Writes the archive, and then the job. Returns how the job ends if that was not to be.
async fn publish(job: &Job, row: &ArchiveRow) -> Result<Option<Ended>, JobFailure> {
    let catalog = job.context.catalog.as_ref();
    let write = || async {
        let is_written = catalog.put_own_archive(row, job.row.epoch).await?;
        catalog.resolve_parked(job.row.job).await?;
        let now = if is_written { None } else { catalog.archive(row.archive).await? };
        Ok::<_, CatalogError>(now.filter(is_gone))
    };
    match retry_until_cancelled("publish an archive", CATALOG, &job.fenced, write).await {
        Ok(Cancellable::Done(None)) => {}
        // Somebody deleted it meanwhile.
        Ok(Cancellable::Done(Some(gone))) => return remove_gone(job, &gone).await.map(Some),
        Ok(Cancellable::Cancelled) => return Ok(Some(Ended::Fenced)),
        Err(error) => return Err(JobFailure::of(&error)),
    }
    let moved = advance(job, JobState::Available, None).await?;
    Ok((moved == Transition::Fenced).then_some(Ended::Fenced))
}

fn tell_made(row: &ArchiveRow, delivered: &Delivered, is_revision: bool, began: Wallclock) {
    let missing = &delivered.manifest.missing;
    let delay = Wallclock::now().since(began);
    if is_revision {
        metrics().archives_revised.inc();
    } else {
        metrics().available(missing);
        metrics().archive_delay.observe(delay.as_secs_f64());
    }
    for lack in missing {
        let MissingMedia { stream_id, kind, cause, duration_ms, details } = lack;
        let (kind, cause) = (kind.as_str(), cause.as_str());
        tracing::warn!(%stream_id, kind, cause, duration_ms, "the archive lacks media: {}", details.join("; "));
    }
    tracing::info!(
        size_bytes = row.size,
        duration_s = row.duration_s,
        revision = row.revision,
        delay_ms = delay.as_millis(),
        "archive is available"
    );
}

/// Publishes the unchanged row of an archive that was made before, with its new `log_read`.
async fn leave_as_it_is(job: &Job, row: &ArchiveRow) -> Result<Ended, JobFailure> {
    tracing::info!("the log has no more media than the archive was made of: the archive stays as it is");
    if let Some(ended) = publish(job, row).await? {
        return Ok(ended);
    }
    if let Some(read) = &row.log_read {
        revision::ask_for_what_came_meanwhile(job, read).await;
    }
    // Whoever looks through the spool removes the local log, once the store is seen to have all of it.
    Ok(Ended::Available)
}

/// Removes what is left, or was made again, of an archive that somebody deleted.
async fn remove_gone(job: &Job, gone: &ArchiveRow) -> Result<Ended, JobFailure> {
    let context = &job.context;
    if gone.status == ArchiveStatus::Deleted {
        let remove = || delete::remove(context.catalog.as_ref(), context.store.as_ref(), gone);
        let removed = retry_until_cancelled("remove a deleted archive", STORE, &job.given_up, remove).await;
        let Cancellable::Done(()) = removed.map_err(|e| JobFailure::of(&e))? else { return Ok(given_up(job)) };
    }
    if advance(job, JobState::Available, None).await? == Transition::Fenced {
        return Ok(Ended::Fenced);
    }
    let (spool, archive) = (Arc::clone(&context.spool), job.row.archive);
    let removed = tokio::task::spawn_blocking(move || spool.remove_discarded(archive)).await;
    if let Ok(Err(error)) = removed {
        tracing::warn!("the local copy stays: {}", chain(&error));
    }
    Ok(Ended::Available)
}

/// Removes the local log of an archive that is made.
async fn remove_local(job: &Job) {
    let (spool, archive) = (Arc::clone(&job.context.spool), job.row.archive);
    // The delivery has read size and checksum of every object back from the store, and the log is there, too.
    let removed = tokio::task::spawn_blocking(move || spool.remove(archive, ProvedInStore::after_proof())).await;
    if let Ok(Err(error)) = removed {
        tracing::warn!("the local copy stays: {}", chain(&error));
    }
}
