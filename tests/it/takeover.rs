//! A session whose machine is lost, and goes on at another one: what was sealed there is in the archive.

use crate::BINARY;
use std::time::{Duration, Instant};

use crate::support::databases;
use archiver_testkit::content::Content;
use archiver_testkit::postgres::Database;
use archiver_testkit::publisher::{Options, Publisher, unix_seconds};
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::{Machine, World, gap_lengths};
use serde_json::{Value, json};

/// How a machine goes. Its disk stays untouched.
#[derive(Clone, Copy)]
enum Goes {
    Lost,
    ToldToStop,
}

/// A session that several machines recorded.
struct Recorded {
    /// The archive's video, as its report says.
    video: Value,
    /// What is missing in its file, by the publisher's clock: from, to.
    holes: Vec<(f64, f64)>,
    /// When each machine went.
    gone: Vec<f64>,
}

/// A session that is recorded for so many seconds on each of these machines, one after the other.
async fn over(machines: &[(&str, u64)], goes: Goes) -> Recorded {
    let database = databases::with_tables();
    let mut world = World::start(BINARY, Some(&database.url()), "").await.expect("world");
    world.janus.create_room("moved", json!({})).await.expect("room");
    let started = world.started("moved");
    let (mut publisher, mut gone) = (None, Vec::new());
    for (n, (machine, seconds)) in machines.iter().enumerate() {
        world.move_to(machine).expect("machine");
        world.start_worker().expect("worker");
        if publisher.is_none() {
            world.publish(&started).expect("publish");
            publisher = Some(Publisher::start(Options::new(&world.janus, "moved", "alice")).await.expect("publisher"));
        }
        has_epoch(&world, machine, n + 1).await;
        tokio::time::sleep(Duration::from_secs(*seconds)).await;
        if n + 1 < machines.len() {
            gone.push(unix_seconds(Instant::now()));
            match goes {
                Goes::Lost => world.kill_worker(),
                Goes::ToldToStop => assert!(world.stop_worker(), "{}", world.log()),
            }
        }
    }
    let ended = world.ended("moved");
    world.publish(&ended).expect("publish");
    let archive = world.archive("moved", "available").await;
    let truth = publisher.expect("a machine").crash().timeline();
    let archive = world.download(&archive).expect("download");
    let files = archive.files("alice");
    assert_eq!(files.len(), 1, "{files:?}");
    let content = Content::read(&files[0]).expect("file");
    assert!(content.errors.is_empty(), "{:?}", content.errors);
    let matched = content.against(&truth);
    assert_eq!(matched.strange, 0, "pictures that were never sent, come twice, or out of order");
    let holes = matched.holes();
    let epochs = archive.report["epochsMs"].as_array().expect("epochs").len();
    assert_eq!(epochs, machines.len());
    Recorded { video: archive.track("alice", "video").expect("track").clone(), holes, gone }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_machine_is_lost_goes_on_at_another_with_all_that_was_sealed() {
    let Recorded { video, holes, .. } = over(&[("worker-1", 13), ("worker-2", 6)], Goes::Lost).await;
    let reported = gap_lengths(&video, "worker");
    println!("{holes:?} {reported:?}");
    assert_eq!((holes.len(), reported.len()), (1, 1), "{video}");
    let missing = holes[0].1 - holes[0].0;
    // What was not sealed (5 s a segment), a lease and a beat of contact with the catalog, and the new worker's way to the first keyframe.
    assert!(missing < 5.5 + 3.75 + 6.0, "{missing:.2} s are missing");
    assert!((missing - reported[0]).abs() <= 0.1, "{missing:.3} s are reported as {:.3} s", reported[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_gets_its_session_back_gains_what_the_other_captured() {
    let Recorded { video, holes, .. } = over(&[("worker-1", 7), ("worker-2", 12), ("worker-1", 6)], Goes::Lost).await;
    let reported = gap_lengths(&video, "worker");
    println!("{holes:?} {reported:?}");
    assert_eq!((holes.len(), reported.len()), (2, 2), "{video}");
    for (hole, reported) in holes.iter().zip(reported) {
        let missing = hole.1 - hole.0;
        assert!(missing < 15.25, "{missing:.2} s are missing");
        assert!((missing - reported).abs() <= 0.1, "{missing:.3} s are reported as {reported:.3} s");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_told_to_stop_leaves_all_that_it_captured_to_the_next() {
    // The machine goes in the middle of a segment (5 s).
    let Recorded { video, holes, gone } = over(&[("worker-1", 9), ("worker-2", 6)], Goes::ToldToStop).await;
    println!("{holes:?}, {gone:?}");
    assert!(holes.len() <= 1, "{video}");
    let Some((from, to)) = holes.first() else { return };
    assert!(*from > gone[0] - 0.5, "the last {:.2} s are on the other machine's disk alone", gone[0] - from);
    let reported: f64 = gap_lengths(&video, "worker").iter().sum();
    assert!((to - from - reported).abs() <= 0.1, "{:.3} s are missing, {reported:.3} s are reported", to - from);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_told_to_stop_captures_on_until_another_does() {
    let database = databases::with_tables();
    let mut world = World::start(BINARY, Some(&database.url()), "").await.expect("world");
    world.janus.create_room("roll", json!({})).await.expect("room");
    let started = world.started("roll");
    world.start_worker().expect("worker");
    world.publish(&started).expect("publish");
    let publisher = Publisher::start(Options::new(&world.janus, "roll", "alice")).await.expect("publisher");
    world.recording(2).await;
    world.start_another(&Machine::new("worker-2")).expect("worker");
    says(&world, "worker-2", "consuming").await;
    // Into the middle of a segment (5 s).
    publisher.pictures_pass(30 * 7).await;
    assert!(world.stop_worker(), "{}", world.log());
    assert!(world.log().contains("another worker captures the session"), "{}", world.log());
    publisher.pictures_pass(30 * 6).await;
    let ended = world.ended("roll");
    world.publish(&ended).expect("publish");
    let archive = world.archive("roll", "available").await;
    let truth = publisher.crash().timeline();
    let archive = world.download(&archive).expect("download");
    let [file] = archive.files("alice").try_into().expect("one file");
    let content = Content::read(&file).expect("file");
    assert_eq!(content.errors, Vec::<String>::new());
    let matched = content.against(&truth);
    assert_eq!((matched.missing.len(), matched.strange), (0, 0), "{:?}", matched.holes());
    let late = matched.sound_after_picture();
    assert!(!late.is_empty() && late.iter().all(|late| late.abs() < 0.06), "{late:?}");
    // In the file, pictures are as far apart as they were sent, also where the owners change.
    for pair in matched.frames.windows(2) {
        let (sent, shown) = (pair[1].sent - pair[0].sent, pair[1].seen - pair[0].seen);
        assert!((sent - shown).abs() < 0.1, "{sent:.3} s apart when they were sent, {shown:.3} s in the file");
    }
    let epochs = archive.report["epochsMs"].as_array().expect("epochs").len();
    assert_eq!((epochs, archive.manifest["complete"].as_bool()), (2, Some(true)), "{}", archive.report);
}

/// Waits until a machine's spool has an epoch of the only archive.
async fn has_epoch(world: &World, machine: &str, epoch: usize) {
    let began = format!("\"epoch\":{epoch}");
    wait_for(&format!("{machine} to have the job\n{}", world.log()), || async {
        let archive = std::fs::read_dir(world.data_of(machine).join("spool")).ok()?.flatten().next()?;
        let history = std::fs::read_to_string(archive.path().join("history.jsonl")).ok()?;
        history.contains(&began).then_some(())
    })
    .await;
}

/// A session whose worker was killed, and which another worker records now.
struct Killed {
    world: World,
    publisher: Publisher,
    /// When it was killed.
    killed_at: f64,
    /// The catalog's database, which is dropped with this handle.
    database: Database,
}

/// A session whose worker is killed in the middle of a segment, and which another worker has taken over for two seconds.
async fn killed_and_taken_over(session: &str) -> Killed {
    let database = databases::with_tables();
    let mut world = World::start(BINARY, Some(&database.url()), "").await.expect("world");
    world.janus.create_room(session, json!({})).await.expect("room");
    let started = world.started(session);
    world.start_worker().expect("worker");
    world.publish(&started).expect("publish");
    let publisher = Publisher::start(Options::new(&world.janus, session, "alice")).await.expect("publisher");
    world.recording(2).await;
    // A segment is 5 s long.
    publisher.pictures_pass(30 * 9).await;
    let killed_at = unix_seconds(Instant::now());
    world.kill_worker();
    world.start_another(&Machine::new("worker-2")).expect("worker");
    has_epoch(&world, "worker-2", 2).await;
    publisher.pictures_pass(30 * 2).await;
    Killed { world, publisher, killed_at, database }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_worker_had_on_its_disk_is_in_the_archive_that_another_makes() {
    let Killed { database: _database, mut world, publisher, killed_at } = killed_and_taken_over("back").await;
    // Its job is another's by now. What it had is not.
    world.start_worker().expect("worker");
    wait_for("the end of the log to be shipped", || async {
        world.log().contains("the end of a log that another worker goes on with is in the store now").then_some(())
    })
    .await;
    let ended = world.ended("back");
    world.publish(&ended).expect("publish");
    let archive = world.archive("back", "available").await;
    let truth = publisher.crash().timeline();
    let archive = world.download(&archive).expect("download");
    let matched = Content::read(&archive.files("alice")[0]).expect("file").against(&truth);
    assert_eq!(matched.strange, 0, "pictures that were never sent, come twice, or out of order");
    let holes = matched.holes();
    assert_eq!(holes.len(), 1, "{holes:?}");
    let (from, to) = holes[0];
    // The last part of half a second was not on the disk.
    assert!(from > killed_at - 1.0, "the last {:.2} s before the kill are missing", killed_at - from);
    let reported: f64 = gap_lengths(archive.track("alice", "video").expect("track"), "worker").iter().sum();
    assert!((to - from - reported).abs() <= 0.1, "{:.3} s are missing, {reported:.3} s are reported", to - from);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_after_the_archive_was_made_is_added_to_it() {
    let Killed { database: _database, mut world, publisher, killed_at } = killed_and_taken_over("late").await;
    let ended = world.ended("late");
    world.publish(&ended).expect("publish");
    let archive = world.archive("late", "available").await;
    let truth = publisher.crash().timeline();
    let first = world.download(&archive).expect("download");
    let matched = Content::read(&first.files("alice")[0]).expect("file").against(&truth);
    let before = matched.holes();
    assert_eq!((before.len(), &first.manifest["revision"], &first.manifest["complete"]), (1, &json!(1), &json!(false)));
    // The machine comes back when the archive is made.
    world.start_worker().expect("worker");
    let second = wait_for("the archive to be made again", || async {
        let now = world.download(&archive).ok()?;
        (now.manifest["revision"] == 2).then_some(now)
    })
    .await;
    let matched = Content::read(&second.files("alice")[0]).expect("file").against(&truth);
    assert_eq!(matched.strange, 0, "pictures that were never sent, come twice, or out of order");
    let after = matched.holes();
    assert_eq!(after.len(), 1, "{after:?}");
    let (from, to) = after[0];
    assert!(before[0].0 < killed_at - 1.0, "nothing was on that disk alone: {before:?}, killed at {killed_at}");
    assert!(from > killed_at - 1.0, "the last {:.2} s before the kill are missing", killed_at - from);
    let reported: f64 = gap_lengths(second.track("alice", "video").expect("track"), "worker").iter().sum();
    assert!((to - from - reported).abs() <= 0.1, "{:.3} s are missing, {reported:.3} s are reported", to - from);
    // Developers are told once more, and nothing is left on the disk that came back.
    let row = world.archive("late", "available").await;
    assert_eq!(row["revision"], 2, "{row}");
    wait_for("the spool to be empty", || async {
        let mut left = std::fs::read_dir(world.data().join("spool")).ok()?.flatten();
        left.all(|entry| !entry.path().join("job.json").exists()).then_some(())
    })
    .await;
}

/// What the archive of a session has that two machines recorded, one after the other, of which the second one's clock is wrong.
async fn over_to_a_machine_whose_clock_is_wrong(skew: &str) {
    let database = databases::with_tables();
    let mut world = World::start(BINARY, Some(&database.url()), "").await.expect("world");
    world.janus.create_room("skew", json!({})).await.expect("room");
    let started = world.started("skew");
    world.start_worker().expect("worker");
    world.publish(&started).expect("publish");
    let publisher = Publisher::start(Options::new(&world.janus, "skew", "alice")).await.expect("publisher");
    world.recording(2).await;
    let machine = Machine { skew: Some(skew), ..Machine::new("worker-2") };
    world.start_another(&machine).expect("worker");
    says(&world, "worker-2", "this machine's clock differs from the catalog's").await;
    // Longer than a lease, and than a worker must hear from the catalog before it takes anything.
    publisher.pictures_pass(30 * 9).await;
    assert!(!world.log_of("worker-2").contains("job begins"), "{}", world.log_of("worker-2"));
    let killed_at = unix_seconds(Instant::now());
    world.kill_worker();
    has_epoch(&world, "worker-2", 2).await;
    publisher.pictures_pass(30 * 4).await;
    let ended = world.ended("skew");
    world.publish(&ended).expect("publish");
    let archive = world.archive("skew", "available").await;
    let truth = publisher.crash().timeline();
    let archive = world.download(&archive).expect("download");
    let [file] = archive.files("alice").try_into().expect("one file");
    let content = Content::read(&file).expect("file");
    assert_eq!(content.errors, Vec::<String>::new());
    let matched = content.against(&truth);
    assert_eq!(matched.strange, 0, "pictures that were never sent, come twice, or out of order");
    let late = matched.sound_after_picture();
    assert!(!late.is_empty() && late.iter().all(|late| late.abs() < 0.06), "{late:?}");
    // In the file, pictures are as far apart as they were sent, also across the takeover.
    for pair in matched.frames.windows(2) {
        let (sent, shown) = (pair[1].sent - pair[0].sent, pair[1].seen - pair[0].seen);
        assert!((sent - shown).abs() < 0.2, "{sent:.3} s apart when they were sent, {shown:.3} s in the file");
    }
    let holes = matched.holes();
    let (from, to) = holes[0];
    assert!(holes.len() == 1 && (killed_at - 10.5..to).contains(&from), "{holes:?}, killed at {killed_at}");
    let reported: f64 = gap_lengths(archive.track("alice", "video").expect("track"), "worker").iter().sum();
    assert!((to - from - reported).abs() <= 0.2, "{:.3} s are missing, {reported:.3} s are reported", to - from);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_clock_is_10_s_ahead_takes_nobody_s_job_and_gives_media_its_time() {
    over_to_a_machine_whose_clock_is_wrong("+10s").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_clock_is_10_s_behind_takes_nobody_s_job_and_gives_media_its_time() {
    over_to_a_machine_whose_clock_is_wrong("-10s").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_worker_of_the_same_name_refuses_and_says_since_when_the_other_has_it() {
    let database = databases::with_tables();
    let mut world = World::start(BINARY, Some(&database.url()), "").await.expect("world");
    world.janus.create_room("names", json!({})).await.expect("room");
    let started = world.started("names");
    world.start_worker().expect("worker");
    world.publish(&started).expect("publish");
    let publisher = Publisher::start(Options::new(&world.janus, "names", "alice")).await.expect("publisher");
    world.recording(2).await;
    world.start_another(&Machine { worker: "worker-1", ..Machine::new("copy") }).expect("worker");
    let begun = Instant::now();
    while world.runs_at("copy") {
        assert!(begun.elapsed() < Duration::from_secs(60), "{}", world.log_of("copy"));
        publisher.pictures_pass(10).await;
    }
    let log = world.log_of("copy");
    assert!(log.contains("another worker, which started at 20") && log.contains("has the name worker-1"), "{log}");
    assert!(log.contains("worker.id"), "it should say what to do: {log}");
    // The first one has not noticed.
    publisher.pictures_pass(60).await;
    let ended = world.ended("names");
    world.publish(&ended).expect("publish");
    let archive = world.archive("names", "available").await;
    let archive = world.download(&archive).expect("download");
    assert_eq!(archive.report["epochsMs"].as_array().expect("epochs").len(), 1, "{}", archive.report);
    assert!(!world.log().contains("another owner"), "{}", world.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_on_a_full_disk_goes_on_at_another_machine_which_takes_all_new_ones() {
    let database = databases::with_tables();
    let mut world = World::start(BINARY, Some(&database.url()), "").await.expect("world");
    for room in ["full", "new"] {
        world.janus.create_room(room, json!({})).await.expect("room");
    }
    world.configure(&[("[worker]\n", "[spool]\nfree_min = \"1MiB\"\n[worker]\n")], "").expect("configuration");
    let small = Machine { disk: Some("32m"), ..Machine::new("small") };
    world.start_another(&small).expect("worker");
    let started = world.started("full");
    world.publish(&started).expect("publish");
    let publisher = Publisher::start(Options::new(&world.janus, "full", "alice")).await.expect("publisher");
    says(&world, "small", "first media is on disk").await;
    publisher.pictures_pass(30 * 6).await;
    world.start_another(&Machine::new("worker-2")).expect("worker");
    says(&world, "worker-2", "consuming").await;
    let filled_at = unix_seconds(Instant::now());
    world.fill_disk_of("small").expect("a full disk");
    has_epoch(&world, "worker-2", 2).await;
    // The next sessions are none of the sick machine's.
    let started = world.started("new");
    world.publish(&started).expect("publish");
    let other = Publisher::start(Options::new(&world.janus, "new", "bob")).await.expect("publisher");
    other.pictures_pass(90).await;
    world.empty_disk_of("small").expect("room on the disk");
    says(&world, "small", "the disk takes files again").await;
    // If the end of the log could not be sealed on the full disk, it comes now.
    if world.log_of("small").contains("on this disk alone") {
        says(&world, "small", "the end of a log that another worker goes on with is in the store now").await;
    }
    for session in ["full", "new"] {
        let ended = world.ended(session);
        world.publish(&ended).expect("publish");
    }
    let archive = world.archive("full", "available").await;
    let truth = publisher.crash().timeline();
    let archive = world.download(&archive).expect("download");
    let matched = Content::read(&archive.files("alice")[0]).expect("file").against(&truth);
    assert_eq!(matched.strange, 0, "pictures that were never sent, come twice, or out of order");
    let holes = matched.holes();
    assert_eq!(holes.len(), 1, "{holes:?}");
    let (from, to) = holes[0];
    assert!(from > filled_at - 1.0, "the last {:.2} s before the disk was full are missing", filled_at - from);
    // Until the disk is known to stay full, and the next owner has its first keyframe.
    assert!(to - from < 30.0, "{:.2} s are missing", to - from);
    let gaps = archive.track("alice", "video").expect("track")["gaps"].clone();
    let second = |v: &Value| v.as_f64().expect("a number") / 1e9;
    let lost = gaps.as_array().expect("gaps").iter().filter(|gap| gap["cause"] != "not_sent");
    let reported: f64 = lost.map(|gap| second(&gap["to"]) - second(&gap["from"])).sum();
    assert!(
        (to - from - reported).abs() <= 0.2,
        "{:.3} s are missing, {reported:.3} s are reported: {gaps}",
        to - from
    );
    let archive = world.archive("new", "available").await;
    let truth = other.crash().timeline();
    let archive = world.download(&archive).expect("download");
    let matched = Content::read(&archive.files("bob")[0]).expect("file").against(&truth);
    assert_eq!((matched.missing.len(), matched.strange), (0, 0));
    assert!(!world.log_of("small").contains("session=new"), "{}", world.log_of("small"));
    assert!(!world.log_of("small").contains("is parked"), "{}", world.log_of("small"));
}

/// Waits until the worker of another machine has logged a text.
async fn says(world: &World, machine: &str, text: &str) {
    wait_for(&format!("{machine} to say {text:?}"), || async { world.log_of(machine).contains(text).then_some(()) })
        .await;
}
