//! The leases of jobs: who owns a job, and what only its owner may change.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Connection};

use super::job_rows::{COLUMNS, IS_MADE, LIVE, OFFERED, RECORDING, history_line, job_row, micros, select_job};
use super::parked::{NewParked, ParkedCatalog};
use super::{CatalogError, Columns, JobCatalog, JobRow, JobState, SqlCatalog, Statement, statement, storable};
use crate::model::fault::{HasFault, chain};
use crate::model::ids::{Epoch, JobId, Region, WorkerId};
use crate::model::time::Wallclock;

/// A job that is ours now.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The job, with our epoch.
    pub job: JobRow,
    /// Whether somebody owned it before.
    pub takeover: bool,
    /// When the catalog heard from the owner before for the last time, if that did not give the job back.
    pub owner_seen: Option<Wallclock>,
}

impl Claimed {
    /// The job as it is claimed at a time, and as it was `before`. `ttl` is how long leases last.
    #[must_use]
    pub fn new(job: JobRow, before: &JobRow, now: Wallclock, ttl: Duration) -> Self {
        let seen = Wallclock(before.lease_expires_at.0.saturating_sub(micros(ttl)));
        let is_credible = before.owner.is_some() && before.lease_expires_at.0 <= longest(now);
        Self { job, takeover: before.epoch.0 > 0, owner_seen: is_credible.then_some(seen.min(now)) }
    }
}

/// A lease that its owner keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldLease {
    /// The job.
    pub job: JobId,
    /// The owner's epoch.
    pub epoch: Epoch,
}

/// Leases in one statement.
const BEATS_MAX: usize = 100;
/// No lease is longer (`lease` in `[worker]` is at most 2 min). One that seems to be is of a clock that was wrong, and is none.
const LEASE_MAX: Duration = Duration::from_secs(180);

/// No lease is given at this time until later.
pub(super) fn longest(now: Wallclock) -> i64 {
    now.0.saturating_add(micros(LEASE_MAX))
}

/// The leases of jobs in the catalog, and what happens to a job between its acceptance and its archive.
#[async_trait]
pub trait LeaseCatalog: Send + Sync {
    /// Takes a live job that nobody owns, that its owner offers, whose lease has expired, or that is ours (of this worker's earlier
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

    /// Live jobs that this worker may claim: its own, those without an owner, offered ones, those with an expired lease. Those whose sessions may
    /// be going on come first: they must not wait behind archives that wait for the store. Archives that are made again come last.
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

    /// Keeps leases. Returns each job that still is its owner's, as it is now: somebody may want it to end. In place of a row that
    /// cannot be read is nothing. A job that is left out has another owner.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn heartbeat(
        &self,
        leases: &[HeldLease],
        now: Wallclock,
        ttl: Duration,
    ) -> Result<BTreeMap<JobId, Option<JobRow>>, CatalogError>;

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

    /// A person gives a parked job up. An archive that was to be made again stays as it was.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn discard_job(&self, job: JobId, who: &str, now: Wallclock) -> Result<bool, CatalogError>;
}

/// Prolongs leases, and reads their jobs.
fn keep_leases(leases: &[HeldLease], until: i64) -> Statement {
    let held = |n: usize| format!("(job_id = ${} AND epoch = ${})", 2 * n + 2, 2 * n + 3);
    let held: Vec<String> = (0..leases.len()).map(held).collect();
    let held = held.join(" OR ");
    // What was given back is nobody's to keep.
    let sql = format!("UPDATE jobs SET lease_expires_at = $1 WHERE owner IS NOT NULL AND ({held}) RETURNING {COLUMNS}");
    let keep = statement(sql).bind(until);
    leases.iter().fold(keep, |keep, lease| keep.bind(lease.job.to_string()).bind(i64::from(lease.epoch.0)))
}

impl SqlCatalog {
    /// The jobs that can be read. One that cannot stops no other: it is parked, so that a person sees it, once nobody has its lease.
    pub(super) async fn readable_jobs(&self, rows: &[AnyRow], now: Wallclock) -> Result<Vec<JobRow>, CatalogError> {
        let mut jobs = Vec::with_capacity(rows.len());
        for row in rows {
            match job_row(row) {
                Ok(job) => jobs.push(job),
                Err(error) => self.park_unreadable(row, &error, now).await,
            }
        }
        Ok(jobs)
    }

