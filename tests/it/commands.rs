//! What is asked of running archives over an API that is no worker's: it reaches the worker within a second, and survives it.

use crate::BINARY;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::api::App;
use archiver_testkit::child::Server;
use archiver_testkit::content::{Content, Part};
use archiver_testkit::net::free_port;
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::{APPLICATION, World};
use serde_json::{Value, json};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// A worker hears what is asked of its archives within this (the median).
const HEARD_MAX: Duration = Duration::from_secs(1);
/// And never later than this, or nobody told it.
const TOLD_MAX: Duration = Duration::from_secs(10);
/// How often it is measured.
const TIMES: usize = 5;
/// A worker that is not told looks into the catalog four times in each lease, every 30 s. So it cannot pass for one that was told.
const LEASE: &str = "lease = \"120s\"\n";
/// An archive is recorded on for so long at least.
const ON: Duration = Duration::from_secs(4);

/// An API in a process of its own, and an application that asks there.
async fn apart(world: &World) -> (App, Server) {
    let at = SocketAddr::new(LOOPBACK, free_port(LOOPBACK).expect("port"));
    let http = SocketAddr::new(LOOPBACK, free_port(LOOPBACK).expect("port"));
    let mut command = Command::new(BINARY);
    command.arg("api").env("ARCHIVER_CONFIG", world.config()).env("ARCHIVER__API__BIND", at.to_string());
    command.env("ARCHIVER__HTTP__BIND", http.to_string()).env("NO_COLOR", "1");
    let server = Server::start("api", world.scratch(), &mut command).expect("api");
    archiver_testkit::api::ready(at).await;
    (App { base: format!("http://{at}"), ..App::unified(world, APPLICATION) }, server)
}

/// Starts an archive of a session; returns its path in the API, and its id.
async fn start(app: &App, session: &str, mut options: Value) -> (String, String) {
    options["sessionId"] = json!(session);
    let begun = app.send("POST", &app.path("archive"), Some(options)).await;
    assert_eq!((begun.status, &begun.json()["status"]), (200, &json!("started")), "{begun:?}");
    let id = begun.json()["id"].as_str().expect("id").to_owned();
    (app.path(&format!("archive/{id}")), id)
}

fn spool(world: &World, archive: &str) -> PathBuf {
    world.data().join("spool").join(archive)
}

/// What a worker noted of an archive.
fn history(world: &World, archive: &str) -> String {
    std::fs::read_to_string(spool(world, archive).join("history.jsonl")).unwrap_or_default()
}

