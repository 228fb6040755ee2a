//! What of an archive's log is not in the store yet. Follows the indexes: each line is read once, however long a session runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::reader::{Seal, tracks};
use super::{INDEX, LogError, Record};
use crate::model::ids::TrackId;
use crate::runtime::journal::read_lines;

/// A segment of which no line says that the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UnshippedSegment {
    /// Its file's name.
    pub file: String,
    /// Its seal, once it has one.
    pub sealed: Option<Seal>,
}

/// What of a track's log is not in the store yet.
#[derive(Debug)]
pub(super) struct UnshippedTrack {
    /// The track's folder.
    pub dir: PathBuf,
    /// By number.
    pub segments: BTreeMap<u32, UnshippedSegment>,
    /// Bytes of the index that are in the store.
    pub index_shipped: u64,
    /// Bytes of the index that were read: whole lines only.
    pub index_read: u64,
}

impl UnshippedTrack {
    /// A track of whose index nothing was read.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), segments: BTreeMap::new(), index_shipped: 0, index_read: 0 }
    }

    /// Reads what the index has gained since the last time.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn refresh(&mut self) -> Result<(), LogError> {
        let index = self.dir.join(INDEX);
        if std::fs::metadata(&index).is_ok_and(|found| found.len() < self.index_read) {
            // Lines that a full disk did not take whole were taken back.
            *self = Self::new(&self.dir);
        }
        let (records, read) = read_lines::<Record>(&index, self.index_read)?;
        self.index_read = read;
        records.into_iter().for_each(|record| self.add(record));
        Ok(())
    }

    fn add(&mut self, record: Record) {
        match record {
            Record::Segment { n, file, .. } => {
                // Only a segment's name is valid: a manipulated index must not lead to another file.
                if file.ends_with(".mkv") && !file.contains('/') {
                    self.segments.entry(n).or_insert(UnshippedSegment { file, sealed: None });
                }
            }
            Record::Sealed { n, size, sha256 } => {
                if let Some(segment) = self.segments.get_mut(&n) {
                    segment.sealed = Some(Seal { size, sha256 });
                }
            }
            Record::Shipped { n, index, .. } => {
                self.index_shipped = self.index_shipped.max(index);
                self.segments.remove(&n);
            }
            Record::Part { .. } | Record::Gap(_) | Record::Stats { .. } => {}
        }
    }

    /// The segments whose files are on this disk, by number. An index from the store may name segments that never came to it.
    pub fn present(&self) -> impl Iterator<Item = (u32, &UnshippedSegment)> {
        let is_here = |segment: &UnshippedSegment| self.dir.join(&segment.file).exists();
        self.segments.iter().filter(move |(_, segment)| is_here(segment)).map(|(n, segment)| (*n, segment))
    }

    /// The part of the index that is not in the store.
    pub const fn index_slice(&self) -> std::ops::Range<u64> {
        // An index that a dying machine cut short is sent again.
        let from = if self.index_shipped > self.index_read { 0 } else { self.index_shipped };
        from..self.index_read
    }
}

/// What of an archive's log is not in the store yet.
#[derive(Debug, Default)]
pub(super) struct UnshippedLog {
    /// The tracks that were seen so far.
    pub tracks: BTreeMap<TrackId, UnshippedTrack>,
}

impl UnshippedLog {
    /// Reads what the indexes in an archive's folder have gained since the last time.
    ///
    /// # Errors
    /// When a folder or file cannot be read. No tracks is not an error.
    pub fn refresh(&mut self, archive_dir: &Path) -> Result<(), LogError> {
        for (track, dir) in tracks(archive_dir)? {
            self.tracks.entry(track).or_insert_with(|| UnshippedTrack::new(&dir)).refresh()?;
        }
        Ok(())
    }
}
