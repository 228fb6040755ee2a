//! An archive's row: the archive as developers see it.

use sqlx::any::AnyRow;

use super::{CatalogError, Columns, JobRow};
use crate::model::archive_options::{ArchiveOptions, OutputMode};
use crate::model::ids::{ApplicationId, ArchiveId, JobId, SessionId};
use crate::model::log_read::LogRead;
use crate::model::media::MissingMedia;
use crate::model::time::Wallclock;

/// Entries of what an archive lacks that are kept in its row.
const MISSING_MAX: usize = 100;
/// Vonage's reason of an archive that failed.
const FAILURE: &str = "failure";

/// Vonage's statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum ArchiveStatus {
    Started,
    Paused,
    Stopped,
    Available,
    Uploaded,
    Expired,
    Failed,
    Deleted,
}

impl ArchiveStatus {
    pub(super) const ALL: [Self; 8] = [
        Self::Started,
        Self::Paused,
        Self::Stopped,
        Self::Available,
        Self::Uploaded,
        Self::Expired,
        Self::Failed,
        Self::Deleted,
    ];

    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Available => "available",
            Self::Uploaded => "uploaded",
            Self::Expired => "expired",
            Self::Failed => "failed",
            Self::Deleted => "deleted",
        }
    }

    /// A status never goes back, except between started and paused, and from failed when its job is replayed: what was still
    /// recording then records again.
    #[must_use]
    pub const fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (
                Self::Started | Self::Paused,
                Self::Started | Self::Paused | Self::Stopped | Self::Available | Self::Failed
            ) | (Self::Stopped, Self::Stopped | Self::Available | Self::Uploaded | Self::Failed)
                | (
                    Self::Failed,
                    Self::Started | Self::Paused | Self::Stopped | Self::Available | Self::Failed | Self::Deleted
                )
                | (Self::Available | Self::Uploaded, Self::Available | Self::Uploaded | Self::Expired | Self::Deleted)
                | (Self::Expired | Self::Deleted, Self::Deleted)
        )
    }
}

impl std::str::FromStr for ArchiveStatus {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|s| s.as_str() == text)
            .ok_or_else(|| format!("no archive status is called {text:?}"))
    }
}

/// An archive.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveRow {
    /// Its id.
    pub archive: ArchiveId,
    /// The job that makes it.
    pub job: JobId,
    /// The session.
    pub session: SessionId,
    /// Whose session.
    pub application: ApplicationId,
    /// Its name.
    pub name: Option<String>,
    /// Its status.
    pub status: ArchiveStatus,
    /// One of Vonage's reasons, or empty.
    pub reason: String,
    /// `individual` or `composed`.
    pub output_mode: String,
    /// When it was begun.
    pub created_at: Wallclock,
    /// When it last changed.
    pub updated_at: Wallclock,
    /// Seconds; 0 while it is being recorded.
    pub duration_s: i64,
    /// Bytes; 0 until it is made.
    pub size: i64,
    /// Base64 of its SHA-256.
    pub sha256: String,
    /// Its object.
    pub object_key: Option<String>,
    /// What it was asked to be. Its layout is the one that it began with.
    pub options: ArchiveOptions,
    /// The media that it lacks, the longest first; not known until it is made.
    #[serde(default)]
    pub missing: Option<Vec<MissingMedia>>,
    /// How often the archive was made. It is made again when more of its media comes.
    #[serde(default = "first_revision")]
    pub revision: i64,
    /// How far its log was read when it was made. Archives of earlier versions of this program, and derived ones, do not say.
    #[serde(skip)]
    pub log_read: Option<LogRead>,
}

const fn first_revision() -> i64 {
    1
}

/// The file of an archive, once it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveFile {
    /// Seconds.
    pub duration_s: i64,
    /// Bytes.
    pub size: i64,
    /// Base64 of its SHA-256.
    pub sha256: String,
    /// Its object.
    pub object_key: Option<String>,
    /// The media that it lacks.
    pub missing: Vec<MissingMedia>,
    /// How often the archive was made, this time included.
    pub revision: i64,
    /// How far the log was read, unless the archive is a derived one.
    pub log_read: Option<LogRead>,
}

/// How an archive changes. These functions say what a new status brings along. Whether the status may follow the present one
/// ([`ArchiveStatus::may_become`]) is decided where the row is written, because others may have changed the archive since the row
/// was read.
impl ArchiveRow {
    /// Whether the archive lacks nothing that was sent, as far as is known; `None` until it is made.
    #[must_use]
    pub fn is_complete(&self) -> Option<bool> {
        self.missing.as_ref().map(Vec::is_empty)
    }

