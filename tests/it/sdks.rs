//! The real SDKs of Vonage and `OpenTok` against the running service, with a real Janus, RabbitMQ and S3 behind it: each
//! method that touches sessions or archives, and each error that an SDK tells from others.

use crate::BINARY;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use crate::support::sdk_errors::made_of;
use anyhow::{Context, Result, ensure};
use archiver_testkit::api::{self, Application, Certificate, rsa_key};
use archiver_testkit::child::Server;
use archiver_testkit::net::free_port;
use archiver_testkit::publisher::{Options, Publisher};
use archiver_testkit::sdk::{Account, Driver, Sdk, SdkError};
use archiver_testkit::wait::deadline;
use archiver_testkit::world::World;
use futures_util::future::join_all;
use serde_json::{Value, json};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Nothing has this id.
const NOBODY: &str = "00000000-0000-4000-8000-000000000000";
/// The layout classes that a client's token gives it.
const CLASSES: [&str; 2] = ["focus", "inactive"];
/// As long as archives are recorded at least.
const RECORDED: Duration = Duration::from_secs(4);

/// An SDK in the hands of somebody.
struct User {
    sdk: Sdk,
    driver: Driver,
}

impl User {
    async fn start(sdk: Sdk, account: &Account) -> Result<Self> {
        Ok(Self { sdk, driver: Driver::start(sdk, account).await? })
    }

    /// A call that succeeds.
    async fn ok(&mut self, call: &str, args: Value) -> Result<Value> {
        let answer = self.driver.call(call, args.clone()).await?;
        answer.map_err(|error| anyhow::anyhow!("{call} {args}: {error:?}"))
    }

    /// A call that the service answers with this status.
    async fn refused(&mut self, call: &str, args: Value, status: u16) -> Result<()> {
        let (kind, words) = made_of(self.sdk, call, status);
        let answer = self.driver.call(call, args.clone()).await?;
        let Err(error) = answer else { anyhow::bail!("{call} {args}: {answer:?}, not {status}") };
        let SdkError { kind: found, status: told, message } = &error;
        let right = found == kind && message.contains(&words) && told.is_none_or(|told| told == status);
        ensure!(right, "{call} {args}: {error:?}, not {kind} of {status} with {words:?}");
        Ok(())
    }

