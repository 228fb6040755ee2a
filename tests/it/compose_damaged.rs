//! Media that is damaged or hostile: the composed archive is right apart from it.

use crate::BINARY;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::support::composed::{begin, fetch_log, finished};
use archiver::model::ids::{Epoch, StreamId};
use archiver::model::time::MediaTime;
use archiver::recording::frames::LogItem;
use archiver::recording::spool::Spool;
use archiver::recording::{HISTORY, LogOptions, LogReader, TrackLog};
use archiver_testkit::content::{Content, Part};
use archiver_testkit::publisher::{Options, Publisher};
use archiver_testkit::world::World;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

/// Logs with damaged media.
const LOGS: u64 = 12;
/// Segments that must have been damaged in all.
const SEGMENTS: usize = 1000;
/// Segments are sealed after this, so that there are many.
const SEGMENT: i64 = 100_000_000;

/// What is done to a stream's frames.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Flipped,
    Truncated,
    Garbage,
    Resized,
}

impl Damage {
    const ALL: [Self; 4] = [Self::Flipped, Self::Truncated, Self::Garbage, Self::Resized];

    fn apply(self, data: &[u8], keyframe: bool, rng: &mut impl Rng) -> Vec<u8> {
        let mut data = data.to_vec();
        match self {
            Self::Flipped => {
                for _ in 0..rng.random_range(1..=8) {
                    let at = rng.random_range(0..data.len());
                    data[at] ^= 1 << rng.random_range(0..8);
                }
            }
            Self::Truncated => data.truncate(rng.random_range(1..=data.len())),
            Self::Garbage => rng.fill(&mut data[..]),
            // Width and height of a VP8 keyframe (RFC 6386 section 9.1).
            Self::Resized if keyframe && data.len() > 10 => {
                for at in [6, 8] {
                    let size = rng.random_range(1..2000_u16).to_le_bytes();
                    data[at..at + 2].copy_from_slice(&size);
                }
            }
            Self::Resized => {}
        }
        data
    }
}

/// Writes a log anew, with the media of one stream damaged if at all. Returns how many of its segments are.
fn damaged(log: &Path, to: &Path, stream: StreamId, damage: Option<Damage>, rng: &mut impl Rng) -> usize {
    let spool = Arc::new(Spool::open(to, 1 << 30, 70).expect("spool"));
    let dir = to.join("archive");
    let mut touched = 0;
    for track in LogReader::open(log).expect("log").tracks {
        let options = LogOptions::default();
        let opened = TrackLog::open(&dir, track.track, Epoch(1), options, Arc::clone(&spool));
        let (mut written, hit) = (opened.expect("track").0, damage.filter(|_| track.track.stream == stream));
        let (mut segment, mut segments) = (MediaTime(i64::MIN), BTreeSet::new());
        for report in &track.reports {
            written.sender_report(*report);
        }
        for item in track.frames() {
            match item {
                LogItem::Format(format) => drop(written.format(&format).expect("format")),
                LogItem::Frame(mut frame) => {
                    if segment.0 == i64::MIN || frame.pts - segment >= SEGMENT {
                        written.seal().expect("seal");
                        segment = frame.pts;
                    }
                    let hit = hit.filter(|_| !frame.data.is_empty() && (frame.keyframe || rng.random_bool(0.3)));
                    if let Some(damage) = hit {
                        frame.data = Bytes::from(damage.apply(&frame.data, frame.keyframe, rng));
                        segments.insert(segment);
                    }
                    written.frame(&frame).expect("frame");
                }
            }
        }
        written.seal().expect("seal");
        touched += segments.len();
        // Some files are not what the index says.
        for entry in std::fs::read_dir(dir.join("tracks").join(track.track.to_string())).expect("track").flatten() {
            let is_segment = entry.path().extension().is_some_and(|e| e == "mkv");
            if hit.is_some() && is_segment && rng.random_bool(0.05) {
                let file = std::fs::OpenOptions::new().write(true).open(entry.path()).expect("segment");
                let len = file.metadata().expect("segment").len();
                file.set_len(rng.random_range(0..len)).expect("truncate");
            }
        }
    }
    std::fs::copy(log.join(HISTORY), dir.join(HISTORY)).expect("history");
    touched
}

/// Composes a log with the first stream at a place that depends on no other. Returns how many pictures there are, and how
/// many of them do not show it.
fn composed(log: &Path, out: &Path, code: u16) -> (usize, usize) {
    let mut compose = Command::new(BINARY);
    compose.arg("compose").arg(log).arg("--out").arg(out).args(["--layout", "horizontalPresentation"]);
    let output = compose.output().expect("archiver compose");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Four fifths of the height, in the picture's own shape.
    let place = Part { x: 64, y: 0, width: 512, height: 384 };
    let frames = Content::read_part(out, Some(place)).expect("file").frames;
    (frames.len(), frames.iter().filter(|frame| frame.code != Some(code)).count())
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_media_of_one_stream_harms_no_other() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    world.start_worker().expect("worker");
    begin(&mut world, "d1", json!({ "outputMode": "composed" })).await;
    let alice = Publisher::start(Options::new(&world.janus, "d1", "alice")).await.expect("alice");
    // Hers is the first stream in the picture.
    world.recording(2).await;
    let bob = Options { code: 2, ..Options::new(&world.janus, "d1", "bob") };
    let bob = Publisher::start(bob).await.expect("bob");
    world.recording(4).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    alice.leave().await.expect("leave");
    bob.leave().await.expect("leave");
    let archive = finished(&mut world, "d1").await;
    let hurt: StreamId = archive.stream("bob").expect("bob")["streamId"].as_str().expect("id").parse().expect("id");
    let log = tempfile::tempdir().expect("folder");
    fetch_log(&world, &archive.manifest, log.path()).await;

    // Written anew too: its parts are cut elsewhere then, and how long a part's only picture lasts is a guess.
    let captured = composed(log.path(), &log.path().join("whole.mp4"), 1);
    let sound = tempfile::tempdir().expect("folder");
    damaged(log.path(), sound.path(), hurt, None, &mut StdRng::seed_from_u64(0));
    let whole = composed(&sound.path().join("archive"), &sound.path().join("whole.mp4"), 1);
    assert!(captured.0.abs_diff(whole.0) <= 1 && captured.1 <= 2, "{captured:?} {whole:?}");
    assert!(whole.0 > 150 && whole.1 <= 2, "of {} pictures {} lack the first stream", whole.0, whole.1);
    let work = move || {
        let mut segments = 0;
        for seed in 0..LOGS {
            let (dir, mut rng) = (tempfile::tempdir().expect("folder"), StdRng::seed_from_u64(seed));
            let damage = Damage::ALL[usize::try_from(seed % 4).expect("small")];
            segments += damaged(log.path(), dir.path(), hurt, Some(damage), &mut rng);
            let seen = composed(&dir.path().join("archive"), &dir.path().join("archive.mp4"), 1);
            assert_eq!(seen, whole, "{seed} {damage:?}: pictures, and those without a stream that is not damaged");
        }
        segments
    };
    let segments = tokio::task::spawn_blocking(work).await.expect("composing");
    println!("{segments} damaged segments");
    assert!(segments >= SEGMENTS, "{segments}");
}
