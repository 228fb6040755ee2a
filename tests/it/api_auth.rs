//! Who may ask for what: every endpoint that the API describes, with every token that must not be good for it.

use crate::BINARY;
use crate::support::api;
use std::collections::BTreeMap;

use crate::support::api::{App, Signer, now};
use archiver::catalog::{ArchiveRow, ArchiveStatus, SharedCatalog};
use archiver::config::Settings;
use archiver::model::archive_options::ArchiveOptions;
use archiver::model::ids::{ArchiveId, JobId};
use archiver::model::time::Wallclock;
use archiver_testkit::world::{APPLICATION, World};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

const OTHER: &str = "a98e12ca-5b2f-4cc3-9d5b-fd4b5f30b9e9";
const OPERATOR: &str = "a token of operators that nobody guesses";

/// An endpoint of the description, with the ids of something that is there.
#[derive(Debug)]
struct Endpoint {
    method: String,
    path: String,
    shape: String,
}

fn endpoints(document: &Value, ids: &BTreeMap<&str, String>) -> Vec<Endpoint> {
    let mut found = Vec::new();
    for (shape, methods) in document["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys().filter(|m| *m != "parameters") {
            let filled = ids.iter().fold(shape.clone(), |path, (name, id)| path.replace(&format!("{{{name}}}"), id));
            assert!(!filled.contains('{'), "{filled}: what goes there?");
            found.push(Endpoint { method: method.to_uppercase(), path: filled, shape: shape.clone() });
        }
    }
    found
}

async fn archive(catalog: &SharedCatalog, application: &str, session: &str) -> ArchiveId {
    let job = JobId::from_uuid(uuid::Uuid::new_v4());
    let row = ArchiveRow {
        archive: ArchiveId::of_job(job),
        job,
        session: session.parse().expect("id"),
        application: application.parse().expect("id"),
        name: None,
        status: ArchiveStatus::Failed,
        reason: String::new(),
        output_mode: "composed".to_owned(),
        created_at: Wallclock::now(),
        updated_at: Wallclock::now(),
        duration_s: 0,
        size: 0,
        sha256: String::new(),
        object_key: None,
        revision: 1,
        log_read: None,
        missing: None,
        options: ArchiveOptions::default(),
    };
    assert!(catalog.put_archive(&row).await.expect("catalog"));
    row.archive
}

/// A token whose middle part was changed after it was signed.
fn tampered(token: &str, claims: &Value) -> String {
    let parts: Vec<&str> = token.split('.').collect();
    format!("{}.{}.{}", parts[0], URL_SAFE_NO_PAD.encode(claims.to_string()), parts[2])
}

/// The claims of a request token with these times and no others.
fn with_times(app: &App, times: &Value) -> Value {
    let mut claims = app.claims();
    let object = claims.as_object_mut().expect("object");
    object.retain(|name, _| !["iat", "nbf", "exp"].contains(&name.as_str()));
    object.extend(times.as_object().expect("times").clone());
    claims
}

fn signed(algorithm: Algorithm, claims: &Value, key: &EncodingKey) -> String {
    jsonwebtoken::encode(&Header::new(algorithm), claims, key).expect("a token")
}

