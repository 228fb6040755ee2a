//! Deletes objects that are no longer needed but still paid for: segments of archives that were finished long ago, and
//! abandoned multipart uploads, which no listing of objects shows.
//!
//! An upload is aborted only if its key is one of an archive that the catalog knows, and whose job has ended. An upload of a
//! live job is its owner's, however old it is.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::catalog::{ArchiveStatus, Catalog, CatalogError, JobState, SegmentsDue, SharedCatalog};
use crate::model::fault::chain;
use crate::model::ids::JobId;
use crate::model::time::Wallclock;
use crate::store::keys::Keys;
use crate::store::{ObjectStore, PendingUpload, SharedStore, StoreError};

/// Media that comes so long after its archive was made is added. So long the store keeps the log of an archive that lacks media.
pub const REVISED_WITHIN: Duration = Duration::from_secs(7 * 24 * 3600);
/// Nobody asks for a revision so long after that time, whatever the clocks of those who ask and sweep.
const REVISION_MARGIN: Duration = Duration::from_secs(3600);
/// Interval of the sweeps.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);
/// A younger upload is left alone, whatever its job's state: clocks differ.
const AGE_MIN: Duration = Duration::from_secs(3600);
/// The deletion of an archive removes its objects itself. After this time the sweep removes the rest.
pub const REMOVER_MAX: Duration = Duration::from_secs(600);

/// Why a sweep failed.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// Whether an upload of an archive is abandoned. `state` is the state of its archive's job, if the catalog knows it.
#[must_use]
pub fn is_abandoned(upload: &PendingUpload, state: Option<JobState>, now: Wallclock) -> bool {
    let old = upload.begun.is_some_and(|begun| now.since(begun) >= AGE_MIN);
    let ours = Keys::parse(&upload.key).is_some();
    old && ours && matches!(state, Some(JobState::Available | JobState::Discarded))
}

/// Aborts abandoned uploads. Returns how many.
///
/// # Errors
/// When store or catalog are away; it is tried again at the next time.
pub async fn sweep(store: &dyn ObjectStore, catalog: &dyn Catalog, now: Wallclock) -> Result<usize, SweepError> {
    let mut swept = 0;
    for upload in store.pending_uploads("").await? {
        let Some((keys, _)) = Keys::parse(&upload.key) else { continue };
        let job: Option<JobId> = catalog.archive(keys.archive()).await?.map(|a| a.job);
        let state = match job {
            Some(job) => catalog.job(job).await?.map(|j| j.state),
            None => None,
        };
        if is_abandoned(&upload, state, now) {
            store.abort_upload(&upload.key, &upload.upload_id).await?;
            tracing::info!(object.key = upload.key, "an abandoned upload was given up");
            swept += 1;
        }
    }
    Ok(swept)
}

/// Deletes the segments of archives that were made longer ago than `keep`; of those that lack media, longer ago than [`REVISED_WITHIN`] as
/// well. Deletes also what is left of archives that were deleted longer ago than [`REMOVER_MAX`]. Returns the number of archives.
///
/// # Errors
/// When store or catalog are away; it is tried again at the next time.
pub async fn sweep_segments(
    store: &dyn ObjectStore,
    catalog: &dyn Catalog,
    keep: Duration,
    now: Wallclock,
) -> Result<usize, SweepError> {
    let due = SegmentsDue {
        complete: now.before(keep),
        incomplete: now.before(keep.max(REVISED_WITHIN + REVISION_MARGIN)),
        deleted: now.before(REMOVER_MAX),
    };
    let mut swept = 0;
    loop {
        let archives = catalog.with_segments(&due).await?;
        for archive in &archives {
            let keys = Keys::new(archive.application.clone(), archive.archive);
            // What is left of one that was deleted.
            let deleted = archive.status == ArchiveStatus::Deleted;
            let prefix = if deleted { keys.prefix() } else { keys.segments() };
            for object in store.list(&prefix).await? {
                store.delete(&object.key).await?;
            }
            catalog.segments_deleted(archive.archive).await?;
            swept += 1;
        }
        if archives.is_empty() {
            return Ok(swept);
        }
    }
}

/// Sweeps once an hour until `stop`.
pub async fn run_retention(
    store: SharedStore,
    catalog: SharedCatalog,
    keep_segments: Duration,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP_INTERVAL) => {}
        }
        if let Err(error) = sweep(store.as_ref(), catalog.as_ref(), Wallclock::now()).await {
            tracing::warn!("abandoned uploads are not swept for now: {}", chain(&error));
        }
        match sweep_segments(store.as_ref(), catalog.as_ref(), keep_segments, Wallclock::now()).await {
            Ok(0) => {}
            Ok(archives) => tracing::info!(archives, "segments that were kept long enough are deleted"),
            Err(error) => tracing::warn!("old segments are not swept for now: {}", chain(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_uploads_of_ended_jobs_of_ours_are_swept() {
        let ours = "app/2f6f2d9a-8d1c-4b1e-9c41-0b8a7d1f4c11/archive.zip";
        let now = Wallclock(100_000_000_000);
        let upload = |key: &str, age_s: i64| PendingUpload {
            key: key.to_owned(),
            upload_id: "u".to_owned(),
            begun: Some(Wallclock(now.0 - age_s * 1_000_000)),
        };
        for (key, age, state, swept) in [
            (ours, 7200, Some(JobState::Available), true),
            (ours, 7200, Some(JobState::Discarded), true),
            (ours, 7200, Some(JobState::Finalizing), false),
            (ours, 7200, Some(JobState::Parked), false),
            (ours, 7200, None, false),
            (ours, 60, Some(JobState::Available), false),
            ("backup/thing.tar", 7200, Some(JobState::Available), false),
        ] {
            assert_eq!(is_abandoned(&upload(key, age), state, now), swept, "{key} {age} {state:?}");
        }
        let unknown_age = PendingUpload { begun: None, ..upload(ours, 0) };
        assert!(!is_abandoned(&unknown_age, Some(JobState::Available), now));
    }
}
