//! Archives and their counts.

use archiver::catalog::{
    ArchiveCatalog, ArchiveFilter, ArchiveRow, ArchiveStatus, CatalogError, CountCatalog, JobState, SegmentsDue,
};
use archiver::model::ids::{ArchiveId, Epoch};
use async_trait::async_trait;

use super::{MemoryCatalog, State, count, page, storable};

/// Rows that are swept at a time.
const SWEPT_AT_ONCE: u32 = 100;

/// An archive with what only the catalog knows of it.
#[derive(Debug, Clone)]
pub(super) struct StoredArchive {
    pub row: ArchiveRow,
    /// The store may still hold its segments, or anything of it once it is deleted.
    pub(super) segments_kept: bool,
    /// Its changes of status, numbered.
    changes: i64,
}

impl State {
    /// Writes an archive, its count and what is to be told of it, as the SQL catalogs do in one transaction.
    pub fn put_archive(&mut self, archive: &ArchiveRow, epoch: Option<Epoch>, only_new: bool) -> bool {
        let is_owner = |epoch: Epoch| self.jobs.get(&archive.job).is_some_and(|job| job.row.epoch == epoch);
        if !epoch.is_none_or(is_owner) {
            return false;
        }
        let is_deleted = archive.status == ArchiveStatus::Deleted;
        let mut is_told = true;
        let (before, stored) = match self.archives.get_mut(&archive.archive) {
            None => {
                let row = ArchiveRow {
                    name: archive.name.as_deref().map(storable),
                    reason: storable(&archive.reason),
                    output_mode: storable(&archive.output_mode),
                    ..archive.clone()
                };
                let stored = StoredArchive { row, segments_kept: true, changes: 1 };
                (None, self.archives.entry(archive.archive).or_insert(stored))
            }
            Some(_) if only_new => return false,
            Some(stored) => {
                let (before, changes) = (stored.row.status, stored.changes);
                if !before.may_become(archive.status) {
                    return false;
                }
                stored.change(archive);
                is_told = stored.changes != changes;
                (Some(before), stored)
            }
        };
        let (row, number) = (stored.row.clone(), stored.changes);
        let more = match before {
            None => i64::from(!is_deleted),
            Some(before) => -i64::from(before != ArchiveStatus::Deleted && is_deleted),
        };
        if more != 0 {
            *self.counts.entry(row.application.clone()).or_default() += more;
        }
        if is_told {
            self.add_notices(&row, number);
        }
        true
    }
}

impl StoredArchive {
    /// What a later write changes: not what the archive was begun with.
    fn change(&mut self, new: &ArchiveRow) {
        let row = &mut self.row;
        let is_revised = new.revision > row.revision;
        if row.status != new.status || is_revised {
            self.changes += 1;
            self.segments_kept |= new.status == ArchiveStatus::Deleted;
        }
        row.status = new.status;
        row.reason = storable(&new.reason);
        row.updated_at = new.updated_at;
        row.duration_s = new.duration_s;
        row.size = new.size;
        row.sha256.clone_from(&new.sha256);
        row.object_key.clone_from(&new.object_key);
        row.missing.clone_from(&new.missing);
        row.revision = row.revision.max(new.revision);
        row.log_read = new.log_read.clone().or(row.log_read.take());
    }
}

/// Whether a list has a row.
fn is_listed(filter: &ArchiveFilter, row: &ArchiveRow) -> bool {
    filter.application.as_ref().is_none_or(|wanted| row.application == *wanted)
        && filter.session.as_ref().is_none_or(|wanted| row.session == *wanted)
        && filter.status.map_or(row.status != ArchiveStatus::Deleted, |wanted| row.status == wanted)
        && filter.from.is_none_or(|from| row.created_at >= from)
        && filter.to.is_none_or(|to| row.created_at < to)
}

#[async_trait]
impl ArchiveCatalog for MemoryCatalog {
    async fn put_archive(&self, archive: &ArchiveRow) -> Result<bool, CatalogError> {
        self.call("put_archive", |state| Ok(state.put_archive(archive, None, false))).await
    }

    async fn add_archive(&self, archive: &ArchiveRow) -> Result<bool, CatalogError> {
        self.call("add_archive", |state| Ok(state.put_archive(archive, None, true))).await
    }

    async fn put_own_archive(&self, archive: &ArchiveRow, epoch: Epoch) -> Result<bool, CatalogError> {
        self.call("put_own_archive", |state| Ok(state.put_archive(archive, Some(epoch), false))).await
    }

    async fn archive(&self, archive: ArchiveId) -> Result<Option<ArchiveRow>, CatalogError> {
        self.call("archive", |state| Ok(state.archives.get(&archive).map(|stored| stored.row.clone()))).await
    }

    async fn with_segments(&self, due: &SegmentsDue) -> Result<Vec<ArchiveRow>, CatalogError> {
        self.call("with_segments", |state| {
            let is_finalized = |row: &ArchiveRow| {
                let job = state.jobs.get(&row.job);
                job.is_some_and(|job| {
                    job.row.archive == row.archive && matches!(job.row.state, JobState::Finalizing | JobState::Parked)
                })
            };
            let is_due = |row: &ArchiveRow| match row.status {
                ArchiveStatus::Available | ArchiveStatus::Uploaded => {
                    let since =
                        if row.is_complete() == Some(false) { due.complete.min(due.incomplete) } else { due.complete };
                    row.updated_at < since && !is_finalized(row)
                }
                ArchiveStatus::Deleted => row.updated_at < due.deleted,
                _ => false,
            };
            let kept = state.archives.values().filter(|stored| stored.segments_kept && is_due(&stored.row));
            let mut rows: Vec<ArchiveRow> = kept.map(|stored| stored.row.clone()).collect();
            rows.sort_by_key(|row| row.updated_at);
            Ok(page(rows, 0, SWEPT_AT_ONCE))
        })
        .await
    }

    async fn segments_deleted(&self, archive: ArchiveId) -> Result<(), CatalogError> {
        self.call("segments_deleted", |state| {
            if let Some(stored) = state.archives.get_mut(&archive) {
                stored.segments_kept = false;
            }
            Ok(())
        })
        .await
    }

    async fn archives(&self, filter: &ArchiveFilter) -> Result<(Vec<ArchiveRow>, i64), CatalogError> {
        self.call("archives", |state| {
            let rows = state.archives.values().map(|stored| &stored.row);
            let mut rows: Vec<ArchiveRow> = rows.filter(|row| is_listed(filter, row)).cloned().collect();
            // By id where two were begun at the same moment: the map is in that order, and the sort keeps it.
            rows.sort_by_key(|row| std::cmp::Reverse(row.created_at));
            let is_narrowed =
                filter.session.is_some() || filter.status.is_some() || filter.from.is_some() || filter.to.is_some();
            let total = match &filter.application {
                Some(application) if !is_narrowed => state.counts.get(application).copied().unwrap_or(0),
                _ => count(rows.len()),
            };
            Ok((page(rows, filter.offset, filter.count), total))
        })
        .await
    }
}

#[async_trait]
impl CountCatalog for MemoryCatalog {
    async fn recount_archives(&self) -> Result<(), CatalogError> {
        self.call("recount_archives", |state| {
            state.counts.clear();
            let there = state.archives.values().filter(|stored| stored.row.status != ArchiveStatus::Deleted);
            for stored in there {
                *state.counts.entry(stored.row.application.clone()).or_default() += 1;
            }
            Ok(())
        })
        .await
    }
}
