//! Shipping and restoring, over a store that is a directory.

use std::sync::Arc;

use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::model::ids::{SessionId, StreamId, TrackId, TrackKind};
use crate::model::media::{Codec, Frame, TrackFormat};
use crate::model::time::{MediaTime, Wallclock};
use crate::recording::restore::{restore, restore_reserving};
use crate::recording::spool::Spool;
use crate::recording::{LogOptions, TrackLog};
use crate::store::dir::DirStore;

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
    let mut shipper = Shipper::new(keys.clone(), here.path().to_owned(), Epoch(1));
    for round in 0..3 {
        log.format(&format).expect("format");
        for n in 0..100 {
            let pts = MediaTime::from_millis((round * 100 + n) * 20);
            log.frame(&Frame { pts, duration: None, keyframe: true, data: vec![7; 160].into() }).expect("frame");
        }
        log.seal().expect("seal").expect("segment").sync().expect("sync");
        let shipped = shipper.ship(&store, &cancel).await.expect("ship");
        assert!(matches!(shipped, Cancellable::Done(16_001..)), "{shipped:?}");
        let shipped = shipper.ship(&store, &cancel).await.expect("ship");
        assert_eq!(shipped, Cancellable::Done(0));
    }
    // Nothing is fetched to a disk that has no room for it.
    let full =
        restore_reserving(&store, &keys, there.path(), None, |bytes| bytes.saturating_mul(1 << 40), &cancel).await;
    assert_eq!(full.expect_err("no disk is as large").fault().kind, crate::model::fault::FaultKind::SpoolFull);
    assert_eq!(std::fs::read_dir(there.path()).expect("listed").count(), 0);
    assert_eq!(restore(&store, &keys, there.path(), None, &cancel).await.expect("restore"), Cancellable::Done(3));
    let read = |dir: &Path| {
        let index = LogReader::open(dir).expect("reader").tracks.remove(0);
        (index.frames().collect::<Vec<_>>(), index.segments.iter().map(|s| s.sealed.clone()).collect::<Vec<_>>())
    };
    assert_eq!(read(here.path()), read(there.path()));
    assert_eq!(read(there.path()).0.len(), 301);
    // Again over what is there: nothing is fetched, nothing changes, and nothing waits to be sent once more.
    assert_eq!(restore(&store, &keys, there.path(), None, &cancel).await.expect("restore"), Cancellable::Done(0));
    let shipped = Shipper::new(keys, there.path().to_owned(), Epoch(2)).ship(&store, &cancel).await.expect("ship");
    assert_eq!(shipped, Cancellable::Done(0));
    assert_eq!(read(here.path()), read(there.path()));
}

struct Place {
    dir: tempfile::TempDir,
    log: TrackLog,
    shipper: Shipper,
}

impl Place {
    fn open(dir: tempfile::TempDir, epoch: u32) -> Self {
        let session: SessionId = "s".parse().expect("id");
        let track = TrackId { stream: StreamId::of_router(&session, "a"), kind: TrackKind::Audio };
        let spool = Arc::new(Spool::open(dir.path(), 1 << 30, 70).expect("spool"));
        let epoch = Epoch(epoch);
        let (log, _) = TrackLog::open(dir.path(), track, epoch, LogOptions::default(), spool).expect("open");
        let shipper = Shipper::new(keys(), dir.path().to_owned(), epoch);
        Self { dir, log, shipper }
    }

    /// A second of sound, sealed.
    fn second(&mut self, second: i64) {
        let format = TrackFormat { codec: Codec::Pcmu, width: 0, height: 0, channels: 1, codec_private: vec![] };
        self.log.format(&format).expect("format");
        for n in 0..50 {
            let pts = MediaTime::from_millis(second * 1000 + n * 20);
            let data = vec![u8::try_from(second % 256).expect("small"); 160].into();
            self.log.frame(&Frame { pts, duration: None, keyframe: true, data }).expect("frame");
        }
        self.log.seal().expect("seal").expect("segment").sync().expect("sync");
    }

    async fn ship(&mut self, store: &DirStore) {
        let cancel = CancellationToken::new();
        let shipped = self.shipper.ship(store, &cancel).await;
        assert!(matches!(shipped, Ok(Cancellable::Done(_))), "{shipped:?}");
    }
}

