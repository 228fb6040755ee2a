//! Restores an archive's capture log from the bundles of [`super::upload`], on a machine that did not write all of it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

use super::spool::check_free_space;
use super::unshipped::{UnshippedSegment, UnshippedTrack};
use super::upload::{JOB, ShipError};
use super::{HISTORY, INDEX, LogError, LogReader, Record, TRACKS};
use crate::model::cancellable::Cancellable;
use crate::model::ids::TrackId;
use crate::model::time::Wallclock;
use crate::runtime::journal::{MergedFile, to_line};
use crate::runtime::retry::{STORE, retry_until_cancelled};
use crate::store::checksum::hex;
use crate::store::keys::Keys;
use crate::store::{ObjectStore, StoreError};

/// Largest index slice or small file that is read from a bundle.
const TEXT_BYTES_MAX: u64 = 256 << 20;
/// Numbers the files of bundles that are being unpacked: one that is not waited for any more may still be.
static UNPACKED: AtomicU64 = AtomicU64::new(0);

/// Restores an archive's folder from the bundles in the store that this machine has not written or fetched itself. Existing
/// files are never overwritten; indexes and the history gain the lines that they lack. Bundles of another `origin` (media time zero) are left out:
/// they are of the time before their job waited and was resumed. Returns how many bundles had segments that were not here.
///
/// # Errors
/// See [`ShipError`].
pub async fn restore(
    store: &dyn ObjectStore,
    keys: &Keys,
    dir: &Path,
    origin: Option<Wallclock>,
    cancel: &CancellationToken,
) -> Result<Cancellable<usize>, ShipError> {
    restore_reserving(store, keys, dir, origin, |_| 0, cancel).await
}

/// The same, where `reserve` gives the bytes that must stay free after a number of bytes was fetched.
///
/// # Errors
/// See [`ShipError`].
pub async fn restore_reserving(
    store: &dyn ObjectStore,
    keys: &Keys,
    dir: &Path,
    origin: Option<Wallclock>,
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
    let (mut unpacking, mut fetched) = (Unpacking::new(dir, origin), 0);
    for bundle in missing {
        let temp = dir.join(format!("restore-{}.tar", UNPACKED.fetch_add(1, Ordering::Relaxed)));
        let fetch = || fetch(store, &bundle.key, &temp);
        let fetching = retry_until_cancelled("fetch a bundle", STORE, cancel, fetch).await?;
        let Cancellable::Done(on_disk) = fetching else { return Ok(Cancellable::Cancelled) };
        on_disk.map_err(LogError::io("write", &temp))?;
        let key = bundle.key.clone();
        let unpack = move || unpacking.bundle(&temp, &key).map(|new| (unpacking, new));
        let unpacked = tokio::task::spawn_blocking(unpack).await.expect("unpacking does not panic")?;
        unpacking = unpacked.0;
        fetched += usize::from(unpacked.1 > 0);
    }
    // The history last: if it is there, so are the tracks.
    tokio::task::spawn_blocking(move || unpacking.end()).await.expect("writing does not panic")?;
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
            let mut file = MergedFile::open(&dir.join(HISTORY))?;
            file.merge(whole_lines(&history), |_, line| Some(line.to_vec()))?;
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

/// A track that bundles are unpacked to.
struct UnpackedTrack {
    index: MergedFile,
    log: UnshippedTrack,
}

/// Unpacks bundles into an archive's folder, one after the other. An index is read once, however many bundles there are.
struct Unpacking {
    dir: PathBuf,
    origin: Option<Wallclock>,
    small_files: SmallFiles,
    tracks: BTreeMap<TrackId, UnpackedTrack>,
}

impl Unpacking {
    fn new(dir: &Path, origin: Option<Wallclock>) -> Self {
        Self { dir: dir.to_owned(), origin, small_files: SmallFiles::default(), tracks: BTreeMap::new() }
    }

    /// Returns how many segments were not here.
    fn bundle(&mut self, temp: &Path, key: &str) -> Result<usize, LogError> {
        let (mut fetched, mut new) = (BTreeMap::<TrackId, BTreeSet<String>>::new(), 0);
        let is_other = |origin: Wallclock| self.origin.is_some_and(|own| own != origin);
        if origin(temp)?.is_some_and(is_other) {
            tracing::warn!(key, "a bundle of the time before its job waited is left out");
            return std::fs::remove_file(temp).map_err(LogError::io("remove", temp)).map(|()| 0);
        }
        let file = std::fs::File::open(temp).map_err(LogError::io("open", temp))?;
        let mut bundle = tar::Archive::new(std::io::BufReader::new(file));
        for entry in bundle.entries().map_err(LogError::io("read", temp))? {
            let mut entry = entry.map_err(LogError::io("read", temp))?;
            let Some(name) = entry.path().ok().and_then(|p| p.to_str().map(str::to_owned)) else { continue };
            match name.split('/').collect::<Vec<_>>()[..] {
                [JOB] => self.small_files.job = read_text(&mut entry, temp)?,
                [HISTORY] => self.small_files.add(read_text(&mut entry, temp)?),
                [TRACKS, track, file] => {
                    let Ok(id) = track.parse::<TrackId>() else { continue };
                    let track = self.track(id)?;
                    match file.strip_prefix("index.jsonl.") {
                        Some(_) => merge_index(&mut track.index, &read_text(&mut entry, temp)?)?,
                        None if file.ends_with(".mkv") => {
                            new += usize::from(write_if_absent(&track.log.dir.join(file), &mut entry)?);
                            fetched.entry(id).or_default().insert(file.to_owned());
                        }
                        None => {}
                    }
                }
                _ => {}
            }
        }
        for (id, files) in fetched {
            record_origins(self.track(id)?, key, &files)?;
        }
        std::fs::remove_file(temp).map_err(LogError::io("remove", temp))?;
        Ok(new)
    }

    fn track(&mut self, id: TrackId) -> Result<&mut UnpackedTrack, LogError> {
        match self.tracks.entry(id) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(new) => {
                let dir = self.dir.join(TRACKS).join(id.to_string());
                std::fs::create_dir_all(&dir).map_err(LogError::io("create", &dir))?;
                let index = MergedFile::open(&dir.join(INDEX))?;
                Ok(new.insert(UnpackedTrack { index, log: UnshippedTrack::new(&dir) }))
            }
        }
    }

    fn end(self) -> Result<(), LogError> {
        self.small_files.write(&self.dir)
    }
}

