//! Whole sessions: an event on RabbitMQ, a real Janus, real publishers, an archive in S3.

use crate::BINARY;
use std::time::Duration;

use archiver_testkit::content::{Content, Matched, Pair, Timeline, apart, percentile};
use archiver_testkit::publisher::{Options, Publisher};
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::{Downloaded, World};

/// Sound and picture, and one stream and another, may be this far apart, in seconds.
const OFFSET_MAX: f64 = 0.040;

/// The one file of a stream, decoded and held against what was sent: no decode error, nothing that was not
/// sent, nothing twice, in order, and sound in step with the picture.
fn checked(archive: &Downloaded, router_id: &str, truth: &Timeline) -> Matched {
    let files = archive.files(router_id);
    assert_eq!(files.len(), 1, "{files:?}");
    let content = Content::read(&files[0]).expect("file");
    assert!(content.errors.is_empty(), "{router_id}: {:?}", content.errors);
    let matched = content.against(truth);
    assert_eq!(matched.strange, 0, "{router_id}: pictures that were never sent, come twice, or out of order");
    assert!(!matched.frames.is_empty() && !matched.beeps.is_empty(), "{router_id}: nothing was found");
    let late = percentile(&matched.sound_after_picture().iter().map(|o| o.abs()).collect::<Vec<_>>(), 99.0);
    assert!(late.is_some_and(|l| l <= OFFSET_MAX), "{router_id}: sound is {late:?} s from its picture");
    matched
}

