//! The leases of jobs: who owns a job, and what only its owner may change.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{AnyConnection, Connection};

use super::job_rows::{COLUMNS, LIVE, history_line, job_row, micros, select_job};
use super::{CatalogError, JobCatalog, JobRow, JobState, SqlCatalog, statement, storable};
use crate::model::ids::{Epoch, JobId, Region, WorkerId};
use crate::model::time::Wallclock;

/// A job that is ours now.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The job, with our epoch.
    pub job: JobRow,
    /// Whether somebody owned it before.
    pub takeover: bool,
}
/// The leases of jobs in the catalog, and what happens to a job between its acceptance and its archive.
#[async_trait]
pub trait LeaseCatalog: Send + Sync {
    /// Takes a live job that nobody owns, whose lease has expired, or that is ours (of this worker's earlier
    /// run). The epoch grows with each owner.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn claim(
        &self,
        job: JobId,
        worker: &WorkerId,
        now: Wallclock,
        ttl: Duration,
    ) -> Result<Option<Claimed>, CatalogError>;

    /// Live jobs that this worker may claim: its own, those without an owner, those with an expired lease.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn claimable(
        &self,
        worker: &WorkerId,
        region: &Region,
        now: Wallclock,
        limit: u32,
    ) -> Result<Vec<JobRow>, CatalogError>;

    /// Keeps a lease. Returns the job as it is now: somebody may want it to end.
    ///
    /// # Errors
    /// [`CatalogError::Fenced`] when another owner has it.
    async fn heartbeat(&self, job: JobId, epoch: Epoch, now: Wallclock, ttl: Duration) -> Result<JobRow, CatalogError>;

    /// Gives a lease back, so that any worker may take the job at once.
    ///
    /// # Errors
    /// When the catalog is away. A lease that was lost is not an error.
    async fn release(&self, job: JobId, epoch: Epoch, now: Wallclock) -> Result<(), CatalogError>;

    /// Moves a job that we own. Repeating it is harmless.
    ///
    /// # Errors
    /// [`CatalogError::Fenced`] when another owner has it, or it is not in a state from which it may move.
    async fn advance(
        &self,
        job: JobId,
        epoch: Epoch,
        next: JobState,
        reason: Option<&str>,
        now: Wallclock,
    ) -> Result<(), CatalogError>;

    /// Parks a job that we own, with its fault.
    ///
    /// # Errors
    /// [`CatalogError::Fenced`] when another owner has it.
    async fn park_job(
        &self,
        job: JobId,
        epoch: Epoch,
        fault: &str,
        detail: &str,
        now: Wallclock,
    ) -> Result<(), CatalogError>;

    /// A parked job goes on from where its media stands: `finalizing` if its capture had ended, else it is
    /// `accepted` anew, and nobody wants it to end. Returns whether it was parked.
    ///
    /// # Errors
    /// [`CatalogError::Conflict`] while another job of the same session runs; else when the catalog is away.
    async fn unpark_job(&self, job: JobId, now: Wallclock) -> Result<bool, CatalogError>;

    /// A person gives a parked job up.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn discard_job(&self, job: JobId, who: &str, now: Wallclock) -> Result<bool, CatalogError>;
}

#[async_trait]
impl LeaseCatalog for SqlCatalog {
    async fn claim(
        &self,
        job: JobId,
        worker: &WorkerId,
        now: Wallclock,
        ttl: Duration,
    ) -> Result<Option<Claimed>, CatalogError> {
        let Some(before) = self.job(job).await? else { return Ok(None) };
        // Whoever else claims it first raises the epoch, and this changes nothing.
        let take = statement(format!(
            "UPDATE jobs SET owner = $1, lease_expires_at = $2, epoch = epoch + 1, updated_at = $3 \
             WHERE job_id = $4 AND epoch = $5 AND state IN {LIVE} \
             AND (owner IS NULL OR owner = $6 OR lease_expires_at <= $7)"
        ))
        .bind(worker.to_string())
        .bind(now.0.saturating_add(micros(ttl)))
        .bind(now.0)
        .bind(job.to_string())
        .bind(i64::from(before.epoch.0))
        .bind(worker.to_string())
        .bind(now.0);
        let note = history_line(job, &format!("claimed, epoch {}", before.epoch.0 + 1), worker.as_str(), now);
        let read = select_job(job);
        let taken = self.run("claim a job", |c: &mut AnyConnection| {
            Box::pin(async move {
                let mut transaction = c.begin().await?;
                if take.execute(&mut *transaction).await?.rows_affected() == 0 {
                    return Ok(None);
                }
                note.execute(&mut *transaction).await?;
                // Read again: the last owner may have moved it after the first look.
                let row = read.fetch_one(&mut *transaction).await?;
                transaction.commit().await?;
                Ok(Some(row))
            })
        });
        let Some(row) = taken.await? else { return Ok(None) };
        Ok(Some(Claimed { job: job_row(&row)?, takeover: before.epoch.0 > 0 }))
    }

