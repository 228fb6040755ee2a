//! An archive's row: the archive as developers see it.

use sqlx::any::AnyRow;

use super::{CatalogError, Columns, JobRow};
use crate::model::archive_options::ArchiveOptions;
use crate::model::ids::{ApplicationId, ArchiveId, JobId, SessionId};
use crate::model::time::Wallclock;

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
}

impl ArchiveRow {
    /// The archive of a job that has not made it yet.
    #[must_use]
    pub fn of_job(job: &JobRow, options: ArchiveOptions, status: ArchiveStatus, now: Wallclock) -> Self {
        Self {
            archive: job.archive,
            job: job.job,
            session: job.session.clone(),
            application: job.application.clone(),
            name: options.name.clone(),
            status,
            reason: String::new(),
            output_mode: options.output_mode.as_str().to_owned(),
            created_at: job.created_at,
            updated_at: now,
            duration_s: 0,
            size: 0,
            sha256: String::new(),
            object_key: None,
            options,
        }
    }
}

pub(super) const COLUMNS: &str = "archive_id, job_id, session_id, application_id, name, status, reason, output_mode, created_at, \
     updated_at, duration_s, size, sha256, object_key, document";

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
    })
}

/// The options in an archive's `document`; rows of earlier versions of this program have none.
fn options(columns: &Columns<'_>) -> Result<ArchiveOptions, CatalogError> {
    let text = columns.text("document")?;
    serde_json::from_str(&text).map_err(|e| CatalogError::Corrupt { column: "document", what: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::ArchiveStatus::*;

    #[test]
    fn a_status_never_goes_back() {
        for (from, to, allowed) in [
            (Started, Paused, true),
            (Paused, Started, true),
            (Paused, Stopped, true),
            (Stopped, Started, false),
            (Stopped, Available, true),
            (Available, Stopped, false),
            (Available, Failed, false),
            (Failed, Available, true),
            (Failed, Started, true),
            (Deleted, Available, false),
            (Available, Deleted, true),
        ] {
            assert_eq!(from.may_become(to), allowed, "{from:?} {to:?}");
        }
    }
}
