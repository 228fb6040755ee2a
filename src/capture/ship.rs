//! Write-behind: sealed segments go to the store while the session runs, so that they survive the machine.
//!
//! What a session has sealed since the last time travels as one object, a tar: requests cost money and CPU. It
//! holds the segments, the lines that the indexes gained, and the session's small files. All bundles
//! of an archive together are its capture log; [`restore`] makes it anew on another machine.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use super::log::{HISTORY, INDEX, LineFile, LogError, LogReader, Record, TRACKS};
use crate::archive::keys::{Keys, Kind};
use crate::fault::{Fault, HasFault};
use crate::ids::{Epoch, TrackId};
use crate::store::retry::{STORE, persist};
use crate::store::{Body, ObjectStore, Piece, PutOptions, StoreError};

/// The job's own file in an archive's folder.
pub const JOB: &str = "job.json";
/// Segments of one bundle; what an outage left behind goes in several.
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
    /// It was called off.
    #[error("shipping was called off")]
    Cancelled,
}

impl HasFault for ShipError {
    fn fault(&self) -> Fault {
        match self {
            Self::Log(e) => e.fault(),
            Self::Store(e) => e.fault(),
            Self::Cancelled => crate::fault::FaultKind::StoreUnavailable.fault(),
        }
    }
}

/// Something to ship.
struct Bundle {
    body: Body,
    bytes: u64,
    /// For each track: its folder, the segments, and how far the index goes with them.
    tracks: Vec<(PathBuf, Vec<u32>, u64)>,
}

