//! Makes a new archive of the kept segments of another one: with another layout or size, or of a part of it.

use tokio_util::sync::CancellationToken;

use super::workspace::{Derivation, DeriveError, RECOMPOSE, Workspace, finished_archive, publish, required_free_bytes};
use crate::archive::build::{Clip, build};
use crate::archive::object::ArchiveDescriptor;
use crate::catalog::{ArchiveRow, Catalog};
use crate::config::Settings;
use crate::media::Pipelines;
use crate::model::archive_options::{OutputMode, Resolution};
use crate::model::cancellable::Cancellable;
use crate::model::fault::{Fault, FaultKind, HasFault};
use crate::model::ids::ArchiveId;
use crate::model::layout::Layout;
use crate::recording::restore::restore_reserving;
use crate::recording::upload::{JOB, ShipError};
use crate::store::ObjectStore;
use crate::store::keys::Keys;

/// The options that a recomposition changes.
#[derive(Debug, Clone, Default)]
pub struct RecomposeOverrides {
    /// Its layout.
    pub layout: Option<Layout>,
    /// Its size.
    pub resolution: Option<Resolution>,
    /// Only a part of it.
    pub clip: Option<Clip>,
}

/// Why an archive cannot be recomposed.
#[derive(Debug, thiserror::Error)]
pub enum RecomposeError {
    /// A step of every derivation.
    #[error(transparent)]
    Derive(#[from] DeriveError),
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
            Self::Derive(e) => e.fault(),
            Self::Fetch(e) => e.fault(),
            Self::NotKept(_) => FaultKind::NotFound.fault(),
        }
    }
}

/// Composes another archive's segments again, and publishes the result as a new archive. Returns the new one.
///
/// # Errors
/// See [`RecomposeError`].
pub async fn recompose(
    settings: &Settings,
    catalog: &dyn Catalog,
    store: &dyn ObjectStore,
    Derivation { source: archive, new }: Derivation,
    overrides: &RecomposeOverrides,
    cancel: &CancellationToken,
) -> Result<Cancellable<ArchiveRow>, RecomposeError> {
    let row = finished_archive(catalog, archive).await?;
    let workspace = Workspace::create(settings, RECOMPOSE, new).await?;
    let made: Result<Cancellable<ArchiveRow>, RecomposeError> = async {
        let dir = workspace.dir.clone();
        let keys = Keys::new(row.application.clone(), archive);
        let job = catalog.job(row.job).await.map_err(DeriveError::from)?;
        let origin = job.map(|job| job.origin);
        let fetched = restore_reserving(store, &keys, &dir, origin, required_free_bytes, cancel).await?;
        let Cancellable::Done(fetched) = fetched else { return Ok(Cancellable::Cancelled) };
        let descriptor =
            std::fs::read(dir.join(JOB)).ok().and_then(|json| serde_json::from_slice::<ArchiveDescriptor>(&json).ok());
        let Some(mut descriptor) = descriptor.filter(|_| fetched > 0) else {
            return Err(RecomposeError::NotKept(archive));
        };
        descriptor.archive = new;
        // The descriptor was written when the capture began.
        let job = catalog.job(row.job).await.map_err(DeriveError::from)?;
        descriptor.ended_at = job.and_then(|job| job.ended_at);
        descriptor.clip = overrides.clip;
        descriptor.options.output_mode = OutputMode::Composed;
        descriptor.ignore_layout_history = overrides.layout.is_some();
        descriptor.options.layout = overrides.layout.clone().or(descriptor.options.layout);
        descriptor.options.resolution = overrides.resolution.or(descriptor.options.resolution);
        let (out, reason, stop, built_descriptor) =
            (dir.join("out"), row.reason.clone(), cancel.clone(), descriptor.clone());
        let section = &settings.pipelines;
        let pipelines = Pipelines::new(section.dir.clone(), section.stall.0);
        let making =
            tokio::task::spawn_blocking(move || build(&dir, &built_descriptor, &reason, None, &pipelines, &stop));
        let built = making.await.expect("making an archive does not panic").map_err(DeriveError::from)?;
        let Cancellable::Done(built) = built else { return Ok(Cancellable::Cancelled) };
        let row = ArchiveRow { options: descriptor.options.clone(), ..row };
        Ok(publish(catalog, store, settings.store.part_size.0, row, &built, &out, cancel).await?)
    }
    .await;
    workspace.remove().await;
    made
}