/// Media time zero of a bundle, which stands behind its tracks.
fn origin(bundle: &Path) -> Result<Option<Wallclock>, LogError> {
    #[derive(Deserialize)]
    struct Job {
        origin: Wallclock,
    }
    let file = std::fs::File::open(bundle).map_err(LogError::io("open", bundle))?;
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries_with_seek().map_err(LogError::io("read", bundle))? {
        let mut entry = entry.map_err(LogError::io("read", bundle))?;
        if entry.path().is_ok_and(|path| path == Path::new(JOB)) {
            let text = read_text(&mut entry, bundle)?;
            return Ok(serde_json::from_slice::<Job>(&text).ok().map(|job| job.origin));
        }
    }
    Ok(None)
}

/// Notes in an index which bundle has each segment. The bundle's own slice of the index ends before that line.
fn record_origins(track: &mut UnpackedTrack, key: &str, fetched: &BTreeSet<String>) -> Result<(), LogError> {
    track.log.refresh()?;
    for (n, segment) in &track.log.segments {
        if !fetched.contains(&segment.file) {
            continue;
        }
        let path = track.log.dir.join(&segment.file);
        if is_whole(segment, &path)? {
            track.index.append(&Record::Shipped { n: *n, key: key.to_owned(), index: 0 })?;
        } else {
            tracing::error!(path = %path.display(), key, "a segment from the store is not what was sent; it is left out");
            std::fs::remove_file(&path).map_err(LogError::io("remove", &path))?;
        }
    }
    Ok(())
}

/// Whether a file has the bytes that its machine sealed.
fn is_whole(segment: &UnshippedSegment, path: &Path) -> Result<bool, LogError> {
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
fn merge_index(index: &mut MergedFile, slice: &[u8]) -> Result<(), LogError> {
    let merged = index.merge(whole_lines(slice), |json, line| match serde_json::from_slice(json).ok()? {
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
