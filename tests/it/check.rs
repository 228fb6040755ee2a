//! `archiver check`: what it finds out about a media router by publishing to itself, and what it says when that fails.

use archiver_testkit::janus::{ADMIN_KEY, CandidateAddresses, Client, JanusOptions};
use archiver_testkit::world::World;
use serde_json::{Value, json};

use crate::BINARY;

/// The line about the router. The program's success is that of all lines.
fn checked(world: &World) -> Value {
    let out = world.command(&["check", "--json"]).expect("check");
    let lines: Vec<Value> = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(out.status.success(), lines.iter().all(|line| line["ok"] == true), "{lines:?}");
    lines.iter().find(|line| line["what"] == "router janus-1").expect("a line about the router").clone()
}

fn text(line: &Value) -> &str {
    line["text"].as_str().expect("text")
}

/// The rooms at the router.
async fn rooms(world: &World) -> Vec<String> {
    let mut client = Client::connect(&world.janus.url()).await.expect("client");
    let listed = client.message(json!({ "request": "list", "admin_key": ADMIN_KEY }), None).await.expect("list");
    let list = listed["plugindata"]["data"]["list"].as_array().expect("list").clone();
    list.iter().map(|room| room["room"].as_str().expect("id").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_published_and_recorded_and_nothing_of_it_stays() {
    for (options, bind) in [
        (JanusOptions::default(), None),
        (JanusOptions { full_trickle: true, ..JanusOptions::default() }, Some("0.0.0.0:0")),
    ] {
        let mut world = World::start_with_router(BINARY, options, "").await.expect("world");
        if let Some(bind) = bind {
            let own = format!("bind = \"{}:0\"", world.janus.ip());
            world.configure(&[(&own, &format!("bind = \"{bind}\""))], "").expect("configuration");
        }
        // Its bridge looks at all rooms meanwhile.
        world.start_worker().expect("worker");
        let line = checked(&world);
        assert!(line["ok"] == true && text(&line).contains("first media after"), "{line}");
        assert!(text(&line).starts_with("Janus 1") && !text(&line).contains("better"), "{line}");
        assert_eq!(rooms(&world).await, Vec::<String>::new());
        let jobs = world.json(&["jobs", "list", "--all", "--json"]).expect("jobs");
        assert_eq!((&jobs["jobs"], &jobs["parked"]), (&json!([]), &json!([])));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hinders_recording_is_said_with_what_to_do() {
    let admin_key = format!("admin_key = \"{ADMIN_KEY}\"");
    let v6 = || JanusOptions { candidates: CandidateAddresses::V6, ..JanusOptions::default() };
    for (options, replacement, good, told) in [
        // Not tried, and said to be so.
        (JanusOptions::default(), Some(""), true, &["with VideoRoom", "not tried", "admin_key"][..]),
        (
            JanusOptions::default(),
            Some("admin_key = \"wrong\""),
            false,
            &["with VideoRoom, but", "refused to create a room"],
        ),
        // A router whose addresses for media are not reached.
        (v6(), None, false, &["with VideoRoom, but", "no connection for media", "[media] bind"]),
    ] {
        let world = World::start_with_router(BINARY, options, "").await.expect("world");
        if let Some(replacement) = replacement {
            world.configure(&[(&admin_key, replacement)], "").expect("configuration");
        }
        let line = checked(&world);
        assert_eq!(line["ok"], good, "{line}");
        assert!(told.iter().all(|part| text(&line).contains(part)), "{line}");
        assert_eq!(rooms(&world).await, Vec::<String>::new(), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recorder_is_named_as_configured_and_is_no_client_to_anybody() {
    let limits = "[limits]\nno_clients = \"3s\"\n";
    let mut world = World::start_with_router(BINARY, JanusOptions::default(), limits).await.expect("world");
    let section = format!("admin_key = \"{ADMIN_KEY}\"");
    let named = format!("{section}\nobserver_name = \"Recording by Example\"");
    world.configure(&[(&section, &named)], "").expect("configuration");
    world.janus.create_room("r", json!({})).await.expect("room");
    world.start_worker().expect("worker");
    let options = archiver_testkit::publisher::Options::new(&world.janus, "r", "alice");
    let alice = archiver_testkit::publisher::Publisher::start(options).await.expect("publisher");
    let started = world.started("r");
    world.publish(&started).expect("publish");
    world.recording(2).await;
    let mut client = Client::connect(&world.janus.url()).await.expect("client");
    let request = json!({ "request": "listparticipants", "room": world.janus.room("r") });
    let listed = client.message(request, None).await.expect("list");
    let list = listed["plugindata"]["data"]["participants"].as_array().expect("list").clone();
    let others: Vec<&Value> = list.iter().filter(|participant| participant["id"] != "alice").collect();
    assert_eq!(others.len(), 1, "{listed}");
    assert_eq!(others[0]["display"], "Recording by Example");
    let archive = world.archive("r", "started").await["archive"].as_str().expect("id").to_owned();
    assert!(!listed.to_string().contains(&archive), "participants see the archive's id: {listed}");
    // The session ends when its one client has left: the recorder does not count.
    drop(alice.leave().await.expect("left"));
    world.archive("r", "available").await;
}