    async fn claimable(
        &self,
        worker: &WorkerId,
        region: &Region,
        now: Wallclock,
        limit: u32,
    ) -> Result<Vec<JobRow>, CatalogError> {
        let select = statement(format!(
            "SELECT {COLUMNS} FROM jobs WHERE state IN {LIVE} AND region = $1 \
             AND (owner IS NULL OR owner = $2 OR lease_expires_at <= $3) ORDER BY created_at LIMIT {limit}"
        ))
        .bind(region.to_string())
        .bind(worker.to_string())
        .bind(now.0);
        self.rows("find jobs to claim", select).await?.iter().map(job_row).collect()
    }

    async fn heartbeat(&self, job: JobId, epoch: Epoch, now: Wallclock, ttl: Duration) -> Result<JobRow, CatalogError> {
        let keep = statement("UPDATE jobs SET lease_expires_at = $1 WHERE job_id = $2 AND epoch = $3")
            .bind(now.0.saturating_add(micros(ttl)))
            .bind(job.to_string())
            .bind(i64::from(epoch.0));
        let kept = self.execute("keep a lease", keep).await?;
        match self.job(job).await? {
            Some(found) if kept == 1 && found.epoch == epoch => Ok(found),
            _ => Err(CatalogError::Fenced { job }),
        }
    }

    async fn release(&self, job: JobId, epoch: Epoch, now: Wallclock) -> Result<(), CatalogError> {
        let release = statement(
            "UPDATE jobs SET owner = NULL, lease_expires_at = 0, updated_at = $1 \
             WHERE job_id = $2 AND epoch = $3 AND owner IS NOT NULL",
        )
        .bind(now.0)
        .bind(job.to_string())
        .bind(i64::from(epoch.0));
        self.change("release a job", release, history_line(job, "released", "worker", now)).await.map(drop)
    }

    async fn advance(
        &self,
        job: JobId,
        epoch: Epoch,
        next: JobState,
        reason: Option<&str>,
        now: Wallclock,
    ) -> Result<(), CatalogError> {
        let from: Vec<String> = [JobState::Accepted, JobState::Capturing, JobState::Finalizing]
            .iter()
            .filter(|s| s.may_become(next))
            .map(|s| format!("'{}'", s.as_str()))
            .collect();
        let moving = statement(format!(
            "UPDATE jobs SET state = $1, updated_at = $2, end_reason = COALESCE($3, end_reason) \
             WHERE job_id = $4 AND epoch = $5 AND state IN ({})",
            if from.is_empty() { "''".to_owned() } else { from.join(", ") }
        ))
        .bind(next.as_str())
        .bind(now.0)
        .bind(reason.map(storable))
        .bind(job.to_string())
        .bind(i64::from(epoch.0));
        if self.change("move a job", moving, history_line(job, next.as_str(), "worker", now)).await? {
            return Ok(());
        }
        // An earlier try may have been heard although its answer was lost.
        match self.job(job).await? {
            Some(found) if found.state == next && found.epoch == epoch => Ok(()),
            _ => Err(CatalogError::Fenced { job }),
        }
    }

    async fn park_job(
        &self,
        job: JobId,
        epoch: Epoch,
        fault: &str,
        detail: &str,
        now: Wallclock,
    ) -> Result<(), CatalogError> {
        let park = statement(format!(
            "UPDATE jobs SET parked_from = state, state = 'parked', fault = $1, detail = $2, owner = NULL, lease_expires_at = 0, \
             updated_at = $3 WHERE job_id = $4 AND epoch = $5 AND state IN {LIVE}"
        ))
        .bind(storable(fault))
        .bind(storable(detail))
        .bind(now.0)
        .bind(job.to_string())
        .bind(i64::from(epoch.0));
        let note = history_line(job, &format!("parked: {fault}"), "worker", now);
        if self.change("park a job", park, note).await? {
            return Ok(());
        }
        match self.job(job).await? {
            Some(found) if found.state == JobState::Parked && found.epoch == epoch => Ok(()),
            _ => Err(CatalogError::Fenced { job }),
        }
    }

    async fn unpark_job(&self, job: JobId, now: Wallclock) -> Result<bool, CatalogError> {
        let unpark = statement(
            "UPDATE jobs SET state = CASE WHEN parked_from = 'finalizing' THEN 'finalizing' ELSE 'accepted' END, \
             end_reason = CASE WHEN parked_from = 'finalizing' THEN end_reason ELSE NULL END, \
             parked_from = NULL, fault = NULL, detail = NULL, updated_at = $1 \
             WHERE job_id = $2 AND state = 'parked'",
        )
        .bind(now.0)
        .bind(job.to_string());
        self.change("replay a job", unpark, history_line(job, "replayed", "broker", now)).await
    }

    async fn discard_job(&self, job: JobId, who: &str, now: Wallclock) -> Result<bool, CatalogError> {
        let discard =
            statement("UPDATE jobs SET state = 'discarded', updated_at = $1 WHERE job_id = $2 AND state = 'parked'")
                .bind(now.0)
                .bind(job.to_string());
        self.change("discard a job", discard, history_line(job, "discarded", who, now)).await
    }
}
