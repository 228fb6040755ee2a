//! Smaller errors of the API, and lists between two times.

use crate::BINARY;
use crate::support::api;
use crate::support::api::{Answer, App};
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::{APPLICATION, World};
use serde_json::{Value, json};

/// Nothing has this id.
const NOBODY: &str = "00000000-0000-4000-8000-000000000000";

/// An error in the API's shape: its code is its status, as Vonage has none of its own for these.
fn refused(what: &str, answer: &Answer, status: u16, words: &str) {
    assert_eq!((answer.status, answer.kind.as_str()), (status, "application/json"), "{what}: {answer:?}");
    let error = answer.json();
    assert_eq!(error["code"].as_u64(), Some(u64::from(status)), "{what}: {error}");
    assert!(error["message"].as_str().is_some_and(|message| message.contains(words)), "{what}: {error}");
    assert_eq!(error["message"], error["description"], "{what}");
}

async fn start(app: &App, session: &str, options: Value) -> Value {
    let mut body = json!({ "sessionId": session });
    body.as_object_mut().expect("object").extend(options.as_object().cloned().unwrap_or_default());
    let begun = app.send("POST", &app.path("archive"), Some(body)).await;
    assert_eq!(begun.status, 200, "{begun:?}");
    begun.json()
}

/// A list's archives, in its order, and how many it counts.
async fn listed(app: &App, query: &str) -> (Vec<String>, u64) {
    let list = app.send("GET", &app.path(&format!("archive?{query}")), None).await;
    assert_eq!(list.status, 200, "{query}: {list:?}");
    let list = list.json();
    let items = list["items"].as_array().expect("items").iter();
    let ids = items.map(|item| item["id"].as_str().expect("id").to_owned()).collect();
    (ids, list["count"].as_u64().expect("count"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_archive_is_changed_no_more_and_lists_lie_between_two_times() {
    let mut world = World::start(BINARY, None, "").await.expect("servers");
    world.start_worker().expect("worker");
    api::served(&world).await;
    let app = App::unified(&world, APPLICATION);
    let session = app.session("p2p.preference=disabled").await;
    let alice = app.publisher(&world, &session, "alice").await;
    let older = start(&app, &session, json!({ "streamMode": "manual" })).await;
    let newer = start(&app, &session, json!({ "multiArchiveTag": "b" })).await;
    let streams = app.send("GET", &app.path(&format!("session/{session}/stream")), None).await.json();
    let stream = streams["items"][0]["id"].as_str().expect("a stream").to_owned();
    let id = |archive: &Value| archive["id"].as_str().expect("id").to_owned();
    world.recording(4).await;
    for archive in [&older, &newer] {
        let path = app.path(&format!("archive/{}", id(archive)));
        assert_eq!(app.send("POST", &format!("{path}/stop"), None).await.status, 200);
        app.archive(&id(archive), "available").await;
        // Whatever its stream mode was.
        for (method, what, body) in [
            ("PATCH", "streams", json!({ "addStream": stream })),
            ("PATCH", "streams", json!({ "removeStream": stream })),
            ("PUT", "layout", json!({ "type": "pip" })),
        ] {
            let answer = app.send(method, &format!("{path}/{what}"), Some(body)).await;
            refused(what, &answer, 409, "is not being recorded");
        }
    }
    alice.leave().await.expect("leave");

    // From a time on, and before another one.
    let (older_at, newer_at) = (older["createdAt"].as_i64().expect("ms"), newer["createdAt"].as_i64().expect("ms"));
    assert!(older_at < newer_at, "{older_at} {newer_at}");
    let (older, newer) = (id(&older), id(&newer));
    for (query, expected) in [
        (format!("from={older_at}"), vec![&newer, &older]),
        (format!("from={newer_at}"), vec![&newer]),
        (format!("from={}", newer_at + 1), vec![]),
        (format!("to={newer_at}"), vec![&older]),
        (format!("to={}", newer_at + 1), vec![&newer, &older]),
        (format!("to={older_at}"), vec![]),
        (format!("from={older_at}&to={newer_at}"), vec![&older]),
        (format!("from={newer_at}&to={older_at}"), vec![]),
        (format!("from={older_at}&to={}&sessionId={session}&status=available", newer_at + 1), vec![&newer, &older]),
        (format!("to={}&status=failed", newer_at + 1), vec![]),
    ] {
        let (ids, count) = listed(&app, &query).await;
        assert_eq!((ids.iter().collect::<Vec<_>>(), count), (expected.clone(), expected.len() as u64), "{query}");
    }
    // A page of them counts all.
    let (ids, count) = listed(&app, &format!("from={older_at}&count=1&offset=1")).await;
    assert_eq!((ids, count), (vec![older], 2));
    for query in ["from=yesterday", "to=1.5"] {
        let answer = app.send("GET", &app.path(&format!("archive?{query}")), None).await;
        refused(query, &answer, 400, "milliseconds since 1970");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_there_is_not_is_told_so_and_an_encrypted_session_is_not_archived() {
    let callbacks = "[callbacks]\nallow = [\"127.0.0.0/8\"]\n";
    let mut world = World::start(BINARY, None, callbacks).await.expect("servers");
    world.start_worker().expect("worker");
    api::served(&world).await;
    let app = App::unified(&world, APPLICATION);
    let classes = json!({ "items": [{ "id": NOBODY, "layoutClassList": ["full"] }] });
    let elsewhere = app.send("PUT", &app.path("session/2_MX4xfn4/stream"), Some(classes)).await;
    refused("classes", &elsewhere, 404, "no such session");

    // No callback, then another one than is asked for: it stays.
    let unregister = |id: &str| {
        let path = app.path(&format!("callback/{id}"));
        async { app.send("DELETE", &{ path }, None).await }
    };
    refused("unregister", &unregister(NOBODY).await, 404, "no such callback");
    let receiver = json!({ "group": "archive", "event": "status", "url": "http://127.0.0.1:9/archives" });
    let registered = app.send("POST", &app.path("callback"), Some(receiver)).await;
    assert_eq!(registered.status, 200, "{registered:?}");
    refused("unregister", &unregister(NOBODY).await, 404, "no such callback");
    let known = app.send("GET", &app.path("callback"), None).await.json();
    assert_eq!(known, json!([registered.json()]));
    let id = known[0]["id"].as_str().expect("id").to_owned();
    assert_eq!(unregister(&id).await.status, 204);
    refused("unregister", &unregister(&id).await, 404, "no such callback");

    // Routed and e2ee, with a client in it.
    let session = app.session("p2p.preference=disabled&e2ee=true").await;
    let alice = app.publisher(&world, &session, "alice").await;
    let streams = app.path(&format!("session/{session}/stream"));
    wait_for("a stream", || async { (app.send("GET", &streams, None).await.json()["count"] == 1).then_some(()) }).await;
    let start = app.send("POST", &app.path("archive"), Some(json!({ "sessionId": session }))).await;
    assert_eq!((start.status, start.json()["code"].as_i64()), (409, Some(15008)), "{start:?}");
    assert!(start.json()["message"].as_str().is_some_and(|message| message.contains("e2ee")), "{start:?}");
    assert_eq!(listed(&app, "").await, (vec![], 0));
    alice.leave().await.expect("leave");
}
