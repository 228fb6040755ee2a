//! The REST API against real servers: Janus, RabbitMQ, S3, and the catalog.

use crate::BINARY;
use crate::support::api;
use crate::support::api::App;
use archiver_testkit::content::Content;
use archiver_testkit::publisher::{Options, Publisher};
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::{APPLICATION, World};
use base64::Engine;
use serde_json::{Value, json};

async fn world(more: &str) -> World {
    let mut world = World::start(BINARY, None, more).await.expect("servers");
    world.start_worker().expect("worker");
    api::served(&world).await;
    world
}

fn streams(archive: &Value) -> Vec<&str> {
    archive["streams"].as_array().map_or(&[][..], Vec::as_slice).iter().filter_map(|s| s["streamId"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_started_changed_stopped_fetched_and_deleted() {
    let world = world("").await;
    let app = App::unified(&world, APPLICATION);
    let session = app.session("p2p.preference=disabled").await;
    let start = |options: Value| {
        let mut body = json!({ "sessionId": session });
        body.as_object_mut().expect("object").extend(options.as_object().cloned().unwrap_or_default());
        body
    };
    let archives = app.path("archive");
    // Nobody is there.
    let nobody = app.send("POST", &archives, Some(start(json!({})))).await;
    assert_eq!((nobody.status, nobody.json()["code"].as_i64()), (404, Some(404)), "{nobody:?}");
    assert!(nobody.text.contains("No clients are actively connected"), "{nobody:?}");

    let alice = app.publisher(&world, &session, "alice").await;
    let begun =
        app.send("POST", &archives, Some(start(json!({ "name": "Weekly: 1", "resolution": "1280x720" })))).await;
    assert_eq!(begun.status, 200, "{begun:?}");
    let begun = begun.json();
    assert_eq!((&begun["status"], &begun["applicationId"]), (&json!("started"), &json!(APPLICATION)));
    assert_eq!((&begun["resolution"], &begun["url"]), (&json!("1280x720"), &Value::Null));
    let archive = app.path(&format!("archive/{}", begun["id"].as_str().expect("id")));

    // A second one at the same time needs a tag.
    let second = app.send("POST", &archives, Some(start(json!({})))).await;
    assert_eq!((second.status, second.json()["code"].as_i64()), (409, Some(15001)), "{second:?}");
    let manual = json!({ "multiArchiveTag": "b", "outputMode": "composed", "streamMode": "manual" });
    let manual = app.send("POST", &archives, Some(start(manual))).await.json();
    assert_eq!((&manual["streamMode"], &manual["streams"]), (&json!("manual"), &json!([])));
    let manual_path = app.path(&format!("archive/{}", manual["id"].as_str().expect("id")));
    world.recording(4).await;

    let listed = app.send("GET", &app.path(&format!("session/{session}/stream")), None).await.json();
    assert_eq!(listed["count"], 1, "{listed}");
    let stream = listed["items"][0]["id"].as_str().expect("id").to_owned();
    assert_eq!((&listed["items"][0]["videoType"], &listed["items"][0]["name"]), (&json!("camera"), &json!("alice")));

    // Streams: only in stream mode manual.
    let add = json!({ "addStream": stream, "hasAudio": true, "hasVideo": false });
    assert_eq!(app.send("PATCH", &format!("{archive}/streams"), Some(add.clone())).await.status, 405);
    for unknown in [json!({ "addStream": uuid::Uuid::new_v4() }), json!({ "removeStream": uuid::Uuid::new_v4() })] {
        let unknown = app.send("PATCH", &format!("{manual_path}/streams"), Some(unknown)).await;
        assert_eq!(unknown.status, 404, "nobody publishes it: {unknown:?}");
    }
    assert_eq!(app.send("PATCH", &format!("{manual_path}/streams"), Some(add)).await.status, 204);
    let with = app.send("GET", &manual_path, None).await.json();
    assert_eq!(with["streams"], json!([{ "streamId": stream, "hasAudio": true, "hasVideo": false }]));
    let remove = json!({ "removeStream": stream });
    assert_eq!(app.send("PATCH", &format!("{manual_path}/streams"), Some(remove)).await.status, 204);
    assert!(streams(&app.send("GET", &manual_path, None).await.json()).is_empty());

    // Layout, and classes.
    let pip = app.send("PUT", &format!("{archive}/layout"), Some(json!({ "type": "pip" }))).await;
    assert_eq!((pip.status, pip.json()["id"].clone()), (200, begun["id"].clone()));
    assert_eq!(app.send("PUT", &format!("{archive}/layout"), Some(json!({ "type": "round" }))).await.status, 400);
    let classes = json!({ "items": [{ "id": stream, "layoutClassList": ["full"] }] });
    let classes = app.send("PUT", &app.path(&format!("session/{session}/stream")), Some(classes)).await;
    assert_eq!((classes.status, &classes.json()["items"][0]["layoutClassList"]), (200, &json!(["full"])));
    let one = app.send("GET", &app.path(&format!("session/{session}/stream/{stream}")), None).await;
    assert_eq!(one.json()["layoutClassList"], json!(["full"]));

    // A running one cannot be deleted; both are stopped. Vonage's duration is in whole seconds.
    alice.pictures_pass(30).await;
    let early = app.send("DELETE", &archive, None).await;
    assert_eq!((early.status, early.json()["code"].as_i64()), (409, Some(15004)), "{early:?}");
    for path in [&archive, &manual_path] {
        let stopped = app.send("POST", &format!("{path}/stop"), None).await;
        assert_eq!((stopped.status, &stopped.json()["reason"]), (200, &json!("user initiated")), "{stopped:?}");
        assert_ne!(stopped.json()["status"], "started");
    }
    let id = begun["id"].as_str().expect("id");
    let done = app.archive(id, "available").await;
    assert_eq!((&done["reason"], &done["event"]), (&json!("user initiated"), &json!("archive")));
    assert!(done["duration"].as_i64() > Some(0) && done["size"].as_i64() > Some(0), "{done}");
    let file =
        app.client.get(done["url"].as_str().expect("url")).header("range", "bytes=4-7").send().await.expect("file");
    assert_eq!(file.status(), 206);
    let disposition = file.headers()["content-disposition"].to_str().expect("text").to_owned();
    assert!(disposition.contains(&format!("Weekly-1-{id}.mp4")), "{disposition}");
    assert_eq!(file.headers()["content-type"], "video/mp4");
    assert_eq!(file.bytes().await.expect("bytes").as_ref(), b"ftyp");
    let again = app.send("POST", &format!("{archive}/stop"), None).await;
    assert_eq!((again.status, again.json()["code"].as_i64()), (409, Some(15002)), "{again:?}");

    // Newest first, all counted.
    app.archive(manual["id"].as_str().expect("id"), "available").await;
    let list = app.send("GET", &format!("{archives}?count=1&session_id={session}"), None).await.json();
    assert_eq!((&list["count"], &list["items"][0]["id"]), (&json!(2), &manual["id"]));
    let rest = app.send("GET", &format!("{archives}?offset=1&sessionId={session}&status=available"), None).await.json();
    assert_eq!((&rest["items"][0]["id"], rest["items"].as_array().map(Vec::len)), (&begun["id"], Some(1)));
    assert_eq!(app.send("GET", &format!("{archives}?from=99999999999999"), None).await.json()["count"], 0);

    // Twice, as by an SDK that lost the connection before it heard.
    for _ in 0..2 {
        assert_eq!(app.send("DELETE", &archive, None).await.status, 204);
    }
    assert_eq!(app.send("GET", &archive, None).await.status, 404);
    assert_eq!(app.send("GET", &format!("{archives}?status=deleted"), None).await.status, 400);
    assert_eq!(app.send("GET", &archives, None).await.json()["count"], 1);
    alice.leave().await.expect("leave");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_is_heard_within_a_second_and_survives_the_worker() {
    let mut world = world("").await;
    let app = App::legacy(&world, "123456");
    let session = app.session("p2p.preference=disabled").await;
    let alice = app.publisher(&world, &session, "alice").await;
    let begun = app.send("POST", &app.path("archive"), Some(json!({ "sessionId": session }))).await.json();
    assert_eq!((&begun["partnerId"], &begun["projectId"]), (&json!(123_456), &json!(123_456)));
    let id = begun["id"].as_str().expect("id").to_owned();
    world.recording(2).await;
    // Its owner dies; another one must hear what is asked for meanwhile. The API is in the same process here.
    world.kill_worker();
    world.start_worker().expect("worker");
    api::served(&world).await;
    let asked = std::time::Instant::now();
    let stopped = app.send("POST", &app.path(&format!("archive/{id}/stop")), None).await;
    assert_eq!(stopped.status, 200, "{stopped:?}");
    wait_for("the archive to end", || async {
        let archive = app.send("GET", &app.path(&format!("archive/{id}")), None).await.json();
        (archive["status"] != "started" && archive["status"] != "paused").then_some(())
    })
    .await;
    println!("heard after {:?}", asked.elapsed());
    let done = app.archive(&id, "available").await;
    assert_eq!(done["reason"], "user initiated");
    alice.leave().await.expect("leave");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_made_as_the_sdks_parse_them() {
    let world = world("").await;
    let (unified, legacy) = (App::unified(&world, APPLICATION), App::legacy(&world, "45828062"));
    for (app, partner) in [(&unified, APPLICATION), (&legacy, "45828062")] {
        let (name, token) = app.header(&app.token(&app.claims()));
        let xml = app.send_with("POST", "/session/create", None, &[(name, &token)]).await;
        assert_eq!((xml.status, xml.kind.as_str()), (200, "text/xml"), "{xml:?}");
        assert!(xml.text.contains(&format!("<partner_id>{partner}</partner_id>")), "{xml:?}");
        // A form that is called JSON (vonage-python).
        let headers = [(name, token.as_str()), ("accept", "application/json"), ("content-type", "application/json")];
        let form = json!("p2p.preference=disabled&archiveMode=always");
        let created = app.send_with("POST", "/session/create", Some(form), &headers).await;
        assert_eq!((created.status, created.kind.as_str()), (200, "application/json"), "{created:?}");
        assert_eq!(created.json().as_array().map(Vec::len), Some(1));
        assert_eq!(created.json()[0]["partner_id"], partner);
    }
    let bad = unified.send("POST", "/session/create", Some(json!("archiveMode=always&p2p.preference=enabled"))).await;
    assert_eq!(bad.status, 400);
    assert!(bad.json()["message"].as_str().is_some_and(|m| m.contains("needs a routed session")), "{bad:?}");
    // A relayed session cannot be archived.
    let relayed = unified.session("p2p.preference=enabled").await;
    let refused = unified.send("POST", &unified.path("archive"), Some(json!({ "sessionId": relayed }))).await;
    assert_eq!((refused.status, refused.json()["code"].as_i64()), (409, Some(15008)), "{refused:?}");
    // Nor one of somebody else, or one that is not known.
    let others = legacy.session("").await;
    for session in [&others, "2_nowhere"] {
        let unknown = unified.send("POST", &unified.path("archive"), Some(json!({ "sessionId": session }))).await;
        assert_eq!(unknown.status, 404, "{unknown:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_come_in_with_the_tokens_that_the_sdks_make() {
    let world = world("").await;
    let (unified, legacy) = (App::unified(&world, APPLICATION), App::legacy(&world, "45828062"));
    for app in [&unified, &legacy] {
        let session = app.session("").await;
        let joined = app.join_with(&session, &app.client_claims(&session)).await;
        assert_eq!(joined.status, 200, "{joined:?}");
        let joined = joined.json();
        let router = &joined["router"];
        assert!(["pin", "token", "url", "room"].iter().all(|field| router[*field].is_string()), "{joined}");
        assert!(!joined.to_string().contains(archiver_testkit::janus::API_SECRET), "{joined}");
        let alice = Publisher::start(api::options(&world, &joined, "alice")).await.expect("publisher");
        let listed = app.send("GET", &app.path(&format!("session/{session}/stream")), None).await.json();
        assert_eq!(listed["items"][0]["id"], joined["streamId"], "{listed}");
        alice.leave().await.expect("leave");

        // Layout classes of the token are those of the stream.
        let mut focused = app.client_claims(&session);
        focused["initial_layout_class_list"] = json!("focus");
        let joined = app.join_with(&session, &focused).await.json();
        let bob = Publisher::start(api::options(&world, &joined, "bob")).await.expect("publisher");
        let path = app.path(&format!("session/{session}/stream/{}", joined["streamId"].as_str().expect("id")));
        assert_eq!(app.send("GET", &path, None).await.json()["layoutClassList"], json!(["focus"]));
        bob.leave().await.expect("leave");

        // Neither a request's token, nor one of another session, nor one that ended lets anybody in.
        let mut ended = app.client_claims(&session);
        ended["exp"] = json!(api::now() - 120);
        let other = app.session("").await;
        for claims in [app.claims(), app.client_claims(&other), ended] {
            let refused = app.join_with(&session, &claims).await;
            assert_eq!(refused.status, 403, "{refused:?}");
        }
        // And a client's token is none for requests.
        let (name, token) = app.header(&app.token(&app.client_claims(&session)));
        assert_eq!(app.send_with("GET", &app.path("archive"), None, &[(name, &token)]).await.status, 403);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_says_of_itself_is_signed_and_a_copy_of_it_is_not() {
    let mut world = world("").await;
    let app = App::unified(&world, APPLICATION);
    let session = app.session("archiveMode=always&archiveOutputMode=individual").await;
    let mut claims = app.client_claims(&session);
    claims["connection_data"] = json!("user=alice");
    let joined = app.join_with(&session, &claims).await.json();
    assert_ne!(app.join_with(&session, &claims).await.json()["feedId"], joined["feedId"], "a feed's id is given twice");
    let alice = Publisher::start(api::signed_options(&world, &joined, "Alice")).await.expect("publisher");
    world.recording(2).await;
    // Somebody in the room says the same of himself.
    let copy = Options { code: 2, ..api::options(&world, &joined, "Alice") };
    let mallory = Publisher::start(copy).await.expect("publisher");
    world.recording(4).await;
    for publisher in [&alice, &mallory] {
        publisher.pictures_pass(60).await;
    }
    let (sent, copied) =
        (alice.leave().await.expect("left").timeline(), mallory.leave().await.expect("left").timeline());
    let job = world.ended(&session);
    world.publish(&job).expect("publish");
    let archive = world.archive(&session, "available").await;
    let files = world.download(&archive).expect("download");
    let streams = files.manifest["streams"].as_array().expect("streams");
    let told: Vec<(bool, bool)> = streams
        .iter()
        .map(|s| (s["signed"] == true, s["streamId"] == joined["streamId"] && s["connectionData"] == "user=alice"))
        .collect();
    assert!(told.contains(&(true, true)) && told.contains(&(false, false)) && told.len() == 2, "{}", files.manifest);
    // The id is Alice's from her first picture to her last, and what was copied is there, too.
    let file = |id: &str| files.dir.join(format!("{id}.webm"));
    let content = Content::read(&file(joined["streamId"].as_str().expect("id"))).expect("file");
    assert!(content.frames.iter().all(|frame| frame.code == Some(1)), "pictures of somebody else");
    let matched = content.against(&sent);
    assert!(matched.missing.is_empty() && matched.frames.len() >= 60, "{} pictures", matched.frames.len());
    let other = streams.iter().find(|s| s["signed"] == false).expect("the copy")["streamId"].as_str().expect("id");
    let content = Content::read(&file(other)).expect("file");
    assert!(content.against(&copied).frames.len() >= 60 && content.frames.iter().all(|frame| frame.code == Some(2)));
    assert!(world.log().contains("copies another client's display"), "{}", world.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_too_much_is_told_so_and_nobody_else() {
    let world =
        world("requests_per_second = 5\nbody_max = \"16KiB\"\ncors_origins = [\"https://console.example.com\"]\n")
            .await;
    let (busy, quiet) = (App::legacy(&world, "45828062"), App::legacy(&world, "45828063"));
    let mut refused = None;
    for _ in 0..100 {
        let answer = busy.send("GET", &busy.path("archive"), None).await;
        if answer.status == 429 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("too many");
    assert!(refused.json()["message"].as_str().is_some_and(|m| m.contains("too many requests")), "{refused:?}");
    assert_eq!(quiet.send("GET", &quiet.path("archive"), None).await.status, 200);
    // A client's token for a session that nobody made is a stranger's: whoever makes sessions up is one, however many they are.
    let mut answers = Vec::new();
    for n in 0..100 {
        let session = format!("made-up-{n}");
        answers.push(quiet.join_with(&session, &quiet.client_claims(&session)).await.status);
        if answers.last() == Some(&429) {
            break;
        }
    }
    assert_eq!((answers.first(), answers.last()), (Some(&404), Some(&429)), "{answers:?}");
    assert_eq!(quiet.send("GET", &quiet.path("archive"), None).await.status, 200);
    // Bodies, addresses and methods that cannot be, all told in the shape that the SDKs parse.
    let large = json!({ "sessionId": "s", "name": "x".repeat(20 << 10) });
    let cases = [("POST", quiet.path("archive"), Some(large), 413), ("PUT", quiet.path("archive"), None, 405)];
    let more = [("GET", "/nowhere".to_owned(), None, 404), ("GET", quiet.path("archive/not-an-id"), None, 400)];
    for (method, path, body, status) in cases.into_iter().chain(more) {
        let answer = quiet.send(method, &path, body).await;
        assert_eq!((answer.status, answer.kind.as_str()), (status, "application/json"), "{method} {path}: {answer:?}");
        assert!(answer.json()["message"].is_string(), "{answer:?}");
    }
    let answer =
        quiet.client.get(format!("{}/openapi.json", quiet.base)).header("origin", "https://console.example.com");
    let answer = answer.header("x-request-id", "mine").send().await.expect("an answer");
    assert_eq!(answer.headers()["access-control-allow-origin"], "https://console.example.com");
    assert_eq!(answer.headers()["x-request-id"], "mine");
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_are_cut_and_composed_anew_and_their_reports_read() {
    let world = world("").await;
    let app = App::unified(&world, APPLICATION);
    let session = app.session("p2p.preference=disabled").await;
    let alice = app.publisher(&world, &session, "alice").await;
    let begun = app.send("POST", &app.path("archive"), Some(json!({ "sessionId": session }))).await.json();
    let id = begun["id"].as_str().expect("id").to_owned();
    let path = app.path(&format!("archive/{id}"));
    // Not while it is recorded.
    let early = app.send("POST", &format!("{path}/clip"), Some(json!({ "from": 0, "to": 2 }))).await;
    assert_eq!(early.status, 409, "{early:?}");
    assert_eq!(app.send("GET", &format!("{path}/report"), None).await.status, 404);
    wait_for("some seconds of media", || async { (alice.frames_sent() > 200).then_some(()) }).await;
    app.send("POST", &format!("{path}/stop"), None).await;
    let whole = app.archive(&id, "available").await;
    let report = app.send("GET", &format!("{path}/report"), None).await;
    assert_eq!((report.status, report.kind.as_str()), (200, "application/json"), "{report:?}");
    assert_eq!(report.json()["archiveId"], json!(id));
    let picture = app.send("GET", &format!("{path}/thumbnail"), None).await;
    assert_eq!((picture.status, picture.kind.as_str()), (200, "image/jpeg"));

    for (what, bad) in [
        ("clip", json!({})),
        ("clip", json!({ "from": 3, "to": 1 })),
        ("recompose", json!({ "layout": { "type": "custom" } })),
    ] {
        assert_eq!(app.send("POST", &format!("{path}/{what}"), Some(bad)).await.status, 400, "{what}");
    }
    let clip = app.send("POST", &format!("{path}/clip"), Some(json!({ "from": 0, "to": 3 }))).await;
    let again = json!({ "layout": { "type": "pip" }, "resolution": "480x640" });
    let again = app.send("POST", &format!("{path}/recompose"), Some(again)).await;
    for (asked, duration) in [(&clip, 3), (&again, whole["duration"].as_i64().expect("seconds"))] {
        assert_eq!((asked.status, &asked.json()["status"]), (202, &json!("stopped")), "{asked:?}");
        let made = app.archive(asked.json()["id"].as_str().expect("id"), "available").await;
        assert!((made["duration"].as_i64().expect("seconds") - duration).abs() <= 1, "{made}");
        assert_eq!(made["sessionId"], json!(session));
    }
    let made = app.send("GET", &app.path(&format!("archive/{}", again.json()["id"].as_str().expect("id"))), None).await;
    assert_eq!(made.json()["resolution"], "480x640");
    // What cannot be made fails, and says so.
    let late = app.send("POST", &format!("{path}/clip"), Some(json!({ "from": 5000 }))).await;
    let failed = app.archive(late.json()["id"].as_str().expect("id"), "failed").await;
    assert_eq!(failed["reason"], "failure");
    alice.leave().await.expect("leave");
}

/// Nothing started it but a request: the policy on events has no say when its job is replayed.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_was_started_and_parked_is_replayed() {
    let mut world = world("").await;
    let app = App::unified(&world, APPLICATION);
    let session = app.session("p2p.preference=disabled").await;
    let alice = app.publisher(&world, &session, "alice").await;
    let begun = app.send("POST", &app.path("archive"), Some(json!({ "sessionId": session }))).await.json();
    let id = begun["id"].as_str().expect("id").to_owned();
    world.recording(2).await;
    let jobs = world.json(&["jobs", "list", "--json"]).expect("jobs");
    let job = &jobs["jobs"][0];
    let (name, event) = (job["job"].as_str().expect("id").to_owned(), job["event"].as_str().expect("event"));
    let body = base64::engine::general_purpose::STANDARD.encode(event);
    world.kill_worker();
    world
        .sql("UPDATE jobs SET state = 'parked', parked_from = state, owner = NULL WHERE job_id = ?", &[&name])
        .expect("parked");
    let entry = "INSERT INTO parked (parked_id, job_id, fault, detail, routing_key, body, state, times, first_at, last_at) \
                 VALUES ('11111111-0000-4000-8000-000000000000', ?, 'archive_invalid', '', 'session.started.eu', ?, 'parked', 1, 0, 0)";
    world.sql(entry, &[&name, &body]).expect("entry");
    world.start_worker().expect("worker");
    api::served(&world).await;
    let replayed = world.command(&["jobs", "replay", &name]).expect("replay");
    assert!(replayed.status.success(), "{replayed:?}");
    wait_for("the job to go on", || async {
        let jobs = world.json(&["jobs", "list", "--json"]).ok()?;
        (jobs["jobs"][0]["state"] == "capturing").then_some(())
    })
    .await;
    app.send("POST", &app.path(&format!("archive/{id}/stop")), None).await;
    app.archive(&id, "available").await;
    alice.leave().await.expect("leave");
}
