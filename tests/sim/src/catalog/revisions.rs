//! Jobs whose archives are made again, or after all.

use archiver::catalog::{ArchiveStatus, CatalogError, JobRow, JobState, REVISIONS_MAX, RevisionCatalog};
use archiver::model::ids::JobId;
use archiver::model::time::Wallclock;
use async_trait::async_trait;

use super::MemoryCatalog;

#[async_trait]
impl RevisionCatalog for MemoryCatalog {
    async fn reopen_job(
        &self,
        job: JobId,
        made_since: Wallclock,
        who: &str,
        now: Wallclock,
    ) -> Result<bool, CatalogError> {
        self.call("reopen_job", |state| {
            let Some(found) = state.jobs.get_mut(&job).filter(|found| found.row.state == JobState::Available) else {
                return Ok(false);
            };
            let is_there = state.archives.get(&found.row.archive).is_some_and(|stored| {
                matches!(stored.row.status, ArchiveStatus::Available | ArchiveStatus::Uploaded)
                    && stored.segments_kept
                    && stored.row.updated_at >= made_since
                    && stored.row.revision < REVISIONS_MAX
            });
            if is_there {
                let row = &mut found.row;
                (row.state, row.owner, row.lease_expires_at, row.updated_at) =
                    (JobState::Finalizing, None, Wallclock(0), now);
                state.line(job, "finalizing again: media came late", who, now);
            }
            Ok(is_there)
        })
        .await
    }

    async fn reopen_empty_job(
        &self,
        job: JobId,
        origin: Wallclock,
        who: &str,
        now: Wallclock,
    ) -> Result<bool, CatalogError> {
        self.call("reopen_empty_job", |state| {
            let is_it = |row: &JobRow| row.state == JobState::Empty && row.origin == origin;
            let Some(found) = state.jobs.get_mut(&job).filter(|found| is_it(&found.row)) else { return Ok(false) };
            let row = &mut found.row;
            row.ended_at.get_or_insert(row.updated_at);
            (row.state, row.owner, row.lease_expires_at, row.updated_at) =
                (JobState::Finalizing, None, Wallclock(0), now);
            state.line(job, "finalizing after all: media came late", who, now);
            Ok(true)
        })
        .await
    }
}
