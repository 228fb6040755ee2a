//! Derived archives that wait.

use archiver::catalog::{ArchiveRow, CatalogError, RemakeCatalog, RemakeLimits, RemakeRow};
use archiver::model::ids::ArchiveId;
use archiver::model::time::Wallclock;
use async_trait::async_trait;

use super::{MemoryCatalog, State, conflict, storable};

/// One that waits, and since when.
#[derive(Debug, Clone)]
pub(super) struct StoredRemake {
    row: RemakeRow,
    created_at: Wallclock,
}

impl State {
    fn add_remake(
        &mut self,
        new: &ArchiveRow,
        source: ArchiveId,
        what: &str,
        limits: RemakeLimits,
        now: Wallclock,
    ) -> Result<bool, CatalogError> {
        let is_of_one = |archive: &&ArchiveId| {
            self.archives.get(*archive).is_some_and(|stored| stored.row.application == new.application)
        };
        let number = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        let of_one = self.remakes.keys().filter(is_of_one).count();
        if self.remakes.len() >= number(limits.all) || of_one >= number(limits.of_one) {
            return Ok(false);
        }
        if self.remakes.contains_key(&new.archive) {
            return Err(conflict("keep what is to be made"));
        }
        if !self.put_archive(new, None, true) {
            return Ok(false);
        }
        let row = RemakeRow { archive: new.archive, source, what: storable(what), tries: 0, due_at: now };
        self.remakes.insert(new.archive, StoredRemake { row, created_at: now });
        Ok(true)
    }

    /// The row, if it is still the one that somebody took.
    fn held(&mut self, remake: &RemakeRow) -> Option<&mut RemakeRow> {
        let found = self.remakes.get_mut(&remake.archive).map(|stored| &mut stored.row);
        found.filter(|row| row.due_at == remake.due_at)
    }
}

#[async_trait]
impl RemakeCatalog for MemoryCatalog {
    async fn add_remake(
        &self,
        new: &ArchiveRow,
        source: ArchiveId,
        what: &str,
        limits: RemakeLimits,
        now: Wallclock,
    ) -> Result<bool, CatalogError> {
        self.call("add_remake", |state| state.add_remake(new, source, what, limits, now)).await
    }

    async fn claim_remake(&self, now: Wallclock, until: Wallclock) -> Result<Option<RemakeRow>, CatalogError> {
        self.call("claim_remake", |state| {
            let due = state.remakes.values_mut().filter(|stored| stored.row.due_at <= now);
            let Some(oldest) = due.min_by_key(|stored| stored.created_at) else { return Ok(None) };
            oldest.row.due_at = until;
            oldest.row.tries += 1;
            Ok(Some(oldest.row.clone()))
        })
        .await
    }

    async fn keep_remake(&self, remake: &mut RemakeRow, until: Wallclock) -> Result<bool, CatalogError> {
        let held = self.call("keep_remake", |state| {
            let Some(row) = state.held(remake) else { return Ok(false) };
            row.due_at = until;
            Ok(true)
        });
        let held = held.await?;
        remake.due_at = until;
        Ok(held)
    }

    async fn give_remake_back(&self, remake: &RemakeRow, now: Wallclock) -> Result<(), CatalogError> {
        self.call("give_remake_back", |state| {
            if let Some(row) = state.held(remake) {
                row.due_at = now;
                row.tries -= 1;
            }
            Ok(())
        })
        .await
    }

    async fn end_remake(&self, archive: ArchiveId) -> Result<(), CatalogError> {
        self.call("end_remake", |state| {
            state.remakes.remove(&archive);
            Ok(())
        })
        .await
    }
}
