//! Restores an archive's capture log from the bundles of [`super::upload`], on a machine that did not write all of it.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

use super::reader::SegmentIndex;
use super::spool::check_free_space;
use super::upload::{JOB, ShipError};
use super::{HISTORY, INDEX, LogError, LogReader, Record, TRACKS};
use crate::model::cancellable::Cancellable;
use crate::model::ids::TrackId;
use crate::runtime::journal::{LineFile, to_line};
use crate::runtime::retry::{STORE, retry_until_cancelled};
use crate::store::checksum::hex;
use crate::store::keys::Keys;
use crate::store::{ObjectStore, StoreError};

/// Largest index slice or small file that is read from a bundle.
const TEXT_BYTES_MAX: u64 = 256 << 20;
/// Numbers the files of bundles that are being unpacked: one that is not waited for any more may still be.
static UNPACKED: AtomicU64 = AtomicU64::new(0);

/// Restores an archive's folder from the bundles in the store that this machine has not written or fetched itself. Existing
/// files are never overwritten; indexes and the history gain the lines that they lack. Returns how many bundles had segments that
/// were not here.
///
/// # Errors
/// See [`ShipError`].
pub async fn restore(
    store: &dyn ObjectStore,
    keys: &Keys,
    dir: &Path,
    cancel: &CancellationToken,
) -> Result<Cancellable<usize>, ShipError> {
    restore_reserving(store, keys, dir, |_| 0, cancel).await
}

/// The same, where `reserve` gives the bytes that must stay free after a number of bytes was fetched.
///
/// # Errors
/// See [`ShipError`].
pub async fn restore_reserving(
    store: &dyn ObjectStore,
    keys: &Keys,
    dir: &Path,
    reserve: fn(u64) -> u64,
    cancel: &CancellationToken,
) -> Result<Cancellable<usize>, ShipError> {
    let prefix = keys.segments();
    let list = || store.list(&prefix);
    let bundles = retry_until_cancelled("list bundles", STORE, cancel, list).await?;
    let Cancellable::Done(bundles) = bundles else { return Ok(Cancellable::Cancelled) };
    let at = dir.to_owned();
    let present = tokio::task::spawn_blocking(move || shipped_keys(&at)).await.expect("listing does not panic")?;
    let missing: Vec<_> = bundles.iter().filter(|b| !present.contains(&b.key)).collect();
    if let Some(largest) = missing.iter().map(|b| b.size).max() {
        let bytes = missing.iter().fold(0_u64, |sum, b| sum.saturating_add(b.size));
        // A bundle and its unpacked files are on the disk together for a moment.
        let (at, needed) = (dir.to_owned(), bytes.saturating_add(largest).saturating_add(reserve(bytes)));
        tokio::task::spawn_blocking(move || check_free_space(&at, needed))
            .await
            .expect("looking at a disk does not panic")?;
    }
    let (mut small_files, mut fetched) = (SmallFiles::default(), 0);
    for bundle in missing {
        let temp = dir.join(format!("restore-{}.tar", UNPACKED.fetch_add(1, Ordering::Relaxed)));
        let fetch = || fetch(store, &bundle.key, &temp);
        let fetching = retry_until_cancelled("fetch a bundle", STORE, cancel, fetch).await?;
        let Cancellable::Done(on_disk) = fetching else { return Ok(Cancellable::Cancelled) };
        on_disk.map_err(LogError::io("write", &temp))?;
        let (at, key) = (dir.to_owned(), bundle.key.clone());
        let unpack = move || unpack(&at, &temp, &key, &mut small_files).map(|new| (small_files, new));
        let unpacked = tokio::task::spawn_blocking(unpack).await.expect("unpacking does not panic")?;
        small_files = unpacked.0;
        fetched += usize::from(unpacked.1 > 0);
    }
    let at = dir.to_owned();
    // The history last: if it is there, so are the tracks.
    tokio::task::spawn_blocking(move || small_files.write(&at)).await.expect("writing does not panic")?;
    Ok(Cancellable::Done(fetched))
}

/// Bundles whose segments are all on this disk.
fn shipped_keys(dir: &Path) -> Result<BTreeSet<String>, LogError> {
    let tracks = LogReader::open(dir)?.tracks;
    let segments = tracks.iter().flat_map(|t| t.segments.iter().map(|s| (t.dir.join(&s.file), s)));
    let (mut present, mut missing) = (BTreeSet::new(), BTreeSet::new());
    for (path, segment) in segments {
        let Some(key) = segment.shipped.clone() else { continue };
        let set = if path.exists() { &mut present } else { &mut missing };
        set.insert(key);
    }
    Ok(present.difference(&missing).cloned().collect())
}

/// The session's small files, from the bundles.
#[derive(Default)]
struct SmallFiles {
    job: Vec<u8>,
    /// Each bundle has the whole history up to its time. The history of a later bundle of the same owner begins with it.
    histories: Vec<Vec<u8>>,
}

impl SmallFiles {
    fn add(&mut self, history: Vec<u8>) {
        match self.histories.last_mut() {
            Some(last) if history.starts_with(last) => *last = history,
            _ => self.histories.push(history),
        }
    }

    fn write(self, dir: &Path) -> Result<(), LogError> {
        let job = dir.join(JOB);
        if !self.job.is_empty() && !job.exists() {
            write_if_absent(&job, &mut self.job.as_slice())?;
        }
        for history in self.histories {
            let (file, _) = LineFile::open::<serde::de::IgnoredAny>(&dir.join(HISTORY))?;
            file.merge(0, whole_lines(&history), |_, line| Some(line.to_vec()))?;
        }
        Ok(())
    }
}

