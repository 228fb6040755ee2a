//! `archiver workers drain`: a worker hands its sessions over, and goes on running.

use crate::BINARY;
use crate::support::databases;
use archiver_testkit::content::Content;
use archiver_testkit::publisher::{Options, Publisher};
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::{Machine, World};
use serde_json::{Value, json};

fn workers(world: &World, args: &[&str]) -> String {
    let done = world.command(&[&["workers"], args].concat()).expect("command");
    assert!(done.status.success(), "{args:?}: {done:?}");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// The running job, once a worker has it in an epoch.
async fn owned_by(world: &World, worker: &str, epoch: u64) -> Value {
    wait_for(&format!("{worker} to have the job in epoch {epoch}"), || async {
        let list = world.json(&["jobs", "list", "--json"]).ok()?;
        let job = list["jobs"].as_array()?.first()?.clone();
        (job["owner"] == worker && job["epoch"] == epoch && job["state"] == "capturing").then_some(job)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_worker_hands_its_session_over_and_may_get_it_back_when_it_resumes() {
    let database = databases::with_tables();
    let mut world = World::start(BINARY, Some(&database.url()), "").await.expect("world");
    world.janus.create_room("drained", json!({})).await.expect("room");
    let started = world.started("drained");
    world.start_worker().expect("worker");
    world.publish(&started).expect("publish");
    let publisher = Publisher::start(Options::new(&world.janus, "drained", "alice")).await.expect("publisher");
    world.recording(2).await;
    let first = world.json(&["workers", "list", "--json"]).expect("workers");
    let first = first["workers"][0]["worker"].as_str().expect("name").to_owned();
    // Nobody else lives: the session stays with the drained worker, and so it does when that resumes.
    assert!(workers(&world, &["drain", &first]).contains("hands its sessions over"));
    assert!(!world.command(&["workers", "drain", "nobody"]).expect("command").status.success());
    wait_for("the worker to hear of it", || async { world.log().contains("told to drain").then_some(()) }).await;
    // Its next beat says so.
    wait_for("the worker to be drained", || async { workers(&world, &["list"]).contains("drained, by").then_some(()) })
        .await;
    publisher.pictures_pass(60).await;
    owned_by(&world, &first, 1).await;
    // As soon as another one lives, it has the session.
    world.start_another(&Machine::new("worker-2")).expect("worker");
    owned_by(&world, "worker-2", 2).await;
    publisher.pictures_pass(60).await;
    // And back again.
    workers(&world, &["resume", &first]);
    wait_for("the worker to hear of it", || async { world.log().contains("told to resume").then_some(()) }).await;
    workers(&world, &["drain", "worker-2"]);
    owned_by(&world, &first, 3).await;
    publisher.pictures_pass(60).await;
    let ended = world.ended("drained");
    world.publish(&ended).expect("publish");
    let row = world.archive("drained", "available").await;
    let truth = publisher.crash().timeline();
    let archive = world.download(&row).expect("download");
    let matched = Content::read(&archive.files("alice")[0]).expect("file").against(&truth);
    assert_eq!((matched.missing.len(), matched.strange), (0, 0), "no picture is lost, and none is there twice");
    assert_eq!(archive.manifest["complete"], true, "{}", archive.report);
    assert_eq!(archive.report["epochsMs"].as_array().expect("epochs").len(), 3, "{}", archive.report);
}
