//! The adapter against a real Janus, one that is cut off or restarted, and servers that lie.

use std::time::{Duration, Instant};

use archiver::config::RouterSection;
use archiver::model::ids::SessionId;
use archiver::model::session::RouterRoom;
use archiver::model::time::Wallclock;
use archiver::router::janus::{JanusConfig, JanusRouter};
use archiver::router::{ListedRoom, MediaRouter, Room, RoomEvent, Rooms, RouterError};
use archiver::session::access::{access_at, client_access, signed_token};
use archiver::session::room::room_of;
use archiver_testkit::janus::{ADMIN_KEY, API_SECRET, Client, Janus, TOKEN_SECRET};
use archiver_testkit::proxy::{TcpMode, TcpProxy};
use archiver_testkit::publisher::{Options, Publisher};
use archiver_testkit::scripted_janus::{Script, reply, scripted_janus};
use archiver_testkit::wait::wait_for;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::room_events::{clients, lost, present, present_among, reconnected, until};

fn config(url: &str) -> JanusConfig {
    let mut config = JanusConfig::new("test", url);
    config.api_secret = Some(API_SECRET.into());
    config.poll = Duration::from_millis(300);
    config
}

fn id(room: &str) -> RouterRoom {
    RouterRoom::shared("test".parse().expect("name"), room.parse().expect("room"))
}

async fn enter(url: &str, room: &str) -> Box<dyn Room> {
    JanusRouter::new(config(url)).join(&id(room)).await.expect("join")
}

