//! `archiver reconcile`: whether everything is recorded, as rooms, jobs and archives say.

use std::collections::BTreeMap;

use archiver::catalog::SessionRow;
use archiver::model::archive_options::{ArchiveOptions, OutputMode};
use archiver::model::ids::RoomId;
use archiver::model::session::{ArchiveMode, MediaMode, RouterRoom};
use archiver::model::time::Wallclock;
use archiver_testkit::publisher::{Options, Publisher};
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::{APPLICATION, World};
use serde_json::{Value, json};

use crate::BINARY;
use crate::support::composed::settings;

/// Adds a session of the API with a room of its name.
async fn session(world: &World, name: &str, archive_mode: ArchiveMode) {
    world.janus.create_room(name, json!({})).await.expect("room");
    let room: RoomId = world.janus.own_room(name).parse().expect("a room");
    let row = SessionRow {
        session: name.parse().expect("id"),
        application: APPLICATION.parse().expect("id"),
        media_mode: MediaMode::Routed,
        archive_mode,
        e2ee: false,
        location: None,
        region: "eu".parse().expect("region"),
        router: Some(RouterRoom::shared("janus-1".parse().expect("name"), room)),
        archive: ArchiveOptions { output_mode: OutputMode::Individual, ..ArchiveOptions::default() },
        conversation: 0,
        classes: BTreeMap::new(),
        created_at: Wallclock::now(),
    };
    let catalog = archiver::app::services::catalog(&settings(world)).await.expect("catalog");
    catalog.add_session(&row).await.expect("session");
}

/// What the command says, and whether it succeeds.
fn reconcile(world: &World) -> (bool, Value) {
    let done = world.command(&["reconcile", "--json"]).expect("command");
    let said = serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"));
    (done.status.success(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_nobody_records_is_found_until_it_is_recorded() {
    let mut world = World::start_with_own_router(BINARY, "").await.expect("world");
    for (name, mode) in
        [("always", ArchiveMode::Always), ("manual", ArchiveMode::Manual), ("quiet", ArchiveMode::Always)]
    {
        session(&world, name, mode).await;
    }
    world.janus.create_room("platform", json!({})).await.expect("room");
    assert!(reconcile(&world).0, "nobody publishes");
    let mut publishers = Vec::new();
    for room in ["always", "manual", "platform"] {
        publishers.push(Publisher::start(Options::new(&world.janus, room, "alice")).await.expect("publisher"));
    }
    // No worker lives, and no bridge.
    let (is_fine, said) = reconcile(&world);
    let found = said["findings"].as_array().expect("findings");
    assert!(!is_fine && found.len() == 1, "{said}");
    assert_eq!(
        (&found[0]["kind"], &found[0]["session"], &found[0]["publishing"]),
        (&json!("room"), &json!("always"), &json!(1))
    );
    let unknown = said["roomsWithoutSession"].as_array().expect("rooms");
    assert_eq!((unknown.len(), &unknown[0]["room"]), (1, &json!(world.janus.own_room("platform"))), "{said}");
    // The bridge of `serve` tells the worker of it.
    world.start_worker().expect("worker");
    world.recording(2).await;
    let (is_fine, said) = reconcile(&world);
    assert_eq!((is_fine, &said["findings"]), (true, &json!([])), "{said}");
    let text = world.command(&["reconcile"]).expect("command");
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("1 under way") && text.contains("everything is recorded, as far as"), "{text}");
    publishers[0].pictures_pass(60).await;
    let ended = world.ended("always");
    world.publish(&ended).expect("publish");
    world.archive("always", "available").await;
    drop(publishers);
    wait_for("the archive to be counted", || async {
        let (_, said) = reconcile(&world);
        // Nobody knows for how long somebody had published when the bridge began.
        let incomplete = said["archives"]["incomplete"].as_array().map_or(0, Vec::len);
        (said["archives"]["complete"].as_u64()? + incomplete as u64 == 1).then_some(())
    })
    .await;
}
