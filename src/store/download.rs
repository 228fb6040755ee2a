//! Fetching an object into a file: resumed after an interruption, and checked before it gets its final name.

use std::io::Read;
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

use super::checksum::Hasher;
use super::{ByteRange, ObjectStore, StoreError, temp_file};
use crate::model::cancellable::Cancellable;
use crate::model::fault::{Fault, HasFault};
use crate::runtime::retry::STORE;

/// Attempts in a row without progress. A person waits for the download, so this is minutes, not hours.
const FRUITLESS_ATTEMPTS_MAX: u32 = 8;

/// An object to fetch, its expected content, and the file.
#[derive(Debug, Clone)]
pub struct Download {
    /// The object.
    pub key: String,
    /// Its bytes.
    pub size: u64,
    /// Base64 of its SHA-256, or of that of its parts.
    pub sha256: String,
    /// Bytes of each part but the last, if its checksum is that of its parts.
    pub part_bytes: Option<u64>,
    /// The file. Until it is whole, it has the name `<name>.download`.
    pub path: PathBuf,
}

/// Why a file was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The store, or the local file.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl HasFault for DownloadError {
    fn fault(&self) -> Fault {
        match self {
            Self::Store(e) => e.fault(),
        }
    }
}

fn local(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Local { doing, path, source }
}

impl Download {
    fn partial(&self) -> PathBuf {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".download");
        self.path.with_file_name(name)
    }

    fn corrupt(&self, expected: String, found: String) -> StoreError {
        StoreError::Corrupt { key: self.key.clone(), expected, found }
    }
}

/// Fetches an object. `progress` gets each further number of bytes, those of an earlier call included. The bytes of a cancelled
/// download are kept.
///
/// # Errors
/// When the store has no such object, refuses, is unavailable for minutes, or holds something else (the fetched file is
/// then removed); when the file cannot be written.
pub async fn download(
    store: &dyn ObjectStore,
    download: &Download,
    cancel: &CancellationToken,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<Cancellable<()>, DownloadError> {
    let partial = download.partial();
    let range = ByteRange { start: 0, len: download.size };
    let fetched = download_range(store, &download.key, range, &partial, cancel, progress).await?;
    let Cancellable::Done(()) = fetched else { return Ok(Cancellable::Cancelled) };
    let (download, path) = (download.clone(), partial.clone());
    let finished = tokio::task::spawn_blocking(move || finish(&download, &path)).await;
    finished.unwrap_or_else(|e| Err(local("check", &partial)(std::io::Error::other(e))))?;
    Ok(Cancellable::Done(()))
}

/// Fetches a range of an object into a file, and retries passing errors. Bytes that are in the file already are not
/// fetched again. The checksum of the whole object does not cover a range: the caller must check the content.
///
/// # Errors
/// As for [`download`], apart from the checksum.
pub async fn download_range(
    store: &dyn ObjectStore,
    key: &str,
    range: ByteRange,
    partial: &Path,
    cancel: &CancellationToken,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<Cancellable<()>, DownloadError> {
    let mut have = tokio::fs::metadata(partial).await.map_or(0, |m| m.len());
    if have > range.len {
        tokio::fs::remove_file(partial).await.map_err(local("remove", partial))?;
        have = 0;
    }
    progress(have);
    let mut fruitless = 0;
    loop {
        let before = have;
        let more = tokio::select! {
            () = cancel.cancelled() => return Ok(Cancellable::Cancelled),
            more = fetch(store, key, range, partial, &mut have, progress) => more,
        };
        match more {
            Ok(()) => return Ok(Cancellable::Done(())),
            Err(error @ StoreError::Unavailable { .. }) => {
                fruitless = if have > before { 0 } else { fruitless + 1 };
                if fruitless >= FRUITLESS_ATTEMPTS_MAX {
                    return Err(error.into());
                }
                tokio::select! {
                    () = cancel.cancelled() => return Ok(Cancellable::Cancelled),
                    () = tokio::time::sleep(STORE.delay(fruitless, rand::random())) => {}
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Fetches the bytes of a range that are not in the file yet.
async fn fetch(
    store: &dyn ObjectStore,
    key: &str,
    range: ByteRange,
    partial: &Path,
    have: &mut u64,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), StoreError> {
    let file = tokio::fs::OpenOptions::new().create(true).append(true).open(partial).await;
    let mut file = file.map_err(local("open", partial))?;
    // An attempt may have ended in the middle of a write: the file's size counts.
    *have = file.metadata().await.map_err(local("read", partial))?.len();
    if *have == range.len {
        return Ok(());
    }
    let missing = ByteRange { start: range.start + *have, len: range.len - *have };
    let mut flow = store.get(key, Some(missing)).await?;
    while let Some(chunk) = flow.next().await {
        let chunk = chunk?;
        let len = chunk.len() as u64;
        if *have + len > range.len {
            let (expected, found) = (format!("{} bytes", range.len), "more".to_owned());
            return Err(StoreError::Corrupt { key: key.to_owned(), expected, found });
        }
        file.write_all(&chunk).await.map_err(local("write", partial))?;
        file.flush().await.map_err(local("write", partial))?;
        *have += len;
        progress(len);
    }
    if *have < range.len {
        let source = format!("it ended after {have} of {} bytes", range.len).into();
        return Err(StoreError::Unavailable { doing: "read", key: key.to_owned(), source });
    }
    Ok(())
}

/// Checks the fetched file, and renames it to its final name.
fn finish(download: &Download, partial: &Path) -> Result<(), StoreError> {
    let mut file = std::fs::File::open(partial).map_err(local("open", partial))?;
    let (mut hasher, mut buffer) = (Hasher::new(download.part_bytes), vec![0; 64 << 10]);
    loop {
        let read = file.read(&mut buffer).map_err(local("read", partial))?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
    }
    let found = hasher.finish();
    if found != download.sha256 {
        std::fs::remove_file(partial).map_err(local("remove", partial))?;
        return Err(download.corrupt(download.sha256.clone(), found));
    }
    file.sync_all().map_err(local("sync", partial))?;
    std::fs::rename(partial, &download.path).map_err(local("rename", &download.path))?;
    let folder = download.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    temp_file::sync_folders(folder, folder).map_err(local("sync", folder))
}
