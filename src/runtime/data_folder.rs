//! A worker's data folder: its own id, and a lock, because one process uses it at a time.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use super::journal::FileError;
use crate::model::fault::{Fault, FaultKind, HasFault};
use crate::model::ids::InstanceId;

/// The file with the folder's id.
const NAME: &str = "instance";
/// A longer file is none of ours.
const BYTES_MAX: u64 = 1024;

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataFolderError {
    /// The disk.
    #[error(transparent)]
    Io(#[from] FileError),
    /// Another process has it.
    #[error(
        "another worker uses the data folder {path}: give each worker one of its own (worker.data_dir), or stop the other first"
    )]
    InUse {
        /// The folder.
        path: String,
    },
}

impl HasFault for DataFolderError {
    fn fault(&self) -> Fault {
        match self {
            Self::Io(error) => error.fault(),
            Self::InUse { .. } => FaultKind::Conflict.fault(),
        }
    }
}

/// A data folder that this process uses alone, as long as this value lives.
#[derive(Debug)]
pub struct DataFolder {
    id: InstanceId,
    /// Holds the lock.
    _file: File,
}

impl DataFolder {
    /// Locks a folder, which is made if it is not there. Blocking.
    ///
    /// # Errors
    /// When another process uses the folder, or the disk refuses.
    pub fn open(dir: &Path) -> Result<Self, DataFolderError> {
        std::fs::create_dir_all(dir).map_err(FileError::new("create", dir))?;
        let path = dir.join(NAME);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = opened.map_err(FileError::new("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DataFolderError::InUse { path: dir.display().to_string() }),
            // The file system has no locks.
            Err(TryLockError::Error(error)) => {
                tracing::warn!(path = %path.display(), "a second worker with this folder would not be noticed: {error}");
            }
        }
        let mut text = String::new();
        (&mut file).take(BYTES_MAX).read_to_string(&mut text).map_err(FileError::new("read", &path))?;
        let id = match text.trim().parse() {
            Ok(id) => id,
            Err(_) => write_new(&mut file).map_err(FileError::new("write", &path))?,
        };
        Ok(Self { id, _file: file })
    }

    /// The folder's id: it stays the same as long as the folder lives.
    #[must_use]
    pub const fn id(&self) -> InstanceId {
        self.id
    }
}

/// A new folder's id. One that a crash cut short is replaced.
fn write_new(file: &mut File) -> std::io::Result<InstanceId> {
    let id = InstanceId::random();
    file.rewind()?;
    file.set_len(0)?;
    file.write_all(format!("{id}\n").as_bytes())?;
    file.sync_all()?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_folder_has_one_id_and_one_user_at_a_time() {
        let dir = tempfile::tempdir().expect("folder");
        let folder = dir.path().join("data");
        let first = DataFolder::open(&folder).expect("new");
        let id = first.id();
        assert!(matches!(DataFolder::open(&folder), Err(DataFolderError::InUse { .. })));
        drop(first);
        assert_eq!(DataFolder::open(&folder).expect("free").id(), id);
        std::fs::write(folder.join(NAME), &id.to_string()[..7]).expect("cut short");
        let renewed = DataFolder::open(&folder).expect("readable").id();
        assert_ne!(renewed, id);
        assert_eq!(DataFolder::open(&folder).expect("free").id(), renewed);
    }
}
