//! Media that is encrypted end to end: it is captured as it came, is never mixed into what others hear, and an archive of nothing else fails.

use std::collections::BTreeSet;
use std::path::Path;

use archiver::archive::ArchiveError;
use archiver::archive::build::build;
use archiver::archive::object::ArchiveDescriptor;
use archiver::compose::log_follower::ProgressReceiver;
use archiver::compose::undecodable::{DecodeCounts, undecodable};
use archiver::model::archive_options::{ArchiveOptions, OutputMode};
use archiver::model::ids::{TrackId, TrackKind};
use archiver::model::media::{Codec, Frame, GapCause};
use archiver::model::time::MediaTime;
use archiver::recording::history::{EventKind, History};
use archiver_testkit::content::Content;
use archiver_testkit::publisher::VideoCodec;
use archiver_testkit::publisher::{Options, Publisher};
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::{Downloaded, World};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::BINARY;
use crate::compose::hashes;
use crate::individual::items;
use crate::support::archives::{individual, pipelines};
use crate::support::coded::coded;
use crate::support::logs::{Item, Log, add_track};

/// Publishes a session's start with this output, and waits until its publishers are recorded.
async fn recorded(world: &mut World, session: &str, output: &str, tracks: usize) {
    let mut started = world.started(session);
    started["data"]["archive"] = json!({ "outputMode": output });
    world.publish(&started).expect("publish");
    world.recording(tracks).await;
}

fn options(world: &World, room: &str, id: &str, code: u16, encrypted: bool) -> Options {
    let video = Some(VideoCodec::H264);
    Options { video, code, encrypted, ..Options::new(&world.janus, room, id) }
}

/// What an archive lacks: stream, kind and cause.
fn lacks(files: &Downloaded) -> BTreeSet<(String, String, String)> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let missing = files.manifest["missing"].as_array().expect("missing");
    missing.iter().map(|one| (text(&one["streamId"]), text(&one["kind"]), text(&one["cause"]))).collect()
}

/// A frame whose bytes are noise, but for those that a router reads. H.264 has one slice a frame, behind its length.
fn noise(codec: Codec, frame: &Frame, rng: &mut StdRng) -> Frame {
    let kept = match codec {
        Codec::Opus => 1,
        Codec::H264 => 5,
        _ if frame.keyframe => 10,
        _ => 3,
    };
    let mut data = frame.data.to_vec();
    for byte in data.iter_mut().skip(kept) {
        *byte = rng.random_range(1..=u8::MAX);
    }
    Frame { data: data.into(), ..frame.clone() }
}

#[test]
fn noise_is_told_whatever_the_key_is() {
    for codec in [Codec::H264, Codec::Vp8] {
        let clear = items(coded(codec));
        // Keyframes come when somebody joins: one in all, or one a second.
        for (keyframes, seed) in [1, 4].into_iter().flat_map(|keyframes| (0..10).map(move |seed| (keyframes, seed))) {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut video = clear.clone();
            for (n, (_, frame)) in video.iter_mut().enumerate() {
                *frame = noise(codec, frame, &mut rng);
                frame.keyframe = frame.keyframe && n / 25 < keyframes;
            }
            let (_, composed) = Log::of(&video, 50).composed(25, ProgressReceiver::finished());
            assert_eq!(composed.undecodable.len(), 1, "{codec:?}, key {seed}: {:?}", composed.errors);
            let mut tracks = composed.errors.clone();
            let stream = tracks[0].0;
            tracks.push((stream, TrackKind::Audio, DecodeCounts { decoded: 200, ..DecodeCounts::default() }));
            assert_eq!(undecodable(&tracks).len(), 2, "{codec:?}, {keyframes} keyframes, key {seed}: {tracks:?}");
        }
    }
}

