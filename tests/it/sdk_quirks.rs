//! Requests as the SDKs of Java, .NET, PHP and Ruby send them, byte by byte, against the running service; the answers are read
//! into types as strict as those of the SDK.

use std::collections::BTreeMap;

use crate::support::recorded::{Sdk, Service};
use crate::support::strict::{
    List, Status, Stream, application_in, archive_of, archives_of, failure, session_id, typed,
};
use archiver::config::Settings;
use archiver_testkit::api;
use archiver_testkit::publisher::{Options, Publisher};
use archiver_testkit::sdk_tokens;
use archiver_testkit::wait::wait_for;
use futures_util::StreamExt;
use serde_json::{Value, json};

/// Nothing has this id.
const NOBODY: &str = "00000000-0000-4000-8000-000000000000";
/// SDKs at a time: each has two archives that are composed.
const AT_ONCE: usize = 4;

/// A session and what is in it.
struct Call<'a> {
    service: &'a Service,
    sdk: Sdk,
    session: String,
    stream: String,
}

impl Call<'_> {
    async fn ask(&self, what: &str, archive: &str) -> api::Answer {
        let values = [("session", self.session.as_str()), ("archive", archive), ("stream", &self.stream)];
        self.service.replay(self.sdk, what, &values).await
    }

    /// An archive that an SDK is told of.
    async fn archive(&self, what: &str, id: &str) -> (String, Status) {
        archive_of(self.sdk, &self.ask(what, id).await, &self.session)
    }

    /// An error that an SDK reads.
    async fn refused(&self, what: &str, archive: &str, status: u16, code: i32) {
        let name = format!("{} {what}", self.sdk.name());
        let failure = failure(&name, &self.ask(what, archive).await, status);
        assert_eq!(failure.code, code, "{name}: {failure:?}");
    }

    /// A success without a body: 204, which alone is one to the SDKs of OpenTok for Java and Ruby.
    async fn done(&self, what: &str, archive: &str) {
        let answer = self.ask(what, archive).await;
        assert_eq!((answer.status, answer.body.as_str()), (204, ""), "{} {what}: {answer:?}", self.sdk.name());
    }
}

/// Whether the SDK has a method for the streams of an archive, and for the layout classes of a session's. PHP's `vonage/video`
/// has neither, and no tag for archives at the same time.
fn has_streams(sdk: Sdk) -> bool {
    sdk != Sdk::PhpUnified
}

/// The SDKs whose first archive here is in stream mode manual; the one beside it is of the other mode.
fn begins_manual(sdk: Sdk) -> bool {
    matches!(sdk, Sdk::JavaLegacy | Sdk::JavaUnified | Sdk::RubyLegacy | Sdk::RubyUnified)
}

/// The SDKs whose first archive here is of individual files.
fn begins_individual(sdk: Sdk) -> bool {
    matches!(sdk, Sdk::JavaLegacy | Sdk::PhpLegacy)
}

/// What an SDK does to a session and its archives, from its creation to their deletion.
async fn a_session(service: &Service, sdk: Sdk) {
    let (name, of) = (sdk.name(), service.application(sdk));
    let session = session_id(sdk, &service.replay(sdk, "create", &[]).await);
    assert_eq!(application_in(&session), of.id, "{name}");
    let mut call = Call { service, sdk, session, stream: NOBODY.to_owned() };
    // Nobody is there: an error that each of them can read.
    call.refused("start", NOBODY, 404, 404).await;

    service.world.janus.create_room_named(&call.session, json!({})).await.expect("room");
    let voice = Options { video: None, ..Options::new(&service.world.janus, &call.session, "voice") };
    let voice = Publisher::start(voice).await.expect("publisher");
    let first = wait_for("a client to be seen", || async {
        let answer = call.ask("start", NOBODY).await;
        (answer.status != 404).then(|| archive_of(sdk, &answer, &call.session))
    });
    let (first, status) = first.await;
    assert_eq!(status, Status::Started, "{name}");
    assert_eq!(call.archive("get", &first).await.0, first, "{name}");
    call.refused("start", NOBODY, 409, 15001).await;
    call.stream = streams_of_session(&call).await;

    let mut archives = vec![first.clone()];
    if has_streams(sdk) {
        let (beside, status) = call.archive("start-beside", NOBODY).await;
        assert!(status == Status::Started && beside != first, "{name}: {beside}");
        let (manual, auto) = if begins_manual(sdk) { (&first, &beside) } else { (&beside, &first) };
        call.done("streams", manual).await;
        call.refused("streams", auto, 405, 405).await;
        call.refused("streams", NOBODY, 404, 404).await;
        archives.insert(0, beside);
    }
    layout(&call, &archives).await;
    listed(&call, &archives).await;
    for archive in &archives {
        call.refused("delete", archive, 409, 15004).await;
        assert_eq!(&call.archive("stop", archive).await.0, archive, "{name}");
    }
    for archive in &archives {
        deleted(&call, archive).await;
    }
    // What there is not.
    for what in ["get", "stop", "delete"] {
        call.refused(what, NOBODY, 404, 404).await;
    }
    voice.leave().await.expect("leave");
}

