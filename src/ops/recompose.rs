//! Making a new archive of the kept segments of another one: with another layout or size, or of a part of it.

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use crate::archive::ArchiveError;
use crate::archive::build::{About, Clip, build};
use crate::archive::deliver::{DeliverError, Delivery};
use crate::archive::keys::Keys;
use crate::capture::restore::restore;
use crate::capture::ship::{JOB, ShipError};
use crate::catalog::{ArchiveRow, ArchiveStatus, Catalog, CatalogError};
use crate::config::Settings;
use crate::event::{Layout, OutputMode, Resolution};
use crate::ids::ArchiveId;
use crate::media::Pipelines;
use crate::store::ObjectStore;
use crate::time::Wallclock;

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

/// The folder of one re-composition; removed with it.
struct Work(PathBuf);

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), "the folder stays: {error}");
        }
    }
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
    let work = Work(settings.worker.data_dir.join("recompose").join(new.to_string()));
    let io = |source| RecomposeError::Io { path: work.0.clone(), source };
    std::fs::create_dir_all(&work.0).map_err(io)?;
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
    let keys = Keys::new(row.application.clone(), new);
    let (out, part_bytes) = (work.0.join("out"), settings.store.part_size.0);
    let delivery = Delivery { store, keys: &keys, out: &out, part_bytes, progress: &|_| {} };
    let manifest = delivery.send(&built, cancel).await?;
    let made = ArchiveRow {
        archive: new,
        status: ArchiveStatus::Available,
        output_mode: OutputMode::Composed.as_str().to_owned(),
        created_at: Wallclock::now(),
        updated_at: Wallclock::now(),
        duration_s: manifest.duration_s.round() as i64,
        size: built.objects.first().map_or(0, |object| i64::try_from(object.size).unwrap_or(i64::MAX)),
        sha256: built.objects.first().map(|object| object.sha256.clone()).unwrap_or_default(),
        object_key: built.objects.first().map(|object| keys.key(object.kind)),
        ..row
    };
    catalog.put_archive(&made).await?;
    Ok(made)
}