    /// The archive of a job, begun when the job was accepted.
    #[must_use]
    pub fn started(job: &JobRow, options: ArchiveOptions, now: Wallclock) -> Self {
        Self {
            archive: job.archive,
            job: job.job,
            session: job.session.clone(),
            application: job.application.clone(),
            name: options.name.clone(),
            status: ArchiveStatus::Started,
            reason: String::new(),
            output_mode: options.output_mode.as_str().to_owned(),
            created_at: job.created_at,
            updated_at: now,
            duration_s: 0,
            size: 0,
            sha256: String::new(),
            object_key: None,
            options,
            missing: None,
            revision: first_revision(),
            log_read: None,
        }
    }

    /// A composed archive that is to be made of another one. Nothing of it is recorded any more.
    #[must_use]
    pub fn derived(of: &Self, archive: ArchiveId, options: ArchiveOptions, now: Wallclock) -> Self {
        Self {
            archive,
            status: ArchiveStatus::Stopped,
            output_mode: OutputMode::Composed.as_str().to_owned(),
            created_at: now,
            updated_at: now,
            duration_s: 0,
            size: 0,
            sha256: String::new(),
            object_key: None,
            options,
            missing: None,
            revision: first_revision(),
            log_read: None,
            ..of.clone()
        }
    }

    /// Nobody publishes for now.
    #[must_use]
    pub fn paused(self, now: Wallclock) -> Self {
        self.changed(ArchiveStatus::Paused, now)
    }

    /// Nothing more is recorded, for one of Vonage's reasons.
    #[must_use]
    pub fn stopped(self, reason: &str, now: Wallclock) -> Self {
        Self { reason: reason.to_owned(), ..self.changed(ArchiveStatus::Stopped, now) }
    }

    /// The file can be fetched. The reason stays that of the stop.
    #[must_use]
    pub fn available(self, file: ArchiveFile, now: Wallclock) -> Self {
        let ArchiveFile { duration_s, size, sha256, object_key, mut missing, revision, log_read } = file;
        missing.sort_by_key(|one| std::cmp::Reverse(one.duration_ms));
        missing.truncate(MISSING_MAX);
        let missing = Some(missing);
        Self {
            duration_s,
            size,
            sha256,
            object_key,
            missing,
            revision,
            log_read,
            ..self.changed(ArchiveStatus::Available, now)
        }
    }

    /// The archive cannot be made. A replay of its job can still make it.
    #[must_use]
    pub fn failed(self, now: Wallclock) -> Self {
        Self { reason: FAILURE.to_owned(), ..self.changed(ArchiveStatus::Failed, now) }
    }

    /// Nobody sees the archive any more.
    #[must_use]
    pub fn deleted(self, now: Wallclock) -> Self {
        self.changed(ArchiveStatus::Deleted, now)
    }

    fn changed(self, status: ArchiveStatus, now: Wallclock) -> Self {
        Self { status, updated_at: now, ..self }
    }
}

pub(super) const COLUMNS: &str = "archive_id, job_id, session_id, application_id, name, status, reason, output_mode, created_at, \
     updated_at, duration_s, size, sha256, object_key, document, missing, revision, log_read";

pub(super) fn archive_row(row: &AnyRow) -> Result<ArchiveRow, CatalogError> {
    let columns = Columns { row, table: "archives" };
    Ok(ArchiveRow {
        archive: columns.parsed("archive_id")?,
        job: columns.parsed("job_id")?,
        session: columns.parsed("session_id")?,
        application: columns.parsed("application_id")?,
        name: columns.get("name")?,
        status: columns.parsed("status")?,
        reason: columns.text("reason")?,
        output_mode: columns.text("output_mode")?,
        created_at: Wallclock(columns.number("created_at")?),
        updated_at: Wallclock(columns.number("updated_at")?),
        duration_s: columns.number("duration_s")?,
        size: columns.number("size")?,
        sha256: columns.text("sha256")?,
        object_key: columns.get("object_key")?,
        options: options(&columns)?,
        missing: missing(&columns)?,
        revision: columns.number("revision")?,
        log_read: log_read(&columns)?,
    })
}

/// The media that an archive lacks; rows of earlier versions of this program do not say.
fn missing(columns: &Columns<'_>) -> Result<Option<Vec<MissingMedia>>, CatalogError> {
    let Some(text) = columns.get::<Option<String>>("missing")? else { return Ok(None) };
    let read = serde_json::from_str(&text);
    read.map(Some).map_err(|e| CatalogError::Corrupt { column: "missing", what: e.to_string() })
}

/// How far an archive's log was read; rows of earlier versions of this program do not say.
fn log_read(columns: &Columns<'_>) -> Result<Option<LogRead>, CatalogError> {
    let Some(text) = columns.get::<Option<String>>("log_read")? else { return Ok(None) };
    let read = serde_json::from_str(&text);
    read.map(Some).map_err(|e| CatalogError::Corrupt { column: "log_read", what: e.to_string() })
}

