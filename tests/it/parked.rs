//! What cannot be done is parked with its reason, and replayed by the same road.
//!
//! A job can be parked for each fault kind that is brought about here, and for no other: a broker, catalog or store
//! that is away is waited for, a disk that takes no files or has no room is another worker's chance, and a damaged log
//! costs its damaged parts.

use crate::BINARY;
use crate::support::fragments::changed_fragments;
use std::time::Duration;

use archiver_testkit::chromium::{ChromiumOptions, ChromiumPublisher};
use archiver_testkit::content::Content;
use archiver_testkit::janus::API_SECRET;
use archiver_testkit::net::free_port;
use archiver_testkit::publisher::{Options, Publisher};
use archiver_testkit::scripted_janus::{reply, scripted_janus};
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::World;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use serde_json::{Value, json};

async fn parked(world: &World, count: usize) -> Vec<Value> {
    wait_for(&format!("{count} parked jobs"), || async {
        let list = world.json(&["jobs", "list", "--json"]).ok()?;
        let parked = list["parked"].as_array()?.clone();
        (parked.len() == count).then_some(parked)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_events_wait_with_their_reasons_and_any_number_of_replays_makes_one_archive() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    world.start_worker().expect("worker");
    let good = world.started("p1");
    let mut refused: Vec<(&str, Vec<u8>)> = vec![
        ("event_malformed", b"{".to_vec()),
        ("event_malformed", b"\x00\xff\xfe".to_vec()),
        ("event_oversized", b"[".repeat(1000)),
    ];
    let mut change = |fault: &'static str, path: &str, value: Value| {
        let mut event = good.clone();
        *event.pointer_mut(path).expect("path") = value;
        refused.push((fault, event.to_string().into_bytes()));
    };
    change("event_unknown", "/type", json!("archiver.session.started.v9"));
    change("event_invalid", "/data/sessionId", json!("../x"));
    change("policy_relayed_always", "/data/mediaMode", json!("relayed"));
    change("router_unknown", "/data/router/name", json!("janus-9"));
    for (_, bytes) in &refused {
        world.publish_bytes(bytes).expect("publish");
    }
    // Skipped ones are not parked.
    let mut manual = world.started("p2");
    manual["data"]["archiveMode"] = json!("manual");
    world.publish(&manual).expect("publish");
    let entries = parked(&world, refused.len()).await;
    for (fault, _) in &refused {
        let entry = entries.iter().find(|e| e["fault"] == *fault).unwrap_or_else(|| panic!("{fault} is not parked"));
        let id = entry["parked"].as_str().expect("id");
        let shown = world.command(&["jobs", "show", id]).expect("show");
        assert!(shown.status.success() && String::from_utf8_lossy(&shown.stdout).contains(fault));
    }
    // Replayed unchanged, each is parked again, as the same entry.
    let dry = world.command(&["jobs", "replay", "--all", "--dry-run"]).expect("replay");
    assert_eq!(String::from_utf8_lossy(&dry.stdout).lines().count(), refused.len());
    assert!(world.command(&["jobs", "replay", "--fault", "event_unknown"]).expect("replay").status.success());
    let again = parked(&world, refused.len()).await;
    wait_for("the replayed entry to be counted twice", || async {
        let again = world.json(&["jobs", "list", "--json"]).ok()?;
        again["parked"].as_array()?.iter().find(|e| e["times"] == 2).map(drop)
    })
    .await;
    assert_eq!(again.len(), refused.len());
    // The router is added to the configuration: the same event now makes an archive, however often it is replayed.
    let config = std::fs::read_to_string(world.config()).expect("config");
    let section = config.split("[[router]]").nth(1).expect("router").split("[media]").next().expect("router");
    let more = format!("{config}\n[[router]]{}", section.replace("janus-1", "janus-9"));
    std::fs::write(world.config(), more).expect("config");
    assert!(world.stop_worker());
    world.start_worker().expect("worker");
    world.janus.create_room("p1", json!({})).await.expect("room");
    let chrome = ChromiumPublisher::start(&ChromiumOptions::new(&world.janus, "p1", "chrome")).await.expect("chromium");
    let entry = entries.iter().find(|e| e["fault"] == "router_unknown").expect("entry");
    let id = entry["parked"].as_str().expect("id");
    for _ in 0..5 {
        assert!(world.command(&["jobs", "replay", id]).expect("replay").status.success());
    }
    world.recording(2).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    let ended = world.ended("p1");
    world.publish(&ended).expect("publish");
    let archive = world.archive("p1", "available").await;
    let truth = chrome.leave().await.expect("truth");
    for _ in 0..5 {
        assert!(world.command(&["jobs", "replay", id]).expect("replay").status.success());
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.archives("p1").expect("archives").len(), 1);
    assert!(world.command(&["jobs", "discard", "--all"]).expect("discard").status.success());
    assert_eq!(parked(&world, 0).await.len(), 0);
    // A real browser's pictures are all there, in the highest layer, in step with its sound.
    let archive = world.download(&archive).expect("download");
    let files = archive.files("chrome");
    let content = Content::read(&files[0]).expect("file");
    let matched = content.against(&truth);
    println!(
        "chromium: {} pictures, {} missing, sound after picture {:.3?}",
        matched.frames.len(),
        matched.missing.len(),
        matched.sound_after_picture()
    );
    assert_eq!(matched.strange, 0);
    assert!(matched.frames.len() > 60);
    let largest = content.frames.iter().map(|f| f.size.0).max();
    assert_eq!(largest, content.frames.last().map(|f| f.size.0), "the highest layer was reached and kept");
}

/// Adds a section to the configuration.
fn configure(world: &World, section: &str) {
    let config = std::fs::read_to_string(world.config()).expect("config");
    std::fs::write(world.config(), format!("{config}\n{section}\n")).expect("config");
}

/// The id of the one entry with a fault.
fn entry(entries: &[Value], fault: &str) -> String {
    let found: Vec<&Value> = entries.iter().filter(|e| e["fault"] == fault).collect();
    assert_eq!(found.len(), 1, "{fault}: {entries:?}");
    found[0]["parked"].as_str().expect("id").to_owned()
}

/// Each is listed by its reason, and shown.
fn listed_and_shown(world: &World, entries: &[Value], reasons: &[&str]) {
    for fault in reasons {
        let id = entry(entries, fault);
        let shown = world.command(&["jobs", "show", &id]).expect("show");
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.status.success() && text.contains(fault), "{text}");
        let listed = world.command(&["jobs", "list", "--fault", fault]).expect("list");
        assert!(String::from_utf8_lossy(&listed.stdout).contains(&id), "{fault}");
    }
}

