//! Steps of every derivation: load the source archive, create a workspace, publish the new archive.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::archive::ArchiveError;
use crate::archive::deliver::{DeliverError, Delivery};
use crate::archive::object::Built;
use crate::catalog::{ArchiveFile, ArchiveRow, ArchiveStatus, Catalog, CatalogError};
use crate::config::Settings;
use crate::model::cancellable::Cancellable;
use crate::model::fault::{Fault, FaultKind, HasFault};
use crate::model::ids::ArchiveId;
use crate::model::time::Wallclock;
use crate::recording::LogError;
use crate::recording::spool::check_free_space;
use crate::store::ObjectStore;
use crate::store::keys::Keys;

/// The folder of the data directory for clips.
pub(super) const CLIP: &str = "clip";
/// The folder of the data directory for recompositions.
pub(super) const RECOMPOSE: &str = "recompose";
/// Bytes of the disk that stay free beside a derived archive: captures must continue.
const FREE_MIN: u64 = 256 << 20;

/// Ids of an archive and of the one that is derived from it.
#[derive(Debug, Clone, Copy)]
pub struct Derivation {
    /// The existing archive.
    pub source: ArchiveId,
    /// The derived archive.
    pub new: ArchiveId,
}

/// Why no archive could be derived.
#[derive(Debug, thiserror::Error)]
pub enum DeriveError {
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Making it.
    #[error(transparent)]
    Make(#[from] ArchiveError),
    /// Sending it.
    #[error(transparent)]
    Deliver(#[from] DeliverError),
    /// There is no such archive, or it is not finished.
    #[error("there is no finished archive {0}; see `archiver archives list`")]
    NotFound(ArchiveId),
    /// The disk.
    #[error(transparent)]
    Room(#[from] LogError),
    /// The folder for the work, or a file in it.
    #[error("{path} cannot be used")]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl DeriveError {
    /// A folder or file that cannot be used.
    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Io { path, source }
    }
}

impl HasFault for DeriveError {
    fn fault(&self) -> Fault {
        match self {
            Self::Catalog(e) => e.fault(),
            Self::Make(e) => e.fault(),
            Self::Deliver(e) => e.fault(),
            Self::Room(e) => e.fault(),
            Self::NotFound(_) => FaultKind::NotFound.fault(),
            Self::Io { .. } => FaultKind::SpoolIo.fault(),
        }
    }
}

/// Loads an archive that others can be derived from.
pub(super) async fn finished_archive(catalog: &dyn Catalog, archive: ArchiveId) -> Result<ArchiveRow, DeriveError> {
    let is_finished = |row: &ArchiveRow| matches!(row.status, ArchiveStatus::Available | ArchiveStatus::Uploaded);
    catalog.archive(archive).await?.filter(is_finished).ok_or(DeriveError::NotFound(archive))
}

/// Disk space that an archive needs which is made of `bytes` fetched bytes: it is hardly larger than these.
pub(super) const fn required_free_bytes(bytes: u64) -> u64 {
    bytes.saturating_add(FREE_MIN)
}

/// The folder in which one derived archive is made. It is removed at the end.
pub(super) struct Workspace {
    pub dir: PathBuf,
    /// `None` when the folder is being removed.
    lock: Option<WorkspaceLock>,
}

impl Workspace {
    /// Creates and locks the folder.
    pub async fn create(settings: &Settings, doing: &str, archive: ArchiveId) -> Result<Self, DeriveError> {
        let dir = settings.worker.data_dir.join(doing).join(archive.to_string());
        let making = tokio::task::spawn_blocking(move || {
            let lock = create_and_lock(&dir).map_err(DeriveError::io(&dir))?;
            Ok(Self { dir, lock: Some(lock) })
        });
        making.await.expect("making a folder does not panic")
    }

    /// Checks that the disk has room to fetch a number of bytes and to make an archive of them.
    pub async fn check_free_space(&self, bytes: u64) -> Result<(), DeriveError> {
        let dir = self.dir.clone();
        let looking = tokio::task::spawn_blocking(move || {
            check_free_space(&dir, bytes.saturating_add(required_free_bytes(bytes)))
        });
        Ok(looking.await.expect("looking at a disk does not panic")?)
    }

    /// Removes the folder, which takes a while when there are gigabytes in it.
    pub async fn remove(mut self) {
        if let Some(lock) = self.lock.take() {
            let dir = std::mem::take(&mut self.dir);
            tokio::task::spawn_blocking(move || remove_folder(&dir, &lock)).await.unwrap_or_default();
        }
    }
}

impl Drop for Workspace {
    /// After a panic, or when the derivation was dropped.
    fn drop(&mut self) {
        let Some(lock) = self.lock.take() else { return };
        let dir = std::mem::take(&mut self.dir);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || remove_folder(&dir, &lock))),
            Err(_) => remove_folder(&dir, &lock),
        }
    }
}

/// A locked file beside a folder: its owner works there. The lock ends with the process.
struct WorkspaceLock {
    path: PathBuf,
    _file: File,
}

