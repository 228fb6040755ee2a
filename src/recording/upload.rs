//! Write-behind: sealed segments go to the store while the session runs, so that they survive the machine.
//!
//! The segments that were sealed since the last upload travel as one object, a tar: requests cost money and CPU. It holds
//! the segments, the lines that the indexes gained, and the session's small files. All bundles of an archive together are
//! its capture log; [`super::restore`] restores it on another machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::reader::{SegmentIndex, TrackIndex};
use super::spool::Spool;
use super::unshipped::{UnshippedLog, UnshippedSegment};
use super::{HISTORY, INDEX, LogError, LogOptions, LogReader, Record, SealedSegment, TRACKS, TrackLog};
use crate::model::cancellable::Cancellable;
use crate::model::fault::{Fault, HasFault};
use crate::model::ids::{Epoch, TrackId};
use crate::runtime::journal::LineFile;
use crate::runtime::metrics::metrics;
use crate::runtime::retry::{STORE, retry_until_cancelled};
use crate::store::keys::{Keys, Kind};
use crate::store::{Body, ObjectStore, Piece, PutOptions, StoreError};

/// The job's own file in an archive's folder.
pub const JOB: &str = "job.json";
/// Segments of one bundle; after an outage there may be several bundles.
const SEGMENTS_MAX: usize = 256;
const BLOCK: u64 = 512;

/// Why segments were not shipped or fetched.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// The local log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl HasFault for ShipError {
    fn fault(&self) -> Fault {
        match self {
            Self::Log(e) => e.fault(),
            Self::Store(e) => e.fault(),
        }
    }
}

/// Sealed segments that are not in the store yet: their bytes, and a wake-up for the upload.
#[derive(Debug, Default)]
pub struct UploadBacklog {
    more: Notify,
    bytes: AtomicU64,
}

impl UploadBacklog {
    /// Segments have been sealed.
    pub fn sealed(&self, segments: &[SealedSegment]) {
        let bytes: u64 = segments.iter().map(|segment| segment.size).sum();
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        metrics().unshipped_bytes.inc_by(bytes.cast_signed());
        self.more.notify_one();
    }

    /// Waits until there is more.
    pub async fn more(&self) {
        self.more.notified().await;
    }

    /// They are in the store. What an earlier run sealed is not counted here.
    pub fn shipped(&self, bytes: u64) {
        let left = |waiting: u64| Some(waiting.saturating_sub(bytes));
        let (Ok(before) | Err(before)) = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left);
        metrics().unshipped_bytes.dec_by(before.min(bytes).cast_signed());
    }
}

impl Drop for UploadBacklog {
    fn drop(&mut self) {
        self.shipped(u64::MAX);
    }
}

/// A bundle to ship.
struct Bundle {
    body: Body,
    bytes: u64,
    tracks: Vec<BundledTrack>,
}

/// A track's share of a bundle.
struct BundledTrack {
    track: TrackId,
    /// The track's folder.
    dir: PathBuf,
    /// Numbers of the segments.
    segments: Vec<u32>,
    /// Length of the index up to the end of the bundle's slice.
    index_bytes: u64,
}

fn header(path: &str, size: u64) -> Result<Bytes, LogError> {
    let mut header = tar::Header::new_ustar();
    header.set_path(path).map_err(LogError::io("name", Path::new(path)))?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    Ok(Bytes::copy_from_slice(header.as_bytes()))
}

fn add(body: &mut Body, path: &str, piece: Piece, size: u64) -> Result<(), LogError> {
    body.pieces.push(Piece::Bytes(header(path, size)?));
    body.pieces.push(piece);
    let pad = size.next_multiple_of(BLOCK) - size;
    body.pieces.push(Piece::Bytes(Bytes::from(vec![0; usize::try_from(pad).unwrap_or(0)])));
    Ok(())
}

/// Ships an archive's log under one epoch, one bundle after the other. It reads each line of the indexes once.
#[derive(Debug)]
pub struct Shipper {
    keys: Keys,
    dir: PathBuf,
    epoch: Epoch,
    /// The number of the next bundle.
    next: u32,
    log: UnshippedLog,
}

impl Shipper {
    /// Ships what is in an archive's folder, from the first bundle of an epoch on.
    #[must_use]
    pub fn new(keys: Keys, dir: PathBuf, epoch: Epoch) -> Self {
        Self { keys, dir, epoch, next: 1, log: UnshippedLog::default() }
    }

    /// Ships all sealed segments. Retries until it succeeds. Returns the bytes of the segments.
    ///
    /// # Errors
    /// See [`ShipError`]; also when the store refuses for good.
    pub async fn ship(
        &mut self,
        store: &dyn ObjectStore,
        cancel: &CancellationToken,
    ) -> Result<Cancellable<u64>, ShipError> {
        let mut shipped = 0;
        while let Some(bundle) = self.gather(false).await? {
            let Cancellable::Done(key) = self.put(store, &bundle.body, cancel).await? else {
                return Ok(Cancellable::Cancelled);
            };
            shipped += bundle.bytes;
            // Only a segment's note says how much of an index is in the store. Of a track without one in this bundle, this run knows.
            for track in &bundle.tracks {
                if let Some(known) = self.log.tracks.get_mut(&track.track) {
                    known.index_shipped = track.index_bytes;
                }
            }
            let note = move || record_shipped(&bundle.tracks, &key);
            tokio::task::spawn_blocking(note).await.expect("noting does not panic")?;
        }
        Ok(Cancellable::Done(shipped))
    }

