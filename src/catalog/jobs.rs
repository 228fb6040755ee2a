//! Jobs and their leases.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Connection};

use super::{CatalogError, Columns, SqlCatalog, Statement, parsed, statement, storable};
use crate::model::ids::{ApplicationId, ArchiveId, Epoch, JobId, Region, SessionId, WorkerId};
use crate::model::time::Wallclock;

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
    /// When the conversation started, by the clock of the event's sender.
    pub started_at: Wallclock,
    /// What sets its archive apart from others of the session at the same time; empty for the one that has none.
    pub tag: String,
    /// Whether it is news of a conversation, not only of somebody who wants an archive: an end that is older than the news is
    /// of an earlier conversation.
    pub is_conversation: bool,
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
    /// What its archive should be like from now on, as JSON.
    pub desired: Option<String>,
    /// What sets its archive apart from others of the session at the same time; empty for the one that has none.
    pub tag: String,
}

/// What became of an accepted event.
#[derive(Debug, Clone)]
pub enum Accepted {
    /// A job is new.
    New(JobRow),
    /// The event was accepted before.
    Duplicate(JobRow),
    /// The session is being recorded: the running job's archive has this conversation too.
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
     lease_expires_at, epoch, end_reason, fault, detail, created_at, updated_at, desired, tag";

const LIVE: &str = "('accepted', 'capturing', 'finalizing')";
/// The states of which a session has at most one job for each tag; the index `jobs_active_session` holds it.
pub(super) const ACTIVE: &str = "('accepted', 'capturing')";

fn job_row(row: &AnyRow) -> Result<JobRow, CatalogError> {
    let columns = Columns { row, table: "jobs" };
    let owner: Option<String> = columns.get("owner")?;
    Ok(JobRow {
        job: columns.parsed("job_id")?,
        archive: columns.parsed("archive_id")?,
        session: columns.parsed("session_id")?,
        application: columns.parsed("application_id")?,
        region: columns.parsed("region")?,
        event: columns.text("event")?,
        state: columns.parsed("state")?,
        origin: Wallclock(columns.number("origin")?),
        owner: owner.map(|o| parsed("owner", &o)).transpose()?,
        lease_expires_at: Wallclock(columns.number("lease_expires_at")?),
        epoch: Epoch(
            u32::try_from(columns.number("epoch")?)
                .map_err(|e| CatalogError::Corrupt { column: "epoch", what: e.to_string() })?,
        ),
        end_reason: columns.get("end_reason")?,
        fault: columns.get("fault")?,
        detail: columns.get("detail")?,
        created_at: Wallclock(columns.number("created_at")?),
        updated_at: Wallclock(columns.number("updated_at")?),
        desired: columns.get("desired")?,
        tag: columns.text("tag")?,
    })
}

fn select_job(job: JobId) -> Statement {
    statement(format!("SELECT {COLUMNS} FROM jobs WHERE job_id = $1")).bind(job.to_string())
}

fn history_line(job: JobId, what: &str, who: &str, now: Wallclock) -> Statement {
    statement("INSERT INTO job_history (job_id, at, what, who) VALUES ($1, $2, $3, $4)")
        .bind(job.to_string())
        .bind(now.0)
        .bind(storable(what))
        .bind(storable(who))
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// Jobs, their leases and their history in the catalog.
#[async_trait]
pub trait JobCatalog: Send + Sync {
    /// Makes a job durable. The same event, or another of the same conversation, makes no second one.
    ///
    /// # Errors
    /// [`CatalogError::Ending`] when the session is used again while its last job is asked to end: the event must
    /// come again, for it begins a conversation of its own. Else when the catalog is away.
    async fn accept(&self, new: &NewJob, now: Wallclock) -> Result<Accepted, CatalogError>;

    /// A job.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn job(&self, job: JobId) -> Result<Option<JobRow>, CatalogError>;

    /// Jobs, newest first, of the given states (all if empty).
    ///
    /// # Errors
    /// When the catalog is away.
    async fn jobs(&self, states: &[JobState], limit: u32) -> Result<Vec<JobRow>, CatalogError>;

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

    /// Somebody wants a session's running archive to end. Its owner reads it with the next heartbeat.
    /// Returns whether there is one, and no conversation of it started after `ended_at`.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn request_end(
        &self,
        application: &ApplicationId,
        session: &SessionId,
        reason: &str,
        ended_at: Wallclock,
        now: Wallclock,
    ) -> Result<bool, CatalogError>;

    /// Somebody wants one archive to end. Its owner reads it with the next heartbeat. Returns whether its job was running.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn request_stop(&self, job: JobId, reason: &str, now: Wallclock) -> Result<bool, CatalogError>;

    /// The running jobs of a session: one for each tag.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn active_jobs(&self, application: &ApplicationId, session: &SessionId) -> Result<Vec<JobRow>, CatalogError>;

    /// The newest job of a session among those with a tag; one that runs goes before all others.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn newest_job(
        &self,
        application: &ApplicationId,
        session: &SessionId,
        tag: &str,
    ) -> Result<Option<JobRow>, CatalogError>;

