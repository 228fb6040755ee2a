//! Jobs that wait for their session's first stream. No worker owns them. Their rooms are looked at from time to time, and the looks are
//! shared by all workers of a region: `lease_expires_at` is when the next one is due.

use async_trait::async_trait;
use sqlx::{AnyConnection, Connection};

use super::job_rows::{COLUMNS, history_line};
use super::{CatalogError, JobCatalog, JobRow, JobState, SqlCatalog, Statement, statement, storable};
use crate::model::ids::{Epoch, JobId, Region};
use crate::model::time::Wallclock;

/// What is known of the room of a job that begins to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// When the job's owner last saw that nobody publishes.
    pub without_stream_at: Wallclock,
    /// When the room is looked at first.
    pub look_at: Wallclock,
}

/// Jobs that wait for their session's first stream.
#[async_trait]
pub trait WaitingCatalog: Send + Sync {
    /// A job that we own gives its place back and waits. A job that was asked to end in the meantime is empty instead. Repeating it is
    /// harmless.
    ///
    /// # Errors
    /// [`CatalogError::Fenced`] when another owner has it; else when the catalog is away.
    async fn wait_for_stream(&self, job: JobId, epoch: Epoch, wait: Wait, now: Wallclock) -> Result<(), CatalogError>;

    /// Waiting jobs of a region whose look is due, those that are due longest first.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn due_looks(&self, region: &Region, now: Wallclock, limit: u32) -> Result<Vec<JobRow>, CatalogError>;

    /// Takes the look at a waiting job's room, as `job` was read; the next one is due at `next`. Returns whether it is the caller's:
    /// of several workers one takes it.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn take_look(&self, job: &JobRow, next: Wallclock) -> Result<bool, CatalogError>;

    /// A look at a waiting job's room at `at` has shown that nobody publishes.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn note_no_stream(&self, job: JobId, at: Wallclock) -> Result<(), CatalogError>;

    /// Somebody publishes in a waiting job's session: the job is accepted again, and its media time begins now. `without_stream_at`: when the
    /// caller saw that nobody publishes, if it did. Returns whether the job waited.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn resume_job(
        &self,
        job: JobId,
        who: &str,
        without_stream_at: Option<Wallclock>,
        now: Wallclock,
    ) -> Result<bool, CatalogError>;

    /// A waiting job's session is over, and nobody has published. Returns whether it waited.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn end_waiting(&self, job: JobId, reason: &str, who: &str, now: Wallclock) -> Result<bool, CatalogError>;
}

/// Ends the waiting jobs that `condition` names, behind a line in their history. Both have the parameters of the condition from `$4` on.
pub(super) fn end_waiting_where(condition: &str, reason: &str, who: &str, now: Wallclock) -> [Statement; 2] {
    let note = statement(format!(
        "INSERT INTO job_history (job_id, at, what, who) SELECT job_id, $1, $2, $3 FROM jobs WHERE state = 'waiting' AND {condition}"
    ))
    .bind(now.0)
    .bind(format!("empty: {}", storable(reason)))
    .bind(storable(who));
    let end = statement(format!(
        "UPDATE jobs SET state = 'empty', end_reason = $1, updated_at = $2, lease_expires_at = $3 \
         WHERE state = 'waiting' AND {condition}"
    ))
    .bind(storable(reason))
    .bind(now.0)
    .bind(0_i64);
    [note, end]
}

impl SqlCatalog {
    /// Runs a line for the history and a change, both or neither. Returns how many rows the change has changed.
    pub(super) async fn change_behind_note(
        &self,
        doing: &'static str,
        [note, change]: [Statement; 2],
    ) -> Result<u64, CatalogError> {
        self.run(doing, |c: &mut AnyConnection| {
            Box::pin(async move {
                let mut transaction = c.begin().await?;
                note.execute(&mut *transaction).await?;
                let changed = change.execute(&mut *transaction).await?.rows_affected();
                transaction.commit().await?;
                Ok(changed)
            })
        })
        .await
    }
}

