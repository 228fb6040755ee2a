//! Thousands of requests that nobody would send, made from the service's own description by schemathesis: no answer is a
//! server's error, none hangs, and nothing that is secret is in the log.

use crate::BINARY;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use archiver_testkit::api::{self, Application, now, signed};
use archiver_testkit::publisher::{Options, Publisher};
use archiver_testkit::s3::SECRET_KEY;
use archiver_testkit::sdk;
use archiver_testkit::wait::{deadline, wait_for};
use archiver_testkit::world::World;
use futures_util::StreamExt;
use serde_json::{Value, json};

/// Requests in all, at least, in `make test`; `make hostile` sends 10,000 (`ARCHIVER_REQUESTS`).
const REQUESTS: u64 = 2_000;
/// A request that takes longer hangs, in seconds.
const REQUEST_MAX: &str = "20";
/// One of `make hostile`'s long runs that takes longer hangs.
const LONG_RUN_MAX: Duration = Duration::from_secs(1200);
const OPERATOR: &str = "the-operators-token-of-this-test";
const SECRET: &str = "the-projects-secret-of-this-test-0123456";

/// Who sends requests, and how many at least.
struct Run<'a> {
    name: &'a str,
    header: Option<String>,
    project: &'a str,
    /// `positive`: as the description says; `all`: what it does not allow, too.
    mode: &'a str,
    /// `coverage` sends every boundary of every parameter: hundreds of requests, however few are wanted.
    phases: &'a str,
    cases: u64,
}

/// What half of the requests have in their paths, so that they get further than to an id that nothing has.
struct Known {
    sessions: Vec<String>,
    archives: Vec<String>,
    streams: Vec<String>,
}

impl Known {
    fn configuration(&self, project: &str) -> String {
        let list = |values: &[String]| format!("{{ values = {} }}", json!(values));
        let bound = |name: &str| format!("{{ dictionary = \"{name}\", probability = 0.6 }}");
        format!(
            "[dictionaries]\nprojects = {}\nsessions = {}\narchives = {}\nstreams = {}\n\n\
             [parameters]\n\"path.project\" = {{ dictionary = \"projects\", probability = 0.9 }}\n\"path.session\" = {}\n\
             \"path.archive\" = {}\n\"path.stream\" = {}\n",
            list(&[project.to_owned()]),
            list(&self.sessions),
            list(&self.archives),
            list(&self.streams),
            bound("sessions"),
            bound("archives"),
            bound("streams")
        )
    }
}

/// Runs schemathesis; returns how many requests it sent.
async fn hostile(world: &World, program: &Path, known: &Known, operations: u64, run: &Run<'_>) -> u64 {
    let file = world.scratch().join(format!("{}.toml", run.name));
    std::fs::write(&file, known.configuration(run.project)).expect("configuration");
    let mut command = tokio::process::Command::new(program);
    command.arg("--config-file").arg(file).arg("run").arg(format!("http://{}/openapi.json", world.api()));
    let each = (run.cases / operations + 1).to_string();
    command.args(["--phases", run.phases, "--mode", run.mode, "--max-examples", &each]);
    command.args(["--checks", "not_a_server_error", "--request-timeout", REQUEST_MAX, "--continue-on-failure"]);
    // One thread: some versions of Python 3.11 fail with more (gh-106905). The runs are side by side.
    command.args(["--seed", "1", "--generation-database", "none", "--workers", "1", "--suppress-health-check", "all"]);
    command.args(["--no-color", "--warnings", "off"]);
    if let Some(header) = &run.header {
        command.args(["--header", header]);
    }
    let run_max = if run.cases > REQUESTS / 2 { LONG_RUN_MAX } else { deadline() };
    let out = command.current_dir(world.scratch()).stdin(Stdio::null()).kill_on_drop(true).output();
    let out = tokio::time::timeout(run_max, out).await.expect("schemathesis hangs").expect("schemathesis");
    let told = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{}: {told}{}\n{}", run.name, String::from_utf8_lossy(&out.stderr), world.log());
    let generated = told.lines().find_map(|line| line.split_once(" generated")).expect("a summary").0;
    println!("{}: {generated} requests", run.name);
    generated.trim().parse().expect("a number")
}

/// A session with somebody in it, an archive that runs, and one that is finished.
async fn known(world: &World, of: &Application) -> (Known, Publisher) {
    let ask = |line: String, body: String| async move {
        let token = of.token();
        let headers = [("x-opentok-auth", token.as_str()), ("accept", "application/json")];
        api::send(world.api(), &line, &headers, &body).await.expect("an answer").json().expect("JSON")
    };
    let created = ask("POST /session/create".to_owned(), String::new()).await;
    let session = created[0]["session_id"].as_str().expect("id").to_owned();
    world.janus.create_room_named(&session, json!({})).await.expect("room");
    let voice = Options { video: None, ..Options::new(&world.janus, &session, "voice") };
    let voice = Publisher::start(voice).await.expect("publisher");
    let project = format!("/v2/project/{}", of.id);
    let start = |options: Value| {
        let (line, mut body) = (format!("POST {project}/archive"), options);
        body["sessionId"] = json!(session);
        ask(line, body.to_string())
    };
    let first = wait_for("an archive", || async { start(json!({})).await["id"].as_str().map(str::to_owned) }).await;
    let running = json!({ "multiArchiveTag": "b", "streamMode": "manual" });
    let running = start(running).await["id"].as_str().expect("id").to_owned();
    world.recording(2).await;
    ask(format!("POST {project}/archive/{first}/stop"), String::new()).await;
    wait_for("a finished archive", || async {
        let archive = ask(format!("GET {project}/archive/{first}"), String::new()).await;
        (archive["status"] == "available").then_some(())
    })
    .await;
    let streams = ask(format!("GET {project}/session/{session}/stream"), String::new()).await;
    let streams = vec![streams["items"][0]["id"].as_str().expect("id").to_owned()];
    (Known { sessions: vec![session], archives: vec![first, running], streams }, voice)
}