/// The one stream of a session, and its layout classes; returns its id.
async fn streams_of_session(call: &Call<'_>) -> String {
    let (sdk, name) = (call.sdk, call.sdk.name());
    let stream = wait_for("a stream", || async {
        let application = call.service.application(sdk);
        let token = application.token();
        let bearer = format!("Bearer {token}");
        let header = if sdk.is_legacy() { ("x-opentok-auth", token) } else { ("authorization", bearer) };
        let line = format!("GET /v2/project/{}/session/{}/stream", application.id, call.session);
        let answer = api::send(call.service.world.api(), &line, &[(header.0, &header.1)], "").await.expect("an answer");
        typed::<List<Stream>>(name, &answer).items.pop()
    });
    let stream = stream.await;
    assert_eq!(stream.layout_class_list, Vec::<String>::new(), "{name}");
    let call = Call { service: call.service, sdk, session: call.session.clone(), stream: stream.id.to_string() };
    let mut expected = stream.clone();
    if has_streams(sdk) {
        let changed = call.ask("classes", NOBODY).await;
        assert_eq!(changed.status, 200, "{name}: {changed:?}");
        expected.layout_class_list = vec!["full".to_owned(), "focus".to_owned()];
    }
    assert_eq!(typed::<Stream>(name, &call.ask("session-stream", NOBODY).await), expected, "{name}");
    let list: List<Stream> = typed(name, &call.ask("session-streams", NOBODY).await);
    assert_eq!((list.count, list.items), (1, vec![expected]), "{name}");
    if sdk == Sdk::PhpUnified {
        // It asks for the page after until one is empty.
        let next: List<Stream> = typed(name, &call.ask("session-streams-next", NOBODY).await);
        assert_eq!(next.items, [], "{name}");
    }
    // No such stream, and an id that cannot be one.
    let elsewhere = Call { stream: NOBODY.to_owned(), session: call.session.clone(), ..call };
    elsewhere.refused("session-stream", NOBODY, 404, 404).await;
    let odd = Call { stream: "none".to_owned(), ..elsewhere };
    odd.refused("session-stream", NOBODY, 408, 408).await;
    stream.id.to_string()
}

/// Changes the layout of a composed archive: 200, which alone is a success to those of OpenTok for Java and Ruby.
async fn layout(call: &Call<'_>, archives: &[String]) {
    let (newest, oldest) = (&archives[0], &archives[archives.len() - 1]);
    let composed = if begins_individual(call.sdk) { newest } else { oldest };
    assert_eq!(&call.archive("layout", composed).await.0, composed, "{}", call.sdk.name());
    if begins_individual(call.sdk) {
        call.refused("layout", oldest, 400, 400).await;
    }
}

/// Lists, in each SDK's way to ask for them.
async fn listed(call: &Call<'_>, archives: &[String]) {
    let whats: &[&str] = if call.sdk == Sdk::JavaLegacy { &["list", "list-session"] } else { &["list"] };
    for what in whats {
        let (name, answer) = (format!("{}-{what}", call.sdk.name()), call.ask(what, NOBODY).await);
        let found = archives_of(call.sdk, &name, &answer);
        match name.as_str() {
            // All of the project but its three newest, of which these are.
            "java-legacy-list" => {}
            "java-unified-list" | "php-unified-list" => {
                assert!(archives.iter().all(|id| found.iter().any(|(found, _)| found == id)), "{name}: {found:?}");
            }
            _ => {
                let expected: Vec<_> = archives.iter().map(|id| (id.clone(), call.session.clone())).collect();
                assert_eq!(found, expected, "{name}");
            }
        }
    }
}

