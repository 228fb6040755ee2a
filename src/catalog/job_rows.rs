//! A job's row.

use std::time::Duration;

use sqlx::any::AnyRow;

use super::{CatalogError, Columns, SpecError, Statement, StoredDesired, StoredSpec, parsed, statement, storable};
use crate::model::ids::{ApplicationId, ArchiveId, Epoch, JobId, Region, SessionId, WorkerId};
use crate::model::job_spec::JobSpec;
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
    /// Nobody has published yet. No worker owns the job; it is accepted again when a stream comes.
    Waiting,
    /// The session ended before anybody published, as far as is known: there is no archive.
    Empty,
    /// The archive can be fetched.
    Available,
    /// It needs a person; captured media is safe.
    Parked,
    /// A person gave it up.
    Discarded,
}

impl JobState {
    /// The states of jobs that somebody may still wait for: all but those that have ended.
    pub const OPEN: [Self; 5] = [Self::Accepted, Self::Capturing, Self::Finalizing, Self::Waiting, Self::Parked];

    /// The name in the catalog.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Capturing => "capturing",
            Self::Finalizing => "finalizing",
            Self::Waiting => "waiting",
            Self::Empty => "empty",
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

    /// Whether its session is recorded, or is about to be.
    #[must_use]
    pub const fn is_recorded(self) -> bool {
        matches!(self, Self::Accepted | Self::Capturing)
    }

    /// Whether its session is recorded, or will be as soon as somebody publishes. A session has one such job for each tag.
    #[must_use]
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Accepted | Self::Capturing | Self::Waiting)
    }

    /// States only move forward, with four exceptions: a replay takes a parked job back to where its media stands, a waiting job
    /// is accepted again, an archive of which media came late is made again, and an archive of an empty job is made after all.
    #[must_use]
    pub const fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Accepted, Self::Capturing | Self::Finalizing | Self::Parked)
                | (Self::Capturing, Self::Finalizing | Self::Waiting | Self::Empty | Self::Parked)
                | (Self::Waiting, Self::Accepted | Self::Empty)
                | (Self::Finalizing, Self::Available | Self::Parked)
                | (Self::Available | Self::Empty, Self::Finalizing)
                | (Self::Parked, Self::Accepted | Self::Finalizing | Self::Discarded)
        )
    }
}

impl std::str::FromStr for JobState {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let all = [
            Self::Accepted,
            Self::Capturing,
            Self::Finalizing,
            Self::Waiting,
            Self::Empty,
            Self::Available,
            Self::Parked,
            Self::Discarded,
        ];
        all.into_iter().find(|s| s.as_str() == text).ok_or_else(|| format!("no job state is called {text:?}"))
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
    /// The event as it came, and what the job is to do.
    pub event: StoredSpec,
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
    /// The event as it came, and what the job is to do.
    pub event: StoredSpec,
    /// Where it stands.
    pub state: JobState,
    /// Media time zero.
    pub origin: Wallclock,
    /// Who owns it.
    pub owner: Option<WorkerId>,
    /// Until when the owner has it, without a heartbeat. Of a waiting job: when its room is looked at next.
    pub lease_expires_at: Wallclock,
    /// The owner's epoch; 0 before the first.
    pub epoch: Epoch,
    /// Somebody wants it to end: Vonage's reason.
    pub end_reason: Option<String>,
    /// When its capture had ended, by the catalog's clock. Jobs whose capture goes on, and those of earlier versions, do not say.
    pub ended_at: Option<Wallclock>,
    /// When its room was last seen without a stream, if it waits for its first one or has waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub without_stream_at: Option<Wallclock>,
    /// The last fault.
    pub fault: Option<String>,
    /// The fault in words.
    pub detail: Option<String>,
    /// When it was accepted.
    pub created_at: Wallclock,
    /// When it last changed.
    pub updated_at: Wallclock,
    /// What its archive should be like from now on, if somebody has asked for something.
    pub desired: Option<StoredDesired>,
    /// What sets its archive apart from others of the session at the same time; empty for the one that has none.
    pub tag: String,
}

impl JobRow {
    /// A job that is captured in epoch 1, for tests.
    #[cfg(test)]
    pub(crate) fn capturing() -> Self {
        let session: SessionId = "s".parse().expect("id");
        let job = JobId::of_event(&session, &"e".parse().expect("id"));
        Self {
            job,
            archive: ArchiveId::of_job(job),
            session,
            application: "app".parse().expect("id"),
            region: "eu".parse().expect("region"),
            event: StoredSpec::read(String::new()),
            state: JobState::Capturing,
            origin: Wallclock(1),
            owner: None,
            lease_expires_at: Wallclock(0),
            epoch: Epoch(1),
            end_reason: None,
            ended_at: None,
            without_stream_at: None,
            fault: None,
            detail: None,
            created_at: Wallclock(1),
            updated_at: Wallclock(2),
            desired: None,
            tag: String::new(),
        }
    }

    /// What the job is to do.
    ///
    /// # Errors
    /// Why its event cannot be read.
    pub const fn spec(&self) -> Result<&JobSpec, &SpecError> {
        self.event.value()
    }
}

pub(super) const COLUMNS: &str = "job_id, archive_id, session_id, application_id, region, event, state, origin, owner, \
     lease_expires_at, epoch, end_reason, fault, detail, created_at, updated_at, desired, tag, ended_at, without_stream_at";

pub(super) const LIVE: &str = "('accepted', 'capturing', 'finalizing')";
/// The states of [`JobState::is_active`]; the index `jobs_active_session` holds that there is one for each tag.
pub(super) const ACTIVE: &str = "('accepted', 'capturing', 'waiting')";
/// The states of which an owner, or the next one, hears what is asked of the job.
pub(super) const RECORDING: &str = "('accepted', 'capturing')";

/// Whether a job's archive is made: it is available, and may be made again.
pub(super) const IS_MADE: &str = "EXISTS (SELECT 1 FROM archives WHERE archives.archive_id = jobs.archive_id \
     AND archives.status IN ('available', 'uploaded'))";

/// Whether a job's newest owner has offered it.
pub(super) const OFFERED: &str =
    "EXISTS (SELECT 1 FROM offers WHERE offers.job_id = jobs.job_id AND offers.epoch = jobs.epoch)";

pub(super) fn job_row(row: &AnyRow) -> Result<JobRow, CatalogError> {
    let columns = Columns { row, table: "jobs" };
    let owner: Option<String> = columns.get("owner")?;
    Ok(JobRow {
        job: columns.parsed("job_id")?,
        archive: columns.parsed("archive_id")?,
        session: columns.parsed("session_id")?,
        application: columns.parsed("application_id")?,
        region: columns.parsed("region")?,
        event: StoredSpec::read(columns.text("event")?),
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
        desired: columns.get::<Option<String>>("desired")?.map(StoredDesired::read),
        tag: columns.text("tag")?,
        ended_at: columns.get::<Option<i64>>("ended_at")?.map(Wallclock),
        without_stream_at: columns.get::<Option<i64>>("without_stream_at")?.map(Wallclock),
    })
}

pub(super) fn select_job(job: JobId) -> Statement {
    statement(format!("SELECT {COLUMNS} FROM jobs WHERE job_id = $1")).bind(job.to_string())
}

pub(super) fn history_line(job: impl std::fmt::Display, what: &str, who: &str, now: Wallclock) -> Statement {
    statement("INSERT INTO job_history (job_id, at, what, who) VALUES ($1, $2, $3, $4)")
        .bind(job.to_string())
        .bind(now.0)
        .bind(storable(what))
        .bind(storable(who))
}

pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
