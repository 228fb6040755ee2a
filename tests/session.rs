//! Whole sessions: an event on RabbitMQ, a real Janus, real publishers, an archive in S3.
#![allow(missing_docs)]

use std::time::Duration;

use archiver_testkit::content;
use archiver_testkit::publisher::{Options, Publisher, Truth};
use archiver_testkit::world::{Downloaded, World};

const BINARY: &str = env!("CARGO_BIN_EXE_archiver");

/// How many milliseconds a picture may be from its sound, and one stream from another.
const OFFSET_MAX: f64 = 0.040;

fn seconds(time: &serde_json::Value) -> f64 {
    time.as_f64().expect("a number") / 1000.0
}

/// Every picture that was sent since the first one in the file is in it, once and in order; returns how far the
/// file's times are from the times of the truth, for pictures and for sound.
fn compare(file: &std::path::Path, truth: &Truth, allow_lost: usize) -> (Vec<f64>, Vec<f64>) {
    assert_eq!(content::decode_errors(file).expect("ffmpeg"), "", "{}", file.display());
    let pictures = content::pictures(file).expect("pictures");
    assert!(pictures.iter().all(|p| p.number.is_some()), "a picture cannot be read");
    let origin = truth.frames.first().expect("frames").1;
    let taken = |at: std::time::Instant| at.duration_since(origin).as_secs_f64();
    let (mut at, mut lost, mut offsets) = (0, 0, Vec::new());
    let first = pictures.first().and_then(|p| p.number).expect("a picture");
    let begin = truth.frames.iter().position(|(n, _)| *n == first).expect("the first picture was sent");
    for (number, time) in &truth.frames[begin..] {
        if at >= pictures.len() {
            break;
        }
        if pictures[at].number == Some(*number) {
            offsets.push(pictures[at].at - taken(*time));
            at += 1;
        } else {
            lost += 1;
        }
    }
    assert_eq!(at, pictures.len(), "pictures that were not sent, or twice, or not in order");
    assert!(lost <= allow_lost, "{lost} pictures are lost of {}", truth.frames.len());
    let mut sounds = Vec::new();
    for beep in content::beeps(file).expect("beeps") {
        if let Some((_, time)) = truth.beeps.iter().find(|(second, _)| *second == beep.second) {
            sounds.push(beep.at - taken(*time));
        }
    }
    (offsets, sounds)
}

fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let at = ((values.len() - 1) as f64 * share) as usize;
    values[at]
}

/// The file is in step: sound against picture within ±40 ms at the 99th percentile.
fn assert_in_step(mut pictures: Vec<f64>, sounds: &[f64]) {
    assert!(!sounds.is_empty(), "no beep was found");
    let middle = percentile(&mut pictures.clone(), 0.5);
    println!("pictures {middle:.4} sounds {sounds:.4?}");
    for sound in sounds {
        assert!((sound - middle).abs() <= OFFSET_MAX, "a beep is {:.1} ms off", (sound - middle) * 1000.0);
    }
    let (low, high) = (percentile(&mut pictures, 0.005), percentile(&mut pictures, 0.995));
    assert!(high - low <= OFFSET_MAX, "pictures are spread over {:.1} ms", (high - low) * 1000.0);
}

fn only_file(archive: &Downloaded, router_id: &str) -> std::path::PathBuf {
    let files = archive.files(router_id);
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_archived_by_itself_with_every_picture_in_step_with_its_sound() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    world.start_worker().expect("worker");
    world.janus.create_room("s1", serde_json::json!({})).await.expect("room");
    let started = world.started("s1");
    world.publish(&started).expect("publish");
    let alice = Publisher::start(Options::new(&world.janus, "s1", "alice")).await.expect("alice");
    world.recording(2, Duration::from_secs(15)).await;
    // The same event again, and another one of the same conversation: no second archive.
    world.publish(&started).expect("publish");
    let again = world.started("s1");
    world.publish(&again).expect("publish");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let late = Publisher::start(Options { code: 2, ..Options::new(&world.janus, "s1", "late") }).await.expect("late");
    let mut sound_only = Options::new(&world.janus, "s1", "voice");
    sound_only.video = None;
    let voice = Publisher::start(sound_only).await.expect("voice");
    world.recording(5, Duration::from_secs(15)).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let late = late.leave().await.expect("leave");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ended = world.ended("s1");
    world.publish(&ended).expect("publish");
    let archive = world.archive("s1", "available", Duration::from_secs(30)).await;
    let (alice, voice) = (alice.crash(), voice.crash());
    assert_eq!(archive["reason"], "session ended");
    let archive = world.download(&archive).expect("download");

    println!("{}", serde_json::to_string_pretty(&archive.report).expect("JSON"));
    let file = only_file(&archive, "alice");
    let (mut pictures, sounds) = compare(&file, &alice, 0);
    let alice_at = percentile(&mut pictures, 0.5);
    assert_in_step(pictures, &sounds);
    let track = archive.track("alice", "video").expect("track");
    assert_eq!((&track["stats"]["lost"], &track["stats"]["frames_damaged"]), (&0.into(), &0.into()), "{track}");

    let file = only_file(&archive, "late");
    let (mut pictures, sounds) = compare(&file, &late, 0);
    let late_at = percentile(&mut pictures, 0.5);
    assert_in_step(pictures, &sounds);
    // Two streams against each other: each file's start in the session, plus its pictures' place in the file.
    let start = |id: &str| {
        let stream = archive.stream(id).expect("stream");
        let files = archive.manifest["files"].as_array().expect("files");
        seconds(&files.iter().find(|f| f["streamId"] == stream["streamId"]).expect("file")["startMs"])
    };
    let apart = (late.frames[0].1 - alice.frames[0].1).as_secs_f64();
    let off = (start("late") + late_at) - (start("alice") + alice_at) - apart;
    assert!(off.abs() <= OFFSET_MAX, "two streams are {:.1} ms apart", off * 1000.0);

    let file = only_file(&archive, "voice");
    assert_eq!(content::codecs(&file).expect("codecs"), ["opus"]);
    assert!(!voice.beeps.is_empty() && content::beeps(&file).expect("beeps").len() >= 5);
    for (id, truth) in [("alice", &alice), ("late", &late)] {
        let file = only_file(&archive, id);
        let live = (truth.frames[truth.frames.len() - 1].1 - truth.frames[0].1).as_secs_f64();
        let lasts = content::duration(&file).expect("duration");
        println!("{id}: live {live:.2} s, file {lasts:.2} s");
    }
    let vonage = archive.vonage["files"].as_array().expect("files");
    assert_eq!(vonage.len(), 3);
    assert!(world.stop_worker(Duration::from_secs(20)), "{}", world.log());
    // Nothing local is left, and what is in the store can be read to its end.
    let left: Vec<_> = std::fs::read_dir(world.data().join("spool")).expect("spool").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    let id = archive.manifest["archiveId"].as_str().expect("id");
    assert!(world.command(&["archives", "verify", id]).expect("verify").status.success());
}