/// The end of an archive that was stopped: it is not stopped again, and deleted.
async fn deleted(call: &Call<'_>, archive: &str) {
    let name = call.sdk.name();
    wait_for(&format!("{name}'s archive to be available"), || async {
        (call.archive("get", archive).await.1 == Status::Available).then_some(())
    })
    .await;
    call.refused("stop", archive, 409, 15002).await;
    // Once more, as when the first answer was lost: error 15004 names `deleted` among the statuses that can be deleted.
    for _ in 0..2 {
        call.done("delete", archive).await;
    }
    call.refused("get", archive, 404, 404).await;
}

/// What is asked for of automatic archives when their session is created; read from the catalog, as no SDK reads it.
async fn automatic(service: &Service) {
    let settings = Settings::load(Some(service.world.config()), &BTreeMap::new()).expect("configuration");
    let catalog = archiver::app::services::catalog(&settings).await.expect("catalog");
    for (sdk, name, resolution) in [
        (Sdk::JavaLegacy, Some("Lesson 1"), "1920x1080"),
        (Sdk::NetLegacy, None, "640x480"),
        (Sdk::PhpLegacy, None, "1280x720"),
        (Sdk::RubyLegacy, Some("Lesson 1"), "720x1280"),
    ] {
        let id = session_id(sdk, &service.replay(sdk, "create-always", &[]).await);
        let application = service.application(sdk).id.parse().expect("id");
        let session =
            catalog.session(&application, &id.parse().expect("id")).await.expect("catalog").expect("a session");
        let archive: Value = serde_json::to_value(&session.archive).expect("JSON");
        assert_eq!(archive["resolution"], resolution, "{}: {archive}", sdk.name());
        assert_eq!(archive["name"].as_str(), name, "{}: {archive}", sdk.name());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_requests_of_java_net_php_and_ruby_are_answered_as_they_parse() {
    let service = Service::start().await;
    let sessions = futures_util::stream::iter(Sdk::ALL).map(|sdk| a_session(&service, sdk));
    sessions.buffer_unordered(AT_ONCE).collect::<()>().await;
    automatic(&service).await;

    // A form is a form whatever its label, also when it is refused: a session that nobody can decode is not archived.
    let of = &service.unified;
    let labelled = service.replay_as("json-label-create", of, &of.token(), &[]).await;
    assert_eq!(application_in(&session_id(Sdk::PhpUnified, &labelled)), of.id);
    let odd = failure("e2ee", &service.replay_as("json-label-e2ee", of, &of.token(), &[]).await, 400);
    assert!(odd.message.contains("e2ee"), "{odd:?}");
    // A unified application's token in the header of OpenTok: PHP's opentok with keys of Vonage.
    let shim = service.replay_as("php-shim-get", of, &Sdk::PhpUnified.token(of), &[("archive", NOBODY)]).await;
    failure("php-shim-get", &shim, 404);
    // PHP's opentok with an integer API key: `iss` is a number.
    let of = &service.legacy;
    let token = sdk_tokens::PHP_LEGACY_INTEGER.issue(of, "", api::now());
    let listed = service.replay_as("php-legacy-list", of, &token, &[("session", NOBODY)]).await;
    assert_eq!(listed.status, 200, "php-legacy-list with an integer key: {listed:?}");
    // And who is not let in is told so, in words that each of them reads.
    for sdk in Sdk::ALL {
        let mut stranger = service.application(sdk).clone();
        stranger.key = if sdk.is_legacy() { "another secret".to_owned() } else { api::rsa_key().expect("key").0 };
        for what in ["get", "delete"] {
            let name = format!("{}-{what}", sdk.name());
            let refused = service.replay_as(&name, &stranger, &sdk.token(&stranger), &[("archive", NOBODY)]).await;
            failure(&name, &refused, 403);
        }
    }
}
