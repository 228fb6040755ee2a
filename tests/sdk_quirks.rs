//! Requests as the SDKs of Java, .NET, PHP and Ruby send them, byte by byte, against the running service; the answers are read
//! into types as strict as those of the SDK.
//!
//! The requests are in `fixtures/requests`. What they have in braces is put in when they are sent; tokens are made as each SDK
//! makes them.
#![allow(missing_docs)]

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use archiver_testkit::api::{self, Answer, Application, now, signed};
use archiver_testkit::publisher::{Options, Publisher};
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::World;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use uuid::Uuid;

const BINARY: &str = env!("CARGO_BIN_EXE_archiver");
/// Nothing has this id.
const NOBODY: &str = "00000000-0000-4000-8000-000000000000";

/// The statuses that SDKs know; another one is an error to those of Java, .NET and PHP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Available,
    Deleted,
    Expired,
    Failed,
    Paused,
    Started,
    Stopped,
    Uploaded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum OutputMode {
    Composed,
    Individual,
}

/// A field that an SDK takes when it is not there, and not when it is null.
fn not_null<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(field: D) -> Result<Option<T>, D::Error> {
    T::deserialize(field).map(Some)
}

/// An archive, as the SDKs of OpenTok for Java, .NET and PHP take it: an integer for a partner, closed sets of words, a reason
/// that is a text, numbers that are not null.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code)]
struct Legacy {
    id: Uuid,
    status: Status,
    partner_id: i32,
    project_id: i32,
    session_id: String,
    created_at: i64,
    duration: u64,
    size: u64,
    name: Option<String>,
    reason: String,
    has_audio: bool,
    has_video: bool,
    output_mode: OutputMode,
    stream_mode: String,
    url: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    resolution: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    max_bitrate: Option<i32>,
    #[serde(default, deserialize_with = "not_null")]
    quantization_parameter: Option<i32>,
    #[serde(default, deserialize_with = "not_null")]
    transcription: Option<HashMap<String, Value>>,
}

/// An archive as PHP's `vonage/video` takes it, whose properties have types; those of Java and .NET want no more.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code)]
struct Unified {
    id: Uuid,
    status: Status,
    application_id: Uuid,
    session_id: String,
    created_at: i64,
    updated_at: i64,
    duration: u64,
    size: u64,
    event: String,
    name: String,
    reason: String,
    has_audio: bool,
    has_video: bool,
    output_mode: OutputMode,
    stream_mode: String,
    password: String,
    sha256sum: String,
    url: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    resolution: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    max_bitrate: Option<i32>,
    #[serde(default, deserialize_with = "not_null")]
    quantization_parameter: Option<i32>,
}

#[derive(Debug, Deserialize)]
struct List<T> {
    count: u64,
    items: Vec<T>,
}

/// What the SDKs read of an error.
#[derive(Debug, Deserialize)]
#[allow(dead_code)]
struct Failure {
    code: i64,
    message: String,
    description: String,
}

/// An SDK: which requests are its, and how it signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sdk {
    JavaLegacy,
    JavaUnified,
    NetLegacy,
    NetUnified,
    PhpLegacy,
    PhpUnified,
    RubyLegacy,
    RubyUnified,
}

impl Sdk {
    const ALL: [Self; 8] = [
        Self::JavaLegacy,
        Self::JavaUnified,
        Self::NetLegacy,
        Self::NetUnified,
        Self::PhpLegacy,
        Self::PhpUnified,
        Self::RubyLegacy,
        Self::RubyUnified,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::JavaLegacy => "java-legacy",
            Self::JavaUnified => "java-unified",
            Self::NetLegacy => "net-legacy",
            Self::NetUnified => "net-unified",
            Self::PhpLegacy => "php-legacy",
            Self::PhpUnified => "php-unified",
            Self::RubyLegacy => "ruby-legacy",
            Self::RubyUnified => "ruby-unified",
        }
    }

    const fn is_legacy(self) -> bool {
        matches!(self, Self::JavaLegacy | Self::NetLegacy | Self::PhpLegacy | Self::RubyLegacy)
    }

    /// Whether it reads nothing but XML when a session is created.
    const fn reads_xml(self) -> bool {
        matches!(self, Self::NetLegacy | Self::PhpLegacy | Self::RubyLegacy)
    }

    /// A token of a request, with its claims where it has them.
    fn token(self, of: &Application) -> String {
        let (iat, id, uuid) = (now(), &of.id, Uuid::new_v4().to_string());
        let unified = json!({ "application_id": id, "iat": iat, "exp": iat + 900, "jti": uuid });
        let typed = |algorithm: &str| json!({ "alg": algorithm, "typ": "JWT" });
        match self {
            Self::JavaLegacy => {
                let claims = json!({ "ist": "project", "iss": id, "jti": uuid, "iat": iat, "exp": iat + 180 });
                signed(&typed("HS256"), &claims, &of.key)
            }
            Self::NetLegacy => {
                let claims = json!({ "iss": id, "ist": "project", "iat": iat, "exp": iat + 300 });
                signed(&typed("HS256"), &claims, &of.key)
            }
            Self::PhpLegacy => {
                let claims =
                    json!({ "ist": "project", "iss": id, "iat": iat, "exp": iat + 300, "jti": "671fb1f0c4a35" });
                signed(&typed("HS256"), &claims, &of.key)
            }
            // In the header, and no word about the type.
            Self::RubyLegacy => {
                let claims = json!({ "iss": id, "iat": iat, "exp": iat + 300 });
                signed(&json!({ "ist": "project", "alg": "HS256" }), &claims, &of.key)
            }
            Self::RubyUnified => signed(&json!({ "alg": "RS256" }), &unified, &of.key),
            Self::JavaUnified | Self::NetUnified | Self::PhpUnified => signed(&typed("RS256"), &unified, &of.key),
        }
    }
}

