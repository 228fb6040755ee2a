//! How far a log was read of which an archive was made.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ids::Epoch;

/// An archive is made again for so much more media, in milliseconds over all tracks: owners differ by less at the seams between them.
const WORTH_MS: i64 = 100;

/// How far a log was read of which an archive was made, and what it held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogRead {
    /// The owner that made the archive. All that it captured was read.
    pub by: Epoch,
    /// The last bundle of each owner that was in the store then.
    pub bundles: BTreeMap<u32, u32>,
    /// Media in the log: milliseconds, over all tracks.
    pub captured_ms: i64,
}

impl LogRead {
    /// A log with these bundles.
    #[must_use]
    pub fn new(by: Epoch, there: impl Iterator<Item = (Epoch, u32)>, captured_ms: i64) -> Self {
        let mut bundles = BTreeMap::new();
        for (epoch, number) in there {
            let last = bundles.entry(epoch.0).or_insert(number);
            *last = (*last).max(number);
        }
        Self { by, bundles, captured_ms }
    }

    /// Whether a bundle was read.
    #[must_use]
    pub fn has(&self, epoch: Epoch, number: u32) -> bool {
        epoch == self.by || self.bundles.get(&epoch.0).is_some_and(|last| *last >= number)
    }

    /// Whether all that was there at an earlier reading was there at this one.
    #[must_use]
    pub fn reaches(&self, earlier: &Self) -> bool {
        earlier.bundles.iter().all(|(epoch, last)| self.has(Epoch(*epoch), *last))
    }

    /// Whether an archive that was made of an earlier reading is to be made again: this one reaches at least as far, and has more media.
    #[must_use]
    pub fn improves(&self, earlier: &Self) -> bool {
        self.reaches(earlier) && self.captured_ms >= earlier.captured_ms + WORTH_MS
    }

    /// The archive stays as it was made of an earlier reading, though this much was read since.
    #[must_use]
    pub fn behind(self, earlier: &Self) -> Self {
        let there = self.bundles.iter().chain(&earlier.bundles).map(|(epoch, last)| (Epoch(*epoch), *last));
        Self::new(earlier.by, there, self.captured_ms.max(earlier.captured_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(by: u32, bundles: &[(u32, u32)], captured_ms: i64) -> LogRead {
        LogRead::new(Epoch(by), bundles.iter().map(|(epoch, number)| (Epoch(*epoch), *number)), captured_ms)
    }

    #[test]
    fn a_bundle_that_came_later_was_not_read() {
        let read = read(3, &[(1, 1), (1, 3), (1, 2), (3, 1)], 0);
        for (epoch, number, is_read) in [(1, 1, true), (1, 3, true), (1, 4, false), (2, 1, false), (3, 9, true)] {
            assert_eq!(read.has(Epoch(epoch), number), is_read, "{epoch} {number}");
        }
    }

    #[test]
    fn an_archive_is_made_again_of_a_log_that_has_more_and_lacks_nothing() {
        let first = read(2, &[(1, 3), (2, 4)], 60_000);
        for (what, now, improves) in [
            ("more came", read(3, &[(1, 4), (2, 4)], 65_000), true),
            ("a little came", read(3, &[(1, 4), (2, 4)], 60_100), true),
            ("what came was there", read(3, &[(1, 4), (2, 4)], 60_080), false),
            ("the store lost some", read(3, &[(1, 4), (2, 3)], 65_000), false),
            ("the store lost an owner's", read(3, &[(1, 4)], 65_000), false),
            ("all was swept", read(3, &[], 0), false),
        ] {
            assert_eq!(now.improves(&first), improves, "{what}");
            let stays = now.clone().behind(&first);
            assert!(
                stays.has(Epoch(1), 3) && stays.has(Epoch(2), 4) && stays.captured_ms >= 60_000,
                "{what}: {stays:?}"
            );
            assert!(now.bundles.iter().all(|(epoch, last)| stays.has(Epoch(*epoch), *last)), "{what}: {stays:?}");
        }
    }
}
