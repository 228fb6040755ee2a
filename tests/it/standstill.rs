//! Two workers, of which one stands still, or both do not hear from the catalog.

use crate::BINARY;
use std::process::Command;
use std::time::Instant;

use crate::support::databases;
use archiver_testkit::content::Content;
use archiver_testkit::postgres::Postgres;
use archiver_testkit::publisher::{Options, Publisher, unix_seconds};
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::{Machine, World, gap_lengths};
use serde_json::json;

/// Until another worker has the session: a lease, a beat of the taker's own contact with the catalog, its way to a keyframe, and a second.
const TAKEOVER_MAX: f64 = 3.0 + 0.75 + 3.0 + 1.0;

/// A session that the first of two workers records.
async fn recorded_by_the_first_of_two(catalog: &str, session: &str) -> (World, Publisher) {
    let mut world = World::start(BINARY, Some(catalog), "").await.expect("world");
    world.janus.create_room(session, json!({})).await.expect("room");
    let started = world.started(session);
    world.start_worker().expect("worker");
    world.publish(&started).expect("publish");
    let publisher = Publisher::start(Options::new(&world.janus, session, "alice")).await.expect("publisher");
    world.recording(2).await;
    world.start_another(&Machine::new("worker-2")).expect("worker");
    wait_for("the second worker", || async { world.log_of("worker-2").contains("source=Events").then_some(()) }).await;
    (world, publisher)
}

/// Sends a signal to the first worker.
fn signal(world: &World, signal: &str) {
    let pid = world.worker_pid().expect("a worker").to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().expect("kill").success(), "{signal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_captured_before_it_stood_still_is_in_the_archive_beside_what_the_next_one_captures() {
    let database = databases::with_tables();
    let (mut world, publisher) = recorded_by_the_first_of_two(&database.url(), "paused").await;
    // Into the middle of a segment (5 s).
    publisher.pictures_pass(30 * 8).await;
    let paused_at = unix_seconds(Instant::now());
    signal(&world, "-STOP");
    publisher.pictures_pass(30 * 20).await;
    signal(&world, "-CONT");
    // It looks through its spool from time to time.
    wait_for("the first worker's log to be sent", || async {
        world.log().contains("the end of a log that another worker goes on with is in the store now").then_some(())
    })
    .await;
    publisher.pictures_pass(30 * 4).await;
    let ended = world.ended("paused");
    world.publish(&ended).expect("publish");
    let row = world.archive("paused", "available").await;
    let truth = publisher.crash().timeline();
    let archive = world.download(&row).expect("download");
    let [file] = archive.files("alice").try_into().expect("one file");
    let content = Content::read(&file).expect("file");
    assert_eq!(content.errors, Vec::<String>::new());
    let matched = content.against(&truth);
    assert_eq!(matched.strange, 0, "pictures that were never sent, come twice, or out of order");
    let (holes, reported) = (matched.holes(), gap_lengths(archive.track("alice", "video").expect("track"), "worker"));
    println!("paused at {paused_at:.3}: {holes:?}, reported {reported:?}");
    let missing: f64 = holes.iter().map(|(from, to)| to - from).sum();
    assert!(missing <= TAKEOVER_MAX, "{missing:.2} s are missing: {holes:?}");
    let told: f64 = reported.iter().sum();
    assert!((missing - told).abs() <= 0.1, "{missing:.3} s are missing, {told:.3} s are reported");
    for (from, _) in &holes {
        assert!(*from > paused_at - 1.0, "the last {:.2} s before the pause are missing", paused_at - from);
    }
    assert_eq!(archive.report["epochsMs"].as_array().expect("epochs").len(), 2, "{}", archive.report);
    assert_eq!(archive.manifest["complete"], holes.is_empty(), "{}", archive.report);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_that_comes_back_finds_each_session_with_the_worker_that_had_it() {
    let mut postgres = tokio::task::spawn_blocking(Postgres::start).await.expect("task").expect("postgres");
    let (mut world, publisher) = recorded_by_the_first_of_two(&postgres.url(), "kept").await;
    publisher.pictures_pass(30 * 5).await;
    postgres.stop();
    // All leases run out meanwhile.
    publisher.pictures_pass(30 * 10).await;
    postgres.restart().expect("postgres");
    // Longer than a lease and what a worker must hear from the catalog before it takes anything over.
    publisher.pictures_pass(30 * 9).await;
    let ended = world.ended("kept");
    world.publish(&ended).expect("publish");
    let row = world.archive("kept", "available").await;
    let truth = publisher.crash().timeline();
    let archive = world.download(&row).expect("download");
    let matched = Content::read(&archive.files("alice")[0]).expect("file").against(&truth);
    assert_eq!((matched.missing.len(), matched.strange), (0, 0), "{:?}", matched.holes());
    assert_eq!(archive.report["epochsMs"].as_array().expect("epochs").len(), 1, "{}", archive.report);
    assert_eq!(archive.manifest["complete"], true, "{}", archive.report);
}
