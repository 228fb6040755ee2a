//! An archive before it is in the store: its descriptor, its files on this disk, its documents.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::documents::{Manifest, Report};
use crate::compose::composer::Clip;
use crate::model::archive_options::ArchiveOptions;
use crate::model::ids::{ApplicationId, ArchiveId, JobId, SessionId};
use crate::model::time::Wallclock;
use crate::store::checksum::PartSums;
use crate::store::keys::Kind;

/// Ids, options and session of an archive, as building it needs them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveDescriptor {
    /// The archive.
    pub archive: ArchiveId,
    /// The job.
    pub job: JobId,
    /// The session.
    pub session: SessionId,
    /// The session's application.
    pub application: ApplicationId,
    /// Its name.
    pub name: Option<String>,
    /// Media time zero.
    pub origin: Wallclock,
    /// When its capture had ended, if an earlier owner noted that in the catalog.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Wallclock>,
    /// The requested options.
    #[serde(default)]
    pub options: ArchiveOptions,
    /// The part of the session that a composed archive has, if not all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<Clip>,
    /// Compose with the layout of `options` only, and ignore the layouts that the session had.
    #[serde(default, rename = "one_layout", skip_serializing_if = "std::ops::Not::not")]
    pub ignore_layout_history: bool,
}

/// An object of an archive that lies on this disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Its kind.
    pub kind: Kind,
    /// The file.
    pub path: PathBuf,
    /// Its bytes.
    pub size: u64,
    /// Base64 of its SHA-256, or of that of its parts.
    pub sha256: String,
    /// Its parts, if some were sent before it was whole.
    #[serde(default)]
    pub parts: Option<PartSums>,
}

/// The files and documents that were built.
#[derive(Debug, Clone, PartialEq)]
pub struct Built {
    /// The composed file, the ZIP, or both: the first is what a link leads to.
    pub objects: Vec<Object>,
    /// To be put into the store last.
    pub manifest: Manifest,
    /// The quality report.
    pub report: Report,
}

/// The journal of a file's upload, beside it.
pub(crate) fn journal(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".upload.jsonl");
    path.with_file_name(name)
}
