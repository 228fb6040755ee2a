//! Archives that are made again, or after all, because media of them came late.

use async_trait::async_trait;

use super::job_rows::history_line;
use super::{CatalogError, SqlCatalog, statement};
use crate::model::ids::JobId;
use crate::model::time::Wallclock;

/// An archive is made so often. An owner that hears nothing of its session's end could send media for hours.
pub const REVISIONS_MAX: i64 = 10;

/// Jobs whose archives are made again, or after all.
#[async_trait]
pub trait RevisionCatalog: Send + Sync {
    /// A job whose archive is made is finalized again, by any worker of its region: media came late. Only if the archive was made at
    /// `made_since` or later, and less than [`REVISIONS_MAX`] times, can be fetched, and its log is in the store. Returns whether it was so.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn reopen_job(
        &self,
        job: JobId,
        made_since: Wallclock,
        who: &str,
        now: Wallclock,
    ) -> Result<bool, CatalogError>;

    /// Media came late of a session in which nobody seemed to have published: an archive of the empty job is made after all. Its capture had
    /// ended when the job became empty. Only if the job's media time began at `origin`, as that of the media did. Returns whether it was so.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn reopen_empty_job(
        &self,
        job: JobId,
        origin: Wallclock,
        who: &str,
        now: Wallclock,
    ) -> Result<bool, CatalogError>;
}

#[async_trait]
impl RevisionCatalog for SqlCatalog {
    async fn reopen_job(
        &self,
        job: JobId,
        made_since: Wallclock,
        who: &str,
        now: Wallclock,
    ) -> Result<bool, CatalogError> {
        let reopen = statement(
            "UPDATE jobs SET state = 'finalizing', owner = NULL, lease_expires_at = 0, updated_at = $1 \
             WHERE job_id = $2 AND state = 'available' AND EXISTS (SELECT 1 FROM archives \
             WHERE archives.archive_id = jobs.archive_id AND archives.status IN ('available', 'uploaded') \
             AND archives.segments_kept = 1 AND archives.updated_at >= $3 AND archives.revision < $4)",
        )
        .bind(now.0)
        .bind(job.to_string())
        .bind(made_since.0)
        .bind(REVISIONS_MAX);
        self.change("finalize a job again", reopen, history_line(job, "finalizing again: media came late", who, now))
            .await
    }

    async fn reopen_empty_job(
        &self,
        job: JobId,
        origin: Wallclock,
        who: &str,
        now: Wallclock,
    ) -> Result<bool, CatalogError> {
        let reopen = statement(
            "UPDATE jobs SET state = 'finalizing', owner = NULL, lease_expires_at = 0, ended_at = COALESCE(ended_at, updated_at), \
             updated_at = $1 WHERE job_id = $2 AND state = 'empty' AND origin = $3",
        )
        .bind(now.0)
        .bind(job.to_string())
        .bind(origin.0);
        self.change(
            "finalize an empty job",
            reopen,
            history_line(job, "finalizing after all: media came late", who, now),
        )
        .await
    }
}
