//! Jobs: accepting them, reading them, and what is asked of them.

use async_trait::async_trait;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Connection};

use super::job_rows::{ACTIVE, COLUMNS, RECORDING, history_line, job_row, select_job};
use super::waiting::{WaitingCatalog, end_waiting_where};
use super::{
    CatalogError, Columns, HistoryLine, JobRow, JobState, NewJob, SqlCatalog, Statement, StoredDesired, readable,
    statement, storable,
};
use crate::model::ids::{ApplicationId, ArchiveId, JobId, SessionId};
use crate::model::time::Wallclock;

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

/// Adds the job, unless the catalog has it, or its session has a running job with the same tag.
fn insert_job(new: &NewJob, now: Wallclock) -> Statement {
    statement(format!(
        "INSERT INTO jobs ({COLUMNS}, conversation_at) VALUES \
         ($1, $2, $3, $4, $5, $6, 'accepted', $7, NULL, 0, 0, NULL, NULL, NULL, $8, $9, NULL, $10, NULL, NULL, $11) \
         ON CONFLICT DO NOTHING"
    ))
    .bind(new.job.to_string())
    .bind(ArchiveId::of_job(new.job).to_string())
    .bind(new.session.to_string())
    .bind(new.application.to_string())
    .bind(new.region.to_string())
    .bind(storable(new.event.text()))
    .bind(now.0)
    .bind(now.0)
    .bind(now.0)
    .bind(storable(&new.tag))
    .bind(new.started_at.0)
}

/// Notes at the running job that another conversation of its session started. Otherwise the end of the earlier conversation would
/// end the job, should that end arrive after this start.
fn join_conversation(new: &NewJob) -> Statement {
    statement(format!(
        "UPDATE jobs SET conversation_at = $1 WHERE application_id = $2 AND session_id = $3 \
         AND state IN {ACTIVE} AND end_reason IS NULL AND conversation_at < $4 AND tag = $5"
    ))
    .bind(new.started_at.0)
    .bind(new.application.to_string())
    .bind(new.session.to_string())
    .bind(new.started_at.0)
    .bind(storable(&new.tag))
}

/// The running job of the session with the same tag.
fn select_active(new: &NewJob) -> Statement {
    statement(format!(
        "SELECT {COLUMNS} FROM jobs WHERE application_id = $1 AND session_id = $2 AND tag = $3 AND state IN {ACTIVE}"
    ))
    .bind(new.application.to_string())
    .bind(new.session.to_string())
    .bind(storable(&new.tag))
}

/// Jobs and their history in the catalog.
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

    /// Somebody wants a session's running archive to end. Its owner reads it with the next heartbeat. A job that waits for the
    /// session's first stream is empty at once. Returns whether there is one, and no conversation of it started after `ended_at`.
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

    /// Somebody wants one archive to end. Its owner reads it with the next heartbeat. A waiting job is empty at once. Returns whether
    /// its job was running.
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

    /// Asks for something of a live job's archive, unless somebody has asked for something else since `job` was read. Its
    /// owner reads it with the next heartbeat. Returns whether it was so.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn desire(&self, job: &JobRow, desired: &StoredDesired, now: Wallclock) -> Result<bool, CatalogError>;

    /// Adds a line to a job's history.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn note(&self, job: JobId, what: &str, who: &str, now: Wallclock) -> Result<(), CatalogError>;

    /// A job's history, oldest first.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn job_history(&self, job: JobId) -> Result<Vec<HistoryLine>, CatalogError>;
}

#[async_trait]
impl JobCatalog for SqlCatalog {
    async fn accept(&self, new: &NewJob, now: Wallclock) -> Result<Accepted, CatalogError> {
        let (insert, note) = (insert_job(new, now), history_line(new.job, "accepted", "broker", now));
        let (known, join, of_session) = (select_job(new.job), join_conversation(new), select_active(new));
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
        Ok(readable(&self.rows("list jobs", statement(sql)).await?, job_row))
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
             WHERE application_id = $3 AND session_id = $4 AND state IN {RECORDING} AND conversation_at <= $5"
        ))
        .bind(storable(reason))
        .bind(now.0)
        .bind(application.to_string())
        .bind(session.to_string())
        .bind(ended_at.0);
        let requested = self.execute("end a session", request).await? > 0;
        let of_session = "application_id = $4 AND session_id = $5 AND conversation_at <= $6";
        let ends = end_waiting_where(of_session, reason, "broker", now)
            .map(|one| one.bind(application.to_string()).bind(session.to_string()).bind(ended_at.0));
        Ok(self.change_behind_note("end a session", ends).await? > 0 || requested)
    }

    async fn request_stop(&self, job: JobId, reason: &str, now: Wallclock) -> Result<bool, CatalogError> {
        let request = statement(format!(
            "UPDATE jobs SET end_reason = COALESCE(end_reason, $1), updated_at = $2 WHERE job_id = $3 AND state IN {RECORDING}"
        ))
        .bind(storable(reason))
        .bind(now.0)
        .bind(job.to_string());
        Ok(self.execute("stop an archive", request).await? > 0 || self.end_waiting(job, reason, "request", now).await?)
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

    async fn desire(&self, job: &JobRow, desired: &StoredDesired, now: Wallclock) -> Result<bool, CatalogError> {
        let change = statement(format!(
            "UPDATE jobs SET desired = $1, updated_at = $2 \
             WHERE job_id = $3 AND state IN {ACTIVE} AND COALESCE(desired, '') = $4"
        ))
        .bind(storable(desired.text()))
        .bind(now.0)
        .bind(job.job.to_string())
        .bind(job.desired.as_ref().map_or_else(String::new, |before| before.text().to_owned()));
        Ok(self.execute("ask for something of an archive", change).await? > 0)
    }

    async fn note(&self, job: JobId, what: &str, who: &str, now: Wallclock) -> Result<(), CatalogError> {
        self.execute("note what happened", history_line(job, what, who, now)).await.map(drop)
    }

    async fn job_history(&self, job: JobId) -> Result<Vec<HistoryLine>, CatalogError> {
        let select =
            statement("SELECT at, what, who FROM job_history WHERE job_id = $1 ORDER BY at").bind(job.to_string());
        let line = |row: &AnyRow| {
            let columns = Columns { row, table: "job_history" };
            Ok(HistoryLine {
                at: Wallclock(columns.number("at")?),
                what: columns.text("what")?,
                who: columns.text("who")?,
            })
        };
        self.rows("read a job's history", select).await?.iter().map(line).collect()
    }
}
