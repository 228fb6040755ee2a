//! Automatic sessions in whose first minute nobody publishes: their jobs wait, and are recorded from the first stream on.

use std::time::Duration;

use crate::BINARY;
use archiver_testkit::content::Content;
use archiver_testkit::publisher::{Options, Publisher};
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::World;
use serde_json::{Value, json};

/// The bridge would resume the jobs.
const LIMITS: &str = "[bridge]\nenabled = false\n[limits]\nno_clients = \"4s\"\nnever_published = \"3s\"\n";

/// The newest job of a session.
fn job_of(world: &World, session: &str) -> Option<Value> {
    let list = world.json(&["jobs", "list", "--all", "--json"]).ok()?;
    list["jobs"].as_array()?.iter().find(|job| job["session"] == session).cloned()
}

async fn job_in(world: &World, session: &str, state: &str) -> Value {
    let condition = format!("the job of {session} to be {state}\n{}", world.log());
    wait_for(&condition, || async { job_of(world, session).filter(|job| job["state"] == state) }).await
}

fn history(world: &World, job: &Value) -> Vec<String> {
    let shown = world.json(&["jobs", "show", job["job"].as_str().expect("id"), "--json"]).expect("job");
    let lines = shown["history"].as_array().expect("history");
    lines.iter().map(|line| line[1].as_str().expect("text").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_first_stream_comes_late_is_recorded_from_then_on() {
    let mut world = World::start(BINARY, None, LIMITS).await.expect("world");
    world.configure(&[("[worker]", "[worker]\ncapacity = 1")], "").expect("configuration");
    world.start_worker().expect("worker");
    for room in ["late", "other"] {
        world.janus.create_room(room, json!({})).await.expect("room");
    }
    let started = world.started("late");
    world.publish(&started).expect("publish");
    job_in(&world, "late", "waiting").await;
    assert!(world.archives("late").expect("archives").is_empty(), "there is an archive of nothing");
    // The worker's only place is free again.
    let bob = Publisher::start(Options { code: 2, ..Options::new(&world.janus, "other", "bob") }).await.expect("bob");
    let started = world.started("other");
    world.publish(&started).expect("publish");
    world.recording(2).await;
    drop(bob.leave().await.expect("leave"));
    world.archive("other", "available").await;
    // Nobody tells of it: the worker looks. The worker is another process meanwhile.
    assert!(world.stop_worker(), "{}", world.log());
    world.start_worker().expect("worker");
    let alice = Publisher::start(Options::new(&world.janus, "late", "alice")).await.expect("alice");
    world.recording(2).await;
    let before = alice.frames_sent();
    alice.pictures_pass(90).await;
    let truth = alice.leave().await.expect("leave").timeline();
    let archive = world.archive("late", "available").await;
    assert_eq!(archive["reason"], "session ended");
    let downloaded = world.download(&archive).expect("download");
    let files = downloaded.files("alice");
    assert_eq!(files.len(), 1, "{files:?}");
    let content = Content::read(&files[0]).expect("file");
    let matched = content.against(&truth);
    assert!(content.errors.is_empty() && matched.strange == 0, "{:?}", content.errors);
    assert!(matched.missing.is_empty() && matched.frames.len() >= 90, "{} pictures", matched.frames.len());
    assert!(matched.frames.len() <= truth.frames.len() && before > 0);
    // The archive's time begins when its job was resumed, not with the event.
    let start = downloaded.manifest["files"][0]["startMs"].as_f64().expect("a number");
    assert!(start < 5_000.0, "the file begins {start} ms after the archive");
    let history = history(&world, &job_in(&world, "late", "available").await);
    let told = |text: &str| history.iter().any(|line| line == text);
    assert!(told("waiting: nobody publishes") && told("resumed: somebody publishes"), "{history:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ends_before_anybody_publishes_leaves_no_archive() {
    let mut world = World::start(BINARY, None, LIMITS).await.expect("world");
    world.start_worker().expect("worker");
    for session in ["ended", "gone", "again"] {
        world.janus.create_room(session, json!({})).await.expect("room");
        let started = world.started(session);
        world.publish(&started).expect("publish");
    }
    for session in ["ended", "gone", "again"] {
        job_in(&world, session, "waiting").await;
    }
    // Told while it waits.
    let ended = world.ended("ended");
    world.publish(&ended).expect("publish");
    // Its room is removed.
    world.janus.destroy_room("gone").await.expect("room removed");
    // Another start of its session: a worker looks for a stream again, and is told of the end while it does.
    let again = world.started("again");
    world.publish(&again).expect("publish");
    let job = wait_for("the job to be resumed", || async {
        job_of(&world, "again").filter(|job| matches!(job["state"].as_str(), Some("accepted" | "capturing")))
    });
    let job = job.await;
    let ended = world.ended("again");
    world.publish(&ended).expect("publish");
    for session in ["ended", "gone", "again"] {
        let job = job_in(&world, session, "empty").await;
        assert!(world.archives(session).expect("archives").is_empty(), "{session} has an archive of nothing");
        assert!(history(&world, &job).iter().any(|line| line.starts_with("empty")), "{session}");
    }
    assert_eq!(job["job"], job_of(&world, "again").expect("job")["job"]);
    let left: Vec<_> = std::fs::read_dir(world.data().join("spool")).expect("spool").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    let (jobs, events) = (world.json(&["jobs", "list", "--json"]).expect("jobs"), world.log());
    assert_eq!((&jobs["jobs"], &jobs["parked"]), (&json!([]), &json!([])), "{events}");
    // A session that is over may be used again.
    let started = world.started("ended");
    world.publish(&started).expect("publish");
    let alice = Publisher::start(Options::new(&world.janus, "ended", "alice")).await.expect("alice");
    world.recording(2).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    drop(alice.leave().await.expect("leave"));
    world.archive("ended", "available").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_while_nobody_looks_at_the_room_is_told() {
    let mut world = World::start(BINARY, None, LIMITS).await.expect("world");
    world.start_worker().expect("worker");
    world.janus.create_room("unseen", json!({})).await.expect("room");
    let started = world.started("unseen");
    world.publish(&started).expect("publish");
    job_in(&world, "unseen", "waiting").await;
    world.kill_worker();
    let alice = Publisher::start(Options::new(&world.janus, "unseen", "alice")).await.expect("alice");
    alice.pictures_pass(150).await;
    world.start_worker().expect("worker");
    world.recording(2).await;
    alice.pictures_pass(60).await;
    drop(alice.leave().await.expect("leave"));
    let downloaded = world.download(&world.archive("unseen", "available").await).expect("download");
    assert_eq!(downloaded.report["complete"], false, "{:#}", downloaded.report);
    for kind in ["audio", "video"] {
        let track = downloaded.track("alice", kind).expect("track");
        let gap = &track["gaps"][0];
        let seconds = (gap["to"].as_f64().expect("time") - gap["from"].as_f64().expect("time")) / 1e9;
        assert!(gap["cause"] == "worker" && seconds > 4.9, "{kind}: {track:#}");
    }
}