/// The service, and who asks it.
struct Service {
    world: World,
    unified: Application,
    legacy: Application,
}

impl Service {
    async fn start() -> Self {
        let mut world = World::start(BINARY, None, "").await.expect("world");
        world.start_worker().expect("worker");
        api::ready(world.api()).await;
        let unified = Application::unified(&world, "78d335fa-323d-4114-9c3d-d6f0d48968cf").expect("application");
        let legacy =
            Application::legacy(&world, "123456", "a secret of forty characters, more or less").expect("project");
        Self { world, unified, legacy }
    }

    const fn application(&self, sdk: Sdk) -> &Application {
        if sdk.is_legacy() { &self.legacy } else { &self.unified }
    }

    /// Sends a recorded request.
    async fn replay(&self, sdk: Sdk, what: &str, values: &[(&str, &str)]) -> Answer {
        let of = self.application(sdk);
        self.replay_as(&format!("{}-{what}", sdk.name()), of, &sdk.token(of), values).await
    }

    async fn replay_as(&self, name: &str, of: &Application, token: &str, values: &[(&str, &str)]) -> Answer {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/requests/{name}.http"));
        let mut text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        while text.starts_with('#') {
            text = text.split_once('\n').expect("a request after its remarks").1.to_owned();
        }
        let host = self.world.api().to_string();
        for (key, value) in [("host", host.as_str()), ("token", token), ("project", &of.id)].iter().chain(values) {
            text = text.replace(&format!("{{{{{key}}}}}"), value);
        }
        let (head, body) = text.split_once("\n\n").expect("an empty line after the head");
        let body = body.trim_end();
        let head = head.replace("{{length}}", &body.len().to_string()).replace('\n', "\r\n");
        assert!(!format!("{head}{body}").contains("{{"), "{name}: {head}\n{body}");
        let answer = api::exchange(self.world.api(), format!("{head}\r\n\r\n{body}").as_bytes()).await;
        answer.unwrap_or_else(|e| panic!("{name}: {e:#}"))
    }
}

fn typed<T: DeserializeOwned>(what: &str, answer: &Answer) -> T {
    assert_eq!(answer.status, 200, "{what}: {answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"), "{what}");
    serde_json::from_str(&answer.body).unwrap_or_else(|e| panic!("{what}: {e}: {}", answer.body))
}