#[async_trait]
impl WaitingCatalog for SqlCatalog {
    async fn wait_for_stream(&self, job: JobId, epoch: Epoch, wait: Wait, now: Wallclock) -> Result<(), CatalogError> {
        let Wait { without_stream_at, look_at } = wait;
        let wait = statement(
            "UPDATE jobs SET state = CASE WHEN end_reason IS NULL THEN 'waiting' ELSE 'empty' END, owner = NULL, \
             lease_expires_at = $1, updated_at = $2, without_stream_at = $3 \
             WHERE job_id = $4 AND epoch = $5 AND state = 'capturing'",
        )
        .bind(look_at.0)
        .bind(now.0)
        .bind(without_stream_at.0)
        .bind(job.to_string())
        .bind(i64::from(epoch.0));
        if self.change("let a job wait", wait, history_line(job, "waiting: nobody publishes", "worker", now)).await? {
            return Ok(());
        }
        // An earlier try may have been heard although its answer was lost.
        match self.job(job).await? {
            Some(found) if found.epoch == epoch && matches!(found.state, JobState::Waiting | JobState::Empty) => Ok(()),
            _ => Err(CatalogError::Fenced { job }),
        }
    }

    async fn due_looks(&self, region: &Region, now: Wallclock, limit: u32) -> Result<Vec<JobRow>, CatalogError> {
        let select = statement(format!(
            "SELECT {COLUMNS} FROM jobs WHERE state = 'waiting' AND region = $1 AND lease_expires_at <= $2 \
             ORDER BY lease_expires_at LIMIT {limit}"
        ))
        .bind(region.to_string())
        .bind(now.0);
        let rows = self.rows("find waiting jobs", select).await?;
        self.readable_jobs(&rows, now).await
    }

    async fn take_look(&self, job: &JobRow, next: Wallclock) -> Result<bool, CatalogError> {
        let take = statement(
            "UPDATE jobs SET lease_expires_at = $1 WHERE job_id = $2 AND state = 'waiting' AND lease_expires_at = $3",
        )
        .bind(next.0)
        .bind(job.job.to_string())
        .bind(job.lease_expires_at.0);
        Ok(self.execute("take a look at a waiting job", take).await? == 1)
    }

    async fn note_no_stream(&self, job: JobId, at: Wallclock) -> Result<(), CatalogError> {
        // Of two workers that look, the one that looked later may be the first to say so.
        let note = statement(
            "UPDATE jobs SET without_stream_at = $1 WHERE job_id = $2 AND state = 'waiting' \
             AND (without_stream_at IS NULL OR without_stream_at < $3)",
        )
        .bind(at.0)
        .bind(job.to_string())
        .bind(at.0);
        self.execute("note a look at a waiting job", note).await.map(drop)
    }

    async fn resume_job(
        &self,
        job: JobId,
        who: &str,
        without_stream_at: Option<Wallclock>,
        now: Wallclock,
    ) -> Result<bool, CatalogError> {
        let seen = without_stream_at.map_or(0, |at| at.0);
        let resume = statement(
            "UPDATE jobs SET state = 'accepted', origin = $1, lease_expires_at = 0, updated_at = $2, \
             without_stream_at = CASE WHEN without_stream_at > $3 THEN without_stream_at ELSE $4 END \
             WHERE job_id = $5 AND state = 'waiting'",
        )
        .bind(now.0)
        .bind(now.0)
        .bind(seen)
        .bind(without_stream_at.map(|at| at.0))
        .bind(job.to_string());
        self.change("resume a job", resume, history_line(job, "resumed: somebody publishes", who, now)).await
    }

    async fn end_waiting(&self, job: JobId, reason: &str, who: &str, now: Wallclock) -> Result<bool, CatalogError> {
        let both = end_waiting_where("job_id = $4", reason, who, now).map(|one| one.bind(job.to_string()));
        Ok(self.change_behind_note("end a waiting job", both).await? == 1)
    }
}
