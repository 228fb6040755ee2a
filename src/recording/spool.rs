//! The spool: the local disk where captures stay until the store has proved that it holds them. It has a quota in bytes;
//! long before the quota is used up no further jobs are accepted.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::LogError;
use super::reader::TrackIndex;
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

/// The spool of one worker.
#[derive(Debug)]
pub struct Spool {
    root: PathBuf,
    quota: u64,
    admission: u64,
    used: AtomicU64,
}

impl Spool {
    /// Opens the spool's folder and counts what is in it. `quota` is in bytes; no job is admitted when more
    /// than `admission_percent` of it are used.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(root: &Path, quota: u64, admission_percent: u8) -> Result<Self, LogError> {
        std::fs::create_dir_all(root).map_err(LogError::io("create", root))?;
        let used = size_of(root)?;
        let admission = quota / 100 * u64::from(admission_percent.min(100));
        Ok(Self { root: root.to_owned(), quota, admission, used: AtomicU64::new(used) })
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
        self.used.load(Ordering::Relaxed)
    }

    /// Whether a further job may be accepted.
    #[must_use]
    pub fn admits(&self) -> bool {
        self.used() < self.admission
    }

    /// Counts bytes that are about to be written.
    ///
    /// # Errors
    /// [`LogError::Full`] when the quota does not allow them.
    pub fn charge(&self, bytes: u64) -> Result<(), LogError> {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.quota {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(LogError::Full { used: before, quota: self.quota });
        }
        Ok(())
    }

    /// Takes bytes back that were counted and then could not be written.
    pub fn refund(&self, bytes: u64) {
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| Some(used.saturating_sub(bytes))).ok();
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
        let bytes = size_of(&dir)?;
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(LogError::io("remove", &dir)(e)),
            _ => {}
        }
        self.refund(bytes);
        Ok(())
    }
}

/// Checks that a folder's disk has a number of bytes free. A folder that does not exist yet will be on its parent's disk.
///
/// # Errors
/// [`LogError::DiskFull`] when it has fewer.
pub fn check_free_space(dir: &Path, needed: u64) -> Result<(), LogError> {
    let there = dir.ancestors().find(|at| at.is_dir()).unwrap_or(dir);
    let disk = rustix::fs::statvfs(there).map_err(|e| LogError::io("look at the disk of", there)(e.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free >= needed {
        return Ok(());
    }
    Err(LogError::DiskFull { path: there.display().to_string(), needed, free })
}

/// Bytes of all files below a folder; zero if it is not there.
fn size_of(dir: &Path) -> Result<u64, LogError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
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
