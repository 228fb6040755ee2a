//! The spool: the local disk where captures stay until the store has proved that it holds them. It has a quota in bytes;
//! long before the quota is used up no further jobs are accepted.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::reader::TrackIndex;
use super::{LogError, history};
use crate::model::ids::{ArchiveId, TrackId};

/// Proof that the store holds all of an archive. Only with it the local copy may be removed.
#[derive(Debug)]
pub struct ProvedInStore(());

impl ProvedInStore {
    /// To be called only after the archive's objects were read back from the store by size and checksum.
    #[must_use]
    pub const fn after_proof() -> Self {
        Self(())
    }
}

/// The spool of one worker. What it uses is known but for small files, and what was fetched or built since it was measured.
#[derive(Debug)]
pub struct Spool {
    root: PathBuf,
    quota: u64,
    admission: u64,
    /// Bytes of the logs: what was there at the last count, and what was written since.
    logs: AtomicU64,
    /// Bytes of the files that are made of the logs, as measured last.
    built: AtomicU64,
    /// Bytes that the disk has free, as measured last.
    free: AtomicU64,
    /// A disk with less free takes no further jobs, whatever the quota allows.
    free_min: u64,
    /// When all files were counted last, and whether files came or went since then that nobody counted.
    counted: Mutex<Counted>,
}

#[derive(Debug)]
struct Counted {
    at: Instant,
    is_stale: bool,
}

/// The folder in an archive's folder for the files that are made of its log.
pub const BUILT: &str = "out";
/// A file that is written to see whether the disk takes files.
const PROBE: &str = ".probe";
/// All files are counted at most so often.
const COUNT_EVERY: Duration = Duration::from_secs(60);

impl Spool {
    /// Opens the spool's folder and counts what is in it. `quota` is in bytes; no job is admitted when more
    /// than `admission_percent` of it are used.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(root: &Path, quota: u64, admission_percent: u8) -> Result<Self, LogError> {
        std::fs::create_dir_all(root).map_err(LogError::io("create", root))?;
        let admission = quota / 100 * u64::from(admission_percent.min(100));
        let (logs, built, free) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let counted = Mutex::new(Counted { at: Instant::now(), is_stale: false });
        let spool = Self { root: root.to_owned(), quota, admission, logs, built, free, free_min: 0, counted };
        spool.count()?;
        Ok(spool)
    }

    /// The same spool, which takes no further jobs when its disk has fewer bytes free.
    #[must_use]
    pub fn with_free_min(self, free_min: u64) -> Self {
        Self { free_min, ..self }
    }

    /// Counts all files anew. Blocking, and slow for a spool with many.
    fn count(&self) -> Result<(), LogError> {
        let before = self.logs.load(Ordering::Relaxed);
        self.look()?;
        let found = size_of(&self.root)?.saturating_sub(self.built.load(Ordering::Relaxed));
        // What was written meanwhile may be counted twice, until the next count.
        let with_new = |logs: u64| Some(found.saturating_add(logs.saturating_sub(before)));
        self.logs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with_new).ok();
        Ok(())
    }

    /// Files came or went that nobody counts one by one.
    pub fn mark_stale(&self) {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner).is_stale = true;
    }

    /// Looks how large the files are that are made of the logs, and how much room the disk has. When archives were fetched or removed,
    /// all files are counted, at most once a minute. Blocking.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn measure(&self) -> Result<(), LogError> {
        let is_due = {
            let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
            let is_due = counted.is_stale && counted.at.elapsed() >= COUNT_EVERY;
            if is_due {
                *counted = Counted { at: Instant::now(), is_stale: false };
            }
            is_due
        };
        if is_due { self.count() } else { self.look() }
    }

    /// As fast for a long session as for a short one.
    fn look(&self) -> Result<(), LogError> {
        let mut built = 0;
        for archive in self.archives()? {
            built += size_of(&self.archive_dir(archive).join(BUILT))?;
        }
        self.built.store(built, Ordering::Relaxed);
        self.free.store(free_space(&self.root)?, Ordering::Relaxed);
        Ok(())
    }

    /// Where it is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// An archive's folder.
    #[must_use]
    pub fn archive_dir(&self, archive: ArchiveId) -> PathBuf {
        self.root.join(archive.to_string())
    }

    /// Archives that have a folder, such as those that an earlier run of this worker left.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn archives(&self) -> Result<Vec<ArchiveId>, LogError> {
        let entries = std::fs::read_dir(&self.root).map_err(LogError::io("list", &self.root))?;
        Ok(entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect())
    }

    /// Bytes used.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.logs.load(Ordering::Relaxed).saturating_add(self.built.load(Ordering::Relaxed))
    }

    /// Whether a further job may be accepted.
    #[must_use]
    pub fn admits(&self) -> bool {
        self.used() < self.admission && self.free.load(Ordering::Relaxed) >= self.free_min
    }

    /// Counts bytes of a log that are about to be written. Files that are made of logs take no quota from them: media comes once.
    ///
    /// # Errors
    /// [`LogError::Full`] when the quota does not allow them.
    pub fn charge(&self, bytes: u64) -> Result<(), LogError> {
        let before = self.logs.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.quota {
            self.logs.fetch_sub(bytes, Ordering::Relaxed);
            return Err(LogError::Full { used: before, quota: self.quota });
        }
        Ok(())
    }

    /// Takes bytes back that were counted and then could not be written.
    pub fn refund(&self, bytes: u64) {
        self.logs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |logs| Some(logs.saturating_sub(bytes))).ok();
    }

    /// Whether the disk takes files: writes a few bytes and waits until they are there. Blocking.
    ///
    /// # Errors
    /// When it does not.
    pub fn probe(&self) -> Result<(), LogError> {
        let path = self.root.join(PROBE);
        let write = || {
            let mut file = std::fs::File::create(&path)?;
            // Nobody else is to see it.
            std::fs::remove_file(&path)?;
            file.write_all(&[b'p'; 4096])?;
            file.sync_all()
        };
        write().map_err(LogError::io("write", &path))
    }

    /// Removes the folder of an archive of which nothing was captured. Returns whether it is gone: a folder that has media stays. Safe to
    /// repeat.
    ///
    /// # Errors
    /// When it cannot be read or removed.
    pub fn remove_without_media(&self, archive: ArchiveId) -> Result<bool, LogError> {
        // An index may have counts alone.
        let has_media = |(track, dir): (TrackId, PathBuf)| -> Result<bool, LogError> {
            Ok(TrackIndex::open(&dir, track)?.segments.iter().any(|segment| !segment.parts.is_empty()))
        };
        for track in super::reader::tracks(&self.archive_dir(archive))? {
            if has_media(track)? {
                return Ok(false);
            }
        }
        self.remove_folder(archive).map(|()| true)
    }

    /// Removes the folder of an archive of which nothing was captured, and in whose session no stream was seen. Returns whether it is gone.
    /// Safe to repeat.
    ///
    /// # Errors
    /// When it cannot be read or removed.
    pub fn remove_if_nothing_seen(&self, archive: ArchiveId) -> Result<bool, LogError> {
        let events = history::read(&self.archive_dir(archive))?;
        if history::has_streams(&events) { Ok(false) } else { self.remove_without_media(archive) }
    }

    /// Removes an archive's folder. Safe to repeat.
    ///
    /// # Errors
    /// When it cannot be removed.
    #[allow(clippy::needless_pass_by_value)]
    pub fn remove(&self, archive: ArchiveId, _proof: ProvedInStore) -> Result<(), LogError> {
        self.remove_folder(archive)
    }

    fn remove_folder(&self, archive: ArchiveId) -> Result<(), LogError> {
        let dir = self.archive_dir(archive);
        let bytes = size_of(&dir)?.saturating_sub(size_of(&dir.join(BUILT))?);
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(LogError::io("remove", &dir)(e)),
            _ => {}
        }
        self.refund(bytes);
        // Indexes and histories were never counted one by one.
        self.mark_stale();
        self.look()
    }

    /// Removes the folder of an archive that a person gave up, or that is not to be. Safe to repeat.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove_discarded(&self, archive: ArchiveId) -> Result<(), LogError> {
        self.remove_folder(archive)
    }
}

