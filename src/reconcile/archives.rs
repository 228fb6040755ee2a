//! The archives of a time: how many have all that was sent, and which have not.

use std::time::Duration;

use serde::Serialize;

use crate::catalog::{ArchiveFilter, ArchiveRow, ArchiveStatus, Catalog, CatalogError};
use crate::model::ids::ArchiveId;
use crate::model::time::Wallclock;

/// Archives that are read at once.
const PAGE: u32 = 500;
/// An archive that changed in a time was begun no earlier than so long before that, but for one whose session waited for its first stream for longer.
const LONGEST: Duration = Duration::from_secs(2 * 24 * 3600);

/// The archives that were made, or failed, in a time, and those that are not made yet.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RecentArchives {
    /// Made, and have all that was sent, as far as is known.
    pub complete: usize,
    /// Not made yet.
    pub under_way: usize,
    /// Made, and lack something.
    pub incomplete: Vec<ArchiveRow>,
    /// Not made for good.
    pub failed: Vec<ArchiveRow>,
    /// Rows that this version cannot read.
    pub unreadable: usize,
}

impl RecentArchives {
    /// Reads the archives that changed `since` or later.
    ///
    /// # Errors
    /// When the catalog is away.
    pub async fn read(catalog: &dyn Catalog, since: Wallclock) -> Result<Self, CatalogError> {
        let (mut recent, mut offset) = (Self::default(), 0);
        loop {
            let filter =
                ArchiveFilter { from: Some(since.before(LONGEST)), offset, count: PAGE, ..ArchiveFilter::default() };
            let (page, total) = catalog.archives(&filter).await?;
            let total = u32::try_from(total).unwrap_or(u32::MAX);
            let expected = total.saturating_sub(offset).min(PAGE) as usize;
            recent.unreadable += expected.saturating_sub(page.len());
            page.into_iter().for_each(|archive| recent.add(archive, since));
            offset = offset.saturating_add(PAGE);
            if offset >= total {
                return Ok(recent);
            }
        }
    }

    /// Counts an archive. A clip or recomposition that failed lacks nothing of what was sent.
    fn add(&mut self, archive: ArchiveRow, since: Wallclock) {
        use ArchiveStatus::{Available, Deleted, Expired, Failed, Paused, Started, Stopped, Uploaded};
        if archive.archive != ArchiveId::of_job(archive.job) {
            return;
        }
        match archive.status {
            Started | Paused | Stopped => self.under_way += 1,
            _ if archive.updated_at < since => {}
            Deleted => {}
            Failed => self.failed.push(archive),
            Available | Uploaded | Expired if archive.missing.as_ref().is_some_and(|missing| !missing.is_empty()) => {
                self.incomplete.push(archive);
            }
            Available | Uploaded | Expired => self.complete += 1,
        }
    }

    /// Whether all of them have what was sent.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.incomplete.is_empty() && self.failed.is_empty() && self.unreadable == 0
    }
}
