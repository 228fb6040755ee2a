//! A capture log whose index and segments are not what was written: a torn disk, or an object store that
//! gave back something else. Nothing may panic or read without bound, and the next epoch can go on.
//!
//! The input is a list of pieces: one byte says of what kind, two bytes its length. A piece is added to the
//! index as it is, or with the checksum that makes a line of it, or to the segment.

#![no_main]

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use archiver::recording::frames::LogItem;
use archiver::recording::reader::{TrackIndex, join};
use archiver::recording::{INDEX, LogOptions, LogReader, TRACKS, TrackLog};
use archiver::recording::spool::Spool;
use archiver::model::media::{Codec, Frame, TrackFormat};
use archiver::model::ids::{Epoch, SessionId, StreamId, TrackId, TrackKind};
use archiver::model::time::MediaTime;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

const SEGMENT: &str = "e0001-000001.mkv";

struct Place {
    archive: PathBuf,
    dir: PathBuf,
    track: TrackId,
}

/// One folder a process, in memory where the machine has such a file system.
static PLACE: LazyLock<Place> = LazyLock::new(|| {
    let session: SessionId = "fuzz".parse().expect("id");
    let track = TrackId { stream: StreamId::of_router(&session, "a"), kind: TrackKind::Video };
    let memory = PathBuf::from("/dev/shm");
    let root = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let archive = root.join(format!("archiver-fuzz-{}", std::process::id()));
    let dir = archive.join(TRACKS).join(track.to_string());
    std::fs::create_dir_all(&dir).expect("folder");
    Place { archive, dir, track }
});

fn build(mut data: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut index, mut segment) = (Vec::new(), Vec::new());
    while let Some(([kind, low, high], rest)) = data.split_first_chunk::<3>() {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (piece, rest) = rest.split_at(len);
        data = rest;
        match kind % 4 {
            0 => index.extend_from_slice(piece),
            1 => segment.extend_from_slice(piece),
            // Text of a line, with what of its values only the segment knows.
            _ => {
                let crc = crc32fast::hash(&segment);
                let line = String::from_utf8_lossy(piece).replace("$CRC", &crc.to_string());
                let line = line.replace("$LEN", &segment.len().to_string());
                let sum = crc32fast::hash(line.as_bytes());
                index.extend_from_slice(format!("{line}\t{sum:08x}\n").as_bytes());
            }
        }
    }
    (index, segment)
}

fuzz_target!(|data: &[u8]| {
    let place = &*PLACE;
    let (index, segment) = build(data);
    std::fs::write(place.dir.join(INDEX), index).expect("index");
    std::fs::write(place.dir.join(SEGMENT), segment).expect("segment");
    let Ok(log) = LogReader::open(&place.archive) else { return };
    for track in &log.tracks {
        assert_eq!(track.track, place.track);
        let _ = (track.start(), track.end(), track.frames_total(), track.read_bytes());
        let mut frames = track.frames();
        let read = frames.by_ref().filter(|item| matches!(item, LogItem::Frame(_))).count();
        assert!(read < 1 << 20, "{read} frames of {} bytes", data.len());
        if join(track, 0..track.segments.len(), &mut std::io::sink()).is_err() {
            continue;
        }
    }
    if let Ok(mut again) = TrackIndex::open(&place.dir, place.track) {
        assert!(!again.refresh().unwrap_or(false), "a log that nobody writes does not grow");
    }
    go_on(place);
});

/// The next epoch opens what it finds, goes on behind it, and its own frame can be read.
fn go_on(place: &Place) {
    let spool = Arc::new(Spool::open(&place.archive, 1 << 30, 90).expect("spool"));
    let opened = TrackLog::open(&place.archive, place.track, Epoch(77), LogOptions::default(), spool);
    let Ok((mut log, opened)) = opened else { return };
    let pts = opened.end.unwrap_or_default().max(MediaTime::ZERO) + 1_000_000_000;
    let format = TrackFormat { codec: Codec::Vp8, width: 2, height: 2, channels: 0, codec_private: Vec::new() };
    let frame = Frame { pts, duration: None, keyframe: true, data: Bytes::from_static(b"frame") };
    let written = log.format(&format).is_ok() && log.frame(&frame).is_ok() && log.seal().is_ok();
    let index = TrackIndex::open(&place.dir, place.track).expect("index");
    if written {
        let newest = index.segments.iter().filter(|s| s.epoch == Epoch(77)).flat_map(|s| &s.parts).count();
        assert!(newest > 0, "what is written is in the index");
    }
    for segment in index.segments.iter().filter(|s| s.file != SEGMENT) {
        // Not there when the index only says so.
        std::fs::remove_file(place.dir.join(&segment.file)).unwrap_or_default();
    }
}