/// Bytes that were captured of an archive.
fn captured(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => captured(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Waits until a worker records an archive.
async fn recorded(world: &World, archive: &str) {
    wait_for(&format!("archive {archive} to be recorded"), || async {
        (captured(&spool(world, archive).join("tracks")) > 10_000).then_some(())
    })
    .await;
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_while_no_worker_lives_is_done_by_the_next() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    world.start_worker().expect("worker");
    let (app, _api) = apart(&world).await;
    let session = app.session("p2p.preference=disabled").await;
    let alice = app.publisher(&world, &session, "alice").await;
    let (chosen, chosen_id) = start(&app, &session, json!({ "streamMode": "manual", "multiArchiveTag": "a" })).await;
    let individual = json!({ "outputMode": "individual", "multiArchiveTag": "b" });
    let (ended, ended_id) = start(&app, &session, individual).await;
    recorded(&world, &chosen_id).await;
    recorded(&world, &ended_id).await;
    let listed = app.send("GET", &app.path(&format!("session/{session}/stream")), None).await.json();
    let stream = listed["items"][0]["id"].as_str().expect("a stream").to_owned();

    world.kill_worker();
    let corner = json!({ "type": "custom", "stylesheet": "stream { position: absolute; width: 50%; height: 50%; }" });
    let laid_out = app.send("PUT", &format!("{chosen}/layout"), Some(corner)).await;
    assert_eq!(laid_out.status, 200, "{laid_out:?}");
    let added = app.send("PATCH", &format!("{chosen}/streams"), Some(json!({ "addStream": stream }))).await;
    assert_eq!(added.status, 204, "{added:?}");
    let now = app.send("GET", &chosen, None).await.json();
    assert_eq!(now["streams"], json!([{ "streamId": stream, "hasAudio": true, "hasVideo": true }]), "{now}");
    // Nobody hears of it, and the answer says so: it is not stopped yet.
    let stopped = app.send("POST", &format!("{ended}/stop"), None).await;
    assert_eq!((stopped.status, &stopped.json()["status"]), (200, &json!("started")), "{stopped:?}");
    let before = history(&world, &chosen_id);
    assert!(!before.contains("stylesheet") && !before.contains("\"selected\""), "{before}");

    world.start_worker().expect("worker");
    let done = app.archive(&ended_id, "available").await;
    assert_eq!(done["reason"], "user initiated", "{done}");
    wait_for("the next worker to note what was asked for", || async {
        let noted = history(&world, &chosen_id);
        (noted.contains("stylesheet") && noted.contains("\"selected\"")).then_some(())
    })
    .await;
    let sent = alice.frames_sent();
    wait_for("some seconds more", || async { (alice.frames_sent() > sent + 100).then_some(()) }).await;
    assert_eq!(app.send("POST", &format!("{chosen}/stop"), None).await.status, 200);
    app.archive(&chosen_id, "available").await;
    alice.leave().await.expect("leave");

    // Nobody was in the picture at first; then alice, where the layout has her.
    let file = world.download(&json!({ "archive": chosen_id })).expect("download").dir.join("archive.mp4");
    let corner = Content::read_part(&file, Some(Part { x: 0, y: 0, width: 320, height: 240 })).expect("file");
    assert!(corner.errors.is_empty(), "{:?}", corner.errors);
    let shown = corner.frames.iter().position(|frame| frame.code == Some(1)).expect("alice is never shown");
    let rest = &corner.frames[shown..];
    let others = rest.iter().filter(|frame| frame.code != Some(1)).count();
    assert!(shown > 10, "she is shown from picture {shown} on");
    assert!(rest.len() > 60 && others <= 2, "{others} of {} pictures do not show her", rest.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_living_worker_hears_within_a_second() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    let config = std::fs::read_to_string(world.config()).expect("configuration");
    std::fs::write(world.config(), config.replacen("[worker]\n", &format!("[worker]\n{LEASE}"), 1)).expect("written");
    world.start_worker().expect("worker");
    let (app, _api) = apart(&world).await;
    let session = app.session("p2p.preference=disabled").await;
    let alice = app.publisher(&world, &session, "alice").await;
    let (mut laid_out, mut stopped) = (Vec::new(), Vec::new());
    for _ in 0..TIMES {
        let (path, id) = start(&app, &session, json!({})).await;
        recorded(&world, &id).await;
        let answer = app.send("PUT", &format!("{path}/layout"), Some(json!({ "type": "pip" }))).await;
        let answered = Instant::now();
        assert_eq!(answer.status, 200, "{answer:?}");
        wait_for("the layout to be noted", || async { history(&world, &id).contains("\"pip\"").then_some(()) }).await;
        laid_out.push(answered.elapsed());

        // A stop is answered when it was heard, unless that takes too long.
        let asked = Instant::now();
        let answer = app.send("POST", &format!("{path}/stop"), None).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        if answer.json()["status"] == "started" {
            wait_for("the archive to end", || async {
                let archive = app.send("GET", &path, None).await.json();
                (archive["status"] != "started").then_some(())
            })
            .await;
        }
        stopped.push(asked.elapsed());
    }
    println!("a layout is heard after {laid_out:?}, a stop after {stopped:?}");
    assert!(laid_out.iter().chain(&stopped).all(|after| *after <= TOLD_MAX), "{laid_out:?}, {stopped:?}");
    let (laid_out, stopped) = (median(laid_out), median(stopped));
    println!("median: a layout {laid_out:?}, a stop {stopped:?}");
    assert!(laid_out <= HEARD_MAX, "a layout is heard after {laid_out:?}");
    assert!(stopped <= HEARD_MAX, "a stop is heard after {stopped:?}");
    alice.leave().await.expect("leave");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_automatic_archive_that_is_stopped_goes_on_until_its_session_ends() {
    let mut world = World::start(BINARY, None, "[limits]\nno_clients = \"3s\"\n").await.expect("world");
    world.start_worker().expect("worker");
    let (app, _api) = apart(&world).await;
    let session = app.session("p2p.preference=disabled&archiveMode=always").await;
    let alice = app.publisher(&world, &session, "alice").await;
    // Whether it has begun or not, it has no tag: another one needs one, and takes no place of its.
    let start = |more: Value| {
        let mut body = json!({ "sessionId": session });
        body.as_object_mut().expect("object").extend(more.as_object().cloned().unwrap_or_default());
        body
    };
    let untagged = app.send("POST", &app.path("archive"), Some(start(json!({ "hasVideo": false })))).await;
    assert_eq!((untagged.status, untagged.json()["code"].as_i64()), (409, Some(15001)), "{untagged:?}");
    let list = app.path(&format!("archive?sessionId={session}"));
    let archive = wait_for("an automatic archive", || async {
        app.send("GET", &list, None).await.json()["items"][0]["id"].as_str().map(str::to_owned)
    });
    let archive = archive.await;
    recorded(&world, &archive).await;
    let begun = Instant::now();
    let stopped = app.send("POST", &app.path(&format!("archive/{archive}/stop")), None).await;
    let told = stopped.json();
    assert_eq!((stopped.status, &told["status"], &told["reason"]), (200, &json!("started"), &json!("")), "{told}");

    // What was sent after the answer is captured, and nothing has ended.
    let (folder, sent) = (spool(&world, &archive).join("tracks"), alice.frames_sent());
    let before = captured(&folder);
    wait_for("media of later", || async {
        let later = captured(&folder) > before + 50_000 && alice.frames_sent() > sent + 50;
        (later && begun.elapsed() >= ON).then_some(())
    })
    .await;
    let still = app.send("GET", &app.path(&format!("archive/{archive}")), None).await.json();
    assert_eq!((&still["status"], &still["reason"]), (&json!("started"), &json!("")), "{still}");
    let recorded = begun.elapsed();
    let beside = app.send("POST", &app.path("archive"), Some(start(json!({ "multiArchiveTag": "beside" })))).await;
    assert_eq!((beside.status, &beside.json()["status"]), (200, &json!("started")), "{beside:?}");
    alice.leave().await.expect("leave");
    app.archive(beside.json()["id"].as_str().expect("id"), "available").await;
    let done = app.archive(&archive, "available").await;
    assert_ne!(done["reason"], "user initiated", "{done}");
    assert!(done["duration"].as_f64().expect("seconds") + 1.0 >= recorded.as_secs_f64(), "{recorded:?}: {done}");
    assert_eq!(app.send("GET", &list, None).await.json()["count"], 2);
}
