//! Deleting an archive: its objects, then its entry.

use crate::archive::keys::Keys;
use crate::catalog::{ArchiveRow, ArchiveStatus, Catalog, CatalogError};
use crate::fault::{Fault, FaultKind, HasFault};
use crate::ids::ArchiveId;
use crate::store::{ObjectStore, StoreError};
use crate::time::Wallclock;

/// Why an archive is not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// It is not finished.
    #[error("archive {archive} is {status}: only what is available, uploaded, expired or failed can be deleted")]
    Unfinished {
        /// Which.
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

/// Deletes an archive, its objects first: what is left when this breaks off can be deleted again. Safe to repeat.
///
/// # Errors
/// See [`DeleteError`].
pub async fn delete(catalog: &Catalog, store: &dyn ObjectStore, row: ArchiveRow) -> Result<(), DeleteError> {
    check(&row)?;
    for object in store.list(&Keys::new(row.application.clone(), row.archive).prefix()).await? {
        store.delete(&object.key).await?;
    }
    let deleted = ArchiveRow { status: ArchiveStatus::Deleted, updated_at: Wallclock::now(), ..row };
    catalog.put_archive(&deleted).await?;
    Ok(())
}
