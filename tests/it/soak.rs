//! One worker, session after session: nothing is left behind, and nothing grows.
//!
//! A short version runs with `make test`; `make soak` takes an hour (`ARCHIVER_SOAK`, in seconds).

use crate::BINARY;
use std::time::{Duration, Instant};

use archiver_testkit::content::Content;
use archiver_testkit::publisher::{Options, Publisher};
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::World;
use serde_json::json;

/// Sessions that run side by side.
const SIDE_BY_SIDE: usize = 3;
/// Rounds until caches and pools of the process have their size.
const WARM: usize = 2;
/// Memory may be this much above that of the first rounds, in kB, however long it runs.
const GROWTH_MAX: u64 = 60_000;
/// Open files, sockets and threads may be so many more.
const MORE_MAX: usize = 12;

/// What a process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    memory_kb: u64,
    files: usize,
    threads: usize,
}

fn held(pid: u32) -> Held {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the worker lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).expect("the worker lives").count();
    let memory_kb = line.split_whitespace().next().and_then(|kb| kb.parse().ok()).expect("a number");
    Held { memory_kb, files: count("fd"), threads: count("task") }
}

/// A session of some seconds in which somebody leaves early and somebody mutes.
async fn session(world: &World, round: usize, n: usize, started: &serde_json::Value, ended: &serde_json::Value) {
    let room = format!("soak-{round}-{n}");
    world.janus.create_room(&room, json!({})).await.expect("room");
    world.publish(started).expect("publish");
    let alice = Publisher::start(Options::new(&world.janus, &room, "alice")).await.expect("publisher");
    let bob = Publisher::start(Options::new(&world.janus, &room, "bob")).await.expect("publisher");
    tokio::time::sleep(Duration::from_secs(2)).await;
    bob.mute_video(true);
    tokio::time::sleep(Duration::from_secs(2)).await;
    bob.leave().await.expect("leave");
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.publish(ended).expect("publish");
    let archive = world.archive(&room, "available").await;
    let truth = alice.crash().timeline();
    let archive = world.download(&archive).expect("download");
    let matched = Content::read(&archive.files("alice")[0]).expect("file").against(&truth);
    assert_eq!((matched.missing.len(), matched.strange), (0, 0), "{room}");
    assert_eq!(archive.files("bob").len(), 1, "{room}");
    std::fs::remove_dir_all(&archive.dir).expect("the download goes");
    world.janus.destroy_room(&room).await.expect("room");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_records_session_after_session_does_not_grow() {
    let seconds = std::env::var("ARCHIVER_SOAK").ok().and_then(|s| s.parse().ok()).unwrap_or(30);
    let mut world = World::start(BINARY, None, "").await.expect("world");
    world.start_worker().expect("worker");
    let pid = world.worker_pid().expect("a worker");
    let (begin, mut first, mut round) = (Instant::now(), None, 0);
    while round <= WARM || begin.elapsed() < Duration::from_secs(seconds) {
        let events: Vec<_> = (0..SIDE_BY_SIDE)
            .map(|n| {
                let room = format!("soak-{round}-{n}");
                (world.started(&room), world.ended(&room))
            })
            .collect();
        let sessions = events.iter().enumerate().map(|(n, (started, ended))| session(&world, round, n, started, ended));
        futures_util::future::join_all(sessions).await;
        // What is in the store for sure is gone from the spool.
        wait_for("the spool to be empty", || async {
            let left = std::fs::read_dir(world.data().join("spool")).ok()?.flatten().count();
            (left == 0).then_some(())
        })
        .await;
        let now = held(pid);
        println!("after {} sessions: {now:?}", (round + 1) * SIDE_BY_SIDE);
        if round + 1 == WARM {
            first = Some(now);
        }
        round += 1;
    }
    let (first, last) = (first.expect("the first rounds"), held(pid));
    assert!(last.memory_kb < first.memory_kb + GROWTH_MAX, "memory grew: {first:?}, then {last:?}");
    assert!(last.files <= first.files + MORE_MAX, "open files grew: {first:?}, then {last:?}");
    assert!(last.threads <= first.threads + MORE_MAX, "threads grew: {first:?}, then {last:?}");
    assert_eq!(world.worker_pid(), Some(pid));
}