    /// Ships what is left when all sealed segments are shipped: the rest of the indexes, and the history.
    async fn ship_last(
        &mut self,
        store: &dyn ObjectStore,
        cancel: &CancellationToken,
    ) -> Result<Cancellable<()>, ShipError> {
        let Some(bundle) = self.gather(true).await? else { return Ok(Cancellable::Done(())) };
        Ok(self.put(store, &bundle.body, cancel).await?.map(drop))
    }

    async fn gather(&mut self, last: bool) -> Result<Option<Bundle>, LogError> {
        let (mut log, dir) = (std::mem::take(&mut self.log), self.dir.clone());
        let gather = move || {
            let bundle = gather_bundle(&dir, &mut log, last);
            (log, bundle)
        };
        let (log, bundle) = tokio::task::spawn_blocking(gather).await.expect("gathering does not panic");
        self.log = log;
        bundle
    }

    /// Puts the next bundle into the store, however long that takes. Returns its key.
    async fn put(
        &mut self,
        store: &dyn ObjectStore,
        body: &Body,
        cancel: &CancellationToken,
    ) -> Result<Cancellable<String>, ShipError> {
        let key = self.keys.key(Kind::Bundle(self.epoch, self.next));
        let options = || PutOptions { content_type: Some("application/x-tar"), ..PutOptions::default() };
        let put = || store.put(&key, body.clone(), options());
        let Cancellable::Done(_) = retry_until_cancelled("ship segments", STORE, cancel, put).await? else {
            return Ok(Cancellable::Cancelled);
        };
        self.next += 1;
        Ok(Cancellable::Done(key))
    }
}

/// Gathers the sealed segments that are not in the store, oldest first; with `last` also the rest of all indexes. `None` if there is
/// nothing to ship. Blocking.
fn gather_bundle(dir: &Path, log: &mut UnshippedLog, last: bool) -> Result<Option<Bundle>, LogError> {
    // The history first: all that was captured until its last line is in the indexes of the same bundle.
    let small_files = [JOB, HISTORY].map(|name| (name, std::fs::read(dir.join(name))));
    log.refresh(dir)?;
    let mut bundle = Bundle { body: Body::default(), bytes: 0, tracks: Vec::new() };
    let mut room = SEGMENTS_MAX;
    let mut chosen = BTreeMap::new();
    for (id, track) in &log.tracks {
        let waiting = track.present().filter(|(_, segment)| segment.sealed.is_some()).take(room);
        let waiting: Vec<(u32, &UnshippedSegment)> = waiting.collect();
        room -= waiting.len();
        chosen.insert(*id, waiting);
    }
    if !last && room == SEGMENTS_MAX {
        return Ok(None);
    }
    for (id, track) in &log.tracks {
        let (waiting, slice) = (&chosen[id], track.index_slice());
        // The index names segments that travel later, or are still written: if this machine is lost, they are known to be missing.
        let names_more = || last || track.present().next().is_some();
        if waiting.is_empty() && (slice.is_empty() || !names_more()) {
            continue;
        }
        for (_, segment) in waiting {
            let path = track.dir.join(&segment.file);
            let size = std::fs::metadata(&path).map_err(LogError::io("read", &path))?.len();
            let name = format!("{TRACKS}/{id}/{}", segment.file);
            add(&mut bundle.body, &name, Piece::File { path, offset: 0, len: size }, size)?;
            bundle.bytes += size;
        }
        // Whole lines only, from where the last bundle ended.
        if !slice.is_empty() {
            let (name, len) = (format!("{TRACKS}/{id}/{INDEX}.{:012}", slice.start), slice.end - slice.start);
            let piece = Piece::File { path: track.dir.join(INDEX), offset: slice.start, len };
            add(&mut bundle.body, &name, piece, len)?;
        }
        let segments = waiting.iter().map(|(n, _)| *n).collect();
        bundle.tracks.push(BundledTrack { track: *id, dir: track.dir.clone(), segments, index_bytes: slice.end });
    }
    for (name, bytes) in small_files {
        if let Ok(bytes) = bytes {
            let size = bytes.len() as u64;
            add(&mut bundle.body, name, Piece::Bytes(bytes.into()), size)?;
        }
    }
    bundle.body.pieces.push(Piece::Bytes(Bytes::from_static(&[0; 1024])));
    Ok(Some(bundle))
}

