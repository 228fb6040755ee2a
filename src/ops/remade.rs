//! An archive that is made of another one, however that is done: finding the other, a folder for the work, publishing the new.

use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::archive::ArchiveError;
use crate::archive::build::Built;
use crate::archive::deliver::{DeliverError, Delivery};
use crate::archive::keys::Keys;
use crate::catalog::{ArchiveRow, ArchiveStatus, Catalog, CatalogError};
use crate::config::Settings;
use crate::event::OutputMode;
use crate::fault::{Fault, FaultKind, HasFault};
use crate::ids::ArchiveId;
use crate::store::ObjectStore;
use crate::time::Wallclock;

/// Why there is no new archive, whatever it was to be.
#[derive(Debug, thiserror::Error)]
pub enum RemakeError {
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Making it.
    #[error(transparent)]
    Make(#[from] ArchiveError),
    /// Sending it.
    #[error(transparent)]
    Deliver(#[from] DeliverError),
    /// There is no such archive, or it is not finished.
    #[error("there is no finished archive {0}; see `archiver archives list`")]
    NotFound(ArchiveId),
    /// The folder for the work, or a file in it.
    #[error("{path} cannot be used")]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl RemakeError {
    /// A folder or file that cannot be used.
    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Io { path, source }
    }
}

impl HasFault for RemakeError {
    fn fault(&self) -> Fault {
        match self {
            Self::Catalog(e) => e.fault(),
            Self::Make(e) => e.fault(),
            Self::Deliver(e) => e.fault(),
            Self::NotFound(_) => FaultKind::NotFound.fault(),
            Self::Io { .. } => FaultKind::SpoolIo.fault(),
        }
    }
}

/// An archive that others can be made of.
pub(super) async fn finished(catalog: &Catalog, archive: ArchiveId) -> Result<ArchiveRow, RemakeError> {
    let finished = |row: &ArchiveRow| matches!(row.status, ArchiveStatus::Available | ArchiveStatus::Uploaded);
    catalog.archive(archive).await?.filter(finished).ok_or(RemakeError::NotFound(archive))
}

/// The folder of the work on one archive; removed with it.
pub(super) struct Work(pub PathBuf);

impl Work {
    /// Makes the folder.
    pub fn begin(settings: &Settings, doing: &str, archive: ArchiveId) -> Result<Self, RemakeError> {
        let path = settings.worker.data_dir.join(doing).join(archive.to_string());
        std::fs::create_dir_all(&path).map_err(RemakeError::io(&path))?;
        Ok(Self(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), "the folder stays: {error}");
        }
    }
}

/// Sends a composed archive that was made of another one, and enters it in the catalog.
pub(super) async fn publish(
    (catalog, store): (&Catalog, &dyn ObjectStore),
    part_bytes: u64,
    of: ArchiveRow,
    built: &Built,
    out: &Path,
    cancel: &CancellationToken,
) -> Result<ArchiveRow, RemakeError> {
    let archive = built.manifest.archive_id;
    let keys = Keys::new(of.application.clone(), archive);
    let delivery = Delivery { store, keys: &keys, out, part_bytes, progress: &|_| {} };
    let manifest = delivery.send(built, cancel).await?;
    let made = ArchiveRow {
        archive,
        status: ArchiveStatus::Available,
        output_mode: OutputMode::Composed.as_str().to_owned(),
        created_at: Wallclock::now(),
        updated_at: Wallclock::now(),
        duration_s: manifest.duration_s.round() as i64,
        size: built.objects.first().map_or(0, |object| i64::try_from(object.size).unwrap_or(i64::MAX)),
        sha256: built.objects.first().map(|object| object.sha256.clone()).unwrap_or_default(),
        object_key: built.objects.first().map(|object| keys.key(object.kind)),
        ..of
    };
    catalog.put_archive(&made).await?;
    Ok(made)
}
