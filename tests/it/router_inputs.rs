//! What a media router may ask of its subscribers: private ids, tokens, candidates that come one by one, and addresses of either family. Each
//! session is recorded by the program, and its file is held against what was sent.

use std::net::IpAddr;
use std::time::Duration;

use archiver::model::time::Wallclock;
use archiver::session::access::signed_token;
use archiver_testkit::content::{Content, Matched};
use archiver_testkit::janus::{CandidateAddresses, Client, JanusOptions, TOKEN_SECRET};
use archiver_testkit::publisher::{Options, Publisher, unix_seconds};
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::World;
use serde_json::{Value, json};

use crate::BINARY;

/// A session whose media has not come for so long has none.
const MEDIA_MAX: Duration = Duration::from_secs(40);

/// Alice's token in rooms with a list of tokens.
const OF_ALICE: &str = "of alice";

/// Publishes from an address, Janus's own by default, into the room "r" with these properties, and waits for the media to be recorded.
async fn record(world: &mut World, room: Value, local: Option<IpAddr>) -> Publisher {
    let listed = room.get("allowed").is_some();
    world.janus.create_room("r", room).await.expect("room");
    world.start_worker().expect("worker");
    let mut options = Options::new(&world.janus, "r", "alice");
    options.local = local.unwrap_or(options.local);
    options.room_token = listed.then(|| OF_ALICE.to_owned());
    let publisher = Publisher::start(options).await.expect("publisher");
    let started = world.started("r");
    world.publish(&started).expect("publish");
    let media = tokio::time::timeout(MEDIA_MAX, world.recording(2)).await;
    media.unwrap_or_else(|_| panic!("no media is recorded:\n{}", world.log()));
    publisher
}

/// Ends the session "r", and holds its one file against what was sent.
async fn finish(world: &mut World, publisher: Publisher) -> Matched {
    let ended = world.ended("r");
    world.publish(&ended).expect("publish");
    let archive = world.archive("r", "available").await;
    let truth = publisher.leave().await.expect("leave").timeline();
    let archive = world.download(&archive).expect("download");
    let files = archive.files("alice");
    assert_eq!(files.len(), 1, "{files:?}");
    let content = Content::read(&files[0]).expect("file");
    assert_eq!(content.errors, Vec::<String>::new());
    let matched = content.against(&truth);
    assert_eq!(matched.strange, 0, "pictures that were never sent, come twice, or out of order");
    matched
}

/// Records the room for a few seconds: every picture is in the file.
async fn is_recorded_whole(world: &mut World, room: Value, local: Option<IpAddr>) {
    let publisher = record(world, room, local).await;
    publisher.pictures_pass(120).await;
    let matched = finish(world, publisher).await;
    assert_eq!(matched.missing, Vec::<f64>::new());
    assert!(matched.frames.len() > 60 && matched.beeps.len() >= 2, "{matched:?}");
}

/// A world with such a private Janus, and a worker whose `[media]` has this.
async fn world(router: JanusOptions, media: &str) -> World {
    let world = World::start_with_router(BINARY, router, "").await.expect("world");
    let bind = format!("bind = \"{}:0\"", world.janus.ip());
    let media = media.replace("ROUTER", &world.janus.ip().to_string());
    world.configure(&[(&bind, &media)], "").expect("configuration");
    world
}

fn trickling() -> JanusOptions {
    JanusOptions { full_trickle: true, ..JanusOptions::default() }
}