fn create_and_lock(dir: &Path) -> io::Result<WorkspaceLock> {
    std::fs::create_dir_all(dir)?;
    try_lock(dir)?.ok_or_else(|| io::Error::new(io::ErrorKind::WouldBlock, "somebody else works there"))
}

/// Takes the lock; `None` when another process has it.
fn try_lock(dir: &Path) -> io::Result<Option<WorkspaceLock>> {
    let path = dir.with_extension("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // The owner before may have removed the file meanwhile: then this lock is void, and the next owner creates another file.
    let same = std::fs::metadata(&path).is_ok_and(|there| file.metadata().is_ok_and(|ours| ours.ino() == there.ino()));
    Ok(same.then_some(WorkspaceLock { path, _file: file }))
}

fn remove_folder(dir: &Path, lock: &WorkspaceLock) {
    for removed in [std::fs::remove_dir_all(dir), std::fs::remove_file(&lock.path)] {
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %dir.display(), "the folder stays: {error}");
            }
            _ => {}
        }
    }
}

/// Removes the folders of killed processes. Locked folders stay. Blocking.
pub(super) fn remove_abandoned(data_dir: &Path) {
    for doing in [CLIP, RECOMPOSE] {
        let Ok(entries) = std::fs::read_dir(data_dir.join(doing)) else { continue };
        let dirs: BTreeSet<PathBuf> = entries.flatten().map(|entry| entry.path().with_extension("")).collect();
        let ours =
            |dir: &PathBuf| dir.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.parse::<ArchiveId>().is_ok());
        for dir in dirs.into_iter().filter(ours) {
            match try_lock(&dir) {
                Ok(Some(lock)) => remove_folder(&dir, &lock),
                Ok(None) => {}
                Err(error) => tracing::warn!(path = %dir.display(), "the folder stays: {error}"),
            }
        }
    }
}

/// Sends a derived archive, and enters it in the catalog.
pub(super) async fn publish(
    catalog: &dyn Catalog,
    store: &dyn ObjectStore,
    part_bytes: u64,
    of: ArchiveRow,
    built: &Built,
    out: &Path,
    cancel: &CancellationToken,
) -> Result<Cancellable<ArchiveRow>, DeriveError> {
    let archive = built.manifest.archive_id;
    let keys = Keys::new(of.application.clone(), archive);
    let delivery = Delivery { store, keys: &keys, out, part_bytes, progress: &|_| {} };
    let Cancellable::Done(manifest) = delivery.send(built, cancel).await? else { return Ok(Cancellable::Cancelled) };
    let file = ArchiveFile {
        duration_s: manifest.duration_s.round() as i64,
        size: built.objects.first().map_or(0, |object| i64::try_from(object.size).unwrap_or(i64::MAX)),
        sha256: built.objects.first().map(|object| object.sha256.clone()).unwrap_or_default(),
        object_key: built.objects.first().map(|object| keys.key(object.kind)),
        missing: manifest.missing.clone(),
        revision: 1,
        log_read: None,
    };
    let now = Wallclock::now();
    let made = ArchiveRow::derived(&of, archive, of.options.clone(), now).available(file, now);
    catalog.put_archive(&made).await?;
    Ok(Cancellable::Done(made))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_goes_with_its_work_and_what_was_left_is_cleaned() {
        let data = tempfile::tempdir().expect("folder");
        let toml = format!("[worker]\ndata_dir = {:?}\n", data.path());
        let file = data.path().join("archiver.toml");
        std::fs::write(&file, toml).expect("written");
        let settings = Settings::load(Some(&file), &std::collections::BTreeMap::new()).expect("settings");
        let (left, ends, works) = (ArchiveId::random(), ArchiveId::random(), ArchiveId::random());
        let folder = data.path().join(RECOMPOSE).join(left.to_string());
        std::fs::create_dir_all(folder.join("tracks")).expect("folder");
        std::fs::write(folder.join("tracks/1.mkv"), "x").expect("written");
        let begin = async |archive| Workspace::create(&settings, RECOMPOSE, archive).await;
        let working = begin(works).await.expect("begins");
        let again = begin(works).await.map(drop).expect_err("somebody else works there");
        assert_eq!(again.fault().kind, FaultKind::SpoolIo);
        let ending = begin(ends).await.expect("begins");
        let full = ending.check_free_space(u64::MAX / 4).await.expect_err("no disk is as large");
        assert_eq!(full.fault().kind, FaultKind::SpoolFull);
        ending.check_free_space(1).await.expect("there is room");
        ending.remove().await;
        remove_abandoned(data.path());
        let there = || {
            let entries = std::fs::read_dir(data.path().join(RECOMPOSE)).expect("listed");
            entries.flatten().map(|entry| entry.path()).collect::<BTreeSet<_>>()
        };
        let expected = [working.dir.clone(), working.dir.with_extension("lock")];
        assert_eq!(there(), expected.into());
        working.remove().await;
        assert_eq!(there(), BTreeSet::new());
    }
}
