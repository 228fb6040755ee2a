//! H.264 with B-frames: pictures come in decoding order, and their times are those of presentation. Both are kept from the packets to the
//! files.

use crate::BINARY;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::support::composed::finished;
use crate::support::h264::{AccessUnit, STEP, depacketized, published_units};
use crate::support::logs::{Log, STREAM};
use archiver::compose::log_follower::{LogProgress, ProgressReceiver};
use archiver::media::{Pipelines, verify};
use archiver::model::archive_options::StreamMode;
use archiver::model::desired::Selection;
use archiver::model::ids::{Epoch, TrackId, TrackKind};
use archiver::model::time::MediaTime;
use archiver::recording::frames::LogItem;
use archiver::recording::history::{EventKind, History};
use archiver::recording::spool::Spool;
use archiver::recording::{LogOptions, LogReader, TrackLog};
use archiver_testkit::content::{Content, SeenFrame, percentile};
use archiver_testkit::publisher::media::FPS;
use archiver_testkit::publisher::{H264Kind, Options, Publisher, VideoCodec};
use archiver_testkit::world::World;
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// Pictures of a log: up to a keyframe, so that none is missing that another one refers to.
const PICTURES: usize = 270;

/// The first pictures of a publisher, in decoding order.
fn numbered(b_frames: u8, begins: i64) -> Vec<AccessUnit> {
    let mut units = published_units(b_frames, PICTURES);
    units.iter_mut().for_each(|unit| unit.pts = unit.pts + begins);
    units
}

/// The pictures of a composed file, of which every one was decoded.
fn composed(log: &Log, rate: u32, progress: ProgressReceiver) -> Vec<SeenFrame> {
    let (out, composed) = log.composed(rate, progress);
    assert_eq!((composed.late, composed.errors.len()), (0, 0), "{:?}", composed.errors);
    let content = Content::read(&out).expect("file");
    assert!(content.errors.is_empty(), "{:?}", content.errors);
    content.frames
}

fn numbers(frames: &[SeenFrame]) -> Vec<usize> {
    frames.iter().map(|frame| usize::from(frame.number.expect("a number"))).collect()
}

/// Each picture is there once, in the order of presentation, at its time.
fn assert_whole(file: &Path, first: usize, count: usize) {
    let content = Content::read(file).expect("file");
    assert!(content.errors.is_empty(), "{:?}", content.errors);
    assert_eq!(numbers(&content.frames), (first..first + count).collect::<Vec<_>>());
    let begins = content.frames[0].pts;
    for (n, frame) in content.frames.iter().enumerate() {
        let (found, sent) = (frame.pts - begins, n as f64 / f64::from(FPS));
        // The log has a tenth of a millisecond, Matroska a millisecond.
        assert!((found - sent).abs() < 0.0012, "picture {n} is at {found} s instead of {sent} s");
    }
    // GStreamer counts the same pictures.
    let decoded = verify::decode(file, None, &Pipelines::default(), &CancellationToken::new()).expect("decode");
    assert_eq!(decoded.done().expect("nothing cancels it").video_frames, count as u64);
}

#[test]
fn every_picture_is_in_the_individual_file_once_and_at_its_time() {
    for b_frames in [1, 2, 3] {
        for begins in [0, 1_000_052_000] {
            println!("{b_frames} B-frames, from {begins} ns on");
            let log = Log::of(&depacketized(&numbered(b_frames, begins)), usize::MAX);
            let (path, file) = log.individual();
            assert_eq!(file.video_frames, PICTURES as u64, "{file:?}");
            assert_whole(&path, 0, PICTURES);
            let length = (file.end_ms - file.start_ms) as f64 / 1000.0;
            let sent = PICTURES as f64 / f64::from(FPS);
            assert!((length - sent).abs() < 0.003, "{length} s instead of {sent} s: {file:?}");
        }
    }
}

#[test]
fn segments_and_parts_may_end_between_reordered_pictures() {
    let options = numbered(2, 0);
    let video = depacketized(&options);
    for segment in [1, 2, 3, 7, 50] {
        println!("a segment of {segment} pictures");
        let log = Log::of(&video, segment);
        let index = &LogReader::open(&log.path()).expect("log").tracks[0];
        let read: Vec<MediaTime> = index
            .frames()
            .filter_map(|item| match item {
                LogItem::Frame(frame) => Some(frame.pts),
                LogItem::Format(_) => None,
            })
            .collect();
        let written: Vec<MediaTime> =
            video.iter().map(|(_, frame)| MediaTime(frame.pts.0 / 100_000 * 100_000)).collect();
        assert_eq!(read, written);
        assert_eq!(index.start(), Some(MediaTime::ZERO));
        let end = index.end().expect("end").0 - PICTURES as i64 * STEP;
        assert!(end.abs() < 1_000_000, "the end is off by {end} ns");
        assert_whole(&log.individual().0, 0, PICTURES);
    }
}

#[test]
fn a_file_that_is_cut_between_reordered_pictures_has_only_those_that_decode() {
    let log = Log::of(&depacketized(&numbered(2, 0)), 50);
    let stream = STREAM.parse().expect("id");
    let (history, _) = History::open(&log.path()).expect("history");
    let add = |at: i64, kind| history.add(MediaTime(at), kind).expect("written");
    add(0, EventKind::StreamMode { mode: StreamMode::Manual });
    // From a picture before a keyframe on, to between two B-frames; 123 comes before them.
    add(20 * STEP, EventKind::Selected { stream, selection: Selection::ALL });
    add(121 * STEP + STEP / 2, EventKind::Selected { stream, selection: Selection::NONE });
    assert_whole(&log.individual().0, 30, 91);
}

