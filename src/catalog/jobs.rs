//! Jobs and their leases.

use std::time::Duration;

use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Catalog, CatalogError, parsed};
use crate::ids::{ApplicationId, ArchiveId, Epoch, JobId, Region, SessionId, WorkerId};
use crate::time::Wallclock;

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Durable, not begun.
    Accepted,
    /// Media flows.
    Capturing,
    /// Media has ended; the archive is being made and sent.
    Finalizing,
    /// The archive can be fetched.
    Available,
    /// It needs a person; captured media is safe.
    Parked,
    /// A person gave it up.
    Discarded,
}

impl JobState {
    /// The name in the catalog.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Capturing => "capturing",
            Self::Finalizing => "finalizing",
            Self::Available => "available",
            Self::Parked => "parked",
            Self::Discarded => "discarded",
        }
    }

    /// Whether a worker must own it.
    #[must_use]
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Accepted | Self::Capturing | Self::Finalizing)
    }

    /// States only move forward; a replay takes a parked job back to where its media stands.
    #[must_use]
    pub const fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Accepted, Self::Capturing | Self::Finalizing | Self::Parked)
                | (Self::Capturing, Self::Finalizing | Self::Parked)
                | (Self::Finalizing, Self::Available | Self::Parked)
                | (Self::Parked, Self::Accepted | Self::Finalizing | Self::Discarded)
        )
    }
}

impl std::str::FromStr for JobState {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Accepted, Self::Capturing, Self::Finalizing, Self::Available, Self::Parked, Self::Discarded]
            .into_iter()
            .find(|s| s.as_str() == text)
            .ok_or_else(|| format!("no job state is called {text:?}"))
    }
}

/// A job to accept.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Named by the event.
    pub job: JobId,
    /// The session.
    pub session: SessionId,
    /// Whose session.
    pub application: ApplicationId,
    /// The region whose queue it came from.
    pub region: Region,
    /// The event as it came.
    pub event: String,
}

/// A job.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobRow {
    /// Its id.
    pub job: JobId,
    /// Its archive.
    pub archive: ArchiveId,
    /// The session.
    pub session: SessionId,
    /// Whose session.
    pub application: ApplicationId,
    /// Region.
    pub region: Region,
    /// The event as it came.
    pub event: String,
    /// Where it stands.
    pub state: JobState,
    /// Media time zero.
    pub origin: Wallclock,
    /// Who owns it.
    pub owner: Option<WorkerId>,
    /// Until when, without a heartbeat.
    pub lease_expires_at: Wallclock,
    /// The owner's epoch; 0 before the first.
    pub epoch: Epoch,
    /// Somebody wants it to end: Vonage's reason.
    pub end_reason: Option<String>,
    /// The last fault.
    pub fault: Option<String>,
    /// The fault in words.
    pub detail: Option<String>,
    /// When it was accepted.
    pub created_at: Wallclock,
    /// When it last changed.
    pub updated_at: Wallclock,
}

/// What became of an accepted event.
#[derive(Debug, Clone)]
pub enum Accepted {
    /// A job is new.
    New(JobRow),
    /// The event was accepted before.
    Duplicate(JobRow),
    /// Another event of the same conversation was accepted before.
    SessionBusy(JobRow),
}

/// A job that is ours now.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The job, with our epoch.
    pub job: JobRow,
    /// Whether somebody owned it before.
    pub takeover: bool,
}

const COLUMNS: &str = "job_id, archive_id, session_id, application_id, region, event, state, origin, owner, \
     lease_expires_at, epoch, end_reason, fault, detail, created_at, updated_at";

