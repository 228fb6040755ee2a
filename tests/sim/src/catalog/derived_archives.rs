//! Derived archives that wait.

use archiver::catalog::{ArchiveRow, CatalogError, DerivedArchiveCatalog, DerivedArchiveLimits, DerivedArchiveRow};
use archiver::model::ids::ArchiveId;
use archiver::model::time::Wallclock;
use async_trait::async_trait;

use super::{MemoryCatalog, State, conflict, storable};

/// One that waits, and since when.
#[derive(Debug, Clone)]
pub(super) struct StoredDerivedArchive {
    row: DerivedArchiveRow,
    created_at: Wallclock,
}

impl State {
    fn add_derived_archive(
        &mut self,
        new: &ArchiveRow,
        source: ArchiveId,
        what: &str,
        limits: DerivedArchiveLimits,
        now: Wallclock,
    ) -> Result<bool, CatalogError> {
        let is_of_one = |archive: &&ArchiveId| {
            self.archives.get(*archive).is_some_and(|stored| stored.row.application == new.application)
        };
        let number = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        let of_one = self.derived_archives.keys().filter(is_of_one).count();
        if self.derived_archives.len() >= number(limits.all) || of_one >= number(limits.of_one) {
            return Ok(false);
        }
        if self.derived_archives.contains_key(&new.archive) {
            return Err(conflict("keep what is to be made"));
        }
        if !self.put_archive(new, None, true) {
            return Ok(false);
        }
        let row = DerivedArchiveRow { archive: new.archive, source, what: storable(what), tries: 0, due_at: now };
        self.derived_archives.insert(new.archive, StoredDerivedArchive { row, created_at: now });
        Ok(true)
    }

    /// The row, if it is still the one that somebody took.
    fn held(&mut self, derived: &DerivedArchiveRow) -> Option<&mut DerivedArchiveRow> {
        let found = self.derived_archives.get_mut(&derived.archive).map(|stored| &mut stored.row);
        found.filter(|row| row.due_at == derived.due_at)
    }
}

#[async_trait]
impl DerivedArchiveCatalog for MemoryCatalog {
    async fn add_derived_archive(
        &self,
        new: &ArchiveRow,
        source: ArchiveId,
        what: &str,
        limits: DerivedArchiveLimits,
        now: Wallclock,
    ) -> Result<bool, CatalogError> {
        self.call("add_derived_archive", |state| state.add_derived_archive(new, source, what, limits, now)).await
    }

    async fn claim_derived_archive(
        &self,
        now: Wallclock,
        until: Wallclock,
    ) -> Result<Option<DerivedArchiveRow>, CatalogError> {
        self.call("claim_derived_archive", |state| {
            let due = state.derived_archives.values_mut().filter(|stored| stored.row.due_at <= now);
            let Some(oldest) = due.min_by_key(|stored| stored.created_at) else { return Ok(None) };
            oldest.row.due_at = until;
            oldest.row.tries += 1;
            Ok(Some(oldest.row.clone()))
        })
        .await
    }

    async fn extend_derived_archive(
        &self,
        derived: &mut DerivedArchiveRow,
        until: Wallclock,
    ) -> Result<bool, CatalogError> {
        let held = self.call("extend_derived_archive", |state| {
            let Some(row) = state.held(derived) else { return Ok(false) };
            row.due_at = until;
            Ok(true)
        });
        let held = held.await?;
        derived.due_at = until;
        Ok(held)
    }

    async fn release_derived_archive(&self, derived: &DerivedArchiveRow, now: Wallclock) -> Result<(), CatalogError> {
        self.call("release_derived_archive", |state| {
            if let Some(row) = state.held(derived) {
                row.due_at = now;
                row.tries -= 1;
            }
            Ok(())
        })
        .await
    }

    async fn finish_derived_archive(&self, archive: ArchiveId) -> Result<(), CatalogError> {
        self.call("finish_derived_archive", |state| {
            state.derived_archives.remove(&archive);
            Ok(())
        })
        .await
    }
}
