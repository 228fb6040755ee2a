//! Making a new archive of the kept segments of another one: with another layout or size, or of a part of it.

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use super::{Work, publish};
use crate::archive::ArchiveError;
use crate::archive::build::{About, Clip, build};
use crate::archive::deliver::DeliverError;
use crate::archive::keys::Keys;
use crate::capture::restore::restore;
use crate::capture::ship::{JOB, ShipError};
use crate::catalog::{ArchiveRow, ArchiveStatus, Catalog, CatalogError};
use crate::config::Settings;
use crate::event::{Layout, OutputMode, Resolution};
use crate::ids::ArchiveId;
use crate::media::Pipelines;
use crate::store::ObjectStore;

/// What is to be other than in the first archive.
#[derive(Debug, Clone, Default)]
pub struct Otherwise {
    /// Its layout.
    pub layout: Option<Layout>,
    /// Its size.
    pub resolution: Option<Resolution>,
    /// Only a part of it.
    pub clip: Option<Clip>,
}

/// Why there is no new archive.
#[derive(Debug, thiserror::Error)]
pub enum RecomposeError {
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Fetching the segments.
    #[error(transparent)]
    Fetch(#[from] ShipError),
    /// Making it.
    #[error(transparent)]
    Make(#[from] ArchiveError),
    /// Sending it.
    #[error(transparent)]
    Deliver(#[from] DeliverError),
    /// There is no such archive, or it is not finished.
    #[error("there is no finished archive {0}; see `archiver archives list`")]
    NotFound(ArchiveId),
    /// Its segments are not in the store any more.
    #[error("the segments of archive {0} are not kept any more")]
    NotKept(ArchiveId),
    /// The folder for the work.
    #[error("{path} cannot be used")]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Makes a composed archive of another one's segments, and publishes it. Returns the new one.
///
/// # Errors
/// See [`RecomposeError`].
pub async fn recompose(
    settings: &Settings,
    catalog: &Catalog,
    store: &dyn ObjectStore,
    archive: ArchiveId,
    otherwise: &Otherwise,
    cancel: &CancellationToken,
) -> Result<ArchiveRow, RecomposeError> {
    let finished = |row: &ArchiveRow| matches!(row.status, ArchiveStatus::Available | ArchiveStatus::Uploaded);
    let row = catalog.archive(archive).await?.filter(finished).ok_or(RecomposeError::NotFound(archive))?;
    let new = ArchiveId::random();
    let work = Work::begin(settings, "recompose", new).map_err(|(path, source)| RecomposeError::Io { path, source })?;
    let fetched = restore(store, &Keys::new(row.application.clone(), archive), &work.0, cancel).await?;
    let about = std::fs::read(work.0.join(JOB)).ok().and_then(|json| serde_json::from_slice::<About>(&json).ok());
    let Some(mut about) = about.filter(|_| fetched > 0) else { return Err(RecomposeError::NotKept(archive)) };
    about.archive = new;
    about.clip = otherwise.clip;
    about.options.output_mode = OutputMode::Composed;
    about.one_layout = otherwise.layout.is_some();
    about.options.layout = otherwise.layout.clone().or(about.options.layout);
    about.options.resolution = otherwise.resolution.or(about.options.resolution);
    let (dir, reason, stop, told) = (work.0.clone(), row.reason.clone(), cancel.clone(), about.clone());
    let pipelines = Pipelines { dir: settings.pipelines.dir.clone(), stall: settings.pipelines.stall.0 };
    let making = tokio::task::spawn_blocking(move || build(&dir, &told, &reason, None, &pipelines, &stop));
    let built = making.await.expect("making an archive does not panic")?;
    publish((catalog, store), settings.store.part_size.0, row, &built, &work.0.join("out"), cancel).await
}