/// Sound alone: nothing but the router tells that it is encrypted.
#[test]
fn sound_that_the_router_says_is_encrypted_is_in_no_composed_file() {
    let sound = items(coded(Codec::Opus));
    let mut rng = StdRng::seed_from_u64(14);
    let secret: Vec<Item> =
        sound.iter().map(|(format, frame)| (format.clone(), noise(Codec::Opus, frame, &mut rng))).collect();
    let of = |streams: &[(&str, &[Item])], encrypted: Option<&str>| {
        let dir = tempfile::tempdir().expect("dir");
        for (stream, items) in streams {
            let track = TrackId { stream: stream.parse().expect("id"), kind: TrackKind::Audio };
            add_track(dir.path(), track, items, 50);
        }
        if let Some(stream) = encrypted {
            let (history, _) = History::open(&dir.path().join("archive")).expect("history");
            let stream = stream.parse().expect("id");
            history.add(MediaTime::ZERO, EventKind::Encrypted { stream }).expect("written");
        }
        let session = "s".parse().expect("id");
        let descriptor = ArchiveDescriptor {
            ended_at: None,
            options: ArchiveOptions { output_mode: OutputMode::Composed, ..ArchiveOptions::default() },
            ..individual("00000000-0000-4000-8000-000000000002".parse().expect("id"), session)
        };
        let cancel = CancellationToken::new();
        let built = build(&dir.path().join("archive"), &descriptor, "session ended", None, &pipelines(), &cancel);
        (built.map(|built| built.done().expect("nothing cancels it")), dir)
    };
    const CLEAR: &str = "00000000-0000-4000-8000-000000000001";
    const SECRET: &str = "00000000-0000-4000-8000-000000000003";
    let heard = |dir: &Path| hashes(&dir.join("archive/out/archive.mp4"), "a");
    let (_, alone) = of(&[(CLEAR, &sound)], None);
    let (_, mixed) = of(&[(CLEAR, &sound), (SECRET, &secret)], None);
    let (told, both) = of(&[(CLEAR, &sound), (SECRET, &secret)], Some(SECRET));
    assert_ne!(heard(mixed.path()), heard(alone.path()), "noise is heard where nobody tells");
    assert_eq!(heard(both.path()), heard(alone.path()));
    let manifest = told.expect("built").manifest;
    let missing = manifest.missing.iter().map(|one| (one.stream_id.to_string(), one.cause)).collect::<Vec<_>>();
    assert_eq!((manifest.complete, missing), (Some(false), vec![(SECRET.to_owned(), GapCause::Unsupported)]));
    let (nothing, _dir) = of(&[(SECRET, &secret)], Some(SECRET));
    assert!(matches!(nothing, Err(ArchiveError::Undecodable)), "{nothing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_encrypts_is_neither_seen_nor_heard_by_the_others_and_the_archive_says_so() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    world.janus.create_room("mixed", json!({ "videocodec": "h264" })).await.expect("room");
    world.start_worker().expect("worker");
    let alice = Publisher::start(options(&world, "mixed", "alice", 1, false)).await.expect("alice");
    let secret = Publisher::start(options(&world, "mixed", "secret", 2, true)).await.expect("secret");
    recorded(&mut world, "mixed", "both", 4).await;
    alice.pictures_pass(300).await;
    drop(secret.leave().await.expect("left"));
    alice.pictures_pass(30).await;
    let truth = alice.leave().await.expect("left").timeline();
    let ended = world.ended("mixed");
    world.publish(&ended).expect("publish");
    let archive = world.archive("mixed", "available").await;
    let files = world.download(&archive).expect("download");
    let stream = files.stream("secret").expect("stream")["streamId"].as_str().expect("id").to_owned();
    assert_eq!(files.manifest["complete"], false, "{}", files.manifest);
    let unsupported = |kind: &str| (stream.clone(), kind.to_owned(), "unsupported".to_owned());
    let lacking = lacks(&files);
    let told = ["audio", "video"].map(unsupported).iter().all(|one| lacking.contains(one));
    assert!(told, "missing {}, composed {}", files.manifest["missing"], files.manifest["composed"]);
    assert!(lacking.iter().all(|(lacks_of, ..)| *lacks_of == stream), "{}", files.manifest);
    assert!(files.manifest["missing"].to_string().contains("encrypted end to end"), "{}", files.manifest);
    // The composed file has Alice's sound: each of her beeps, which noise would cover.
    let composed = Content::read(&files.dir.join("archive.mp4")).expect("file");
    assert!(composed.errors.is_empty(), "{:?}", composed.errors);
    let matched = composed.against(&truth);
    assert!(matched.beeps.len() >= 4, "{} beeps are heard", matched.beeps.len());
    // What came of the other one is kept as it came.
    assert!(!files.files("secret").is_empty(), "{}", files.manifest);
}

/// Sound alone, and a Janus that tells subscribers nothing: the room's setting tells that it is noise.
#[tokio::test(flavor = "multi_thread")]
async fn sound_of_a_room_that_requires_encryption_is_in_no_composed_file() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    world.janus.create_room("required", json!({ "require_e2ee": true })).await.expect("room");
    world.start_worker().expect("worker");
    let secret = Options { video: None, ..options(&world, "required", "secret", 1, true) };
    let secret = Publisher::start(secret).await.expect("secret");
    recorded(&mut world, "required", "composed", 1).await;
    secret.beeps_pass(3).await;
    drop(secret.leave().await.expect("left"));
    let ended = world.ended("required");
    world.publish(&ended).expect("publish");
    world.archive("required", "failed").await;
    let jobs = world.json(&["jobs", "list", "--json"]).expect("jobs");
    assert_eq!(jobs["parked"][0]["fault"], "media_undecodable", "{jobs}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_composed_archive_of_nothing_that_can_be_decoded_fails_with_that_reason() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    world.janus.create_room("secret", json!({ "videocodec": "h264" })).await.expect("room");
    world.start_worker().expect("worker");
    let secret = Publisher::start(options(&world, "secret", "secret", 1, true)).await.expect("secret");
    recorded(&mut world, "secret", "composed", 2).await;
    secret.pictures_pass(300).await;
    drop(secret.leave().await.expect("left"));
    let ended = world.ended("secret");
    world.publish(&ended).expect("publish");
    let parked = wait_for("the parked job", || async {
        world.json(&["jobs", "list", "--json"]).ok()?["parked"].as_array()?.first().cloned()
    })
    .await;
    assert_eq!(parked["fault"], "media_undecodable", "{parked}");
    assert!(parked["detail"].as_str().expect("text").contains("encrypted end to end"), "{parked}");
    world.archive("secret", "failed").await;
}