/// Tokens that are good for no request of an application.
fn bad_tokens(world: &World, app: &App, session: &str) -> Vec<(&'static str, Option<String>)> {
    let claims = |change: &dyn Fn(&mut Value)| {
        let mut claims = app.claims();
        change(&mut claims);
        claims
    };
    let token = |change: &dyn Fn(&mut Value)| Some(app.token(&claims(change)));
    let timed = |times: &Value| Some(app.token(&with_times(app, times)));
    let whole = app.token(&app.claims());
    let (stranger, _) = api::key_pair(world.scratch(), "stranger");
    let wrong = match &app.signer {
        Signer::Unified(_) => {
            signed(Algorithm::RS256, &app.claims(), &EncodingKey::from_rsa_pem(stranger.as_bytes()).expect("key"))
        }
        Signer::Legacy(_) => {
            signed(Algorithm::HS256, &app.claims(), &EncodingKey::from_secret(b"another secret of a project"))
        }
    };
    // The public key, which many know, as the secret of HS256.
    let public = std::fs::read_to_string(world.scratch().join(format!("{}.pem", app.id))).unwrap_or_default();
    let confused = signed(Algorithm::HS256, &app.claims(), &EncodingKey::from_secret(public.as_bytes()));
    let none = format!(
        "{}.{}.",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#),
        URL_SAFE_NO_PAD.encode(app.claims().to_string())
    );
    vec![
        ("no token", None),
        ("an empty one", Some(String::new())),
        ("no token at all", Some("nonsense".to_owned())),
        ("a wrong key", Some(wrong)),
        ("the public key as a secret", Some(confused)),
        ("no signature", Some(none)),
        ("half a signature", Some(whole[..whole.len() - 20].to_owned())),
        ("expired", token(&|c| c["exp"] = json!(now() - 120))),
        ("of the future", token(&|c| c["iat"] = json!(now() + 600))),
        ("without exp and iat", timed(&json!({}))),
        ("without exp, and too old", timed(&json!({ "iat": now() - 17 * 60 }))),
        ("for more than a day", timed(&json!({ "iat": now(), "exp": now() + 25 * 3600 }))),
        ("for more than a day, without iat", timed(&json!({ "exp": now() + 25 * 3600 }))),
        ("for a year", token(&|c| c["exp"] = json!(now() + 365 * 24 * 3600))),
        ("of an account", token(&|c| c["ist"] = json!("account"))),
        ("tampered", Some(tampered(&whole, &claims(&|c| c["exp"] = json!(now() + 800))))),
        ("of an application that is not there", {
            let name = if matches!(app.signer, Signer::Unified(_)) { "application_id" } else { "iss" };
            token(&|c| c[name] = json!("00000000-0000-4000-8000-000000000000"))
        }),
        ("of a publisher", Some(app.token(&app.client_claims(session)))),
        ("of a moderator", {
            let mut claims = app.client_claims(session);
            claims["role"] = json!("moderator");
            Some(app.token(&claims))
        }),
        ("of operators", Some(OPERATOR.to_owned())),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn no_endpoint_answers_who_may_not_ask() {
    let more = format!("requests_per_second = 100000\noperator_token = \"{OPERATOR}\"\n");
    let mut world = World::start(BINARY, None, &more).await.expect("servers");
    world.start_worker().expect("worker");
    api::served(&world).await;
    let settings = Settings::load(Some(world.config()), &BTreeMap::new()).expect("configuration");
    let catalog = archiver::app::services::catalog(&settings).await.expect("catalog");
    let other = App::unified(&world, OTHER);
    for app in [App::unified(&world, APPLICATION), App::legacy(&world, "45828062")] {
        let session = app.session("p2p.preference=disabled").await;
        let archive = archive(&catalog, &app.id, &session).await;
        let uuid = uuid::Uuid::new_v4().to_string();
        let ids: BTreeMap<&str, String> = [
            ("project", app.id.clone()),
            ("session", session.clone()),
            ("archive", archive.to_string()),
            ("stream", uuid.clone()),
            ("callback", uuid),
        ]
        .into();
        let document = app.send("GET", "/openapi.json", None).await.json();
        let all = endpoints(&document, &ids);
        assert!(all.len() > 20, "{all:?}");
        let bad = bad_tokens(&world, &app, &session);
        let list = app.path("archive");
        // As the SDKs for Java and .NET create them.
        for times in [json!({ "iat": now() }), json!({ "iat": now() - 14 * 60 }), json!({ "iat": now(), "exp": null })]
        {
            let (name, token) = app.header(&app.token(&with_times(&app, &times)));
            let answer = app.send_with("GET", &list, None, &[(name, &token)]).await;
            assert_eq!(answer.status, 200, "a token without exp, {times}: {answer:?}");
        }
        for endpoint in &all {
            let Endpoint { method, path, shape } = endpoint;
            let ask = async |app: &App, path: &str, token: Option<&str>| {
                let header = token.map(|token| app.header(token));
                let headers: Vec<(&str, &str)> = header.iter().map(|(name, value)| (*name, value.as_str())).collect();
                let answer = app.send_with(method, path, Some(json!({})), &headers).await;
                assert!(answer.status < 500, "{method} {path}: {answer:?}");
                answer
            };
            let (for_clients, for_operators) = (shape.ends_with("/join"), shape.starts_with("/operator"));
            for (name, token) in &bad {
                if for_operators && *name == "of operators" || for_clients && name.starts_with("of a ") {
                    continue;
                }
                let answer = ask(&app, path, token.as_deref()).await;
                assert_eq!(answer.status, 403, "{name}: {method} {path}: {answer:?}");
                assert!(answer.json()["message"].is_string() && answer.json()["code"].is_i64(), "{answer:?}");
            }
            // Another application, with our project in the path, and with its own.
            let theirs = other.token(&if for_clients { other.client_claims(&session) } else { other.claims() });
            let answer = ask(&other, path, Some(&theirs)).await;
            let hidden =
                [403, 404].contains(&answer.status) || !shape.contains("{project}") && !for_operators && !for_clients;
            assert!(hidden, "another application: {method} {path}: {answer:?}");
            if shape.contains("{archive}") && shape.contains("{project}") || shape.contains("/session/{session}/stream")
            {
                let path = path.replace(&app.id, &other.id);
                let answer = ask(&other, &path, Some(&theirs)).await;
                assert_eq!(answer.status, 404, "another's thing: {method} {path}: {answer:?}");
            }
            // Whoever may is not told that they may not. Deleting comes last: it would take the archive away.
            if method != "DELETE" {
                let token = match (for_clients, for_operators) {
                    (true, _) => app.token(&app.client_claims(&session)),
                    (_, true) => OPERATOR.to_owned(),
                    _ => app.token(&app.claims()),
                };
                let answer = ask(&app, path, Some(&token)).await;
                assert!(answer.status != 403 && answer.status != 401, "{method} {path}: {answer:?}");
            }
        }
        let of_app = app.path(&format!("archive/{archive}"));
        assert_eq!(app.send("GET", &of_app, None).await.status, 200, "nobody has deleted it");
        assert_eq!(app.send("DELETE", &of_app, None).await.status, 204);
    }
    // A key that was replaced is good until it ends.
    let app = App::legacy(&world, "777777");
    world.json(&["apps", "rotate", "777777", "--json"]).expect("rotated");
    assert_eq!(app.send("GET", &app.path("archive"), None).await.status, 200, "it overlaps");
    let rotated = world.json(&["apps", "rotate", "777777", "--overlap", "0s", "--json"]).expect("rotated");
    assert_eq!(app.send("GET", &app.path("archive"), None).await.status, 403, "it does not any more");
    let signer = Signer::Legacy(rotated["secret"].as_str().expect("secret").to_owned());
    let app = App { signer, ..app };
    assert_eq!(app.send("GET", &app.path("archive"), None).await.status, 200);
    let log = world.log();
    for secret in [OPERATOR, rotated["secret"].as_str().expect("secret")] {
        assert!(!log.contains(secret), "a secret is in the log");
    }
}