/// Checks that a folder's disk has a number of bytes free. A folder that does not exist yet will be on its parent's disk.
///
/// # Errors
/// [`LogError::DiskFull`] when it has fewer.
pub fn check_free_space(dir: &Path, needed: u64) -> Result<(), LogError> {
    let there = dir.ancestors().find(|at| at.is_dir()).unwrap_or(dir);
    let free = free_space(there)?;
    if free >= needed {
        return Ok(());
    }
    Err(LogError::DiskFull { path: there.display().to_string(), needed, free })
}

/// Bytes that a folder's disk has free for this program.
fn free_space(dir: &Path) -> Result<u64, LogError> {
    let disk = rustix::fs::statvfs(dir).map_err(|e| LogError::io("look at the disk of", dir)(e.into()))?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Bytes of all files below a folder; zero if it is not there.
fn size_of(dir: &Path) -> Result<u64, LogError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(0),
        Err(e) => return Err(LogError::io("list", dir)(e)),
    };
    let mut sum = 0;
    for entry in entries.flatten() {
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => sum += size_of(&entry.path())?,
            Ok(meta) => sum += meta.len(),
            Err(_) => {}
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_are_counted_also_those_that_are_made_of_logs() {
        let dir = tempfile::tempdir().expect("dir");
        let spool = Spool::open(dir.path(), 100_000, 70).expect("spool");
        let ids = [1, 2].map(|n| ArchiveId::from_uuid(uuid::Uuid::from_u128(n)));
        for id in ids {
            std::fs::create_dir_all(spool.archive_dir(id).join(BUILT)).expect("folder");
            spool.charge(10_000).expect("room");
            std::fs::write(spool.archive_dir(id).join("log"), vec![0; 10_000]).expect("log");
            // Nobody counts these.
            std::fs::write(spool.archive_dir(id).join("history"), vec![0; 100]).expect("history");
        }
        assert_eq!((spool.used(), spool.admits()), (20_000, true));
        std::fs::write(spool.archive_dir(ids[0]).join(BUILT).join("archive.mp4"), vec![0; 60_000]).expect("file");
        spool.measure().expect("measured");
        assert_eq!((spool.used(), spool.admits()), (80_000, false));
        spool.charge(10).expect("media comes once, files can be made again");
        spool.remove(ids[0], ProvedInStore::after_proof()).expect("removed");
        assert!(spool.used() <= 10_100 && spool.admits(), "{}", spool.used());
        spool.count().expect("counted");
        assert_eq!(spool.used(), 10_100, "what is on the disk");
        let picky = Spool::open(dir.path(), 100_000, 70).expect("spool").with_free_min(u64::MAX);
        assert!(!picky.admits(), "no disk has so much room");
        assert_eq!(Spool::open(dir.path(), 100_000, 70).expect("spool").used(), 10_100);
    }
}