fn replay(world: &World, entries: &[Value], reasons: &[&str], times: u32) {
    for fault in (0..times).flat_map(|_| reasons) {
        let out = world.command(&["jobs", "replay", &entry(entries, fault)]).expect("replay");
        assert!(out.status.success(), "{fault}: {}", String::from_utf8_lossy(&out.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_job_of_each_reason_is_listed_shown_and_replayed_ten_times_for_one_archive() {
    let limits = "[limits]\nnever_published = \"2s\"\nno_clients = \"2s\"";
    let mut world = World::start(BINARY, None, limits).await.expect("world");
    // The second shows no pictures to those who look whether an archive has any.
    let blind = ("verify.launch", "decodebin name=decode", "decodebin name=decode caps=audio/x-raw");
    let pipelines = changed_fragments(&world, &[("mux-webm.launch", "webmmux", "webmmuxx"), blind]);
    configure(&world, &format!("[pipelines]\ndir = \"{}\"", pipelines.display()));
    world.start_worker().expect("worker");
    // Jobs that could not be done: no such room, a pin that nobody configured, a pipeline that cannot be made, an
    // archive in which nothing can be seen. One that only waits: that of a disk that takes no files.
    world.janus.create_room("locked", json!({ "pin": "1234" })).await.expect("room");
    for room in ["muxed", "spoiled", "unseen"] {
        world.janus.create_room(room, json!({})).await.expect("room");
    }
    // They are there before the event, for nobody is waited for long here.
    let publisher = Publisher::start(Options::new(&world.janus, "muxed", "alice")).await.expect("publisher");
    let spoiled = Publisher::start(Options::new(&world.janus, "spoiled", "alice")).await.expect("publisher");
    let unseen = Publisher::start(Options::new(&world.janus, "unseen", "alice")).await.expect("publisher");
    for session in ["nowhere", "locked", "muxed", "spoiled", "unseen"] {
        let mut event = world.started(session);
        if session == "unseen" {
            event["data"]["archive"]["outputMode"] = json!("composed");
        }
        world.publish(&event).expect("publish");
    }
    world.recording(6).await;
    let archive = world.archive("spoiled", "started").await;
    let in_the_way = world.data().join("spool").join(archive["archive"].as_str().expect("id")).join("out");
    std::fs::write(&in_the_way, "").expect("a file where the folder of finished files should be");
    // Events that were refused, and stay so however often they come.
    let good = world.started("refused");
    let mut refused = vec![b"{\"id\":".to_vec(), b"[".repeat(1000)];
    for (path, value) in [
        ("/type", json!("archiver.session.started.v9")),
        ("/data/region", json!("eu.*")),
        ("/data/mediaMode", json!("relayed")),
    ] {
        let mut event = good.clone();
        *event.pointer_mut(path).expect("path") = value;
        refused.push(event.to_string().into_bytes());
    }
    for bytes in &refused {
        world.publish_bytes(bytes).expect("publish");
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    for session in ["muxed", "spoiled", "unseen"] {
        let ended = world.ended(session);
        world.publish(&ended).expect("publish");
    }
    let truth = publisher.crash().timeline();
    spoiled.crash();
    unseen.crash();
    let reasons = [
        "event_malformed",
        "event_oversized",
        "event_unknown",
        "event_invalid",
        "policy_relayed_always",
        "room_not_found",
        "router_refused",
        "media_pipeline",
        "archive_invalid",
    ];
    let entries = parked(&world, reasons.len()).await;
    listed_and_shown(&world, &entries, &reasons);
    // Developers hear of it.
    for session in ["nowhere", "locked", "muxed", "unseen"] {
        let failed = world.archive(session, "failed").await;
        assert_eq!(failed["reason"], "failure", "{failed}");
    }
    wait_for("the job to be handed on", || async {
        world.log().contains("this worker cannot go on with the job for now").then_some(())
    })
    .await;
    // What was wrong is mended.
    std::fs::remove_file(&in_the_way).expect("the file goes");
    std::fs::remove_dir_all(&pipelines).expect("fragments");
    world.janus.destroy_room("locked").await.expect("room");
    let mut publishers = Vec::new();
    for room in ["nowhere", "locked"] {
        world.janus.create_room(room, json!({})).await.expect("room");
        publishers.push(Publisher::start(Options::new(&world.janus, room, "alice")).await.expect("publisher"));
    }
    replay(&world, &entries, &reasons, 5);
    for session in ["nowhere", "locked"] {
        world.archive(session, "started").await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    for session in ["nowhere", "locked"] {
        let ended = world.ended(session);
        world.publish(&ended).expect("publish");
    }
    for session in ["nowhere", "locked", "muxed", "spoiled", "unseen"] {
        world.archive(session, "available").await;
    }
    replay(&world, &entries, &reasons, 5);
    // The refused ones wait again, having come eleven times each; nothing else does.
    wait_for("all replays to be handled", || async {
        let list = world.json(&["jobs", "list", "--json"]).ok()?;
        let parked = list["parked"].as_array()?.clone();
        (parked.len() == refused.len() && parked.iter().all(|e| e["times"] == 11)).then_some(())
    })
    .await;
    for session in ["nowhere", "locked", "muxed", "spoiled", "unseen"] {
        let archives = world.archives(session).expect("archives");
        assert_eq!(archives.len(), 1, "{archives:?}");
        assert_eq!(archives[0]["status"], "available");
    }
    assert!(world.archives("refused").expect("archives").is_empty());
    let archive = world.archive("muxed", "available").await;
    let archive = world.download(&archive).expect("download");
    let matched = Content::read(&archive.files("alice")[0]).expect("file").against(&truth);
    assert_eq!((matched.missing.len(), matched.strange), (0, 0), "captured before it was parked");
}

/// The entries of a list.
fn count(world: &World, args: &[&str]) -> usize {
    let list = world.json(&[&["jobs", "list", "--json"], args].concat()).expect("list");
    list["parked"].as_array().expect("entries").len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_parked_jobs_are_listed_filtered_and_replayed_with_progress() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    world.start_worker().expect("worker");
    // Of ten sessions, of two applications; the router is one that no worker knows.
    let mut events = Vec::new();
    for n in 0..1000 {
        let mut event = world.started(&format!("s{}", n % 10));
        event["id"] = json!(format!("e{n}"));
        event["data"]["applicationId"] = json!(format!("app-{}", n % 2));
        event["data"]["router"]["name"] = json!("janus-9");
        events.push(event);
    }
    // The first one waits until the worker has made the queue.
    world.publish(&events[0]).expect("publish");
    publish_to(&world, "archiver.sessions", &events[1..]).await;
    let all = parked(&world, 1000).await;
    assert_eq!(count(&world, &["--session", "s3"]), 100);
    assert_eq!(count(&world, &["--application", "app-1"]), 500);
    assert_eq!(count(&world, &["--session", "s3", "--application", "app-0"]), 0);
    assert_eq!((count(&world, &["--region", "eu"]), count(&world, &["--region", "us"])), (1000, 0));
    assert_eq!((count(&world, &["--newer-than", "1h"]), count(&world, &["--older-than", "1h"])), (1000, 0));
    assert_eq!(
        (count(&world, &["--fault", "router_unknown"]), count(&world, &["--fault", "event_unknown"])),
        (1000, 0)
    );
    // Nobody replays everything by mistake.
    for args in [&["jobs", "replay"][..], &["jobs", "replay", "--all", "--session", "s3"]] {
        let refused = world.command(args).expect("replay");
        assert!(
            !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("say which"),
            "{refused:?}"
        );
    }
    let replayed = world.command(&["jobs", "replay", "--all", "--why", "the router is back"]).expect("replay");
    let said = String::from_utf8_lossy(&replayed.stdout).into_owned();
    for line in ["replayed 100 of 1000\n", "replayed 900 of 1000\n", "replayed 1000\n"] {
        assert!(said.contains(line), "{line} is not in the last of {}", &said[said.len().saturating_sub(300)..]);
    }
    wait_for("all to come again", || async {
        let list = world.json(&["jobs", "list", "--json"]).ok()?;
        let entries = list["parked"].as_array()?.clone();
        (entries.len() == 1000 && entries.iter().all(|entry| entry["times"] == 2)).then_some(())
    })
    .await;
    // One is mended by hand: its event names the router that there is.
    let id = all[0]["parked"].as_str().expect("id").to_owned();
    let shown = world.json(&["jobs", "show", &id, "--json"]).expect("entry");
    assert_eq!(shown["parked"]["history"][0][1], "replayed: the router is back");
    let mut event: Value =
        serde_json::from_slice(&STANDARD.decode(all[0]["body"].as_str().expect("body")).expect("base64"))
            .expect("event");
    let session = event["data"]["sessionId"].as_str().expect("session").to_owned();
    event["data"]["router"] = world.started(&session)["data"]["router"].clone();
    world.janus.create_room(&session, json!({})).await.expect("room");
    let _alice = Publisher::start(Options::new(&world.janus, &session, "alice")).await.expect("publisher");
    let path = world.data().join("mended.json");
    std::fs::write(&path, event.to_string()).expect("file");
    let mended = world.command(&["jobs", "replay", &id, "--event", path.to_str().expect("path")]).expect("replay");
    assert!(mended.status.success(), "{mended:?}");
    world.archive(&session, "started").await;
    let discarded = world.command(&["jobs", "discard", "--session", "s3", "--why", "a test"]).expect("discard");
    assert!(String::from_utf8_lossy(&discarded.stdout).contains("discarded 100"), "{discarded:?}");
    assert_eq!(count(&world, &["--session", "s3"]), 0);
}

/// Puts an event where RabbitMQ puts those that it gave up.
async fn publish_dead(world: &World, event: &Value) {
    publish_to(world, "archiver.dead", std::slice::from_ref(event)).await;
}

/// Publishes events to an exchange over one connection. All are confirmed: what a connection that is dropped has not sent yet is lost.
async fn publish_to(world: &World, exchange: &str, events: &[Value]) {
    let url = world.rabbit.url();
    let connection = lapin::Connection::connect(&url, lapin::ConnectionProperties::default()).await;
    let channel = connection.expect("connection").create_channel().await.expect("channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    for event in events {
        let (body, options) = (event.to_string().into_bytes(), BasicPublishOptions::default());
        let key = "session.started.eu".into();
        let sent = channel.basic_publish(exchange.into(), key, options, &body, BasicProperties::default()).await;
        sent.expect("sent").await.expect("confirmed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn so_is_one_of_a_router_or_machine_that_misbehaves() {
    const SESSIONS: [&str; 5] = ["away", "lied", "slow", "row", "dead"];
    let reasons = ["router_unavailable", "router_protocol", "media_stalled", "catalog_corrupt", "bug"];
    let limits = "[limits]\nnever_published = \"2s\"\nno_clients = \"2s\"";
    let mut world = World::start(BINARY, None, limits).await.expect("world");
    let slow = ("mux-webm.launch", "filesink name", "identity sleep-time=2500000 !\nfilesink name");
    let pipelines = changed_fragments(&world, &[slow]);
    configure(&world, &format!("[pipelines]\nstall = \"1s\"\ndir = \"{}\"", pipelines.display()));
    // One router that is not there, and one that is none.
    let nowhere = format!("ws://127.0.0.1:{}", free_port(std::net::Ipv4Addr::LOCALHOST.into()).expect("port"));
    let lies = scripted_janus(|r| Some(vec![reply(r, json!({ "janus": "success", "data": { "id": "seven" } }))]));
    let lies = lies.await.expect("liar");
    for (name, url) in [("away", &nowhere), ("liar", &lies)] {
        configure(&world, &format!("[[router]]\nname = \"{name}\"\nurl = \"{url}\"\napi_secret = \"{API_SECRET}\""));
    }
    for room in SESSIONS {
        world.janus.create_room(room, json!({})).await.expect("room");
    }
    let mut publishers = Vec::new();
    for room in SESSIONS {
        publishers.push(Publisher::start(Options::new(&world.janus, room, "alice")).await.expect("publisher"));
    }
    world.start_worker().expect("worker");
    let mut events = SESSIONS.map(|session| world.started(session));
    events[0]["data"]["router"]["name"] = json!("away");
    events[1]["data"]["router"]["name"] = json!("liar");
    events[..4].iter().for_each(|event| world.publish(event).expect("publish"));
    publish_dead(&world, &events[4]).await;
    world.recording(4).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    // The sessions of the two routers end before anything could be recorded.
    for session in ["away", "lied", "slow"] {
        let ended = world.ended(session);
        world.publish(&ended).expect("publish");
    }
    parked(&world, 4).await;
    // Somebody has changed the catalog by hand.
    world.kill_worker();
    let wrong = world.ended("row").to_string();
    world.sql("UPDATE jobs SET event = ? WHERE session_id = 'row'", &[&wrong]).expect("sql");
    world.start_worker().expect("worker");
    let entries = parked(&world, reasons.len()).await;
    listed_and_shown(&world, &entries, &reasons);
    // What was wrong is mended: pipelines, routers, catalog.
    world.kill_worker();
    std::fs::remove_file(pipelines.join("mux-webm.launch")).expect("fragment");
    let config = std::fs::read_to_string(world.config()).expect("config");
    let config = config.replace(&nowhere, &world.janus.url()).replace(&lies, &world.janus.url());
    let config = config.replace("stall = \"1s\"\n", "");
    std::fs::write(world.config(), config).expect("config");
    let right = events[3].to_string();
    world.sql("UPDATE jobs SET event = ? WHERE session_id = 'row'", &[&right]).expect("sql");
    let of_row = entry(&entries, "catalog_corrupt");
    world.sql("UPDATE parked SET body = ? WHERE parked_id = ?", &[&STANDARD.encode(&right), &of_row]).expect("sql");
    world.start_worker().expect("worker");
    replay(&world, &entries, &reasons, 5);
    for session in ["away", "lied", "row", "dead"] {
        world.archive(session, "started").await;
    }
    world.recording(8).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    for session in ["away", "lied", "row", "dead"] {
        let ended = world.ended(session);
        world.publish(&ended).expect("publish");
    }
    for session in SESSIONS {
        world.archive(session, "available").await;
    }
    replay(&world, &entries, &reasons, 5);
    // All that was published before has been handled when this one has.
    world.publish_bytes(b"{").expect("publish");
    parked(&world, 1).await;
    for session in SESSIONS {
        let archive = world.archive(session, "available").await;
        let archive = world.download(&archive).expect("download");
        let files = archive.files("alice");
        assert_eq!(files.len(), 1, "{session}: {files:?}");
        assert!(Content::read(&files[0]).expect("file").frames.len() > 20, "{session}");
    }
}
