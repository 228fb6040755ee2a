//! An archive that is made of another one, however that is done: finding the other, a folder for the work, publishing the new.

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
use crate::model::fault::{Fault, FaultKind, HasFault};
use crate::model::ids::ArchiveId;
use crate::model::time::Wallclock;
use crate::recording::LogError;
use crate::recording::spool::check_free_space;
use crate::store::ObjectStore;
use crate::store::keys::Keys;

/// The folder of the data directory in which parts are cut out.
pub(super) const CLIP: &str = "clip";
/// The one in which archives are composed anew.
pub(super) const RECOMPOSE: &str = "recompose";
/// So much of the disk stays free beside what is made: captures go on.
const FREE_MIN: u64 = 256 << 20;

/// Why there is no new archive, whatever it was to be.
#[derive(Debug, thiserror::Error)]
pub enum RemakeError {
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

impl RemakeError {
    /// A folder or file that cannot be used.
    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Io { path, source }
    }
}

impl HasFault for RemakeError {
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

/// An archive that others can be made of.
pub(super) async fn finished(catalog: &dyn Catalog, archive: ArchiveId) -> Result<ArchiveRow, RemakeError> {
    let finished = |row: &ArchiveRow| matches!(row.status, ArchiveStatus::Available | ArchiveStatus::Uploaded);
    catalog.archive(archive).await?.filter(finished).ok_or(RemakeError::NotFound(archive))
}

/// What must be free to make an archive of so many bytes that are fetched: it is hardly larger than these.
pub(super) const fn beside(bytes: u64) -> u64 {
    bytes.saturating_add(FREE_MIN)
}

/// The folder of the work on one archive; removed with it.
pub(super) struct Work {
    pub dir: PathBuf,
    /// `None` when the folder is being removed.
    held: Option<Held>,
}

impl Work {
    /// Makes the folder.
    pub async fn begin(settings: &Settings, doing: &str, archive: ArchiveId) -> Result<Self, RemakeError> {
        let dir = settings.worker.data_dir.join(doing).join(archive.to_string());
        let making = tokio::task::spawn_blocking(move || {
            let held = make(&dir).map_err(RemakeError::io(&dir))?;
            Ok(Self { dir, held: Some(held) })
        });
        making.await.expect("making a folder does not panic")
    }

    /// Looks whether an archive of so many bytes, that are fetched first, can be made here.
    pub async fn has_room(&self, bytes: u64) -> Result<(), RemakeError> {
        let dir = self.dir.clone();
        let looking = tokio::task::spawn_blocking(move || check_free_space(&dir, bytes.saturating_add(beside(bytes))));
        Ok(looking.await.expect("looking at a disk does not panic")?)
    }

    /// Removes the folder, which takes a while when there are gigabytes in it.
    pub async fn end(mut self) {
        if let Some(held) = self.held.take() {
            let dir = std::mem::take(&mut self.dir);
            tokio::task::spawn_blocking(move || remove(&dir, &held)).await.unwrap_or_default();
        }
    }
}

impl Drop for Work {
    /// After a panic, or when nobody waits for the archive any more.
    fn drop(&mut self) {
        let Some(held) = self.held.take() else { return };
        let dir = std::mem::take(&mut self.dir);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || remove(&dir, &held))),
            Err(_) => remove(&dir, &held),
        }
    }
}

/// A locked file beside a folder: whoever has it works there. It ends with its process, however that ends.
struct Held {
    path: PathBuf,
    _file: File,
}

fn make(dir: &Path) -> io::Result<Held> {
    std::fs::create_dir_all(dir)?;
    hold(dir)?.ok_or_else(|| io::Error::new(io::ErrorKind::WouldBlock, "somebody else works there"))
}

/// `None` when somebody else has it.
fn hold(dir: &Path) -> io::Result<Option<Held>> {
    let path = dir.with_extension("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Whoever had it before has removed it meanwhile: then the next one makes, and locks, another.
    let same = std::fs::metadata(&path).is_ok_and(|there| file.metadata().is_ok_and(|ours| ours.ino() == there.ino()));
    Ok(same.then_some(Held { path, _file: file }))
}

fn remove(dir: &Path, held: &Held) {
    for removed in [std::fs::remove_dir_all(dir), std::fs::remove_file(&held.path)] {
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %dir.display(), "the folder stays: {error}");
            }
            _ => {}
        }
    }
}

/// Removes what processes left that were killed at work. What somebody works in stays. Blocking.
pub(super) fn clean(data_dir: &Path) {
    for doing in [CLIP, RECOMPOSE] {
        let Ok(entries) = std::fs::read_dir(data_dir.join(doing)) else { continue };
        let dirs: BTreeSet<PathBuf> = entries.flatten().map(|entry| entry.path().with_extension("")).collect();
        let ours =
            |dir: &PathBuf| dir.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.parse::<ArchiveId>().is_ok());
        for dir in dirs.into_iter().filter(ours) {
            match hold(&dir) {
                Ok(Some(held)) => remove(&dir, &held),
                Ok(None) => {}
                Err(error) => tracing::warn!(path = %dir.display(), "the folder stays: {error}"),
            }
        }
    }
}

/// Sends a composed archive that was made of another one, and enters it in the catalog.
pub(super) async fn publish(
    (catalog, store): (&dyn Catalog, &dyn ObjectStore),
    part_bytes: u64,
    of: ArchiveRow,
    built: &Built,
    out: &Path,
    cancel: &CancellationToken,
) -> Result<ArchiveRow, RemakeError> {
    let archive = built.manifest.archive_id;
    let keys = Keys::new(of.application.clone(), archive);
    let delivery = Delivery { store, keys: &keys, out, part_bytes, progress: &|_| {} };
    let manifest = delivery.send(built, cancel).await?;
    let file = ArchiveFile {
        duration_s: manifest.duration_s.round() as i64,
        size: built.objects.first().map_or(0, |object| i64::try_from(object.size).unwrap_or(i64::MAX)),
        sha256: built.objects.first().map(|object| object.sha256.clone()).unwrap_or_default(),
        object_key: built.objects.first().map(|object| keys.key(object.kind)),
    };
    let now = Wallclock::now();
    let made = ArchiveRow::derived(&of, archive, of.options.clone(), now).available(file, now);
    catalog.put_archive(&made).await?;
    Ok(made)
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
        let begin = async |archive| Work::begin(&settings, RECOMPOSE, archive).await;
        let working = begin(works).await.expect("begins");
        let again = begin(works).await.map(drop).expect_err("somebody else works there");
        assert_eq!(again.fault().kind, FaultKind::SpoolIo);
        let ending = begin(ends).await.expect("begins");
        let full = ending.has_room(u64::MAX / 4).await.expect_err("no disk is as large");
        assert_eq!(full.fault().kind, FaultKind::SpoolFull);
        ending.has_room(1).await.expect("there is room");
        ending.end().await;
        clean(data.path());
        let there = || {
            let entries = std::fs::read_dir(data.path().join(RECOMPOSE)).expect("listed");
            entries.flatten().map(|entry| entry.path()).collect::<BTreeSet<_>>()
        };
        let expected = [working.dir.clone(), working.dir.with_extension("lock")];
        assert_eq!(there(), expected.into());
        working.end().await;
        assert_eq!(there(), BTreeSet::new());
    }
}