fn keys() -> Keys {
    Keys::new("app".parse().expect("id"), "2f6f2d9a-8d1c-4b1e-9c41-0b8a7d1f4c11".parse().expect("id"))
}

/// The seconds that are wholly there, in order, and the frames in all.
fn seconds(dir: &Path) -> (Vec<i64>, usize) {
    let index = LogReader::open(dir).expect("reader").tracks.remove(0);
    let frames: Vec<_> = index
        .frames()
        .filter_map(|i| match i {
            crate::recording::frames::LogItem::Frame(f) => Some(f.pts.as_millis() / 1000),
            crate::recording::frames::LogItem::Format(_) => None,
        })
        .collect();
    let mut seconds = frames.clone();
    seconds.dedup();
    (seconds, frames.len())
}

#[tokio::test]
async fn a_bundle_whose_shipping_was_not_noted_does_not_break_the_chain() {
    let bucket = tempfile::tempdir().expect("dir");
    let store = DirStore::open(bucket.path()).expect("store");
    let mut here = Place::open(tempfile::tempdir().expect("dir"), 1);
    here.second(0);
    let path = LogReader::open(here.dir.path()).expect("reader").tracks[0].dir.join(INDEX);
    let before = std::fs::read(&path).expect("index");
    here.ship(&store).await;
    // The worker dies between the store's answer and its own note of it.
    std::fs::write(&path, before).expect("index");
    here.shipper = Shipper { next: 2, ..Shipper::new(keys(), here.dir.path().to_owned(), Epoch(1)) };
    for second in 1..4 {
        here.second(second);
        here.ship(&store).await;
    }
    let there = tempfile::tempdir().expect("dir");
    let restored = restore(&store, &keys(), there.path(), None, &CancellationToken::new()).await;
    assert!(matches!(restored, Ok(Cancellable::Done(_))), "{restored:?}");
    assert_eq!(seconds(there.path()), ((0..4).collect(), 200));
}

#[tokio::test]
async fn a_worker_that_gets_its_job_back_gains_what_another_one_captured_meanwhile() {
    let bucket = tempfile::tempdir().expect("dir");
    let store = DirStore::open(bucket.path()).expect("store");
    let cancel = CancellationToken::new();
    let history = |dir: &Path, line: &str| {
        let (file, _) = LineFile::open::<serde_json::Value>(&dir.join(HISTORY)).expect("history");
        file.append(&line).expect("line");
    };
    let mut first = Place::open(tempfile::tempdir().expect("dir"), 1);
    history(first.dir.path(), "first");
    first.second(0);
    first.ship(&store).await;
    first.second(1);
    let other = tempfile::tempdir().expect("dir");
    assert_eq!(restore(&store, &keys(), other.path(), None, &cancel).await.expect("restore"), Cancellable::Done(1));
    let mut second = Place::open(other, 2);
    history(second.dir.path(), "second");
    second.second(2);
    second.ship(&store).await;
    second.second(3);
    second.ship(&store).await;
    // Back on the first machine, which has a second that never came to the store.
    let mut third = Place::open(first.dir, 3);
    history(third.dir.path(), "third");
    third.second(4);
    third.ship(&store).await;
    assert_eq!(restore(&store, &keys(), third.dir.path(), None, &cancel).await.expect("restore"), Cancellable::Done(2));
    assert_eq!(seconds(third.dir.path()), ((0..5).collect(), 250));
    let (_, lines) = LineFile::open::<String>(&third.dir.path().join(HISTORY)).expect("history");
    assert_eq!(lines, ["first", "third", "second"]);
    // What is here is not fetched again, and nothing is there twice.
    assert_eq!(restore(&store, &keys(), third.dir.path(), None, &cancel).await.expect("restore"), Cancellable::Done(0));
    assert_eq!(seconds(third.dir.path()).1, 250);
}

/// A track of a second, sealed or still written.
fn track(dir: &Path, name: &str, is_sealed: bool) -> TrackId {
    let session: SessionId = "s".parse().expect("id");
    let track = TrackId { stream: StreamId::of_router(&session, name), kind: TrackKind::Audio };
    let spool = Arc::new(Spool::open(dir, 1 << 30, 70).expect("spool"));
    let (mut log, _) = TrackLog::open(dir, track, Epoch(1), LogOptions::default(), spool).expect("open");
    let format = TrackFormat { codec: Codec::Pcmu, width: 0, height: 0, channels: 1, codec_private: vec![] };
    log.format(&format).expect("format");
    for n in 0..100 {
        let pts = MediaTime::from_millis(n * 20);
        log.frame(&Frame { pts, duration: None, keyframe: true, data: vec![7; 160].into() }).expect("frame");
    }
    if is_sealed {
        log.seal().expect("seal").expect("segment").sync().expect("sync");
    } else {
        log.tick(MediaTime::from_millis(10_000)).expect("part");
    }
    track
}