fn row(row: &AnyRow) -> Result<JobRow, CatalogError> {
    let text = |name: &str| row.try_get::<String, _>(name).unwrap_or_default();
    let optional = |name: &str| row.try_get::<Option<String>, _>(name).ok().flatten();
    let number = |name: &str| row.try_get::<i64, _>(name).unwrap_or_default();
    Ok(JobRow {
        job: parsed("jobs.job_id", &text("job_id"))?,
        archive: parsed("jobs.archive_id", &text("archive_id"))?,
        session: parsed("jobs.session_id", &text("session_id"))?,
        application: parsed("jobs.application_id", &text("application_id"))?,
        region: parsed("jobs.region", &text("region"))?,
        event: text("event"),
        state: parsed("jobs.state", &text("state"))?,
        origin: Wallclock(number("origin")),
        owner: optional("owner").map(|o| parsed("jobs.owner", &o)).transpose()?,
        lease_expires_at: Wallclock(number("lease_expires_at")),
        epoch: Epoch(u32::try_from(number("epoch")).unwrap_or(u32::MAX)),
        end_reason: optional("end_reason"),
        fault: optional("fault"),
        detail: optional("detail"),
        created_at: Wallclock(number("created_at")),
        updated_at: Wallclock(number("updated_at")),
    })
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

impl Catalog {
    /// Makes a job durable. The same event, or another of the same conversation, makes no second one.
    ///
    /// # Errors
    /// When the catalog is away.
    pub async fn accept(&self, new: &NewJob, now: Wallclock) -> Result<Accepted, CatalogError> {
        let archive = ArchiveId::of_job(new.job);
        let sql = format!(
            "INSERT INTO jobs ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, 'accepted', $7, NULL, 0, 0, NULL, NULL, NULL, $8, $9) \
             ON CONFLICT DO NOTHING"
        );
        let insert = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(new.job.to_string())
            .bind(archive.to_string())
            .bind(new.session.as_str())
            .bind(new.application.as_str())
            .bind(new.region.as_str())
            .bind(new.event.as_str())
            .bind(now.0)
            .bind(now.0)
            .bind(now.0);
        let inserted = self.limited("accept a job", insert.execute(&self.pool)).await?.rows_affected() == 1;
        let known = self.job(new.job).await?;
        match (inserted, known) {
            (true, Some(job)) => {
                self.note(new.job, "accepted", "broker", now).await?;
                Ok(Accepted::New(job))
            }
            (_, Some(job)) => Ok(Accepted::Duplicate(job)),
            (_, None) => {
                let sql = format!(
                    "SELECT {COLUMNS} FROM jobs WHERE application_id = $1 AND session_id = $2 AND state IN ('accepted', 'capturing')"
                );
                let query =
                    sqlx::query(sqlx::AssertSqlSafe(sql)).bind(new.application.as_str()).bind(new.session.as_str());
                match self.limited("find a session's job", query.fetch_optional(&self.pool)).await? {
                    Some(found) => Ok(Accepted::SessionBusy(row(&found)?)),
                    // It ended between the two statements: the event is delivered again.
                    None => Err(CatalogError::Unavailable {
                        doing: "accept a job",
                        source: "the session's job has just ended".into(),
                    }),
                }
            }
        }
    }

    /// A job.
    ///
    /// # Errors
    /// When the catalog is away.
    pub async fn job(&self, job: JobId) -> Result<Option<JobRow>, CatalogError> {
        let sql = format!("SELECT {COLUMNS} FROM jobs WHERE job_id = $1");
        let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(job.to_string());
        self.limited("find a job", query.fetch_optional(&self.pool)).await?.as_ref().map(row).transpose()
    }

    /// Jobs, newest first, of the given states (all if empty).
    ///
    /// # Errors
    /// When the catalog is away.
    pub async fn jobs(&self, states: &[JobState], limit: u32) -> Result<Vec<JobRow>, CatalogError> {
        let list: Vec<String> = states.iter().map(|s| format!("'{}'", s.as_str())).collect();
        let filter = if list.is_empty() { String::new() } else { format!("WHERE state IN ({})", list.join(", ")) };
        let sql = format!("SELECT {COLUMNS} FROM jobs {filter} ORDER BY created_at DESC LIMIT {limit}");
        let rows = self.limited("list jobs", sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&self.pool)).await?;
        rows.iter().map(row).collect()
    }

    /// Takes a live job that nobody owns, whose lease has expired, or that is ours (of this worker's earlier
    /// run). The epoch grows with each owner.
    ///
    /// # Errors
    /// When the catalog is away.
    pub async fn claim(
        &self,
        job: JobId,
        worker: &WorkerId,
        now: Wallclock,
        ttl: Duration,
    ) -> Result<Option<Claimed>, CatalogError> {
        let Some(before) = self.job(job).await? else { return Ok(None) };
        let query = sqlx::query(
            "UPDATE jobs SET owner = $1, lease_expires_at = $2, epoch = epoch + 1, updated_at = $3 \
             WHERE job_id = $4 AND epoch = $5 AND state IN ('accepted', 'capturing', 'finalizing') \
             AND (owner IS NULL OR owner = $6 OR lease_expires_at <= $7)",
        )
        .bind(worker.as_str())
        .bind(now.0 + micros(ttl))
        .bind(now.0)
        .bind(job.to_string())
        .bind(i64::from(before.epoch.0))
        .bind(worker.as_str())
        .bind(now.0);
        if self.limited("claim a job", query.execute(&self.pool)).await?.rows_affected() == 0 {
            return Ok(None);
        }
        let takeover = before.epoch.0 > 0;
        let job = JobRow {
            owner: Some(worker.clone()),
            epoch: Epoch(before.epoch.0 + 1),
            lease_expires_at: Wallclock(now.0 + micros(ttl)),
            ..before
        };
        self.note(job.job, &format!("claimed, epoch {}", job.epoch.0), worker.as_str(), now).await?;
        Ok(Some(Claimed { job, takeover }))
    }

    /// Live jobs that this worker may claim: its own, those without an owner, those with an expired lease.
    ///
    /// # Errors
    /// When the catalog is away.
    pub async fn claimable(
        &self,
        worker: &WorkerId,
        region: &Region,
        now: Wallclock,
        limit: u32,
    ) -> Result<Vec<JobRow>, CatalogError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM jobs WHERE state IN ('accepted', 'capturing', 'finalizing') AND region = $1 \
             AND (owner IS NULL OR owner = $2 OR lease_expires_at <= $3) ORDER BY created_at LIMIT {limit}"
        );
        let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(region.as_str()).bind(worker.as_str()).bind(now.0);
        let rows = self.limited("find jobs to claim", query.fetch_all(&self.pool)).await?;
        rows.iter().map(row).collect()
    }

    /// Keeps a lease. Returns the job as it is now: somebody may want it to end.
    ///
    /// # Errors
    /// [`CatalogError::Fenced`] when another owner has it.
    pub async fn heartbeat(
        &self,
        job: JobId,
        epoch: Epoch,
        now: Wallclock,
        ttl: Duration,
    ) -> Result<JobRow, CatalogError> {
        let query = sqlx::query("UPDATE jobs SET lease_expires_at = $1 WHERE job_id = $2 AND epoch = $3")
            .bind(now.0 + micros(ttl))
            .bind(job.to_string())
            .bind(i64::from(epoch.0));
        let kept = self.limited("keep a lease", query.execute(&self.pool)).await?.rows_affected();
        match self.job(job).await? {
            Some(found) if kept == 1 => Ok(found),
            _ => Err(CatalogError::Fenced { job }),
        }
    }

    /// Gives a lease back, so that any worker may take the job at once.
    ///
    /// # Errors
    /// When the catalog is away. A lease that was lost is not an error.
    pub async fn release(&self, job: JobId, epoch: Epoch, now: Wallclock) -> Result<(), CatalogError> {
        let query = sqlx::query(
            "UPDATE jobs SET owner = NULL, lease_expires_at = 0, updated_at = $1 WHERE job_id = $2 AND epoch = $3",
        )
        .bind(now.0)
        .bind(job.to_string())
        .bind(i64::from(epoch.0));
        self.limited("release a job", query.execute(&self.pool)).await.map(drop)
    }

    /// Moves a job that we own. Repeating it is harmless.
    ///
    /// # Errors
    /// [`CatalogError::Fenced`] when another owner has it, or it is not in a state from which it may move.
    pub async fn advance(
        &self,
        job: JobId,
        epoch: Epoch,
        next: JobState,
        reason: Option<&str>,
        now: Wallclock,
    ) -> Result<(), CatalogError> {
        let from: Vec<String> = [JobState::Accepted, JobState::Capturing, JobState::Finalizing]
            .iter()
            .filter(|s| s.may_become(next) || **s == next)
            .map(|s| format!("'{}'", s.as_str()))
            .collect();
        let sql = format!(
            "UPDATE jobs SET state = $1, updated_at = $2, end_reason = COALESCE($3, end_reason) \
             WHERE job_id = $4 AND epoch = $5 AND state IN ({})",
            if from.is_empty() { "''".to_owned() } else { from.join(", ") }
        );
        let query = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(next.as_str())
            .bind(now.0)
            .bind(reason)
            .bind(job.to_string())
            .bind(i64::from(epoch.0));
        let moved = self.limited("move a job", query.execute(&self.pool)).await?.rows_affected() == 1;
        let there = self.job(job).await?.is_some_and(|j| j.state == next && j.epoch == epoch);
        match (moved, there) {
            (true, _) => self.note(job, next.as_str(), "worker", now).await,
            (false, true) => Ok(()),
            (false, false) => Err(CatalogError::Fenced { job }),
        }
    }

    /// Parks a job that we own, with its fault.
    ///
    /// # Errors
    /// [`CatalogError::Fenced`] when another owner has it.
    pub async fn park_job(
        &self,
        job: JobId,
        epoch: Epoch,
        fault: &str,
        detail: &str,
        now: Wallclock,
    ) -> Result<(), CatalogError> {
        let query = sqlx::query(
            "UPDATE jobs SET state = 'parked', fault = $1, detail = $2, owner = NULL, lease_expires_at = 0, updated_at = $3 \
             WHERE job_id = $4 AND epoch = $5",
        )
        .bind(fault)
        .bind(detail)
        .bind(now.0)
        .bind(job.to_string())
        .bind(i64::from(epoch.0));
        match self.limited("park a job", query.execute(&self.pool)).await?.rows_affected() {
            0 => Err(CatalogError::Fenced { job }),
            _ => self.note(job, &format!("parked: {fault}"), "worker", now).await,
        }
    }

    /// A parked job goes on from where its media stands: `finalizing` if its capture had ended, else
    /// `accepted`. Returns whether it was parked.
    ///
    /// # Errors
    /// When the catalog is away.
    pub async fn unpark_job(&self, job: JobId, now: Wallclock) -> Result<bool, CatalogError> {
        let query = sqlx::query(
            "UPDATE jobs SET state = CASE WHEN end_reason IS NULL THEN 'accepted' ELSE 'finalizing' END, \
             fault = NULL, detail = NULL, updated_at = $1 WHERE job_id = $2 AND state = 'parked'",
        )
        .bind(now.0)
        .bind(job.to_string());
        let moved = self.limited("replay a job", query.execute(&self.pool)).await?.rows_affected() == 1;
        if moved {
            self.note(job, "replayed", "broker", now).await?;
        }
        Ok(moved)
    }

    /// A person gives a parked job up.
    ///
    /// # Errors
    /// When the catalog is away.
    pub async fn discard_job(&self, job: JobId, who: &str, now: Wallclock) -> Result<bool, CatalogError> {
        let query =
            sqlx::query("UPDATE jobs SET state = 'discarded', updated_at = $1 WHERE job_id = $2 AND state = 'parked'")
                .bind(now.0)
                .bind(job.to_string());
        let moved = self.limited("discard a job", query.execute(&self.pool)).await?.rows_affected() == 1;
        if moved {
            self.note(job, "discarded", who, now).await?;
        }
        Ok(moved)
    }

    /// Somebody wants a session's running archive to end. Its owner reads it with the next heartbeat.
    /// Returns whether there is one.
    ///
    /// # Errors
    /// When the catalog is away.
    pub async fn request_end(
        &self,
        application: &ApplicationId,
        session: &SessionId,
        reason: &str,
        now: Wallclock,
    ) -> Result<bool, CatalogError> {
        let query = sqlx::query(
            "UPDATE jobs SET end_reason = COALESCE(end_reason, $1), updated_at = $2 \
             WHERE application_id = $3 AND session_id = $4 AND state IN ('accepted', 'capturing')",
        )
        .bind(reason)
        .bind(now.0)
        .bind(application.as_str())
        .bind(session.as_str());
        Ok(self.limited("end a session", query.execute(&self.pool)).await?.rows_affected() > 0)
    }

    /// Adds a line to a job's history.
    ///
    /// # Errors
    /// When the catalog is away.
    pub async fn note(&self, job: JobId, what: &str, who: &str, now: Wallclock) -> Result<(), CatalogError> {
        let query = sqlx::query("INSERT INTO job_history (job_id, at, what, who) VALUES ($1, $2, $3, $4)")
            .bind(job.to_string())
            .bind(now.0)
            .bind(what)
            .bind(who);
        self.limited("note what happened", query.execute(&self.pool)).await.map(drop)
    }

    /// A job's history, oldest first: when, what, who.
    ///
    /// # Errors
    /// When the catalog is away.
    pub async fn job_history(&self, job: JobId) -> Result<Vec<(Wallclock, String, String)>, CatalogError> {
        let query =
            sqlx::query("SELECT at, what, who FROM job_history WHERE job_id = $1 ORDER BY at").bind(job.to_string());
        let rows = self.limited("read a job's history", query.fetch_all(&self.pool)).await?;
        let line = |row: &AnyRow| {
            (
                Wallclock(row.try_get("at").unwrap_or(0)),
                row.try_get("what").unwrap_or_default(),
                row.try_get("who").unwrap_or_default(),
            )
        };
        Ok(rows.iter().map(line).collect())
    }
}