#[test]
fn the_composed_file_shows_every_picture_once_and_in_order() {
    for b_frames in [0, 1, 2, 3] {
        println!("{b_frames} B-frames");
        let log = Log::of(&depacketized(&numbered(b_frames, 0)), 50);
        assert_eq!(numbers(&composed(&log, FPS, ProgressReceiver::finished())), (0..PICTURES).collect::<Vec<_>>());
    }
}

#[test]
fn a_composer_that_follows_the_log_shows_the_same_pictures() {
    let video = depacketized(&numbered(2, 0));
    let log = Log::of(&video, 50);
    let whole = numbers(&composed(&log, FPS, ProgressReceiver::finished()));
    // The same log as it grows: each picture comes when its encoder has what it refers to.
    let growing = Log::of(&video[..1], 50);
    let (sender, receiver) = ProgressReceiver::channel();
    let dir = growing.path();
    let followed = std::thread::scope(|scope| {
        let composing = scope.spawn(|| numbers(&composed(&growing, FPS, receiver)));
        let spool = Arc::new(Spool::open(growing.dir.path(), 1 << 30, 70).expect("spool"));
        let track = TrackId { stream: STREAM.parse().expect("id"), kind: TrackKind::Video };
        let (mut rest, _) = TrackLog::open(&dir, track, Epoch(2), LogOptions::default(), spool).expect("log");
        rest.format(video[0].0.as_ref().expect("format")).expect("format");
        for (n, (_, frame)) in video.iter().enumerate().skip(1) {
            rest.frame(frame).expect("frame");
            if n % 5 == 0 {
                rest.seal().expect("seal");
                // A picture arrives two steps after it was taken.
                sender.send(LogProgress::Watermark(MediaTime((n as i64 + 2) * STEP)));
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        rest.seal().expect("seal");
        sender.send(LogProgress::Ended);
        composing.join().expect("composed")
    });
    assert_eq!(followed, whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_with_b_frames_is_whole_in_both_files() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    world.start_worker().expect("worker");
    world.janus.create_room("b", json!({ "videocodec": "h264" })).await.expect("room");
    let mut started = world.started("b");
    started["data"]["archive"] = json!({ "outputMode": "both", "resolution": "640x480" });
    world.publish(&started).expect("publish");
    let options = Options {
        video: Some(VideoCodec::H264),
        h264: H264Kind::BFrames(2),
        ..Options::new(&world.janus, "b", "alice")
    };
    let alice = Publisher::start(options).await.expect("alice");
    world.recording(2).await;
    alice.pictures_pass(300).await;
    let truth = alice.leave().await.expect("leave").timeline();
    let archive = finished(&mut world, "b").await;
    let files = archive.files("alice");
    let [file] = files.as_slice() else { panic!("{files:?}") };
    let read = |file: &Path| {
        let content = Content::read(file).expect("file");
        assert!(content.errors.is_empty(), "{:?}", content.errors);
        content
    };
    let (individual, composed) = (read(file), read(&archive.dir.join("archive.mp4")));
    let matched = individual.against(&truth);
    let shown: Vec<u16> = composed.frames.iter().filter_map(|frame| frame.number).collect();
    // Steps from one picture that was sent to the next: the last one may have been sent ahead of two that were not.
    let sent: BTreeSet<u32> = truth.frames.iter().map(|(number, _)| *number).collect();
    let place = |number: u16| sent.range(..u32::from(number)).count() as i32;
    let steps: Vec<i32> = shown.windows(2).map(|two| place(two[1]) - place(two[0])).collect();
    let others: Vec<(usize, i32)> = steps.iter().copied().enumerate().filter(|(_, step)| *step != 1).collect();
    println!(
        "individual: {} pictures of {}, {} missing, {} strange; composed: {} pictures, of them {} others than the next",
        matched.frames.len(),
        truth.frames.len() - matched.before,
        matched.missing.len(),
        matched.strange,
        shown.len(),
        others.len()
    );
    assert!(matched.frames.len() >= 290, "{}", matched.frames.len());
    let lacking = (matched.missing.len(), matched.after, matched.strange, matched.damaged);
    assert_eq!(lacking, (0, 0, 0, 0), "{:?}", matched.missing);
    assert!(individual.in_order());
    let decoded = tokio::task::block_in_place(|| {
        verify::decode(file, None, &Pipelines::default(), &CancellationToken::new()).expect("decode")
    });
    assert_eq!(decoded.done().expect("nothing cancels it").video_frames, individual.frames.len() as u64);
    let zeros: Vec<f64> = matched.frames.iter().map(archiver_testkit::content::Pair::zero).collect();
    let spread = percentile(&zeros, 100.0).expect("pictures") - percentile(&zeros, 0.0).expect("pictures");
    assert!(spread < 0.010, "pictures are up to {spread} s from their times");
    let missing = archive.manifest["missing"].as_array().map_or(0, Vec::len);
    assert_eq!(missing, 0, "{}", archive.manifest);
    // As many pictures a second are drawn as are sent. Where the moment that is drawn is just between two pictures, one may be shown twice
    // instead of the next.
    let last = shown.iter().rposition(|number| Some(number) != shown.last()).map_or(0, |at| at + 1);
    let others: Vec<(usize, i32)> = others.into_iter().filter(|(at, _)| *at < last).collect();
    assert!(last >= 285, "{last}");
    assert!(others.iter().all(|(_, step)| (0..=2).contains(step)), "{others:?} of {shown:?}");
    assert!(others.len() * 20 < shown.len(), "{others:?} of {shown:?}");
}