/// What the store says, and then what the disk says: a store is asked again, another disk may be better.
async fn fetch(store: &dyn ObjectStore, key: &str, to: &Path) -> Result<std::io::Result<()>, StoreError> {
    let mut flow = store.get(key, None).await?;
    let mut file = match create(to).await {
        Ok(file) => file,
        Err(error) => return Ok(Err(error)),
    };
    while let Some(chunk) = flow.next().await {
        if let Err(error) = file.write_all(&chunk?).await {
            return Ok(Err(error));
        }
    }
    Ok(file.flush().await)
}

async fn create(path: &Path) -> std::io::Result<tokio::fs::File> {
    if let Some(parent) = path.parent() {
        tokio::fs::create_dir_all(parent).await?;
    }
    tokio::fs::File::create(path).await
}

/// Returns how many segments were not here.
fn unpack(dir: &Path, temp: &Path, key: &str, small_files: &mut SmallFiles) -> Result<usize, LogError> {
    let (mut fetched_segments, mut new) = (Vec::new(), 0);
    let file = std::fs::File::open(temp).map_err(LogError::io("open", temp))?;
    let mut bundle = tar::Archive::new(std::io::BufReader::new(file));
    for entry in bundle.entries().map_err(LogError::io("read", temp))? {
        let mut entry = entry.map_err(LogError::io("read", temp))?;
        let Some(name) = entry.path().ok().and_then(|p| p.to_str().map(str::to_owned)) else { continue };
        match name.split('/').collect::<Vec<_>>()[..] {
            [JOB] => small_files.job = read_text(&mut entry, temp)?,
            [HISTORY] => small_files.add(read_text(&mut entry, temp)?),
            [TRACKS, track, file] => {
                let Ok(id) = track.parse::<TrackId>() else { continue };
                let folder = dir.join(TRACKS).join(id.to_string());
                std::fs::create_dir_all(&folder).map_err(LogError::io("create", &folder))?;
                match file.strip_prefix("index.jsonl.").and_then(|from| from.parse::<u64>().ok()) {
                    Some(from) => merge_index(&folder, from, &read_text(&mut entry, temp)?)?,
                    None if file.ends_with(".mkv") => {
                        new += usize::from(write_if_absent(&folder.join(file), &mut entry)?);
                        fetched_segments.push((id, file.to_owned()));
                    }
                    None => {}
                }
            }
            _ => {}
        }
    }
    record_origins(dir, key, &fetched_segments)?;
    std::fs::remove_file(temp).map_err(LogError::io("remove", temp))?;
    Ok(new)
}

/// Notes in the indexes which bundle has each segment. The bundle's own slice of the index ends before that line.
fn record_origins(dir: &Path, key: &str, fetched_segments: &[(TrackId, String)]) -> Result<(), LogError> {
    for track in LogReader::open(dir)?.tracks {
        let file = LineFile::open_for_append(&track.dir.join(INDEX))?;
        let is_new =
            |s: &&SegmentIndex| s.shipped.is_none() && fetched_segments.contains(&(track.track, s.file.clone()));
        for segment in track.segments.iter().filter(is_new) {
            let path = track.dir.join(&segment.file);
            if !is_whole(segment, &path)? {
                tracing::error!(path = %path.display(), key, "a segment from the store is not what was sent; it is left out");
                std::fs::remove_file(&path).map_err(LogError::io("remove", &path))?;
                continue;
            }
            file.append(&Record::Shipped { n: segment.n, key: key.to_owned(), index: 0 })?;
        }
    }
    Ok(())
}

/// Whether a file has the bytes that its machine sealed.
fn is_whole(segment: &SegmentIndex, path: &Path) -> Result<bool, LogError> {
    let Some(seal) = &segment.sealed else { return Ok(true) };
    let mut file = std::fs::File::open(path).map_err(LogError::io("open", path))?;
    let mut hasher = Sha256::new();
    let read = std::io::copy(&mut file, &mut hasher).map_err(LogError::io("read", path))?;
    Ok(read == seal.size && hex(&hasher.finalize()) == seal.sha256)
}

/// A file of lines, whole in memory.
fn read_text(entry: &mut impl Read, temp: &Path) -> Result<Vec<u8>, LogError> {
    let mut bytes = Vec::new();
    entry.take(TEXT_BYTES_MAX).read_to_end(&mut bytes).map_err(LogError::io("read", temp))?;
    Ok(bytes)
}

fn whole_lines(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    &bytes[..end]
}

/// Merges a slice into an index. If this machine has written lines of its own since, the slice's lines are appended: a
/// segment number belongs to one epoch, so the lines do not conflict.
fn merge_index(folder: &Path, from: u64, slice: &[u8]) -> Result<(), LogError> {
    let (file, _) = LineFile::open::<serde::de::IgnoredAny>(&folder.join(INDEX))?;
    let merged = file.merge(from, whole_lines(slice), |json, line| match serde_json::from_slice(json).ok()? {
        // The length of another machine's index that was shipped does not apply to this one.
        Record::Shipped { n, key, .. } => Some(to_line(&Record::Shipped { n, key, index: 0 })),
        _ => Some(line.to_vec()),
    });
    Ok(merged?)
}

/// Writes a file that is not there yet: whole, or not at all. Returns whether it was not there.
fn write_if_absent(path: &Path, content: &mut impl Read) -> Result<bool, LogError> {
    if path.exists() {
        return Ok(false);
    }
    let temp = path.with_extension("part");
    let mut file = std::fs::File::create(&temp).map_err(LogError::io("create", &temp))?;
    std::io::copy(content, &mut file).map_err(LogError::io("write", &temp))?;
    std::fs::rename(&temp, path).map_err(LogError::io("rename", &temp))?;
    Ok(true)
}