/// Reads XML with a parser, as the SDKs do: what is in each element of the first session.
fn parsed_xml(text: &str) -> HashMap<String, String> {
    let script = "import json,sys,xml.dom.minidom as d; x=d.parseString(sys.argv[1].encode()); \
                  s=x.documentElement.getElementsByTagName('Session'); assert x.documentElement.tagName=='sessions' and len(s)==1; \
                  print(json.dumps({e.tagName:e.firstChild.nodeValue for e in s[0].childNodes}))";
    let out = Command::new("python3").args(["-c", script, text]).output().expect("python3");
    assert!(out.status.success(), "{text}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("JSON")
}

/// The id of the session that was created, by the SDK's way of reading.
fn session_id(sdk: Sdk, answer: &Answer) -> String {
    let name = sdk.name();
    assert_eq!(answer.status, 200, "{name}: {answer:?}");
    if sdk.reads_xml() {
        assert!(answer.header("content-type").is_some_and(|kind| kind.starts_with("text/xml")), "{name}: {answer:?}");
        assert!(answer.body.starts_with("<?xml version=\"1.0\" encoding=\"UTF-8\""), "{name}: {answer:?}");
        let session = parsed_xml(&answer.body);
        // .NET's `Convert.ToInt32`.
        assert_eq!(session["partner_id"].parse::<i32>(), Ok(123_456), "{name}: {answer:?}");
        assert!(!session["create_dt"].is_empty());
        return session["session_id"].clone();
    }
    let sessions: Vec<HashMap<String, Value>> = typed(name, answer);
    assert_eq!(sessions.len(), 1, "{name}: {answer:?}");
    // PHP's and Java's getters, which return texts.
    let mut read = vec!["session_id", "project_id", "partner_id", "create_dt", "media_server_url"];
    if !sdk.is_legacy() {
        read.push("application_id");
    }
    for key in read {
        assert!(sessions[0][key].is_string(), "{name}: {key} of {answer:?}");
    }
    sessions[0]["session_id"].as_str().expect("a text").to_owned()
}

/// Takes an id apart as the SDKs do.
fn application_in(session: &str) -> String {
    use base64::Engine;
    let ordinary = session[2..].replace('-', "+").replace('_', "/");
    let lenient = base64::engine::GeneralPurposeConfig::new()
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent);
    let engine = base64::engine::GeneralPurpose::new(&base64::alphabet::STANDARD, lenient);
    let text = String::from_utf8_lossy(&engine.decode(ordinary).expect("base64")).into_owned();
    text.split('~').nth(1).expect("a second field").to_owned()
}

/// What an SDK does to an archive, from the session to its stop.
async fn an_archive(service: &Service, sdk: Sdk) {
    let (name, of) = (sdk.name(), service.application(sdk));
    let session = session_id(sdk, &service.replay(sdk, "create", &[]).await);
    assert_eq!(application_in(&session), of.id, "{name}");
    // Nobody is there: an error that each of them can read.
    let values = [("session", session.as_str())];
    let lonely = service.replay(sdk, "start", &values).await;
    assert_eq!(lonely.status, 404, "{name}: {lonely:?}");
    assert!(!serde_json::from_str::<Failure>(&lonely.body).expect(name).message.is_empty());

    service.world.janus.create_room(&session, json!({})).await.expect("room");
    let voice = Options { video: None, ..Options::new(&service.world.janus, &session, "voice") };
    let voice = Publisher::start(voice).await.expect("publisher");
    let begun = wait_for("a client to be seen", || async {
        let answer = service.replay(sdk, "start", &values).await;
        (answer.status != 404).then_some(answer)
    });
    let begun = begun.await;
    let id = archive_of(sdk, &begun, &session);
    assert_eq!(begun.json().expect("JSON")["status"], "started", "{name}: {begun:?}");
    let values = [("session", session.as_str()), ("archive", id.as_str())];
    assert_eq!(archive_of(sdk, &service.replay(sdk, "get", &values).await, &session), id);
    let again = service.replay(sdk, "start", &values).await;
    assert_eq!(again.status, 409, "{name}: {again:?}");

    match sdk {
        Sdk::JavaLegacy | Sdk::RubyLegacy | Sdk::JavaUnified => streams(service, sdk, &session, &id).await,
        Sdk::NetLegacy => {
            assert_eq!(archive_of(sdk, &service.replay(sdk, "layout", &values).await, &session), id);
        }
        _ => {}
    }
    if sdk == Sdk::RubyLegacy {
        assert_eq!(service.replay(sdk, "layout", &values).await.status, 200);
    }
    let stopped = service.replay(sdk, "stop", &values).await;
    assert_eq!(archive_of(sdk, &stopped, &session), id, "{name}: {stopped:?}");
    listed(service, sdk, &session, &id).await;

    // What there is not.
    for what in ["get", "stop"] {
        let absent = service.replay(sdk, what, &[("session", &session), ("archive", NOBODY)]).await;
        assert_eq!(absent.status, 404, "{name} {what}: {absent:?}");
        let failure: Failure = serde_json::from_str(&absent.body).unwrap_or_else(|e| panic!("{name}: {e}: {absent:?}"));
        assert!(!failure.message.is_empty() && failure.message == failure.description, "{name}: {failure:?}");
    }
    voice.leave().await.expect("leave");
}

/// The id of an archive that an SDK reads.
fn archive_of(sdk: Sdk, answer: &Answer, session: &str) -> String {
    let name = sdk.name();
    if sdk.is_legacy() {
        let archive: Legacy = typed(name, answer);
        assert_eq!((archive.partner_id, archive.session_id.as_str()), (123_456, session), "{name}: {answer:?}");
        assert!(archive.output_mode == OutputMode::Composed || archive.resolution.is_none(), "{name}: {answer:?}");
        return archive.id.to_string();
    }
    let archive: Unified = typed(name, answer);
    assert_eq!((archive.event.as_str(), archive.session_id.as_str()), ("archive", session), "{name}: {answer:?}");
    archive.id.to_string()
}

