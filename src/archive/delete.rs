//! Deleting an archive: its entry is marked, then its objects are removed.

use futures_util::future::try_join_all;

use crate::catalog::{ArchiveRow, ArchiveStatus, Catalog, CatalogError};
use crate::model::fault::{Fault, FaultKind, HasFault};
use crate::model::ids::ArchiveId;
use crate::model::time::Wallclock;
use crate::store::keys::Keys;
use crate::store::{ObjectStore, StoreError};

/// Objects that are removed at a time.
const CONCURRENT_DELETES: usize = 16;

/// Why an archive is not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// It is not finished.
    #[error("archive {archive} is {status}: only what is available, uploaded, expired or failed can be deleted")]
    Unfinished {
        /// The archive.
        archive: ArchiveId,
        /// Its status.
        status: &'static str,
    },
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl HasFault for DeleteError {
    fn fault(&self) -> Fault {
        match self {
            Self::Unfinished { .. } => FaultKind::Conflict.fault(),
            Self::Catalog(e) => e.fault(),
            Self::Store(e) => e.fault(),
        }
    }
}

/// Whether an archive can be deleted.
///
/// # Errors
/// [`DeleteError::Unfinished`].
pub const fn check(row: &ArchiveRow) -> Result<(), DeleteError> {
    if row.status.may_become(ArchiveStatus::Deleted) {
        return Ok(());
    }
    Err(DeleteError::Unfinished { archive: row.archive, status: row.status.as_str() })
}

/// Marks an archive as deleted: from then on nobody sees it.
///
/// # Errors
/// See [`DeleteError`].
pub async fn mark(catalog: &dyn Catalog, row: &ArchiveRow) -> Result<(), DeleteError> {
    check(row)?;
    if catalog.put_archive(&row.clone().deleted(Wallclock::now())).await? {
        return Ok(());
    }
    // Its status changed meanwhile, such as by a replay.
    let now = catalog.archive(row.archive).await?.map_or("gone", |row| row.status.as_str());
    Err(DeleteError::Unfinished { archive: row.archive, status: now })
}

/// Removes the objects of an archive that is marked. Safe to repeat; what is left when this breaks off, sweeping removes.
///
/// # Errors
/// See [`DeleteError`].
pub async fn remove(catalog: &dyn Catalog, store: &dyn ObjectStore, row: &ArchiveRow) -> Result<(), DeleteError> {
    let objects = store.list(&Keys::new(row.application.clone(), row.archive).prefix()).await?;
    for some in objects.chunks(CONCURRENT_DELETES) {
        try_join_all(some.iter().map(|object| store.delete(&object.key))).await?;
    }
    catalog.segments_deleted(row.archive).await?;
    Ok(())
}