async fn publish(janus: &Janus, room: &str, stream: &str) -> Publisher {
    Publisher::start(Options::new(janus, room, stream)).await.expect("publisher")
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_told_apart() {
    let janus = Janus::shared().expect("janus");
    janus.create_room("locked", json!({ "pin": "1234", "secret": "s" })).await.expect("room");
    let join = |config: JanusConfig, room: &str| {
        let room = id(&janus.room(room));
        async move { JanusRouter::new(config).join(&room).await.map(drop) }
    };
    let pin = |pin: Option<&str>| JanusConfig { pin: pin.map(Into::into), ..config(&janus.url()) };
    assert!(matches!(join(pin(None), "locked").await, Err(RouterError::Refused { .. })));
    assert!(matches!(join(pin(Some("wrong")), "locked").await, Err(RouterError::Refused { .. })));
    join(pin(Some("1234")), "locked").await.expect("join");
    assert!(matches!(join(pin(None), "missing").await, Err(RouterError::RoomNotFound { .. })));

    let stranger = JanusConfig { api_secret: Some("wrong".into()), ..config(&janus.url()) };
    let refused = join(stranger.clone(), "locked").await.expect_err("refused");
    assert!(matches!(refused, RouterError::Refused { code: 403, .. }), "{refused}");
    assert!(JanusRouter::new(stranger).probe().await.is_err());
    assert!(JanusRouter::new(config(&janus.url())).probe().await.expect("probe").contains("Janus"));
    let nobody = config(&format!("ws://{}:9", janus.ip()));
    assert!(matches!(join(nobody, "locked").await, Err(RouterError::Unavailable { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_that_swallows_everything_is_replaced() {
    let janus = Janus::shared().expect("janus");
    janus.create_room("r", json!({})).await.expect("room");
    let proxy = TcpProxy::start(janus.ip(), janus.address()).expect("proxy");
    let mut room = enter(&format!("ws://{}", proxy.address()), &janus.room("r")).await;
    clients(room.as_mut(), 0).await;
    // It is found out by the lists that do not come.
    proxy.set(TcpMode::BlackHole);
    until(room.as_mut(), "the loss", |e| (*e == RoomEvent::Disconnected).then_some(())).await;
    proxy.set(TcpMode::Forward);
    assert_eq!(lost(&reconnected(room.as_mut()).await), []);
    room.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_janus_is_entered_again_even_if_its_room_comes_late() {
    let mut janus = Janus::start().expect("janus");
    janus.create_room("r", json!({})).await.expect("room");
    let alice = publish(&janus, "r", "alice").await;
    let mut room = enter(&janus.url(), &janus.room("r")).await;
    let mids = present(room.as_mut(), "alice").await.mids();
    let control = room.control();
    let offer = control.subscribe("alice", &mids).await.expect("offer");
    janus.restart().expect("restart");
    alice.crash();
    // Several tries find Janus without the room; each later one claims the session of the one before.
    let (_, before) = until(room.as_mut(), "the room's end", |e| (*e == RoomEvent::RoomDestroyed).then_some(())).await;
    // What is missing of its media is the router's, not a publisher's who left: the loss is said first.
    let was_lost = before.iter().position(|e| lost(std::slice::from_ref(e)) == [offer.subscription]);
    let was_gone = before.iter().position(|e| matches!(e, RoomEvent::StreamGone { .. }));
    assert!(was_lost.is_some() && was_gone > was_lost, "{before:?}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    janus.create_room("r", json!({})).await.expect("room");
    let _alice = publish(&janus, "r", "alice").await;
    let before = reconnected(room.as_mut()).await;
    assert_eq!(lost(&before), [], "it is told once: {before:?}");
    assert!(!before.contains(&RoomEvent::RoomDestroyed), "it is told once: {before:?}");
    assert!(matches!(control.prefer_highest_layer(offer.subscription).await, Err(RouterError::StreamNotFound { .. })));
    let mids = present(room.as_mut(), "alice").await.mids();
    control.subscribe("alice", &mids).await.expect("a new offer");
    room.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observer_that_was_removed_enters_again() {
    let janus = Janus::shared().expect("janus");
    janus.create_room("r", json!({})).await.expect("room");
    let mut room = enter(&janus.url(), &janus.room("r")).await;
    clients(room.as_mut(), 0).await;

    let mut admin = Client::connect(&janus.url()).await.expect("client");
    let listed =
        admin.message(json!({ "request": "listparticipants", "room": janus.room("r") }), None).await.expect("list");
    let list = listed["plugindata"]["data"]["participants"].as_array().expect("list").clone();
    let observer = list.iter().find(|p| p["display"] == "archiver:recorder").expect("observer")["id"].clone();
    admin.message(json!({ "request": "kick", "room": janus.room("r"), "id": observer }), None).await.expect("kick");
    let _carol = publish(&janus, "r", "carol").await;
    let mids = present(room.as_mut(), "carol").await.mids();
    room.control().subscribe("carol", &mids).await.expect("offer");
    room.leave().await;
}

/// As Janus answers, as far as a room is entered.
fn honest(request: &Value) -> Option<Vec<Message>> {
    let plugin = |data: Value| json!({ "janus": "event", "sender": 7, "plugindata": { "data": data } });
    let answer = match (request["janus"].as_str()?, request["body"]["request"].as_str()) {
        ("create" | "attach", _) => json!({ "janus": "success", "data": { "id": 7 } }),
        ("message", Some("join")) => plugin(json!({ "videoroom": "joined", "id": "me", "publishers": [] })),
        ("message", Some("listparticipants")) => plugin(
            json!({ "videoroom": "participants", "participants": [{ "id": "me", "display": "archiver:test" }, { "id": "c" }] }),
        ),
        _ => json!({ "janus": "success" }),
    };
    Some(vec![reply(request, answer)])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_no_janus_is_refused_in_time() {
    let scripts: [(&str, Script); 9] = [
        ("silence", |_| None),
        ("no JSON", |_| Some(vec![Message::text("hello"), Message::binary(vec![0_u8; 1000])])),
        ("wrong types", |r| Some(vec![reply(r, json!({ "janus": [], "data": { "id": "seven" } }))])),
        ("a negative id", |r| Some(vec![reply(r, json!({ "janus": "success", "data": { "id": -1 } }))])),
        ("an odd error", |r| Some(vec![reply(r, json!({ "janus": "error", "error": { "code": "x", "reason": {} } }))])),
        ("deep JSON", |_| Some(vec![Message::text("[".repeat(500_000))])),
        ("huge JSON", |r| Some(vec![reply(r, json!({ "janus": "success", "data": "x".repeat(5 << 20) }))])),
        ("other answers", |_| {
            Some(vec![Message::text(json!({ "janus": "success", "transaction": "z" }).to_string()); 3000])
        }),
        ("a closed door", |_| Some(vec![Message::Close(None)])),
    ];
    for (name, script) in scripts {
        let url = scripted_janus(script).await.expect("liar");
        let started = Instant::now();
        let router = JanusRouter::new(JanusConfig { timeout: Duration::from_millis(500), ..config(&url) });
        let error = router.join(&id("r")).await.map(drop).expect_err(name);
        assert!(!matches!(error, RouterError::Refused { .. }), "{name}: {error}");
        assert!(started.elapsed() < Duration::from_secs(5), "{name}: {error}");
        assert!(error.to_string().len() < 2000, "{name}");
        assert!(router.probe().await.is_err(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_in_a_room_harms_nothing() {
    let url = scripted_janus(|request| {
        let mut answers = honest(request)?;
        if request["body"]["request"] == "listparticipants" {
            let event = |data: Value| {
                Message::text(json!({ "janus": "event", "sender": 7, "plugindata": { "data": data } }).to_string())
            };
            answers.extend([
                Message::text("{"),
                Message::text("[1,2]"),
                Message::text("{\"a\":".repeat(10_000)),
                Message::binary(vec![255_u8; 100]),
                Message::text(json!({ "janus": 7, "sender": "x", "transaction": {} }).to_string()),
                Message::text(json!({ "janus": "hangup", "sender": 9_999 }).to_string()),
                Message::text(json!({ "janus": "event", "sender": 7, "plugindata": [] }).to_string()),
                event(json!({ "publishers": { "a": 1 } })),
                event(json!({ "publishers": [null, 7, { "id": {} }, { "id": "p", "display": 7, "streams": "x" }] })),
                event(json!({ "leaving": [], "unpublished": {}, "moderation": 7, "videoroom": 1 })),
                event(json!({ "videoroom": "talking", "id": [] })),
                event(json!({ "moderation": "muted", "id": "nobody", "mid": "0" })),
                event(json!({ "publishers": [{ "id": "long", "display": "x".repeat(100_000), "streams": [] }] })),
            ]);
            answers.extend((0..200).map(|_| event(json!({ "videoroom": "talking", "id": "p" }))));
        }
        Some(answers)
    })
    .await
    .expect("liar");
    let mut room = enter(&url, "r").await;
    let long = present_among(room.as_mut(), "long", 1).await;
    assert!(room.control().subscribe("long", &long.mids()).await.is_err(), "it has no tracks");
    assert!(long.name.expect("name").len() <= 1000);
    // A driver that reads nothing for a while is told how things are, and can still leave.
    tokio::time::sleep(Duration::from_secs(2)).await;
    clients_or_streams_only(room.as_mut()).await;
    tokio::time::timeout(Duration::from_secs(5), room.leave()).await.expect("leave");
}

/// Reads what waits; the connection was never lost.
async fn clients_or_streams_only(room: &mut dyn Room) {
    while let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(1), room.next_event()).await {
        assert!(!matches!(event, RoomEvent::Disconnected | RoomEvent::RoomDestroyed), "{event:?}");
    }
}

/// A Janus as the API knows it: with the keys to make rooms, and to sign tokens for clients.
fn section(janus: &Janus) -> RouterSection {
    toml::from_str(&format!(
        "name = \"test\"\nurl = \"{}\"\napi_secret = \"{API_SECRET}\"\nadmin_key = \"{ADMIN_KEY}\"\nroom_key = \"key\"\ntoken_secret = \"{TOKEN_SECRET}\"\n",
        janus.url()
    ))
    .expect("section")
}

fn router(section: &RouterSection) -> JanusRouter {
    let mut config = config(&section.url);
    config.admin_key.clone_from(&section.admin_key);
    config.room_key.clone_from(&section.room_key);
    JanusRouter::new(config)
}

#[tokio::test(flavor = "multi_thread")]
async fn rooms_are_made_listed_looked_into_and_removed() {
    let mut janus = tokio::task::spawn_blocking(Janus::start).await.expect("task").expect("Janus");
    let section = section(&janus);
    let router = router(&section);
    let session: SessionId = "2_MX4xMjM0NTY-fn5-".parse().expect("session");
    let place = RouterRoom { access: access_at(&section), ..id(room_of(&session, true).as_str()) };
    assert!(router.create_room(&place, &session).await.expect("create"));
    assert!(!router.create_room(&place, &session).await.expect("create again"));
    let listed = || async { router.list_rooms().await.expect("list") };
    let expected = |participants| ListedRoom { room: place.room.clone(), about: session.to_string(), participants };
    assert_eq!(listed().await, [expected(0)]);
    assert!(router.streams(&place).await.expect("streams").is_empty());

    // A client, with what clients are given, and an archiver, which is none.
    let access = client_access(&section, &place, Wallclock::now() + Duration::from_secs(60));
    let mut options = Options::new(&janus, place.room.as_str(), "alice");
    (options.pin, options.token) = (access.pin.clone(), access.token.clone());
    options.display = r#"{"name":"Alice","connectionData":"u=1"}"#.to_owned();
    let alice = Publisher::start(options).await.expect("alice");
    let archiver = router.join(&place).await.expect("join");
    assert_eq!(listed().await, [expected(2)]);
    // Janus lists a client as publishing a moment after its media flows.
    let seen = wait_for("alice to publish", || async {
        let seen = router.participants(&place.room).await.expect("participants");
        seen.iter().any(|client| client.publishing).then_some(seen)
    });
    let seen = seen.await;
    assert_eq!(seen.len(), 1);
    assert_eq!(
        (seen[0].router_id.as_str(), seen[0].name.as_deref(), seen[0].publishing),
        ("alice", Some("Alice"), true)
    );
    let streams = router.streams(&place).await.expect("streams");
    assert_eq!((streams.len(), streams[0].tracks.len()), (1, 2));
    archiver.leave().await;

    // Clients can neither list rooms, nor do anything to one, nor make one.
    let token = access.token.as_deref().expect("token");
    let mut client = Client::connect_with_token(&janus.url(), token).await.expect("client");
    let list = client.message(json!({ "request": "list" }), None).await.expect("answer");
    assert_eq!(list["plugindata"]["data"]["list"], json!([]));
    for (request, code) in [
        (json!({ "request": "destroy", "room": place.room }), 429),
        (json!({ "request": "kick", "room": place.room, "id": "alice" }), 429),
        (json!({ "request": "create", "room": "mine" }), 429),
        (json!({ "request": "join", "ptype": "publisher", "room": place.room }), 429),
        (json!({ "request": "join", "ptype": "publisher", "room": place.room, "pin": "x" }), 433),
    ] {
        let answer = client.message(request.clone(), None).await.expect("answer");
        assert_eq!(answer["plugindata"]["data"]["error_code"], code, "{request}: {answer}");
    }
    drop(alice.crash());
    assert!(router.remove_room(&place).await.expect("remove"));
    assert!(!router.remove_room(&place).await.expect("remove again"));
    assert!(listed().await.is_empty());
    let gone = router.participants(&place.room).await.expect_err("no room");
    assert!(matches!(gone, RouterError::RoomNotFound { .. }), "{gone}");
    // What is kept open is lost with a Janus that goes; nobody hears of that when it is back.
    janus.restart().expect("restart");
    assert!(router.create_room(&place, &session).await.expect("create"));
    let no_key = JanusRouter::new(config(&janus.url()));
    let refused = no_key.join(&place).await.map(drop).expect_err("no key");
    assert!(matches!(refused, RouterError::Refused { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_needs_a_token_that_is_signed_and_not_over() {
    let janus = tokio::task::spawn_blocking(Janus::shared).await.expect("task").expect("Janus");
    let now = Wallclock::now();
    let signed = |secret: &str, expires| signed_token(&secret.into(), expires);
    let good = signed(TOKEN_SECRET, now + Duration::from_secs(60));
    Client::connect_with_token(&janus.url(), &good).await.expect("a good token");
    let over = signed(TOKEN_SECRET, Wallclock(now.0 - 10_000_000));
    let forged = signed("another secret", now + Duration::from_secs(60));
    let tampered = good.replacen(char::is_numeric, "9", 1);
    for bad in [over.as_str(), &forged, &tampered, "", "x", ":"] {
        let error = Client::connect_with_token(&janus.url(), bad).await.expect_err(bad).to_string();
        assert!(error.contains("403"), "{bad}: {error}");
    }
}