/// What must never be in a log.
fn nothing_secret(world: &World, secrets: &[&str]) {
    let log = world.log();
    assert!(log.len() > 1000, "there is no log");
    for secret in secrets.iter().chain(&[SECRET_KEY, "X-Amz-Signature", "-----BEGIN", "eyJhbGciOi"]) {
        let line = log.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "a secret is in the log: {line:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_odd_requests_find_no_error_of_the_server_and_no_secret_in_its_log() {
    let wanted = std::env::var("ARCHIVER_REQUESTS").ok().and_then(|n| n.parse().ok()).unwrap_or(REQUESTS);
    let program: PathBuf = sdk::modules().expect("schemathesis").join("venv/bin/schemathesis");
    let mut world = World::start(BINARY, None, "").await.expect("world");
    // Not what limits are for.
    let config = std::fs::read_to_string(world.config()).expect("configuration");
    let more = format!("[api]\nrequests_per_second = 1000000\noperator_token = \"{OPERATOR}\"\n");
    std::fs::write(world.config(), config.replace("[api]\n", &more)).expect("configuration");
    world.start_worker().expect("worker");
    api::ready(world.api()).await;
    let unified = Application::unified(&world, "78d335fa-323d-4114-9c3d-d6f0d48968cf").expect("application");
    let legacy = Application::legacy(&world, "123456", SECRET).expect("project");
    let (known, voice) = known(&world, &legacy).await;

    let (iat, exp) = (now(), now() + 3600);
    let claims = json!({ "application_id": unified.id, "iat": iat, "exp": exp, "jti": "j" });
    let bearer = signed(&json!({ "alg": "RS256", "typ": "JWT" }), &claims, &unified.key);
    let claims = json!({ "iss": legacy.id, "ist": "project", "iat": iat, "exp": exp });
    let auth = signed(&json!({ "alg": "HS256", "typ": "JWT" }), &claims, &legacy.key);
    let (unified_header, legacy_header) =
        (format!("Authorization: Bearer {bearer}"), format!("X-OPENTOK-AUTH: {auth}"));
    let (of_unified, of_legacy) = (unified.id.as_str(), legacy.id.as_str());
    let run = |name, header: Option<&str>, project, mode, phases, cases| Run {
        name,
        header: header.map(str::to_owned),
        project,
        mode,
        phases,
        cases,
    };
    let boundaries = "examples,coverage,fuzzing";
    // The parsers are the same for operators and strangers: only the long form tries the boundaries with them again.
    let again = if wanted > REQUESTS { boundaries } else { "examples,fuzzing" };
    let operator = format!("Authorization: Bearer {OPERATOR}");
    let runs = [
        run("as it is described", Some(&legacy_header), of_legacy, "positive", boundaries, wanted * 4 / 10),
        run("of a legacy project", Some(&legacy_header), of_legacy, "all", boundaries, wanted / 4),
        run("of a unified application", Some(&unified_header), of_unified, "all", boundaries, wanted * 15 / 100),
        run("of an operator", Some(&operator), of_legacy, "all", again, wanted / 20),
        run("of nobody", None, of_unified, "all", again, wanted / 10),
    ];
    let document = api::send(world.api(), "GET /openapi.json", &[], "").await.expect("an answer").json().expect("JSON");
    let operations = document["paths"].as_object().expect("paths").values();
    let operations: usize = operations.map(|path| path.as_object().map_or(0, serde_json::Map::len)).sum();
    let operations = u64::try_from(operations).expect("some");
    // Each takes a processor, and the service takes as much: two are enough, and the other tests go on.
    let sent = runs.iter().map(|run| hostile(&world, &program, &known, operations, run));
    let sent: Vec<u64> = futures_util::stream::iter(sent).buffer_unordered(2).collect().await;
    let sent: u64 = sent.iter().sum();
    println!("{sent} requests");
    assert!(sent >= wanted, "{sent} requests of {wanted}");

    // It is as it was before.
    let answer = api::send(world.api(), "GET /openapi.json", &[], "").await.expect("an answer");
    assert_eq!(answer.status, 200);
    voice.leave().await.expect("leave");
    let signature = |token: &str| token.rsplit('.').next().unwrap_or_default().to_owned();
    nothing_secret(&world, &[SECRET, OPERATOR, &signature(&bearer), &signature(&auth)]);
    assert!(world.stop_worker(), "the service does not stop:\n{}", world.log());
}
