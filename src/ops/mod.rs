//! What operators do: look whether everything can be used, replay and discard parked jobs, make archives anew, cut parts out of them.

pub mod check;
pub mod clip;
pub mod desire;
pub mod recompose;
pub mod sweep;

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio_util::sync::CancellationToken;

use crate::archive::build::Built;
use crate::archive::deliver::{DeliverError, Delivery};
use crate::archive::keys::Keys;
use crate::broker::{BrokerError, Headers, Publisher};
use crate::catalog::{ArchiveRow, ArchiveStatus, Catalog, CatalogError, ParkedRow, ParkedState};
use crate::config::Settings;
use crate::event::OutputMode;
use crate::ids::ArchiveId;
use crate::store::ObjectStore;
use crate::time::Wallclock;

/// The folder of the work on one archive; removed with it.
struct Work(PathBuf);

impl Work {
    /// Makes the folder.
    fn begin(settings: &Settings, doing: &str, archive: ArchiveId) -> Result<Self, (PathBuf, std::io::Error)> {
        let path = settings.worker.data_dir.join(doing).join(archive.to_string());
        std::fs::create_dir_all(&path).map_err(|source| (path.clone(), source))?;
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
async fn publish<E: From<DeliverError> + From<CatalogError>>(
    (catalog, store): (&Catalog, &dyn ObjectStore),
    part_bytes: u64,
    of: ArchiveRow,
    built: &Built,
    out: &Path,
    cancel: &CancellationToken,
) -> Result<ArchiveRow, E> {
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

/// Header of a replayed event: who replayed it.
pub const REPLAYED_BY: &str = "archiver-replayed-by";
/// Header of a replayed event: when.
pub const REPLAYED_AT: &str = "archiver-replayed-at";
/// Header of a replayed event: the parked job.
pub const REPLAY_OF: &str = "archiver-replay-of";

/// Why a replay did not happen.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The broker.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The entry's body cannot be read.
    #[error("parked job {parked} has no readable body")]
    Body {
        /// Which.
        parked: crate::ids::ParkedId,
    },
}

/// Publishes a parked job's event again, by the same road, with a mark of who and when. Any number of replays
/// makes one archive: the event names the job.
///
/// # Errors
/// See [`ReplayError`]. Nothing is marked unless the broker has confirmed the event.
pub async fn replay(publisher: &Publisher, catalog: &Catalog, entry: &ParkedRow, who: &str) -> Result<(), ReplayError> {
    let now = Wallclock::now();
    let body = STANDARD.decode(&entry.body).map_err(|_| ReplayError::Body { parked: entry.parked })?;
    let headers = Headers::from([
        (REPLAYED_BY.to_owned(), who.to_owned()),
        (REPLAYED_AT.to_owned(), now.to_rfc3339()),
        (REPLAY_OF.to_owned(), entry.parked.to_string()),
    ]);
    // Marked first, so that an event that is refused again at once is parked after it; then confirmed or not.
    catalog.mark_parked(entry.parked, ParkedState::Replayed, who, now).await?;
    if let Err(error) = publisher.publish(&entry.routing_key, &body, &headers).await {
        catalog.mark_parked(entry.parked, ParkedState::Parked, "the broker did not confirm it", now).await?;
        return Err(error.into());
    }
    Ok(())
}