    /// Parks a job that cannot be read, unless its owner still works on it.
    async fn park_unreadable(&self, row: &AnyRow, error: &CatalogError, now: Wallclock) {
        let fault = error.fault().kind;
        let columns = Columns { row, table: "jobs" };
        let job = columns.text("job_id").unwrap_or_default();
        match self.try_park_unreadable(&columns, error, now).await {
            Ok(true) => {
                tracing::error!(fault.kind = %fault, job, "job is parked, its row cannot be read: {}; {}", chain(error), fault.advice());
            }
            Ok(false) => {}
            Err(problem) => tracing::warn!(
                job,
                "a job's row cannot be read, and the job not be parked for now: {}",
                chain(&problem)
            ),
        }
    }

    async fn try_park_unreadable(
        &self,
        columns: &Columns<'_>,
        error: &CatalogError,
        now: Wallclock,
    ) -> Result<bool, CatalogError> {
        let (job, fault) = (columns.text("job_id")?, error.fault().kind);
        let park = statement(format!(
            "UPDATE jobs SET parked_from = state, state = 'parked', fault = $1, detail = $2, owner = NULL, lease_expires_at = 0, \
             updated_at = $3 WHERE job_id = $4 AND (state IN {LIVE} OR state = 'waiting') \
             AND (owner IS NULL OR lease_expires_at <= $5)"
        ))
        .bind(fault.as_str())
        .bind(storable(&chain(error)))
        .bind(now.0)
        .bind(job.clone())
        .bind(now.0);
        let note = history_line(&job, &format!("parked: {fault}"), "worker", now);
        if !self.change("park a job that cannot be read", park, note).await? {
            return Ok(false);
        }
        // A person looks at the entries of parked jobs. A replay publishes the event where it came from.
        let (event, region) = (columns.text("event").unwrap_or_default(), columns.text("region").unwrap_or_default());
        let (detail, routing_key) =
            (format!("{}; {}", chain(error), fault.advice()), format!("session.started.{region}"));
        let (detail, routing_key) = (detail.as_str(), routing_key.as_str());
        let entry = NewParked { job: job.parse().ok(), fault, detail, routing_key, body: event.as_bytes() };
        self.park(&entry, now).await.map(|_| true)
    }
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
             AND (owner IS NULL OR owner = $6 OR lease_expires_at <= $7 OR lease_expires_at > $8 OR (state IN {RECORDING} AND {OFFERED}))"
        ))
        .bind(worker.to_string())
        .bind(now.0.saturating_add(micros(ttl)))
        .bind(now.0)
        .bind(job.to_string())
        .bind(i64::from(before.epoch.0))
        .bind(worker.to_string())
        .bind(now.0)
        .bind(longest(now));
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
        Ok(Some(Claimed::new(job_row(&row)?, &before, now, ttl)))
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
             AND (owner IS NULL OR owner = $2 OR lease_expires_at <= $3 OR lease_expires_at > $4 OR (state IN {RECORDING} AND {OFFERED})) \
             ORDER BY CASE WHEN state <> 'finalizing' THEN 0 WHEN {IS_MADE} THEN 2 ELSE 1 END, created_at LIMIT {limit}"
        ))
        .bind(region.to_string())
        .bind(worker.to_string())
        .bind(now.0)
        .bind(longest(now));
        let rows = self.rows("find jobs to claim", select).await?;
        self.readable_jobs(&rows, now).await
    }

    async fn heartbeat(
        &self,
        leases: &[HeldLease],
        now: Wallclock,
        ttl: Duration,
    ) -> Result<BTreeMap<JobId, Option<JobRow>>, CatalogError> {
        let mut kept = BTreeMap::new();
        for leases in leases.chunks(BEATS_MAX) {
            let rows = self.lease_rows("keep leases", keep_leases(leases, now.0.saturating_add(micros(ttl)))).await?;
            for row in &rows {
                let id = Columns { row, table: "jobs" }.parsed("job_id")?;
                kept.insert(id, job_row(row).ok());
            }
        }
        Ok(kept)
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
            "UPDATE jobs SET state = $1, updated_at = $2, end_reason = COALESCE($3, end_reason), \
             ended_at = CASE WHEN $1 = 'finalizing' THEN COALESCE(ended_at, $2) ELSE ended_at END \
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