/// Streams of an archive: 204, which alone is a success to the SDKs of OpenTok for Java and Ruby.
async fn streams(service: &Service, sdk: Sdk, session: &str, archive: &str) {
    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase")]
    #[allow(dead_code)]
    struct Stream {
        id: Uuid,
        video_type: String,
        name: String,
        layout_class_list: Vec<String>,
    }
    let stream = wait_for("a stream", || async {
        let of = service.application(Sdk::JavaUnified);
        let (of, token) = if sdk.is_legacy() {
            (&service.legacy, Sdk::NetLegacy.token(&service.legacy))
        } else {
            (of, sdk.token(of))
        };
        let header =
            if sdk.is_legacy() { ("x-opentok-auth", token) } else { ("authorization", format!("Bearer {token}")) };
        let line = format!("GET /v2/project/{}/session/{session}/stream", of.id);
        let answer = api::send(service.world.api(), &line, &[(header.0, &header.1)], "").await.expect("an answer");
        typed::<List<Stream>>("streams", &answer).items.pop()
    });
    let stream = stream.await.id.to_string();
    let values = [("session", session), ("archive", archive), ("stream", &stream)];
    let changed = service.replay(sdk, "streams", &values).await;
    assert_eq!((changed.status, changed.body.as_str()), (204, ""), "{}: {changed:?}", sdk.name());
    if sdk == Sdk::JavaUnified {
        let list: List<Stream> = typed("session-streams", &service.replay(sdk, "session-streams", &values).await);
        assert_eq!((list.count, list.items.len()), (1, 1));
    }
}

/// Lists, in each SDK's way to ask for them.
async fn listed(service: &Service, sdk: Sdk, session: &str, archive: &str) {
    let values = [("session", session)];
    let whats: &[&str] = if sdk == Sdk::JavaLegacy { &["list", "list-session"] } else { &["list"] };
    for what in whats {
        let (name, answer) = (format!("{}-{what}", sdk.name()), service.replay(sdk, what, &values).await);
        let found = if sdk.is_legacy() {
            let list: List<Legacy> = typed(&name, &answer);
            assert!(list.count >= list.items.len() as u64);
            list.items.iter().map(|item| (item.id.to_string(), item.session_id.clone())).collect::<Vec<_>>()
        } else {
            let list: List<Unified> = typed(&name, &answer);
            list.items.iter().map(|item| (item.id.to_string(), item.session_id.clone())).collect()
        };
        let of_session = !["java-legacy-list", "java-unified-list", "php-unified-list"].contains(&name.as_str());
        assert!(!of_session || found == [(archive.to_owned(), session.to_owned())], "{name}: {found:?}");
        // All but the three newest, of which this one is.
        let beyond = name == "java-legacy-list";
        assert!(beyond || found.iter().any(|(id, _)| id == archive), "{name}: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_requests_of_java_net_php_and_ruby_are_answered_as_they_parse() {
    let service = Service::start().await;
    futures_util::future::join_all(Sdk::ALL.map(|sdk| an_archive(&service, sdk))).await;

    // A form is a form whatever its label; here one that cannot be: a session that nobody can decode is not archived.
    let of = &service.unified;
    let odd = service.replay_as("json-label-create", of, &of.token(), &[]).await;
    assert_eq!(odd.status, 400, "{odd:?}");
    assert!(serde_json::from_str::<Failure>(&odd.body).expect("JSON").message.contains("e2ee"), "{odd:?}");
    let always = service.replay(Sdk::NetLegacy, "create-always", &[]).await;
    session_id(Sdk::NetLegacy, &always);
    session_id(Sdk::JavaLegacy, &service.replay(Sdk::JavaLegacy, "create-always", &[]).await);
    // A unified application's token in the header of OpenTok: PHP's opentok with keys of Vonage.
    let shim = service.replay_as("php-shim-get", of, &of.token(), &[("archive", NOBODY)]).await;
    assert_eq!(shim.status, 404, "{shim:?}");
    // And who is not let in is told so, in words that each of them reads.
    for sdk in Sdk::ALL {
        let mut stranger = service.application(sdk).clone();
        stranger.key = if sdk.is_legacy() { "another secret".to_owned() } else { api::rsa_key().expect("key").0 };
        let name = format!("{}-get", sdk.name());
        let refused = service.replay_as(&name, &stranger, &sdk.token(&stranger), &[("archive", NOBODY)]).await;
        assert_eq!(refused.status, 403, "{name}: {refused:?}");
        assert!(!serde_json::from_str::<Failure>(&refused.body).expect("JSON").message.is_empty());
    }
}