fn with_addresses(candidates: CandidateAddresses) -> JanusOptions {
    JanusOptions { candidates, ..JanusOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_requires_private_ids_is_recorded_also_after_its_observer_was_removed() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    let publisher = record(&mut world, json!({ "require_pvtid": true }), None).await;
    publisher.pictures_pass(90).await;
    // A moderator removes the observer, and with it what was subscribed to with its private id.
    let room = world.janus.room("r");
    let mut admin = Client::connect(&world.janus.url()).await.expect("client");
    let listed = admin.message(json!({ "request": "listparticipants", "room": room }), None).await.expect("list");
    let list = listed["plugindata"]["data"]["participants"].as_array().expect("list").clone();
    let is_observer = |p: &&Value| p["display"].as_str().is_some_and(|display| display.starts_with("archiver:"));
    let observer = list.iter().find(is_observer).expect("observer")["id"].clone();
    let removed = unix_seconds(std::time::Instant::now());
    admin.message(json!({ "request": "kick", "room": room, "id": observer }), None).await.expect("kick");
    publisher.pictures_pass(360).await;
    let matched = finish(&mut world, publisher).await;
    let last = matched.frames.last().expect("pictures").sent;
    assert!(last - removed > 8.0, "the last picture is of {:.1} s after the removal\n{}", last - removed, world.log());
    // What is missing is in one piece: from the removal to the second subscription.
    let missing = matched.missing.iter().filter(|at| **at < removed - 0.5 || **at > removed + 8.0).count();
    assert_eq!(missing, 0, "{:?}", matched.missing);
}

#[tokio::test(flavor = "multi_thread")]
async fn candidates_that_come_one_by_one_are_used() {
    let mut world = world(trickling(), "bind = \"ROUTER:0\"").await;
    is_recorded_whole(&mut world, json!({}), None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn candidates_that_come_one_by_one_reach_a_worker_that_is_bound_to_all_addresses() {
    let mut world = world(trickling(), "bind = \"0.0.0.0:0\"").await;
    is_recorded_whole(&mut world, json!({}), None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn candidates_that_come_one_by_one_reach_a_worker_that_advertises_an_address() {
    let mut world = world(trickling(), "bind = \"0.0.0.0:0\"\nadvertise = \"ROUTER\"").await;
    is_recorded_whole(&mut world, json!({}), None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_has_ipv6_alone_is_recorded_from_all_addresses() {
    let mut world = world(with_addresses(CandidateAddresses::V6), "bind = \"[::]:0\"").await;
    let local = world.janus.ipv6();
    is_recorded_whole(&mut world, json!({}), Some(local)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_has_ipv4_alone_is_recorded_from_all_addresses_of_ipv6() {
    let mut world = world(with_addresses(CandidateAddresses::V4), "bind = \"[::]:0\"").await;
    is_recorded_whole(&mut world, json!({}), None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_has_both_families_is_recorded_from_either() {
    for bind in ["0.0.0.0:0", "[::]:0"] {
        let mut world = world(with_addresses(CandidateAddresses::Both), &format!("bind = \"{bind}\"")).await;
        is_recorded_whole(&mut world, json!({}), None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_no_local_address_reaches_is_told_in_the_log() {
    for bind in ["ROUTER:0", "0.0.0.0:0"] {
        let mut world = world(with_addresses(CandidateAddresses::V6), &format!("bind = \"{bind}\"")).await;
        world.janus.create_room("r", json!({})).await.expect("room");
        world.start_worker().expect("worker");
        let mut options = Options::new(&world.janus, "r", "alice");
        options.local = world.janus.ipv6();
        let _publisher = Publisher::start(options).await.expect("publisher");
        let started = world.started("r");
        world.publish(&started).expect("publish");
        let address = world.janus.ipv6().to_string();
        wait_for(&format!("{address} in the log"), || async {
            let log = world.log();
            let line = log.lines().find(|line| line.contains(&address))?;
            assert!(line.contains("[media] bind") && line.contains("IPv6"), "{line}");
            Some(())
        })
        .await;
    }
}

/// The parked job, when there is one.
async fn parked(world: &World) -> Value {
    wait_for("a parked job", || async {
        let list = world.json(&["jobs", "list", "--json"]).ok()?;
        list["parked"].as_array()?.first().cloned()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_with_a_list_of_tokens_is_recorded_with_the_token_of_its_name() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    let section = format!("[router.rooms.\"{}\"]\ntoken = \"of the room\"\n", world.janus.own_room("r"));
    world.configure(&[], &section).expect("configuration");
    is_recorded_whole(&mut world, json!({ "allowed": ["of the room", OF_ALICE] }), None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_with_a_list_of_tokens_parks_its_job_with_the_name_of_the_missing_setting() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    world.janus.create_room("r", json!({ "allowed": ["another"] })).await.expect("room");
    world.start_worker().expect("worker");
    let started = world.started("r");
    world.publish(&started).expect("publish");
    let job = parked(&world).await;
    assert_eq!(job["fault"], "router_refused", "{job}");
    let shown = world.command(&["jobs", "show", job["parked"].as_str().expect("id")]).expect("show");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("[router.rooms.\"…\"] token"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_wants_a_token_of_everyone_is_given_the_one_of_the_configuration() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    let token = signed_token(&TOKEN_SECRET.into(), Wallclock::now() + Duration::from_secs(3600));
    let (secret, line) = ("api_secret = \"api-secret\"", format!("token = \"{token}\""));
    world.configure(&[(secret, &line)], "").expect("configuration");
    is_recorded_whole(&mut world, json!({ "allowed": [token, OF_ALICE] }), None).await;
}