    /// Asks for something of a live job's archive, if nobody has asked for something else than `before` meanwhile. Its
    /// owner reads it with the next heartbeat. Returns whether it was so.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn desire(&self, job: &JobRow, desired: &str, now: Wallclock) -> Result<bool, CatalogError>;

    /// Adds a line to a job's history.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn note(&self, job: JobId, what: &str, who: &str, now: Wallclock) -> Result<(), CatalogError>;

    /// A job's history, oldest first: when, what, who.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn job_history(&self, job: JobId) -> Result<Vec<(Wallclock, String, String)>, CatalogError>;
}

#[async_trait]
impl JobCatalog for SqlCatalog {
    async fn accept(&self, new: &NewJob, now: Wallclock) -> Result<Accepted, CatalogError> {
        let insert = statement(format!(
            "INSERT INTO jobs ({COLUMNS}, conversation_at) VALUES \
             ($1, $2, $3, $4, $5, $6, 'accepted', $7, NULL, 0, 0, NULL, NULL, NULL, $8, $9, NULL, $10, $11) \
             ON CONFLICT DO NOTHING"
        ))
        .bind(new.job.to_string())
        .bind(ArchiveId::of_job(new.job).to_string())
        .bind(new.session.to_string())
        .bind(new.application.to_string())
        .bind(new.region.to_string())
        .bind(storable(&new.event))
        .bind(now.0)
        .bind(now.0)
        .bind(now.0)
        .bind(storable(&new.tag))
        .bind(new.started_at.0);
        let note = history_line(new.job, "accepted", "broker", now);
        let known = select_job(new.job);
        // The end of the conversation before, should it come later than this start, must not end this one.
        let join = statement(format!(
            "UPDATE jobs SET conversation_at = $1 WHERE application_id = $2 AND session_id = $3 \
             AND state IN {ACTIVE} AND end_reason IS NULL AND conversation_at < $4 AND tag = $5"
        ))
        .bind(new.started_at.0)
        .bind(new.application.to_string())
        .bind(new.session.to_string())
        .bind(new.started_at.0)
        .bind(storable(&new.tag));
        let of_session = statement(format!(
            "SELECT {COLUMNS} FROM jobs WHERE application_id = $1 AND session_id = $2 AND tag = $3 AND state IN {ACTIVE}"
        ))
        .bind(new.application.to_string())
        .bind(new.session.to_string())
        .bind(storable(&new.tag));
        let is_conversation = new.is_conversation;
        let found = self.run("accept a job", |c: &mut AnyConnection| {
            Box::pin(async move {
                let mut transaction = c.begin().await?;
                let inserted = insert.execute(&mut *transaction).await?.rows_affected() == 1;
                if inserted {
                    note.execute(&mut *transaction).await?;
                }
                let known = known.fetch_optional(&mut *transaction).await?;
                let busy = match known {
                    Some(_) => None,
                    None => {
                        if is_conversation {
                            join.execute(&mut *transaction).await?;
                        }
                        of_session.fetch_optional(&mut *transaction).await?
                    }
                };
                transaction.commit().await?;
                Ok((inserted, known, busy))
            })
        });
        match found.await? {
            (true, Some(job), _) => Ok(Accepted::New(job_row(&job)?)),
            (false, Some(job), _) => Ok(Accepted::Duplicate(job_row(&job)?)),
            (_, None, Some(busy)) => {
                let busy = job_row(&busy)?;
                match busy.end_reason {
                    Some(_) => Err(CatalogError::Ending { job: busy.job }),
                    None => Ok(Accepted::SessionBusy(busy)),
                }
            }
            // It ended between the two statements: the event is delivered again.
            (_, None, None) => Err(CatalogError::Unavailable {
                doing: "accept a job",
                source: "the session's job has just ended".into(),
            }),
        }
    }