/// Ships the rest when a session has ended: the remaining segments, the rest of the indexes, and the whole history. With it
/// the store has all that is needed to make the archive again.
///
/// # Errors
/// See [`Shipper::ship`].
pub async fn ship_rest(
    store: &dyn ObjectStore,
    keys: &Keys,
    dir: &Path,
    epoch: Epoch,
    cancel: &CancellationToken,
) -> Result<Cancellable<()>, ShipError> {
    let prefix = keys.segments();
    let list = || store.list(&prefix);
    let there = retry_until_cancelled("list bundles", STORE, cancel, list).await?;
    let Cancellable::Done(there) = there else { return Ok(Cancellable::Cancelled) };
    let at = dir.to_owned();
    let named = tokio::task::spawn_blocking(move || named_bundles(&at)).await.expect("reading a log does not panic")?;
    // A number is used once, also when the store no longer has its bundle.
    let used = there.iter().filter_map(|object| Keys::parse_bundle(&object.key)).chain(named);
    let mut shipper = Shipper::new(keys.clone(), dir.to_owned(), epoch);
    shipper.next = used.filter(|(of, _)| *of == epoch).map(|(_, number)| number).max().unwrap_or(0) + 1;
    match shipper.ship(store, cancel).await {
        Ok(Cancellable::Done(_)) => {}
        Ok(Cancellable::Cancelled) => return Ok(Cancellable::Cancelled),
        // A disk that takes no note may be readable: the last bundle has all segments of which nothing is noted.
        Err(ShipError::Log(error)) => {
            tracing::warn!("it is not noted which segments are shipped: {}", crate::model::fault::chain(&error));
        }
        Err(error) => return Err(error),
    }
    shipper.ship_last(store, cancel).await
}

/// Seals what a crash, or a disk that was full, left open in a log that nobody writes any more. Blocking.
///
/// # Errors
/// When the log cannot be read or written.
pub fn seal_open(dir: &Path, spool: &Arc<Spool>) -> Result<(), LogError> {
    for track in LogReader::open_present(dir)?.tracks {
        let open = track.segments.iter().filter(|segment| segment.sealed.is_none()).map(|segment| segment.epoch);
        if let Some(epoch) = open.max() {
            TrackLog::open(dir, track.track, epoch, LogOptions::default(), Arc::clone(spool))?;
        }
    }
    Ok(())
}

/// The last epoch of segments that this disk has and the store has not. Blocking.
///
/// # Errors
/// When the log cannot be read.
pub fn unshipped_epoch(dir: &Path) -> Result<Option<Epoch>, LogError> {
    let waits = |track: &TrackIndex, s: &SegmentIndex| s.shipped.is_none() && track.dir.join(&s.file).exists();
    let tracks = LogReader::open(dir)?.tracks;
    let epochs = |track: &TrackIndex| track.segments.iter().filter(|s| waits(track, s)).map(|s| s.epoch).max();
    Ok(tracks.iter().filter_map(epochs).max())
}

/// The bundles that this disk's segments went with, or came from. Blocking.
///
/// # Errors
/// When the log cannot be read.
pub fn named_bundles(dir: &Path) -> Result<BTreeSet<(Epoch, u32)>, LogError> {
    let tracks = LogReader::open(dir)?.tracks;
    let keys = tracks.iter().flat_map(|track| track.segments.iter().filter_map(|segment| segment.shipped.as_deref()));
    Ok(keys.filter_map(Keys::parse_bundle).collect())
}

/// Whether the store has all segments that this disk has.
///
/// # Errors
/// See [`ShipError`].
pub async fn is_in_store(
    store: &dyn ObjectStore,
    keys: &Keys,
    dir: &Path,
    cancel: &CancellationToken,
) -> Result<Cancellable<bool>, ShipError> {
    let prefix = keys.segments();
    let list = || store.list(&prefix);
    let there = retry_until_cancelled("list bundles", STORE, cancel, list).await?;
    let Cancellable::Done(there) = there else { return Ok(Cancellable::Cancelled) };
    let there: BTreeSet<String> = there.into_iter().map(|object| object.key).collect();
    let at = dir.to_owned();
    let look = move || -> Result<bool, LogError> {
        let is_there = |track: &TrackIndex, s: &SegmentIndex| {
            s.shipped.as_ref().is_some_and(|key| there.contains(key)) || !track.dir.join(&s.file).exists()
        };
        Ok(LogReader::open(&at)?.tracks.iter().all(|track| track.segments.iter().all(|s| is_there(track, s))))
    };
    let all = tokio::task::spawn_blocking(look).await.expect("reading a log does not panic")?;
    Ok(Cancellable::Done(all))
}

/// Notes in the indexes which bundle has each segment.
fn record_shipped(tracks: &[BundledTrack], key: &str) -> Result<(), LogError> {
    for track in tracks {
        let file = LineFile::open_for_append(&track.dir.join(INDEX))?;
        for n in &track.segments {
            file.append(&Record::Shipped { n: *n, key: key.to_owned(), index: track.index_bytes })?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "upload_tests.rs"]
mod tests;
