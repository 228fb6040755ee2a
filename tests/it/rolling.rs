//! Workers that are restarted in turn, as a deployment does: each session goes on at another worker, and nothing of it is lost.

use crate::BINARY;

use crate::support::databases;
use archiver_testkit::content::Content;
use archiver_testkit::publisher::{Options, Publisher};
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::{Machine, World};
use serde_json::json;

const WORKERS: [&str; 3] = ["worker-2", "worker-3", "worker-4"];
const SESSIONS: usize = 10;

/// How many archives the spools of all workers have with media of two tracks.
fn captured(world: &World) -> usize {
    let spools = WORKERS.iter().filter_map(|worker| std::fs::read_dir(world.data_of(worker).join("spool")).ok());
    let tracks =
        |archive: std::fs::DirEntry| std::fs::read_dir(archive.path().join("tracks")).map_or(0, Iterator::count);
    spools.flatten().flatten().map(tracks).filter(|tracks| *tracks >= 2).count()
}

/// Starts a worker, and waits until it takes jobs.
async fn start(world: &mut World, worker: &str) {
    let starts = |world: &World| world.log_of(worker).matches("source=Events").count();
    let before = starts(world);
    world.start_another(&Machine::new(worker)).expect("worker");
    wait_for(&format!("{worker} to take jobs"), || async { (starts(world) > before).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_workers_are_restarted_in_turn_under_ten_sessions_and_no_picture_is_lost() {
    let database = databases::with_tables();
    let mut world = World::start(BINARY, Some(&database.url()), "").await.expect("world");
    for worker in WORKERS {
        start(&mut world, worker).await;
    }
    let mut sessions = Vec::new();
    for n in 0..SESSIONS {
        let session = format!("rolling-{n}");
        world.janus.create_room(&session, json!({})).await.expect("room");
        let started = world.started(&session);
        world.publish(&started).expect("publish");
        let publisher = Publisher::start(Options::new(&world.janus, &session, "alice")).await.expect("publisher");
        sessions.push((session, publisher));
    }
    wait_for("all sessions to be captured", || async { (captured(&world) >= SESSIONS).then_some(()) }).await;
    for worker in WORKERS {
        sessions[0].1.pictures_pass(30 * 3).await;
        assert!(world.stop_another(worker), "{}", world.log_of(worker));
        start(&mut world, worker).await;
    }
    sessions[0].1.pictures_pass(30 * 3).await;
    for (session, publisher) in sessions {
        let ended = world.ended(&session);
        world.publish(&ended).expect("publish");
        let archive = world.archive(&session, "available").await;
        let truth = publisher.crash().timeline();
        let archive = world.download(&archive).expect("download");
        let [file] = archive.files("alice").try_into().expect("one file");
        let content = Content::read(&file).expect("file");
        assert_eq!(content.errors, Vec::<String>::new(), "{session}");
        let matched = content.against(&truth);
        let epochs = archive.report["epochsMs"].as_array().expect("epochs").len();
        println!("{session}: {epochs} owners, {} pictures, {} missing", matched.frames.len(), matched.missing.len());
        assert_eq!((matched.missing.len(), matched.strange), (0, 0), "{session}: {:?}", matched.missing);
        assert_eq!(archive.manifest["complete"], true, "{session}: {}", archive.report);
    }
}
