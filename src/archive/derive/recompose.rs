//! Making a new archive of the kept segments of another one: with another layout or size, or of a part of it.

use tokio_util::sync::CancellationToken;

use super::workspace::{RECOMPOSE, RemakeError, Work, beside, finished, publish};
use crate::archive::build::{Clip, build};
use crate::archive::object::About;
use crate::catalog::{ArchiveRow, Catalog};
use crate::config::Settings;
use crate::media::Pipelines;
use crate::model::archive_options::{OutputMode, Resolution};
use crate::model::fault::{Fault, FaultKind, HasFault};
use crate::model::ids::ArchiveId;
use crate::model::layout::Layout;
use crate::recording::restore::restore_reserving;
use crate::recording::upload::{JOB, ShipError};
use crate::store::ObjectStore;
use crate::store::keys::Keys;

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
    /// What any new archive takes.
    #[error(transparent)]
    Remake(#[from] RemakeError),
    /// Fetching the segments.
    #[error(transparent)]
    Fetch(#[from] ShipError),
    /// Its segments are not in the store any more.
    #[error("the segments of archive {0} are not kept any more")]
    NotKept(ArchiveId),
}

impl HasFault for RecomposeError {
    fn fault(&self) -> Fault {
        match self {
            Self::Remake(e) => e.fault(),
            Self::Fetch(e) => e.fault(),
            Self::NotKept(_) => FaultKind::NotFound.fault(),
        }
    }
}

/// Makes a composed archive (the second) of another one's (the first's) segments, and publishes it. Returns the new one.
///
/// # Errors
/// See [`RecomposeError`].
pub async fn recompose(
    settings: &Settings,
    catalog: &dyn Catalog,
    store: &dyn ObjectStore,
    (archive, new): (ArchiveId, ArchiveId),
    otherwise: &Otherwise,
    cancel: &CancellationToken,
) -> Result<ArchiveRow, RecomposeError> {
    let row = finished(catalog, archive).await?;
    let work = Work::begin(settings, RECOMPOSE, new).await?;
    let made: Result<ArchiveRow, RecomposeError> = async {
        let dir = work.dir.clone();
        let keys = Keys::new(row.application.clone(), archive);
        let fetched = restore_reserving(store, &keys, &dir, beside, cancel).await?;
        let about = std::fs::read(dir.join(JOB)).ok().and_then(|json| serde_json::from_slice::<About>(&json).ok());
        let Some(mut about) = about.filter(|_| fetched > 0) else { return Err(RecomposeError::NotKept(archive)) };
        about.archive = new;
        about.clip = otherwise.clip;
        about.options.output_mode = OutputMode::Composed;
        about.ignore_layout_history = otherwise.layout.is_some();
        about.options.layout = otherwise.layout.clone().or(about.options.layout);
        about.options.resolution = otherwise.resolution.or(about.options.resolution);
        let (out, reason, stop, told) = (dir.join("out"), row.reason.clone(), cancel.clone(), about.clone());
        let pipelines = Pipelines { dir: settings.pipelines.dir.clone(), stall: settings.pipelines.stall.0 };
        let making = tokio::task::spawn_blocking(move || build(&dir, &told, &reason, None, &pipelines, &stop));
        let built = making.await.expect("making an archive does not panic").map_err(RemakeError::from)?;
        let row = ArchiveRow { options: about.options.clone(), ..row };
        Ok(publish((catalog, store), settings.store.part_size.0, row, &built, &out, cancel).await?)
    }
    .await;
    work.end().await;
    made
}
