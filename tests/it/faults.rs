//! Whole sessions in which something breaks: one archive each, and nothing that was captured is lost.
//!
//! Short versions run with `make test`; `make kills` and `make outages` set the environment for the long ones.

use crate::BINARY;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::databases;
use crate::support::fragments::changed_fragments;
use archiver_testkit::content::Content;
use archiver_testkit::postgres::Postgres;
use archiver_testkit::publisher::{Options, Publisher, unix_seconds};
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::World;
use serde_json::{Value, json};

/// A number from the environment, for the long versions.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// A session with one publisher that is being recorded.
async fn recording(world: &mut World, session: &str) -> Publisher {
    recording_as(world, session, "individual").await
}

/// The same, of which these files are to be made.
async fn recording_as(world: &mut World, session: &str, output_mode: &str) -> Publisher {
    world.start_worker().expect("worker");
    world.janus.create_room(session, json!({})).await.expect("room");
    let mut started = world.started(session);
    started["data"]["archive"]["outputMode"] = json!(output_mode);
    world.publish(&started).expect("publish");
    let publisher = Publisher::start(Options::new(&world.janus, session, "alice")).await.expect("publisher");
    world.recording(2).await;
    publisher
}

fn gaps(track: &Value) -> Vec<(f64, f64, String)> {
    let second = |v: &Value| v.as_f64().expect("a number") / 1e9;
    let list = track["gaps"].as_array().expect("gaps");
    list.iter().map(|g| (second(&g["from"]), second(&g["to"]), g["cause"].as_str().unwrap_or("").to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_again_and_again_makes_one_archive() {
    let kills = setting("ARCHIVER_KILLS", 3);
    let mut world = World::start(BINARY, None, "").await.expect("world");
    let publisher = recording(&mut world, "killed").await;
    let mut killed = Vec::new();
    for _ in 0..kills {
        tokio::time::sleep(Duration::from_millis(rand_ms(1500, 4000))).await;
        killed.push(Instant::now());
        world.kill_worker();
        tokio::time::sleep(Duration::from_millis(rand_ms(0, 800))).await;
        world.start_worker().expect("worker");
    }
    seconds(4).await;
    let ended = world.ended("killed");
    world.publish(&ended).expect("publish");
    let archive = world.archive("killed", "available").await;
    let truth = publisher.crash().timeline();
    let archive = world.download(&archive).expect("download");
    // A process that was killed before it had the job has no epoch.
    let epochs = archive.report["epochsMs"].as_array().expect("epochs").len();
    let begun = world.log().matches(": job begins").count();
    assert!(epochs == begun && epochs > 1, "{epochs} epochs after {kills} kills, of {begun} processes with the job");
    let files = archive.files("alice");
    assert_eq!(files.len(), 1, "{files:?}");
    let content = Content::read(&files[0]).expect("file");
    assert!(content.errors.is_empty(), "{:?}", content.errors);
    let matched = content.against(&truth);
    assert_eq!(matched.strange, 0, "pictures that were never sent, come twice, or out of order");
    // Where pictures are missing in the file, by the times of sending, and when the worker was killed.
    let holes = matched.holes();
    let kill_times: Vec<f64> = killed.iter().map(|at| archiver_testkit::publisher::unix_seconds(*at)).collect();
    for (from, to) in &holes {
        let at = kill_times.iter().find(|at| (from - 0.1..=to + 0.1).contains(at));
        let at = at.unwrap_or_else(|| panic!("nobody was killed between {from} and {to}"));
        assert!(at - from <= 1.0, "{:.2} s before the kill are lost", at - from);
    }
    let video = gaps(archive.track("alice", "video").expect("track"));
    let reported: Vec<_> = video.iter().filter(|g| g.2 == "worker").collect();
    assert_eq!(reported.len(), holes.len(), "{video:?} {holes:?}");
    for ((from, to), (gap_from, gap_to, _)) in holes.iter().zip(reported.iter().map(|g| (g.0, g.1, &g.2))) {
        let off = (gap_to - gap_from) - (to - from);
        assert!(off.abs() <= 0.1, "a gap of {:.3} s is reported as {:.3} s", to - from, gap_to - gap_from);
    }
    let sound = gaps(archive.track("alice", "audio").expect("track"));
    assert_eq!(sound.iter().filter(|g| g.2 == "worker").count(), holes.len(), "{sound:?}");
    println!("{kills} kills: {:.2} s missing in all", holes.iter().map(|(a, b)| b - a).sum::<f64>());
}

fn rand_ms(from: u64, to: u64) -> u64 {
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |d| u64::from(d.subsec_nanos()));
    from + now / 1000 % (to - from).max(1)
}

/// An outage of the store lasts longer than sessions. Those that have ended wait for it, and take no place of others.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_waits_for_the_store_leaves_its_place_to_another() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    world.configure(&[("[worker]\n", "[worker]\ncapacity = 1\n")], "").expect("configuration");
    let first = recording(&mut world, "waits").await;
    seconds(2).await;
    world.s3.stop().await;
    let ended = world.ended("waits");
    world.publish(&ended).expect("publish");
    world.archive("waits", "stopped").await;
    let first = first.crash().timeline();
    world.janus.create_room("comes", json!({})).await.expect("room");
    let second = Publisher::start(Options::new(&world.janus, "comes", "bob")).await.expect("publisher");
    let started = world.started("comes");
    world.publish(&started).expect("publish");
    // Those of the first are still there.
    world.recording(4).await;
    second.pictures_pass(60).await;
    let ended = world.ended("comes");
    world.publish(&ended).expect("publish");
    world.archive("comes", "stopped").await;
    let second = second.crash().timeline();
    let on_disk = spool_bytes_are_told(&world).await;
    assert!(on_disk > 100_000, "two sessions have {on_disk} bytes");
    world.s3.restart().await.expect("store");
    for (session, name, truth) in [("waits", "alice", first), ("comes", "bob", second)] {
        let archive = world.archive(session, "available").await;
        let archive = world.download(&archive).expect("download");
        let matched = Content::read(&archive.files(name)[0]).expect("file").against(&truth);
        assert_eq!((matched.missing.len(), matched.strange), (0, 0), "{session}");
        assert!(matched.frames.len() >= 30, "{session}: {} pictures", matched.frames.len());
    }
}

/// The bytes of all files in a folder.
fn bytes_in(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
        metadata => metadata.map_or(0, |file| file.len()),
    };
    entries.map(bytes).sum()
}

