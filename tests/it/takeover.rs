//! A session whose machine is lost, and goes on at another one: what was sealed there is in the archive.

use crate::BINARY;
use std::time::{Duration, Instant};

use crate::support::databases;
use archiver_testkit::content::Content;
use archiver_testkit::publisher::{Options, Publisher, unix_seconds};
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::World;
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
    // A lease is how long a lost machine is waited for.
    let config = std::fs::read_to_string(world.config()).expect("config");
    std::fs::write(world.config(), config.replacen("[worker]", "[worker]\nlease = \"3s\"", 1)).expect("config");
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
        let began = format!("\"epoch\":{}", n + 1);
        wait_for(&format!("{machine} to have the job\n{}", world.log()), || async {
            let archive = std::fs::read_dir(world.data().join("spool")).ok()?.flatten().next()?;
            let history = std::fs::read_to_string(archive.path().join("history.jsonl")).ok()?;
            history.contains(&began).then_some(())
        })
        .await;
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
    let holes = matched.frames.windows(2).filter(|w| w[1].sent - w[0].sent > 0.14).map(|w| (w[0].sent, w[1].sent));
    let epochs = archive.report["epochsMs"].as_array().expect("epochs").len();
    assert_eq!(epochs, machines.len());
    Recorded { video: archive.track("alice", "video").expect("track").clone(), holes: holes.collect(), gone }
}

fn worker_gaps(video: &Value) -> Vec<f64> {
    let gaps = video["gaps"].as_array().expect("gaps");
    let second = |v: &Value| v.as_f64().expect("a number") / 1e9;
    gaps.iter().filter(|g| g["cause"] == "worker").map(|g| second(&g["to"]) - second(&g["from"])).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_machine_is_lost_goes_on_at_another_with_all_that_was_sealed() {
    let Recorded { video, holes, .. } = over(&[("worker-1", 13), ("worker-2", 6)], Goes::Lost).await;
    let reported = worker_gaps(&video);
    println!("{holes:?} {reported:?}");
    assert_eq!((holes.len(), reported.len()), (1, 1), "{video}");
    let missing = holes[0].1 - holes[0].0;
    // What was not sealed (5 s a segment), the lease, and the new worker's way to the first keyframe.
    assert!(missing < 5.5 + 3.0 + 4.0, "{missing:.2} s are missing");
    assert!((missing - reported[0]).abs() <= 0.1, "{missing:.3} s are reported as {:.3} s", reported[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_gets_its_session_back_gains_what_the_other_captured() {
    let Recorded { video, holes, .. } = over(&[("worker-1", 7), ("worker-2", 12), ("worker-1", 6)], Goes::Lost).await;
    let reported = worker_gaps(&video);
    println!("{holes:?} {reported:?}");
    assert_eq!((holes.len(), reported.len()), (2, 2), "{video}");
    for (hole, reported) in holes.iter().zip(reported) {
        let missing = hole.1 - hole.0;
        assert!(missing < 12.5, "{missing:.2} s are missing");
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
    let reported: f64 = worker_gaps(&video).iter().sum();
    assert!((to - from - reported).abs() <= 0.1, "{:.3} s are missing, {reported:.3} s are reported", to - from);
}
