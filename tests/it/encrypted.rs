//! Media that is encrypted end to end: it is captured as it came, is never mixed into what others hear, and an archive of nothing else fails.

use std::collections::BTreeSet;

use archiver_testkit::content::Content;
use archiver_testkit::publisher::VideoCodec;
use archiver_testkit::publisher::{Options, Publisher};
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::{Downloaded, World};
use serde_json::{Value, json};

use crate::BINARY;

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
    assert!(["audio", "video"].map(unsupported).iter().all(|one| lacking.contains(one)), "{}", files.manifest);
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