/// Waits until the metric says what is in the spool, and returns that.
async fn spool_bytes_are_told(world: &World) -> u64 {
    wait_for("the metric of the spool to say what is on the disk", || async {
        let metrics = world.metrics().ok()?;
        let told = metrics.lines().find_map(|line| line.strip_prefix("archiver_spool_bytes "))?.parse::<u64>().ok()?;
        let on_disk = bytes_in(&world.data().join("spool"));
        // Small files beside the media are not counted one by one.
        (told.abs_diff(on_disk) <= on_disk / 20).then_some(on_disk)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_in_mid_session_and_at_the_end_loses_nothing() {
    let away = setting("ARCHIVER_OUTAGE", 6);
    let mut world = World::start(BINARY, None, "").await.expect("world");
    let publisher = recording(&mut world, "stored").await;
    seconds(2).await;
    world.s3.stop().await;
    seconds(away).await;
    world.s3.restart().await.expect("store");
    seconds(3).await;
    world.s3.stop().await;
    let ended = world.ended("stored");
    world.publish(&ended).expect("publish");
    seconds(away).await;
    world.s3.restart().await.expect("store");
    let archive = world.archive("stored", "available").await;
    let truth = publisher.crash().timeline();
    let archive = world.download(&archive).expect("download");
    let matched = Content::read(&archive.files("alice")[0]).expect("file").against(&truth);
    assert_eq!((matched.missing.len(), matched.strange), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_dies_is_not_noticed_by_captures() {
    let mut world = World::start_private(BINARY, None, "").await.expect("world");
    let publisher = recording(&mut world, "brokered").await;
    seconds(1).await;
    world.rabbit.kill9();
    seconds(3).await;
    world.rabbit.restart().expect("broker");
    seconds(2).await;
    let ended = world.ended("brokered");
    world.publish(&ended).expect("publish");
    let archive = world.archive("brokered", "available").await;
    let truth = publisher.crash().timeline();
    let archive = world.download(&archive).expect("download");
    let matched = Content::read(&archive.files("alice")[0]).expect("file").against(&truth);
    assert_eq!((matched.missing.len(), matched.strange), (0, 0));
    assert!(gaps(archive.track("alice", "video").expect("track")).is_empty());
}

/// What is missing by the router so far, in seconds, as the worker's metrics say.
fn missing_by_router(world: &World) -> Option<f64> {
    let metrics = world.metrics().ok()?;
    let gaps = metrics.lines().find_map(|l| l.strip_prefix("archiver_gap_seconds_total{cause=\"router\"} "));
    gaps.map_or(Some(0.0), |seconds| seconds.parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_is_restarted_leaves_a_gap_in_the_same_archive() {
    let mut world = World::start_private(BINARY, None, "").await.expect("world");
    let mut publisher = recording(&mut world, "routed").await;
    let mut sent = 0;
    // Its room may be there again before the worker is, or come later.
    for late in [false, true] {
        seconds(3).await;
        let before = missing_by_router(&world).expect("metrics");
        world.janus.restart().expect("janus");
        sent += publisher.crash().frames.len();
        if late {
            world.archive("routed", "paused").await;
        }
        world.janus.create_room("routed", json!({})).await.expect("room");
        publisher = Publisher::start(Options::new(&world.janus, "routed", "alice")).await.expect("publisher");
        // Media is there again: what was missing is known.
        wait_for("a gap by the router", || async {
            missing_by_router(&world).is_some_and(|after| after > before).then_some(())
        })
        .await;
    }
    seconds(4).await;
    let ended = world.ended("routed");
    world.publish(&ended).expect("publish");
    let archive = world.archive("routed", "available").await;
    sent += publisher.crash().frames.len();
    let archive = world.download(&archive).expect("download");
    let files = archive.files("alice");
    assert_eq!(files.len(), 1, "{files:?}");
    let content = Content::read(&files[0]).expect("file");
    assert!(content.errors.is_empty(), "{:?}", content.errors);
    let seen = content.frames.len();
    assert!(seen > 180 && seen < sent, "{seen} of {sent} pictures");
    let found = gaps(archive.track("alice", "video").expect("track"));
    let by_router = |gap: &&(f64, f64, String)| gap.2 == "router" && gap.1 > gap.0;
    assert_eq!(found.iter().filter(by_router).count(), 2, "two gaps by the router: {found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_that_is_away_delays_nothing_but_the_news() {
    let away = setting("ARCHIVER_OUTAGE", 10);
    let mut postgres = tokio::task::spawn_blocking(Postgres::start).await.expect("task").expect("postgres");
    let mut world = World::start(BINARY, Some(&postgres.url()), "").await.expect("world");
    let publisher = recording(&mut world, "catalogued").await;
    seconds(2).await;
    postgres.stop();
    seconds(away).await;
    postgres.restart().expect("postgres");
    seconds(3).await;
    let ended = world.ended("catalogued");
    world.publish(&ended).expect("publish");
    let archive = world.archive("catalogued", "available").await;
    let truth = publisher.crash().timeline();
    let archive = world.download(&archive).expect("download");
    let matched = Content::read(&archive.files("alice")[0]).expect("file").against(&truth);
    assert_eq!((matched.missing.len(), matched.strange), (0, 0));
    assert!(gaps(archive.track("alice", "video").expect("track")).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_told_to_stop_hands_its_session_over() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    let publisher = recording(&mut world, "handed").await;
    seconds(2).await;
    assert!(world.stop_worker(), "{}", world.log());
    world.start_worker().expect("worker");
    seconds(4).await;
    let ended = world.ended("handed");
    world.publish(&ended).expect("publish");
    let archive = world.archive("handed", "available").await;
    let truth = publisher.crash().timeline();
    let archive = world.download(&archive).expect("download");
    let matched = Content::read(&archive.files("alice")[0]).expect("file").against(&truth);
    assert_eq!(matched.strange, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_takes_long_to_make_is_handed_to_another_machine_when_its_worker_stops() {
    let database = databases::with_tables();
    let mut world = World::start(BINARY, Some(&database.url()), "").await.expect("world");
    // An operator's own fragment takes a third of a second for each picture.
    let (fast, slow) = ("x264enc name=encoder", "identity sleep-time=333000 ! x264enc name=encoder");
    let folder = changed_fragments(&world, &[("compose-video.launch", fast, slow)]);
    let config = std::fs::read_to_string(world.config()).expect("config");
    let with_slow = format!("{config}\n[pipelines]\ndir = \"{}\"\n", folder.display());
    std::fs::write(world.config(), with_slow).expect("config");
    let publisher = recording_as(&mut world, "long", "both").await;
    seconds(4).await;
    let (ended, ended_at) = (world.ended("long"), unix_seconds(Instant::now()));
    world.publish(&ended).expect("publish");
    world.archive("long", "stopped").await;
    assert!(world.stop_worker(), "{}", world.log());
    let log = world.log();
    assert!(log.contains("HandedOver { captured: true }"), "{log}");
    assert!(!log.contains("on this disk alone") && !log.contains("the lease is not given back"), "{log}");
    std::fs::write(world.config(), config).expect("config");
    world.move_to("worker-2").expect("machine");
    world.start_worker().expect("worker");
    let archive = world.archive("long", "available").await;
    let truth = publisher.crash().timeline();
    let archive = world.download(&archive).expect("download");
    let matched = Content::read(&archive.files("alice")[0]).expect("file").against(&truth);
    assert_eq!(matched.strange, 0);
    assert_eq!(matched.holes(), []);
    let last = matched.frames.last().expect("pictures").sent;
    assert!(last > ended_at - 0.5, "the last {:.2} s are on the other machine's disk alone", ended_at - last);
}
