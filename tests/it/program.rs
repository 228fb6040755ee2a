//! The program that this project is for: it creates a session by npm's `@vonage/video`, and nothing else. Its clients come and
//! go, and an archive is there.

use crate::BINARY;
use std::time::Duration;

use archiver_testkit::api::{self, Application};
use archiver_testkit::chromium::{ChromiumOptions, ChromiumPublisher};
use archiver_testkit::sdk::{Account, Driver, Sdk};
use archiver_testkit::wait::deadline;
use archiver_testkit::world::World;
use serde_json::{Value, json};

/// As long as the clients talk.
const TALK: Duration = Duration::from_secs(8);

async fn ok(driver: &mut Driver, call: &str, args: Value) -> Value {
    let answer = driver.call(call, args.clone()).await.expect("an answer");
    answer.unwrap_or_else(|error| panic!("{call} {args}: {error:?}"))
}

async fn session(driver: &mut Driver, options: Value) -> String {
    ok(driver, "createSession", options).await["sessionId"].as_str().expect("id").to_owned()
}

/// A browser that comes in as a platform's web page would: with a token that the platform's server made.
async fn client(world: &World, driver: &mut Driver, session: &str, name: &str, code: u16) -> ChromiumPublisher {
    let token = ok(driver, "token", json!({ "sessionId": session, "data": name })).await;
    let bearer = format!("Bearer {}", token.as_str().expect("token"));
    let line = format!("POST /session/{session}/join");
    let joined = api::send(world.api(), &line, &[("authorization", &bearer)], "").await.expect("an answer");
    assert_eq!(joined.status, 200, "{joined:?}");
    let joined = joined.json().expect("JSON");
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{joined}")).to_owned();
    let router = &joined["router"];
    let options = ChromiumOptions {
        url: text(&router["url"]),
        pin: Some(text(&router["pin"])),
        token: Some(text(&router["token"])),
        display: text(&joined["display"]),
        code,
        ..ChromiumOptions::new(&world.janus, &text(&router["room"]), name)
    };
    ChromiumPublisher::start(&options).await.expect("a browser")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_only_creates_its_session_finds_an_archive_that_plays() {
    let limits = "[limits]\nno_clients = \"3s\"\n";
    let mut world = World::start(BINARY, None, limits).await.expect("world");
    world.start_worker().expect("worker");
    api::ready(world.api()).await;
    let application = Application::unified(&world, "78d335fa-323d-4114-9c3d-d6f0d48968cf").expect("application");
    let url = format!("http://{}", world.api());
    let account = Account { url, id: application.id.clone(), key: application.key.clone(), authority: None };
    let mut video = Driver::start(Sdk::VonageNode, &account).await.expect("driver");

    // As it stands in Vonage's documentation: nothing is archived.
    let manual = session(&mut video, json!({ "mediaMode": "routed" })).await;
    let alone = client(&world, &mut video, &manual, "carol", 3).await;
    // The same with archive mode always. Nothing else is asked for.
    let always = session(&mut video, json!({ "mediaMode": "routed", "archiveMode": "always" })).await;
    let alice = client(&world, &mut video, &always, "alice", 1).await;
    let bob = client(&world, &mut video, &always, "bob", 2).await;
    world.recording(4).await;
    tokio::time::sleep(TALK).await;
    for browser in [alice, bob, alone] {
        browser.leave().await.expect("leave");
    }

    let until = tokio::time::Instant::now() + deadline();
    let found = loop {
        let list = ok(&mut video, "listArchives", json!({})).await;
        if list["items"][0]["status"] == "available" {
            break list;
        }
        assert!(tokio::time::Instant::now() < until, "{list}\n{}", world.log());
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    assert_eq!(found["count"], 1, "{found}");
    let archive = &found["items"][0];
    assert_eq!((&archive["sessionId"], &archive["outputMode"]), (&json!(always), &json!("composed")), "{archive}");
    let of_manual = ok(&mut video, "listArchives", json!({ "sessionId": manual })).await;
    assert_eq!(of_manual["count"], 0, "{of_manual}");

    let seconds = archive["duration"].as_f64().expect("duration");
    let times = [0.5, seconds / 2.0, seconds - 1.0];
    let url = archive["url"].as_str().unwrap_or_else(|| panic!("no address: {archive}"));
    let played = ChromiumPublisher::play(url, &times).await.expect("it plays");
    assert_eq!((played.width, played.height), (640, 480));
    assert!((played.duration - seconds).abs() <= 1.0 && seconds >= TALK.as_secs_f64() - 1.0, "{played:?} of {archive}");
    let off: Vec<f64> = times.iter().zip(&played.seen).map(|(asked, seen)| (asked - seen).abs()).collect();
    assert!(off.len() == 3 && off.iter().all(|off| *off <= 0.1), "{played:?}");
    println!("{seconds} s, {} bytes", archive["size"]);
}