/// The options in an archive's `document`; rows of earlier versions of this program have none.
fn options(columns: &Columns<'_>) -> Result<ArchiveOptions, CatalogError> {
    let text = columns.text("document")?;
    serde_json::from_str(&text).map_err(|e| CatalogError::Corrupt { column: "document", what: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::ArchiveStatus::*;
    use super::*;
    use crate::model::ids::TrackKind;
    use crate::model::media::GapCause;

    #[test]
    fn a_status_never_goes_back() {
        for (from, to) in [
            (Started, vec![Started, Paused, Stopped, Available, Failed]),
            (Paused, vec![Started, Paused, Stopped, Available, Failed]),
            (Stopped, vec![Stopped, Available, Uploaded, Failed]),
            (Available, vec![Available, Uploaded, Expired, Deleted]),
            (Uploaded, vec![Available, Uploaded, Expired, Deleted]),
            (Expired, vec![Deleted]),
            // A replay takes it on from where its media stands.
            (Failed, vec![Started, Paused, Stopped, Available, Failed, Deleted]),
            (Deleted, vec![Deleted]),
        ] {
            for next in ArchiveStatus::ALL {
                assert_eq!(from.may_become(next), to.contains(&next), "{from:?} {next:?}");
            }
        }
    }

    #[test]
    fn a_change_brings_along_what_belongs_to_its_status() {
        let options = ArchiveOptions { output_mode: OutputMode::Both, ..ArchiveOptions::default() };
        let started = || ArchiveRow::started(&JobRow::capturing(), options.clone(), Wallclock(3));
        let stopped = || started().stopped("session ended", Wallclock(4));
        let file = || ArchiveFile {
            duration_s: 60,
            size: 7,
            sha256: "c2hh".to_owned(),
            object_key: Some("app/archive.mp4".to_owned()),
            missing: Vec::new(),
            revision: 1,
            log_read: None,
        };
        for (row, status, reason, at, size) in [
            (started(), Started, "", 3, 0),
            (started().paused(Wallclock(4)), Paused, "", 4, 0),
            (stopped(), Stopped, "session ended", 4, 0),
            (stopped().available(file(), Wallclock(5)), Available, "session ended", 5, 7),
            (started().failed(Wallclock(5)), Failed, "failure", 5, 0),
            (stopped().available(file(), Wallclock(5)).deleted(Wallclock(6)), Deleted, "session ended", 6, 7),
        ] {
            let found = (row.status, row.reason.as_str(), row.updated_at, row.size);
            assert_eq!(found, (status, reason, Wallclock(at), size));
            assert_eq!((row.created_at, row.output_mode.as_str()), (Wallclock(1), "both"), "{status:?}");
        }
    }

    #[test]
    fn an_archive_says_whether_it_is_complete_once_it_is_made() {
        let lack = |duration_ms| MissingMedia {
            stream_id: "00000000-0000-4000-8000-000000000001".parse().expect("id"),
            kind: TrackKind::Video,
            cause: GapCause::Refused,
            duration_ms,
            details: vec![],
        };
        let file = |missing| ArchiveFile {
            duration_s: 1,
            size: 1,
            sha256: String::new(),
            object_key: None,
            missing,
            revision: 1,
            log_read: None,
        };
        let row = || {
            ArchiveRow::started(&JobRow::capturing(), ArchiveOptions::default(), Wallclock(3)).stopped("", Wallclock(4))
        };
        assert_eq!(row().is_complete(), None);
        assert_eq!(row().available(file(vec![]), Wallclock(5)).is_complete(), Some(true));
        let lacks = row().available(file((0..200).map(lack).collect()), Wallclock(5));
        assert_eq!(lacks.is_complete(), Some(false));
        let kept: Vec<i64> = lacks.missing.unwrap_or_default().iter().map(|one| one.duration_ms).collect();
        assert_eq!(kept, (100..200).rev().collect::<Vec<_>>(), "the longest, bounded");
    }

    #[test]
    fn a_derived_archive_begins_without_a_file_and_keeps_its_reason() {
        let file = ArchiveFile {
            duration_s: 60,
            size: 7,
            sha256: "c2hh".to_owned(),
            object_key: Some("key".to_owned()),
            missing: Vec::new(),
            revision: 1,
            log_read: None,
        };
        let source = ArchiveRow::started(&JobRow::capturing(), ArchiveOptions::default(), Wallclock(3));
        let source = source.stopped("user initiated", Wallclock(4)).available(file, Wallclock(5));
        let new = ArchiveId::random();
        let derived = ArchiveRow::derived(&source, new, source.options.clone(), Wallclock(9));
        assert_eq!((derived.archive, derived.status, derived.reason.as_str()), (new, Stopped, "user initiated"));
        assert_eq!((derived.created_at, derived.updated_at), (Wallclock(9), Wallclock(9)));
        assert_eq!((derived.duration_s, derived.size, derived.sha256.as_str()), (0, 0, ""));
        assert_eq!((derived.object_key, derived.output_mode.as_str()), (None, "composed"));
        assert_eq!((derived.job, derived.session), (source.job, source.session));
    }
}