#[tokio::test]
async fn a_bundle_names_all_that_its_machine_takes_along_if_that_is_lost() {
    let bucket = tempfile::tempdir().expect("dir");
    let store = DirStore::open(bucket.path()).expect("store");
    let (here, there) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    let (sealed, written) = (track(here.path(), "sealed", true), track(here.path(), "written", false));
    let cancel = CancellationToken::new();
    let mut shipper = Shipper::new(keys(), here.path().to_owned(), Epoch(1));
    assert!(matches!(shipper.ship(&store, &cancel).await, Ok(Cancellable::Done(1..))));
    assert!(matches!(restore(&store, &keys(), there.path(), None, &cancel).await, Ok(Cancellable::Done(1))));
    let log = LogReader::open_present(there.path()).expect("reader");
    let parts = |id: TrackId| {
        let track = log.tracks.iter().find(|track| track.track == id).expect("the bundle names the track");
        (track.segments[0].parts.len(), track.segments[0].lost.len())
    };
    let (sealed, written) = (parts(sealed), parts(written));
    assert!(sealed.0 > 0 && sealed.1 == 0, "{sealed:?}");
    assert!(written.0 == 0 && written.1 > 0, "{written:?}");
}

#[tokio::test]
async fn the_segments_of_a_long_outage_travel_in_several_bundles_and_each_line_of_an_index_once() {
    let bucket = tempfile::tempdir().expect("dir");
    let store = DirStore::open(bucket.path()).expect("store");
    let (mut here, there) = (Place::open(tempfile::tempdir().expect("dir"), 1), tempfile::tempdir().expect("dir"));
    let other = track(here.dir.path(), "b", true);
    let seconds_all = i64::try_from(SEGMENTS_MAX).expect("small") + 100;
    (0..seconds_all).for_each(|second| here.second(second));
    here.ship(&store).await;
    here.ship(&store).await;
    let cancel = CancellationToken::new();
    assert_eq!(restore(&store, &keys(), there.path(), None, &cancel).await.expect("restore"), Cancellable::Done(2));
    let read = |dir: &Path| {
        let log = LogReader::open_present(dir).expect("reader");
        log.tracks.iter().map(|track| (track.track, track.frames_total(), track.segments.len())).collect::<Vec<_>>()
    };
    assert_eq!(read(here.dir.path()), read(there.path()));
    assert!(read(there.path()).iter().any(|(id, frames, _)| *id == other && *frames == 100));
    let lines = |dir: &Path| {
        let text = std::fs::read_to_string(dir.join(TRACKS).join(other.to_string()).join(INDEX)).expect("index");
        text.lines().filter(|line| !line.contains("shipped")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(lines(here.dir.path()), lines(there.path()));
}

#[tokio::test]
async fn what_was_sent_before_a_job_waited_is_left_out() {
    let bucket = tempfile::tempdir().expect("dir");
    let store = DirStore::open(bucket.path()).expect("store");
    let cancel = CancellationToken::new();
    let there = tempfile::tempdir().expect("dir");
    for (epoch, origin) in [(1, Some(Wallclock(5))), (2, Some(Wallclock(9))), (3, None)] {
        let mut place = Place::open(tempfile::tempdir().expect("dir"), epoch);
        if let Some(origin) = origin {
            std::fs::write(place.dir.path().join(JOB), serde_json::json!({ "origin": origin }).to_string())
                .expect("job");
        }
        place.second(i64::from(epoch));
        place.ship(&store).await;
    }
    let restored = restore(&store, &keys(), there.path(), Some(Wallclock(9)), &cancel).await;
    assert_eq!(restored.expect("restore"), Cancellable::Done(2));
    assert_eq!(seconds(there.path()).0, [2, 3]);
    let left = std::fs::read_dir(there.path()).expect("list").flatten().map(|entry| entry.file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().starts_with("restore-")));
}
