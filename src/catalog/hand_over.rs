//! Hand-over: an owner that stops offers its job, and captures on until another worker does.

use async_trait::async_trait;

use super::job_rows::{RECORDING, history_line};
use super::leases::longest;
use super::{CatalogError, Columns, JobState, SqlCatalog, statement};
use crate::model::ids::{Epoch, JobId, Region, WorkerId};
use crate::model::time::Wallclock;

/// How far the hand-over of a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandOver {
    /// The newest owner's epoch.
    pub epoch: Epoch,
    /// The newest owner that has reported media of every track.
    pub captured_by: Option<Epoch>,
    /// The earliest owner that offered the job, and has not sent all that it captured.
    pub offered_by: Option<Epoch>,
    /// The session is not recorded any more, or somebody wants that.
    pub ends: bool,
}

/// Jobs that are handed over. Each call can be repeated.
#[async_trait]
pub trait HandOverCatalog: Send + Sync {
    /// Whether a worker other than `worker` lives that takes jobs of a region.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn has_taker(&self, region: &Region, worker: &WorkerId, now: Wallclock) -> Result<bool, CatalogError>;

    /// Offers a job that its owner captures: any worker may claim it although the owner keeps the lease. Returns whether the epoch is
    /// the owner's.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn offer_job(
        &self,
        job: JobId,
        epoch: Epoch,
        worker: &WorkerId,
        now: Wallclock,
    ) -> Result<bool, CatalogError>;

    /// Deletes the offers of a job that a worker made, or with `None` every worker, up to an epoch: the archive no longer waits for what they
    /// captured.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn clear_offers(&self, job: JobId, worker: Option<&WorkerId>, last: Epoch) -> Result<(), CatalogError>;

    /// The owner has media of every track.
    ///
    /// # Errors
    /// When the catalog is away. A lease that was lost is not an error.
    async fn report_captured(&self, job: JobId, epoch: Epoch) -> Result<(), CatalogError>;

    /// How far a job's hand-over is; `None` without such a job.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn hand_over(&self, job: JobId) -> Result<Option<HandOver>, CatalogError>;
}

#[async_trait]
impl HandOverCatalog for SqlCatalog {
    async fn has_taker(&self, region: &Region, worker: &WorkerId, now: Wallclock) -> Result<bool, CatalogError> {
        let find = statement(
            "SELECT worker_id FROM workers WHERE takes = $1 AND worker_id <> $2 \
             AND lease_expires_at > $3 AND lease_expires_at <= $4 LIMIT 1",
        )
        .bind(region.to_string())
        .bind(worker.to_string())
        .bind(now.0)
        .bind(longest(now));
        Ok(self.row("find a worker that takes jobs", find).await?.is_some())
    }

    async fn offer_job(
        &self,
        job: JobId,
        epoch: Epoch,
        worker: &WorkerId,
        now: Wallclock,
    ) -> Result<bool, CatalogError> {
        let offer = statement(format!(
            "INSERT INTO offers (job_id, epoch, worker_id) SELECT job_id, epoch, CAST($1 AS TEXT) FROM jobs \
             WHERE job_id = $2 AND epoch = $3 AND owner IS NOT NULL AND state IN {RECORDING} \
             ON CONFLICT (job_id, epoch) DO UPDATE SET worker_id = excluded.worker_id"
        ))
        .bind(worker.to_string())
        .bind(job.to_string())
        .bind(i64::from(epoch.0));
        self.change("offer a job", offer, history_line(job, "offered", worker.as_str(), now)).await
    }

    async fn clear_offers(&self, job: JobId, worker: Option<&WorkerId>, last: Epoch) -> Result<(), CatalogError> {
        let clear = match worker {
            Some(worker) => statement("DELETE FROM offers WHERE job_id = $1 AND epoch <= $2 AND worker_id = $3")
                .bind(job.to_string())
                .bind(i64::from(last.0))
                .bind(worker.to_string()),
            None => statement("DELETE FROM offers WHERE job_id = $1 AND epoch <= $2")
                .bind(job.to_string())
                .bind(i64::from(last.0)),
        };
        self.execute("clear the offers of a job", clear).await.map(drop)
    }

    async fn report_captured(&self, job: JobId, epoch: Epoch) -> Result<(), CatalogError> {
        let report = statement("UPDATE jobs SET captured_by = $1 WHERE job_id = $2 AND epoch = $3")
            .bind(i64::from(epoch.0))
            .bind(job.to_string())
            .bind(i64::from(epoch.0));
        self.execute("report that a job is captured", report).await.map(drop)
    }

    async fn hand_over(&self, job: JobId) -> Result<Option<HandOver>, CatalogError> {
        let read = statement(
            "SELECT epoch, captured_by, state, end_reason, \
             (SELECT MIN(offers.epoch) FROM offers WHERE offers.job_id = jobs.job_id) AS offered_by \
             FROM jobs WHERE job_id = $1",
        )
        .bind(job.to_string());
        let Some(row) = self.row("read how far a hand-over is", read).await? else { return Ok(None) };
        let columns = Columns { row: &row, table: "jobs" };
        let epoch = |column, number: i64| {
            u32::try_from(number).map(Epoch).map_err(|e| CatalogError::Corrupt { column, what: e.to_string() })
        };
        let known = |column| {
            let number: Option<i64> = columns.get(column)?;
            number.map(|number| epoch(column, number)).transpose()
        };
        let (state, reason): (JobState, Option<String>) = (columns.parsed("state")?, columns.get("end_reason")?);
        Ok(Some(HandOver {
            epoch: epoch("epoch", columns.number("epoch")?)?,
            captured_by: known("captured_by")?,
            offered_by: known("offered_by")?,
            ends: reason.is_some() || !state.is_recorded(),
        }))
    }
}