    async fn job(&self, job: JobId) -> Result<Option<JobRow>, CatalogError> {
        self.row("find a job", select_job(job)).await?.as_ref().map(job_row).transpose()
    }

    async fn jobs(&self, states: &[JobState], limit: u32) -> Result<Vec<JobRow>, CatalogError> {
        let list: Vec<String> = states.iter().map(|s| format!("'{}'", s.as_str())).collect();
        let filter = if list.is_empty() { String::new() } else { format!("WHERE state IN ({})", list.join(", ")) };
        let sql = format!("SELECT {COLUMNS} FROM jobs {filter} ORDER BY created_at DESC LIMIT {limit}");
        self.rows("list jobs", statement(sql)).await?.iter().map(job_row).collect()
    }

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

    async fn request_end(
        &self,
        application: &ApplicationId,
        session: &SessionId,
        reason: &str,
        ended_at: Wallclock,
        now: Wallclock,
    ) -> Result<bool, CatalogError> {
        let request = statement(format!(
            "UPDATE jobs SET end_reason = COALESCE(end_reason, $1), updated_at = $2 \
             WHERE application_id = $3 AND session_id = $4 AND state IN {ACTIVE} AND conversation_at <= $5"
        ))
        .bind(storable(reason))
        .bind(now.0)
        .bind(application.to_string())
        .bind(session.to_string())
        .bind(ended_at.0);
        Ok(self.execute("end a session", request).await? > 0)
    }

    async fn request_stop(&self, job: JobId, reason: &str, now: Wallclock) -> Result<bool, CatalogError> {
        let request = statement(format!(
            "UPDATE jobs SET end_reason = COALESCE(end_reason, $1), updated_at = $2 WHERE job_id = $3 AND state IN {ACTIVE}"
        ))
        .bind(storable(reason))
        .bind(now.0)
        .bind(job.to_string());
        Ok(self.execute("stop an archive", request).await? > 0)
    }

    async fn active_jobs(&self, application: &ApplicationId, session: &SessionId) -> Result<Vec<JobRow>, CatalogError> {
        let select = statement(format!(
            "SELECT {COLUMNS} FROM jobs WHERE application_id = $1 AND session_id = $2 AND state IN {ACTIVE}"
        ))
        .bind(application.to_string())
        .bind(session.to_string());
        self.rows("find a session's jobs", select).await?.iter().map(job_row).collect()
    }

    async fn newest_job(
        &self,
        application: &ApplicationId,
        session: &SessionId,
        tag: &str,
    ) -> Result<Option<JobRow>, CatalogError> {
        let select = statement(format!(
            "SELECT {COLUMNS} FROM jobs WHERE session_id = $1 AND application_id = $2 AND tag = $3 \
             ORDER BY CASE WHEN state IN {ACTIVE} THEN 0 ELSE 1 END, created_at DESC LIMIT 1"
        ))
        .bind(session.to_string())
        .bind(application.to_string())
        .bind(storable(tag));
        self.row("find a session's newest job", select).await?.as_ref().map(job_row).transpose()
    }

    async fn desire(&self, job: &JobRow, desired: &str, now: Wallclock) -> Result<bool, CatalogError> {
        let change = statement(format!(
            "UPDATE jobs SET desired = $1, updated_at = $2 \
             WHERE job_id = $3 AND state IN {ACTIVE} AND COALESCE(desired, '') = $4"
        ))
        .bind(storable(desired))
        .bind(now.0)
        .bind(job.job.to_string())
        .bind(job.desired.clone().unwrap_or_default());
        Ok(self.execute("ask for something of an archive", change).await? > 0)
    }

    async fn note(&self, job: JobId, what: &str, who: &str, now: Wallclock) -> Result<(), CatalogError> {
        self.execute("note what happened", history_line(job, what, who, now)).await.map(drop)
    }

    async fn job_history(&self, job: JobId) -> Result<Vec<(Wallclock, String, String)>, CatalogError> {
        let select =
            statement("SELECT at, what, who FROM job_history WHERE job_id = $1 ORDER BY at").bind(job.to_string());
        let line = |row: &AnyRow| {
            let columns = Columns { row, table: "job_history" };
            Ok((Wallclock(columns.number("at")?), columns.text("what")?, columns.text("who")?))
        };
        self.rows("read a job's history", select).await?.iter().map(line).collect()
    }
}