fn header(path: &str, size: u64) -> Result<Bytes, LogError> {
    let mut header = tar::Header::new_ustar();
    let bad = |source| LogError::Io { doing: "name", path: path.to_owned(), source };
    header.set_path(path).map_err(bad)?;
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

/// What is sealed and not in the store, oldest first. `None` if there is nothing. Blocking.
fn gather(dir: &Path) -> Result<Option<Bundle>, LogError> {
    let mut bundle = Bundle { body: Body::default(), bytes: 0, tracks: Vec::new() };
    let mut room = SEGMENTS_MAX;
    for track in LogReader::open(dir)?.tracks {
        let waiting: Vec<_> =
            track.segments.iter().filter(|s| s.sealed.is_some() && s.shipped.is_none()).take(room).collect();
        if waiting.is_empty() {
            continue;
        }
        room -= waiting.len();
        for segment in &waiting {
            let path = track.dir.join(&segment.file);
            let size = std::fs::metadata(&path).map_err(LogError::io("read", &path))?.len();
            let name = format!("{TRACKS}/{}/{}", track.track, segment.file);
            add(&mut bundle.body, &name, Piece::File { path, offset: 0, len: size }, size)?;
            bundle.bytes += size;
        }
        // Whole lines only, from where the last bundle ended.
        let (from, to) = (track.index_shipped, track.read_bytes());
        let name = format!("{TRACKS}/{}/{INDEX}.{from:012}", track.track);
        let piece = Piece::File { path: track.dir.join(INDEX), offset: from, len: to - from };
        add(&mut bundle.body, &name, piece, to - from)?;
        bundle.tracks.push((track.dir.clone(), waiting.iter().map(|s| s.n).collect(), to));
        if room == 0 {
            break;
        }
    }
    if bundle.tracks.is_empty() {
        return Ok(None);
    }
    for name in [JOB, HISTORY] {
        if let Ok(bytes) = std::fs::read(dir.join(name)) {
            let size = bytes.len() as u64;
            add(&mut bundle.body, name, Piece::Bytes(bytes.into()), size)?;
        }
    }
    bundle.body.pieces.push(Piece::Bytes(Bytes::from_static(&[0; 1024])));
    Ok(Some(bundle))
}

/// Ships everything that is sealed, one bundle after the other. Tries again for as long as it takes. Returns
/// how many bytes of segments went.
///
/// # Errors
/// See [`ShipError`]; a refusal of the store that a retry cannot mend ends it too.
pub async fn ship(
    store: &dyn ObjectStore,
    keys: &Keys,
    dir: &Path,
    epoch: Epoch,
    next: &mut u32,
    cancel: &CancellationToken,
) -> Result<u64, ShipError> {
    let mut shipped = 0;
    loop {
        let at = dir.to_owned();
        let bundle = tokio::task::spawn_blocking(move || gather(&at)).await.expect("gathering does not panic")?;
        let Some(bundle) = bundle else { return Ok(shipped) };
        let key = keys.key(Kind::Bundle(epoch, *next));
        let options = || PutOptions { content_type: Some("application/x-tar"), ..PutOptions::default() };
        let put = || store.put(&key, bundle.body.clone(), options());
        persist("ship segments", STORE, cancel, put).await.ok_or(ShipError::Cancelled)??;
        *next += 1;
        shipped += bundle.bytes;
        let tracks = bundle.tracks;
        tokio::task::spawn_blocking(move || note(&tracks, &key)).await.expect("noting does not panic")?;
    }
}

fn note(tracks: &[(PathBuf, Vec<u32>, u64)], key: &str) -> Result<(), LogError> {
    for (dir, segments, index) in tracks {
        let file = LineFile::attach(&dir.join(INDEX))?;
        for n in segments {
            file.append(&Record::Shipped { n: *n, key: key.to_owned(), index: *index })?;
        }
    }
    Ok(())
}

/// Makes an archive's folder of the bundles in the store, where this machine has not written them itself.
/// Files that are there are never overwritten. Returns how many bundles were fetched.
///
/// # Errors
/// See [`ShipError`].
pub async fn restore(
    store: &dyn ObjectStore,
    keys: &Keys,
    dir: &Path,
    cancel: &CancellationToken,
) -> Result<usize, ShipError> {
    let prefix = keys.segments();
    let list = || store.list(&prefix);
    let bundles = persist("list bundles", STORE, cancel, list).await.ok_or(ShipError::Cancelled)??;
    let mut indexes: BTreeMap<TrackId, u64> = BTreeMap::new();
    for bundle in &bundles {
        let temp = dir.join("restore.tar");
        let fetch = || fetch(store, &bundle.key, &temp);
        persist("fetch a bundle", STORE, cancel, fetch).await.ok_or(ShipError::Cancelled)??;
        let (at, mut known) = (dir.to_owned(), std::mem::take(&mut indexes));
        let unpacked = tokio::task::spawn_blocking(move || unpack(&at, &mut known).map(|()| known)).await;
        indexes = unpacked.expect("unpacking does not panic")?;
    }
    Ok(bundles.len())
}

async fn fetch(store: &dyn ObjectStore, key: &str, to: &Path) -> Result<(), StoreError> {
    let local = |source| StoreError::Local { doing: "write", path: to.to_owned(), source };
    if let Some(parent) = to.parent() {
        tokio::fs::create_dir_all(parent).await.map_err(local)?;
    }
    let mut file = tokio::fs::File::create(to).await.map_err(local)?;
    let mut flow = store.get(key, None).await?;
    while let Some(chunk) = flow.next().await {
        tokio::io::AsyncWriteExt::write_all(&mut file, &chunk?).await.map_err(local)?;
    }
    tokio::io::AsyncWriteExt::flush(&mut file).await.map_err(local)
}

fn unpack(dir: &Path, indexes: &mut BTreeMap<TrackId, u64>) -> Result<(), LogError> {
    let temp = dir.join("restore.tar");
    let file = std::fs::File::open(&temp).map_err(LogError::io("open", &temp))?;
    let mut bundle = tar::Archive::new(std::io::BufReader::new(file));
    for entry in bundle.entries().map_err(LogError::io("read", &temp))? {
        let mut entry = entry.map_err(LogError::io("read", &temp))?;
        let Some(name) = entry.path().ok().and_then(|p| p.to_str().map(str::to_owned)) else { continue };
        match name.split('/').collect::<Vec<_>>()[..] {
            [small @ (JOB | HISTORY)] => {
                // The newest bundle's wins: it is read last.
                let path = dir.join(small);
                let mut out = std::fs::File::create(&path).map_err(LogError::io("create", &path))?;
                std::io::copy(&mut entry, &mut out).map_err(LogError::io("write", &path))?;
            }
            [TRACKS, track, file] => {
                let Ok(id) = track.parse::<TrackId>() else { continue };
                let folder = dir.join(TRACKS).join(id.to_string());
                std::fs::create_dir_all(&folder).map_err(LogError::io("create", &folder))?;
                match file.strip_prefix("index.jsonl.").and_then(|from| from.parse::<u64>().ok()) {
                    Some(from) => append_index(&folder, from, indexes.entry(id).or_default(), &mut entry)?,
                    None if file.ends_with(".mkv") => keep(&folder.join(file), &mut entry)?,
                    None => {}
                }
            }
            _ => {}
        }
    }
    std::fs::remove_file(&temp).map_err(LogError::io("remove", &temp))
}

/// An index is put together of its slices; one that this machine wrote is longer, and stays.
fn append_index(folder: &Path, from: u64, have: &mut u64, slice: &mut impl Read) -> Result<(), LogError> {
    let path = folder.join(INDEX);
    let len = std::fs::metadata(&path).map_or(0, |m| m.len());
    if len != from || *have != from {
        return Ok(());
    }
    let mut file =
        std::fs::OpenOptions::new().create(true).append(true).open(&path).map_err(LogError::io("open", &path))?;
    *have += std::io::copy(slice, &mut file).map_err(LogError::io("write", &path))?;
    file.flush().map_err(LogError::io("write", &path))
}

fn keep(path: &Path, media: &mut impl Read) -> Result<(), LogError> {
    match std::fs::OpenOptions::new().create_new(true).write(true).open(path) {
        Ok(mut file) => std::io::copy(media, &mut file).map(drop).map_err(LogError::io("write", path)),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(LogError::io("create", path)(e)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::capture::log::{LogOptions, TrackLog};
    use crate::capture::spool::Spool;
    use crate::capture::types::{Codec, Frame, TrackFormat};
    use crate::ids::{SessionId, StreamId, TrackKind};
    use crate::store::dir::DirStore;
    use crate::time::MediaTime;

    #[tokio::test]
    async fn what_was_shipped_can_be_restored_on_another_machine() {
        let (here, there, bucket) =
            (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
        let store = DirStore::open(bucket.path()).expect("store");
        let session: SessionId = "s".parse().expect("id");
        let track = TrackId { stream: StreamId::of_router(&session, "a"), kind: TrackKind::Audio };
        let keys = Keys::new("app".parse().expect("id"), "2f6f2d9a-8d1c-4b1e-9c41-0b8a7d1f4c11".parse().expect("id"));
        let spool = Arc::new(Spool::open(here.path(), 1 << 30, 70).expect("spool"));
        let (mut log, _) = TrackLog::open(here.path(), track, Epoch(1), LogOptions::default(), spool).expect("open");
        let format = TrackFormat { codec: Codec::Pcmu, width: 0, height: 0, channels: 1, codec_private: vec![] };
        let cancel = CancellationToken::new();
        let mut next = 1;
        for round in 0..3 {
            log.format(&format).expect("format");
            for n in 0..100 {
                let pts = MediaTime::from_millis((round * 100 + n) * 20);
                log.frame(&Frame { pts, duration: None, keyframe: true, data: vec![7; 160].into() }).expect("frame");
            }
            log.seal().expect("seal").expect("segment").sync().expect("sync");
            let bytes = ship(&store, &keys, here.path(), Epoch(1), &mut next, &cancel).await.expect("ship");
            assert!(bytes > 16_000);
            assert_eq!(ship(&store, &keys, here.path(), Epoch(1), &mut next, &cancel).await.expect("ship"), 0);
        }
        assert_eq!(restore(&store, &keys, there.path(), &cancel).await.expect("restore"), 3);
        let read = |dir: &Path| {
            let index = LogReader::open(dir).expect("reader").tracks.remove(0);
            (index.frames().collect::<Vec<_>>(), index.segments.iter().map(|s| s.sealed.clone()).collect::<Vec<_>>())
        };
        assert_eq!(read(here.path()), read(there.path()));
        assert_eq!(read(there.path()).0.len(), 301);
        // Again over what is there: nothing changes.
        restore(&store, &keys, there.path(), &cancel).await.expect("restore");
        assert_eq!(read(here.path()), read(there.path()));
    }
}