    /// An archive, once it has this status.
    async fn archive(&mut self, id: &str, status: &str) -> Result<Value> {
        let until = tokio::time::Instant::now() + deadline();
        loop {
            let archive = self.ok("getArchive", json!({ "archiveId": id })).await?;
            if archive["status"] == status {
                return Ok(archive);
            }
            ensure!(tokio::time::Instant::now() < until, "{archive} does not become {status}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The streams of a session, once there are so many.
    async fn streams(&mut self, session: &str, count: usize) -> Result<Vec<Value>> {
        let until = tokio::time::Instant::now() + deadline();
        loop {
            let streams = self.ok("listStreams", json!({ "sessionId": session })).await?;
            let streams = streams.as_array().cloned().context("not a list")?;
            if streams.len() == count {
                return Ok(streams);
            }
            ensure!(tokio::time::Instant::now() < until, "{streams:?}: not {count}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn text(value: &Value, key: &str) -> Result<String> {
    Ok(value[key].as_str().with_context(|| format!("{key} of {value}"))?.to_owned())
}

/// Who is not let in is told so by every method.
async fn a_stranger_is_refused(user: &mut User) -> Result<()> {
    let (archive, stream) = (json!({ "archiveId": NOBODY }), json!({ "archiveId": NOBODY, "streamId": NOBODY }));
    for (call, args) in [
        ("createSession", json!({ "mediaMode": "routed" })),
        ("startArchive", json!({ "sessionId": "s" })),
        ("stopArchive", archive.clone()),
        ("getArchive", archive.clone()),
        ("listArchives", json!({})),
        ("deleteArchive", archive),
        ("setLayout", json!({ "archiveId": NOBODY, "type": "pip" })),
        ("addStream", stream.clone()),
        ("removeStream", stream),
        ("listStreams", json!({ "sessionId": "s" })),
        ("getStream", json!({ "sessionId": "s", "streamId": NOBODY })),
        ("setClasses", json!({ "sessionId": "s", "items": [{ "id": NOBODY, "layoutClassList": ["full"] }] })),
    ] {
        user.refused(call, args, 403).await?;
    }
    Ok(())
}

/// Sessions of each kind; returns a routed one.
async fn sessions(user: &mut User) -> Result<String> {
    for options in [
        json!({}),
        json!({ "mediaMode": "routed", "archiveMode": "always", "location": "127.0.0.1" }),
        json!({ "mediaMode": "relayed", "archiveMode": "manual" }),
    ] {
        // The SDKs of OpenTok ask for a relayed session unless they are told otherwise, opentok-python wants the word.
        let session = text(&user.ok("createSession", options).await?, "sessionId")?;
        ensure!(session.starts_with("2_") || session.starts_with("1_"), "{session}");
    }
    let named =
        json!({ "mediaMode": "routed", "archiveMode": "always", "archiveName": "n", "archiveResolution": "1280x720" });
    match user.sdk {
        Sdk::OpentokNode | Sdk::OpentokPython => drop(user.ok("createSession", named).await?),
        Sdk::VonageNode | Sdk::VonagePython => {
            user.refused("createSession", json!({ "location": "nowhere" }), 400).await?;
        }
    }
    let relayed = text(&user.ok("createSession", json!({ "mediaMode": "relayed" })).await?, "sessionId")?;
    user.refused("startArchive", json!({ "sessionId": relayed }), 409).await?;
    // npm's @vonage/video has no word for it.
    if user.sdk != Sdk::VonageNode {
        let encrypted = user.ok("createSession", json!({ "mediaMode": "routed", "e2ee": true })).await?;
        user.refused("startArchive", json!({ "sessionId": text(&encrypted, "sessionId")? }), 409).await?;
    }
    let routed = text(&user.ok("createSession", json!({ "mediaMode": "routed" })).await?, "sessionId")?;
    // Nobody is there yet.
    user.refused("startArchive", json!({ "sessionId": routed }), 404).await?;
    user.refused("startArchive", json!({ "sessionId": "2_MX4xfn4" }), 404).await?;
    Ok(routed)
}

/// A client's token, made by the SDK, opens the session's room.
async fn join(user: &mut User, api: SocketAddr, session: &str, options: Value) -> Result<Value> {
    let mut args = json!({ "sessionId": session });
    args.as_object_mut().context("an object")?.extend(options.as_object().cloned().context("an object")?);
    let token = user.ok("token", args.clone()).await?;
    let bearer = format!("Bearer {}", token.as_str().context("a token")?);
    let line = format!("POST /session/{session}/join");
    let answer = api::send(api, &line, &[("authorization", &bearer)], "").await?;
    ensure!(answer.status == 200, "{args}: {answer:?}");
    let (other, body) = (format!("POST /session/{session}x/join"), answer.json()?);
    let refused = api::send(api, &other, &[("authorization", &bearer)], "").await?;
    ensure!([403, 404].contains(&refused.status), "another session: {refused:?}");
    Ok(body)
}

fn is_uuid(value: &Value) -> bool {
    let parts: Vec<usize> = value.as_str().unwrap_or_default().split('-').map(str::len).collect();
    parts == [8, 4, 4, 4, 12] && value.as_str().is_some_and(|text| text == text.to_lowercase())
}

/// A client in the room, as it is told where the room is.
fn client(world: &World, joined: &Value) -> Result<Options> {
    let router = &joined["router"];
    Ok(Options {
        url: text(router, "url")?,
        pin: Some(text(router, "pin")?),
        token: Some(text(router, "token")?),
        display: text(joined, "display")?,
        ..Options::new(&world.janus, &text(router, "room")?, "alice")
    })
}

/// The stream of a client, and its layout classes: those of its token, then others.
async fn streams(user: &mut User, session: &str, id: &str) -> Result<()> {
    let streams = user.streams(session, 1).await?;
    ensure!(streams[0]["id"] == id && is_uuid(&streams[0]["id"]), "{streams:?}, not {id}");
    ensure!(streams[0]["videoType"] == "camera" && streams[0]["layoutClassList"] == json!(CLASSES), "{streams:?}");
    let one = json!({ "sessionId": session, "streamId": id });
    ensure!(user.ok("getStream", one.clone()).await? == streams[0]);
    let classes = json!({ "sessionId": session, "items": [{ "id": id, "layoutClassList": ["focus", "full"] }] });
    user.ok("setClasses", classes).await?;
    let changed = user.ok("getStream", one).await?;
    ensure!(changed["layoutClassList"] == json!(["focus", "full"]), "{changed}");

    user.refused("getStream", json!({ "sessionId": session, "streamId": NOBODY }), 404).await?;
    user.refused("getStream", json!({ "sessionId": session, "streamId": "none" }), 408).await?;
    let odd = json!({ "sessionId": session, "items": [{ "id": "none", "layoutClassList": ["full"] }] });
    user.refused("setClasses", odd, 400).await?;
    let nowhere = json!({ "sessionId": "2_MX4xfn4", "items": [{ "id": id, "layoutClassList": ["full"] }] });
    user.refused("setClasses", nowhere, 404).await?;
    let elsewhere = json!({ "sessionId": "2_MX4xfn4" });
    if user.sdk == Sdk::OpentokPython {
        // To it, that is a session without streams.
        ensure!(user.ok("listStreams", elsewhere).await? == json!([]));
    } else {
        user.refused("listStreams", elsewhere, 404).await?;
    }
    Ok(())
}

/// What cannot be started.
async fn wrong_starts(user: &mut User, session: &str) -> Result<()> {
    let wrong = match user.sdk {
        // These refuse by themselves most of what is wrong.
        Sdk::VonagePython => json!({ "sessionId": session, "outputMode": "individual", "maxBitrate": 200_000 }),
        _ => json!({ "sessionId": session, "resolution": "100x100" }),
    };
    user.refused("startArchive", wrong, 400).await
}

/// A composed archive of chosen streams, and beside it one of individual files: from their starts to their deletion.
async fn archives(user: &mut User, application: &Application, session: &str, stream: &str) -> Result<()> {
    wrong_starts(user, session).await?;
    let options = json!({
        "sessionId": session, "name": "The composed one", "resolution": "1280x720", "streamMode": "manual", "multiArchiveTag": "composed",
        "layout": { "type": "bestFit", "screenshareType": "pip" }, "maxBitrate": 1_000_000,
    });
    let composed = user.ok("startArchive", options.clone()).await?;
    ensure!(is_uuid(&composed["id"]) && composed["status"] == "started", "{composed}");
    ensure!(composed["sessionId"] == session && composed["name"] == "The composed one", "{composed}");
    ensure!(composed["resolution"] == "1280x720" && composed["streamMode"] == "manual", "{composed}");
    if application.is_unified() {
        ensure!(composed["applicationId"] == application.id.as_str(), "{composed}");
    } else {
        ensure!(composed["partnerId"] == application.id.parse::<u64>()?, "{composed}");
    }
    user.refused("startArchive", options, 409).await?;
    let individual = user.ok("startArchive", json!({ "sessionId": session, "outputMode": "individual" })).await?;
    user.refused("startArchive", json!({ "sessionId": session }), 409).await?;
    let (composed, individual) = (text(&composed, "id")?, text(&individual, "id")?);

    // Streams: chosen where they can be chosen.
    let chosen = |archive: &str, stream: &str| json!({ "archiveId": archive, "streamId": stream });
    let mut all = chosen(&composed, stream);
    (all["hasAudio"], all["hasVideo"]) = (json!(true), json!(true));
    user.ok("addStream", all.clone()).await?;
    let archive = user.ok("getArchive", json!({ "archiveId": composed })).await?;
    ensure!(archive["streams"][0]["streamId"] == stream || archive["streams"][0]["stream_id"] == stream, "{archive}");
    user.ok("removeStream", chosen(&composed, stream)).await?;
    let archive = user.ok("getArchive", json!({ "archiveId": composed })).await?;
    ensure!(archive["streams"].as_array().is_none_or(Vec::is_empty), "{archive}");
    user.ok("addStream", all).await?;
    user.refused("addStream", chosen(&individual, stream), 405).await?;
    user.refused("removeStream", chosen(&individual, stream), 405).await?;
    user.refused("addStream", chosen(NOBODY, stream), 404).await?;
    user.refused("addStream", chosen(&composed, "none"), 400).await?;

    // The layout.
    user.ok("setLayout", json!({ "archiveId": composed, "type": "pip" })).await?;
    let custom = json!({ "archiveId": composed, "type": "custom", "stylesheet": "stream { width: 50%; }" });
    user.ok("setLayout", custom).await?;
    user.refused("setLayout", json!({ "archiveId": individual, "type": "pip" }), 400).await?;
    user.refused("setLayout", json!({ "archiveId": NOBODY, "type": "pip" }), 404).await?;

    tokio::time::sleep(RECORDED).await;
    user.refused("deleteArchive", json!({ "archiveId": composed }), 409).await?;
    let itself = matches!(user.sdk, Sdk::OpentokNode | Sdk::OpentokPython);
    let mut stop = json!({ "archiveId": composed });
    ensure!(user.ok("stopArchive", stop.clone()).await?["id"] == composed.as_str());
    stop["archiveId"] = json!(individual);
    if itself {
        stop["itself"] = json!(true);
    }
    user.ok("stopArchive", stop).await?;
    for id in [&composed, &individual] {
        let archive = user.archive(id, "available").await?;
        ensure!(archive["url"].as_str().is_some_and(|url| url.starts_with("http")), "{archive}");
        let seconds = archive["duration"].as_u64().unwrap_or_default();
        ensure!(archive["size"].as_u64().is_some_and(|bytes| bytes > 10_000) && seconds >= 2, "{archive}");
        // PyPI's opentok drops it.
        ensure!(user.sdk == Sdk::OpentokPython || archive["reason"] == "user initiated", "{archive}");
    }
    user.refused("stopArchive", json!({ "archiveId": composed }), 409).await?;
    listed_and_deleted(user, session, &composed, &individual).await
}

async fn listed_and_deleted(user: &mut User, session: &str, first: &str, second: &str) -> Result<()> {
    let list = user.ok("listArchives", json!({ "sessionId": session })).await?;
    ensure!(list["count"] == 2 && list["items"][0]["id"] == second && list["items"][1]["id"] == first, "{list}");
    let page = user.ok("listArchives", json!({ "sessionId": session, "offset": 1, "count": 1 })).await?;
    ensure!(page["count"] == 2 && page["items"][0]["id"] == first && page["items"][1].is_null(), "{page}");
    if user.sdk == Sdk::VonagePython {
        // What it calls the offset of the next page is that page's number: the same while a page has one archive.
        let page = user.ok("listArchives", json!({ "sessionId": session, "count": 1 })).await?;
        ensure!(page["items"][0]["id"] == second && page["next"] == 1, "{page}");
        let next = json!({ "sessionId": session, "count": 1, "offset": page["next"] });
        let page = user.ok("listArchives", next).await?;
        ensure!(page["items"][0]["id"] == first && page["items"][1].is_null(), "{page}");
    }
    ensure!(user.ok("listArchives", json!({})).await?["count"].as_u64().is_some_and(|count| count >= 2));

    let mut delete = json!({ "archiveId": first });
    user.ok("deleteArchive", delete.clone()).await?;
    user.refused("getArchive", delete.clone(), 404).await?;
    delete["archiveId"] = json!(second);
    if matches!(user.sdk, Sdk::OpentokNode | Sdk::OpentokPython) {
        delete["itself"] = json!(true);
    }
    user.ok("deleteArchive", delete).await?;
    ensure!(user.ok("listArchives", json!({ "sessionId": session })).await?["count"] == 0);
    for call in ["stopArchive", "getArchive", "deleteArchive"] {
        user.refused(call, json!({ "archiveId": NOBODY }), 404).await?;
    }
    Ok(())
}

/// opentok-node alone has these.
async fn callbacks(user: &mut User) -> Result<()> {
    let receiver = json!({ "group": "archive", "event": "status", "url": "http://127.0.0.1:9/archives" });
    let callback = user.ok("registerCallback", receiver).await?;
    let id = text(&callback, "id")?;
    let list = user.ok("listCallbacks", json!({})).await?;
    ensure!(list.as_array().is_some_and(|list| list.iter().any(|known| known["id"] == id.as_str())), "{list}");
    user.refused("unregisterCallback", json!({ "id": NOBODY }), 404).await?;
    user.ok("unregisterCallback", json!({ "id": id })).await?;
    user.refused("unregisterCallback", json!({ "id": id }), 404).await?;
    ensure!(user.ok("listCallbacks", json!({})).await? == json!([]));
    user.refused("registerCallback", json!({ "group": "archive", "event": "status", "url": "nowhere" }), 400).await
}

/// Everything that an SDK can do.
async fn scenario(world: &World, api: SocketAddr, sdk: Sdk, account: &Account) -> Result<()> {
    let application = Application { id: account.id.clone(), key: account.key.clone() };
    let other = if application.is_unified() { rsa_key()?.0 } else { "another secret".to_owned() };
    let mut stranger = User::start(sdk, &Account { key: other, ..account.clone() }).await?;
    a_stranger_is_refused(&mut stranger).await.context("with the wrong key")?;

    let mut user = User::start(sdk, account).await?;
    let session = sessions(&mut user).await.context("sessions")?;
    join(&mut user, api, &session, json!({ "role": "subscriber" })).await?;
    if !application.is_unified() {
        join(&mut user, api, &session, json!({ "old": true })).await.context("a T1 token")?;
    }
    let options = json!({ "role": "publisher", "data": "name=alice", "initialLayoutClassList": CLASSES });
    let joined = join(&mut user, api, &session, options).await?;
    let alice = Publisher::start(client(world, &joined)?).await?;
    let stream = text(&joined, "streamId")?;
    streams(&mut user, &session, &stream).await.context("streams")?;
    archives(&mut user, &application, &session, &stream).await.context("archives")?;
    if sdk == Sdk::OpentokNode {
        callbacks(&mut user).await.context("callbacks")?;
    }
    // vonage-python labels its form as JSON from its first JSON request on.
    user.ok("createSession", json!({ "mediaMode": "routed" })).await.context("a form that is labelled as JSON")?;
    alice.leave().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_of_every_sdk_works_and_every_error_is_what_it_expects() {
    let tls = SocketAddr::new(LOOPBACK, free_port(LOOPBACK).expect("port"));
    let callbacks = "[callbacks]\nallow = [\"127.0.0.0/8\"]\n";
    let mut world = World::start(BINARY, None, callbacks).await.expect("world");
    let plain = world.api();
    world.start_worker().expect("worker");
    api::ready(plain).await;
    // The API apart from the worker, and with TLS.
    let certificate = Certificate::new(world.scratch()).expect("certificate");
    let mut command = Command::new(BINARY);
    command.arg("api").env("ARCHIVER_CONFIG", world.config()).env("ARCHIVER__API__BIND", tls.to_string());
    command.env("ARCHIVER__API__CERTIFICATE", &certificate.certificate).env("ARCHIVER__API__KEY", &certificate.key);
    let http = free_port(LOOPBACK).expect("port");
    command.env("ARCHIVER__HTTP__BIND", format!("127.0.0.1:{http}"));
    let _api = Server::start("api", world.scratch(), &mut command).expect("api");
    api::ready(tls).await;

    let unified = |id: &str| Application::unified(&world, id).expect("application");
    let legacy = |id: &str, secret: &str| Application::legacy(&world, id, secret).expect("project");
    let of = |application: Application, authority: bool| Account {
        url: if authority { format!("https://{tls}") } else { format!("http://{plain}") },
        authority: authority.then(|| certificate.authority.clone()),
        id: application.id,
        key: application.key,
    };
    let all = [
        ("npm @vonage/video", Sdk::VonageNode, of(unified("78d335fa-323d-0114-9c3d-d6f0d48968c1"), false)),
        ("PyPI vonage", Sdk::VonagePython, of(unified("78d335fa-323d-0114-9c3d-d6f0d48968c2"), true)),
        ("npm opentok", Sdk::OpentokNode, of(legacy("123456", "a secret of forty characters, more or less"), false)),
        ("npm opentok, unified", Sdk::OpentokNode, of(unified("78d335fa-323d-0114-9c3d-d6f0d48968c3"), true)),
        ("PyPI opentok", Sdk::OpentokPython, of(legacy("654321", "another secret of about forty characters"), true)),
    ];
    let runs = all.iter().map(|(_, sdk, account)| scenario(&world, plain, *sdk, account));
    let results = join_all(runs).await;
    let failed: Vec<String> = results
        .iter()
        .zip(&all)
        .filter_map(|(result, (name, ..))| result.as_ref().err().map(|error| format!("{name}: {error:#}")))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