/// A stream's pairs on the session's time line, so that streams can be compared.
fn in_session(archive: &Downloaded, router_id: &str, pairs: &[Pair]) -> Vec<Pair> {
    let stream = archive.stream(router_id).expect("stream");
    let files = archive.manifest["files"].as_array().expect("files");
    let file = files.iter().find(|f| f["streamId"] == stream["streamId"]).expect("file");
    let start = file["startMs"].as_f64().expect("a number") / 1000.0;
    pairs.iter().map(|p| Pair { seen: p.seen + start, ..*p }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_archived_by_itself_with_every_picture_in_step_with_its_sound() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    world.start_worker().expect("worker");
    world.janus.create_room("s1", serde_json::json!({})).await.expect("room");
    let started = world.started("s1");
    world.publish(&started).expect("publish");
    let alice = Publisher::start(Options::new(&world.janus, "s1", "alice")).await.expect("alice");
    world.recording(2).await;
    // The same event again, and another one of the same conversation: no second archive.
    world.publish(&started).expect("publish");
    let again = world.started("s1");
    world.publish(&again).expect("publish");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let late = Publisher::start(Options { code: 2, ..Options::new(&world.janus, "s1", "late") }).await.expect("late");
    let mut sound_only = Options::new(&world.janus, "s1", "voice");
    sound_only.video = None;
    let voice = Publisher::start(sound_only).await.expect("voice");
    world.recording(5).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let late = late.leave().await.expect("leave");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ended = world.ended("s1");
    world.publish(&ended).expect("publish");
    let archive = world.archive("s1", "available").await;
    let (alice, voice) = (alice.crash(), voice.crash());
    assert_eq!(archive["reason"], "session ended");
    let archive = world.download(&archive).expect("download");

    let (alice, late) = (alice.timeline(), late.timeline());
    let first = checked(&archive, "alice", &alice);
    assert!(first.missing.is_empty(), "{} pictures are missing", first.missing.len());
    let track = archive.track("alice", "video").expect("track");
    assert_eq!((&track["stats"]["lost"], &track["stats"]["framesDamaged"]), (&0.into(), &0.into()), "{track}");
    let second = checked(&archive, "late", &late);
    assert!(second.missing.is_empty(), "{} pictures are missing", second.missing.len());
    let off = apart(&in_session(&archive, "alice", &first.frames), &in_session(&archive, "late", &second.frames));
    let off = percentile(&off.iter().map(|o| o.abs()).collect::<Vec<_>>(), 99.0);
    assert!(off.is_some_and(|o| o <= OFFSET_MAX), "two streams are {off:?} s apart");

    let files = archive.files("voice");
    let content = Content::read(&files[0]).expect("file");
    assert!(content.frames.is_empty() && content.beeps.len() >= 5 && !voice.beeps.is_empty());
    let vonage = archive.vonage["files"].as_array().expect("files");
    assert_eq!(vonage.len(), 3);
    assert!(world.stop_worker(), "{}", world.log());
    // Nothing local is left, and what is in the store can be read to its end.
    let left: Vec<_> = std::fs::read_dir(world.data().join("spool")).expect("spool").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    let id = archive.manifest["archiveId"].as_str().expect("id");
    assert!(world.command(&["archives", "verify", id]).expect("verify").status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_by_itself_when_all_have_left_and_has_no_archive_if_nobody_ever_published() {
    let limits = "[limits]\nno_clients = \"3s\"\nnever_published = \"12s\"\n";
    let mut world = World::start(BINARY, None, limits).await.expect("world");
    world.start_worker().expect("worker");
    for session in ["left", "empty"] {
        world.janus.create_room(session, serde_json::json!({})).await.expect("room");
        let started = world.started(session);
        world.publish(&started).expect("publish");
    }
    let alice = Publisher::start(Options::new(&world.janus, "left", "alice")).await.expect("alice");
    world.recording(2).await;
    wait_for("the job of the empty session to wait", || async {
        let jobs = world.json(&["jobs", "list", "--json"]).ok()?;
        jobs["jobs"].as_array()?.iter().any(|job| job["session"] == "empty" && job["state"] == "waiting").then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let truth = alice.leave().await.expect("leave").timeline();
    let left = world.archive("left", "available").await;
    assert_eq!(left["reason"], "session ended");
    let archive = world.download(&left).expect("download");
    assert!(checked(&archive, "alice", &truth).missing.is_empty());
    // The session is used again: another archive.
    let again = world.started("left");
    world.publish(&again).expect("publish");
    let alice = Publisher::start(Options::new(&world.janus, "left", "alice")).await.expect("alice");
    world.recording(2).await;
    drop(alice.leave().await.expect("leave"));
    let archives = wait_for("a second archive", || async {
        let archives = world.archives("left").ok()?;
        (archives.len() == 2 && archives.iter().all(|a| a["status"] == "available")).then_some(archives)
    });
    assert_ne!(archives.await[0]["archive"], left["archive"]);
    let ended = world.ended("empty");
    world.publish(&ended).expect("publish");
    wait_for("the job of the empty session to end", || async {
        let jobs = world.json(&["jobs", "list", "--all", "--json"]).ok()?;
        jobs["jobs"].as_array()?.iter().any(|job| job["session"] == "empty" && job["state"] == "empty").then_some(())
    })
    .await;
    assert!(world.archives("empty").expect("archives").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_longer_than_an_archive_may_be_goes_on_in_the_next_without_a_lost_frame() {
    // One place only: the successor has that of its predecessor.
    let limits = "[limits]\nrecorded_max = \"20s\"\n";
    let mut world = World::start(BINARY, None, limits).await.expect("world");
    let config = std::fs::read_to_string(world.config()).expect("config");
    std::fs::write(world.config(), config.replacen("[worker]", "[worker]\ncapacity = 1", 1)).expect("config");
    world.start_worker().expect("worker");
    world.janus.create_room("long", serde_json::json!({})).await.expect("room");
    let started = world.started("long");
    world.publish(&started).expect("publish");
    let alice = Publisher::start(Options::new(&world.janus, "long", "alice")).await.expect("alice");
    world.recording(2).await;
    let states = |world: &World| -> Vec<String> {
        let archives = world.archives("long").unwrap_or_default();
        archives.iter().filter_map(|a| a["status"].as_str().map(str::to_owned)).collect()
    };
    wait_for("the first archive to end, and media in the next", || async {
        let archives = world.archives("long").ok()?;
        let next = archives.iter().find(|a| a["status"] == "started")?["archive"].as_str()?.to_owned();
        let tracks = std::fs::read_dir(world.data().join("spool").join(next).join("tracks")).ok()?.count();
        (tracks == 2 && archives.iter().any(|a| a["status"] == "available")).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let ended = world.ended("long");
    world.publish(&ended).expect("publish");
    wait_for("all archives", || async { states(&world).iter().all(|s| s == "available").then_some(()) }).await;
    let truth = alice.crash().timeline();
    let archives = world.archives("long").expect("archives");
    assert!(archives.len() >= 2, "{archives:?}");
    let reasons: Vec<&str> = archives.iter().rev().filter_map(|a| a["reason"].as_str()).collect();
    assert_eq!(reasons[0], "maximum duration exceeded");
    assert_eq!(reasons.last(), Some(&"session ended"));
    let mut seen: Vec<f64> = Vec::new();
    for archive in &archives {
        let archive = world.download(archive).expect("download");
        let matched = checked(&archive, "alice", &truth);
        assert!(matched.missing.is_empty(), "{} pictures are missing", matched.missing.len());
        seen.extend(matched.frames.iter().map(|pair| pair.sent));
    }
    seen.sort_by(f64::total_cmp);
    let sent = truth.frames.iter().map(|(_, at)| *at).filter(|at| (seen[0]..=seen[seen.len() - 1]).contains(at));
    let lost: Vec<f64> = sent.filter(|at| seen.binary_search_by(|s| s.total_cmp(at)).is_err()).collect();
    assert!(lost.is_empty(), "{} pictures are in none of the archives: {lost:?}", lost.len());
}
