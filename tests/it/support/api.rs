//! A client of the API without an SDK: applications with keys of their own, tokens as the SDKs make them, plain requests.
// Each test uses a part of it.
#![allow(dead_code)]

use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use archiver_testkit::publisher::{Options, Publisher};
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::World;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

/// Seconds since 1970.
pub fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).expect("time").as_secs()).expect("seconds")
}

/// Makes an RSA key pair in a folder: private and public PEM.
pub fn key_pair(folder: &Path, name: &str) -> (String, String) {
    let (private, public) = (folder.join(format!("{name}.key")), folder.join(format!("{name}.pem")));
    let run = |arguments: &[&str]| {
        let out = Command::new("openssl").args(arguments).output().expect("openssl");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    let (private, public) = (private.to_string_lossy().into_owned(), public.to_string_lossy().into_owned());
    run(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", &private]);
    run(&["pkey", "-in", &private, "-pubout", "-out", &public]);
    (std::fs::read_to_string(private).expect("key"), std::fs::read_to_string(public).expect("key"))
}

/// What an application signs with.
#[derive(Debug, Clone)]
pub enum Signer {
    /// Private key, PEM.
    Unified(String),
    /// Secret.
    Legacy(String),
}

/// An application that asks.
#[derive(Debug, Clone)]
pub struct App {
    pub id: String,
    pub signer: Signer,
    pub base: String,
    pub client: reqwest::Client,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub kind: String,
    pub text: String,
}

impl Answer {
    /// The body, which must be JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

fn client() -> reqwest::Client {
    archiver::runtime::tls::choose_provider();
    reqwest::Client::builder().build().expect("client")
}

impl App {
    /// Adds a unified application.
    pub fn unified(world: &World, id: &str) -> Self {
        let (private, _) = key_pair(world.scratch(), id);
        let public = world.scratch().join(format!("{id}.pem"));
        let added =
            world.json(&["apps", "add", "--unified", "--id", id, "--json", "--public-key", &public.to_string_lossy()]);
        assert_eq!(added.expect("added")["applicationId"], id);
        Self {
            id: id.to_owned(),
            signer: Signer::Unified(private),
            base: format!("http://{}", world.api()),
            client: client(),
        }
    }

    /// Adds a legacy project.
    pub fn legacy(world: &World, id: &str) -> Self {
        let added = world.json(&["apps", "add", "--legacy", "--id", id, "--json"]).expect("added");
        let secret = added["secret"].as_str().expect("secret").to_owned();
        Self {
            id: id.to_owned(),
            signer: Signer::Legacy(secret),
            base: format!("http://{}", world.api()),
            client: client(),
        }
    }

    /// The claims of a request's token, as this kind's SDKs make them.
    pub fn claims(&self) -> Value {
        match self.signer {
            Signer::Unified(_) => json!({
                "application_id": self.id, "iat": now(), "exp": now() + 900, "jti": uuid::Uuid::new_v4().to_string(),
            }),
            Signer::Legacy(_) => json!({ "iss": self.id, "ist": "project", "iat": now(), "exp": now() + 180 }),
        }
    }

    /// A token with these claims.
    pub fn token(&self, claims: &Value) -> String {
        let (header, key) = match &self.signer {
            Signer::Unified(pem) => {
                (Header::new(Algorithm::RS256), EncodingKey::from_rsa_pem(pem.as_bytes()).expect("a private key"))
            }
            Signer::Legacy(secret) => (Header::new(Algorithm::HS256), EncodingKey::from_secret(secret.as_bytes())),
        };
        jsonwebtoken::encode(&header, claims, &key).expect("a token")
    }

    /// The header of a request with a token.
    pub fn header(&self, token: &str) -> (&'static str, String) {
        match self.signer {
            Signer::Unified(_) => ("authorization", format!("Bearer {token}")),
            Signer::Legacy(_) => ("x-opentok-auth", token.to_owned()),
        }
    }

    /// Sends a request with a token of its own; `body` is JSON unless it is a text.
    pub async fn send(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let (name, value) = self.header(&self.token(&self.claims()));
        self.send_with(method, path, body, &[(name, &value), ("accept", "application/json")]).await
    }

    /// Sends a request with these headers only.
    pub async fn send_with(&self, method: &str, path: &str, body: Option<Value>, headers: &[(&str, &str)]) -> Answer {
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("method");
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request = match body {
            Some(Value::String(form)) => request.header("content-type", "application/x-www-form-urlencoded").body(form),
            Some(json) => request.header("content-type", "application/json").body(json.to_string()),
            None => request,
        };
        let response = request.send().await.expect("an answer");
        let status = response.status().as_u16();
        let kind = response.headers().get("content-type").map(|v| v.to_str().expect("text").to_owned());
        Answer { status, kind: kind.unwrap_or_default(), text: response.text().await.expect("text") }
    }

    /// The path of something of this application.
    pub fn path(&self, rest: &str) -> String {
        format!("/v2/project/{}/{rest}", self.id)
    }

    /// Creates a session; returns its id.
    pub async fn session(&self, form: &str) -> String {
        let answer = self.send("POST", "/session/create", Some(json!(form))).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()[0]["session_id"].as_str().expect("id").to_owned()
    }

    /// The claims of a client's token for a session.
    pub fn client_claims(&self, session: &str) -> Value {
        let mut claims = self.claims();
        let more = json!({
            "scope": "session.connect", "session_id": session, "role": "publisher", "connection_data": "name=Alice",
            "initial_layout_class_list": "",
        });
        claims.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
        claims
    }

    /// Lets a client into a session with a token of these claims.
    pub async fn join_with(&self, session: &str, claims: &Value) -> Answer {
        let token = format!("Bearer {}", self.token(claims));
        self.send_with("POST", &format!("/session/{session}/join"), None, &[("authorization", &token)]).await
    }

    /// Lets a client into a session, and starts it there with sound and picture. It calls itself `name`.
    pub async fn publisher(&self, world: &World, session: &str, name: &str) -> Publisher {
        let joined = self.join_with(session, &self.client_claims(session)).await;
        assert_eq!(joined.status, 200, "{joined:?}");
        Publisher::start(options(world, &joined.json(), name)).await.expect("publisher")
    }

    /// Waits for an archive to have a status.
    pub async fn archive(&self, id: &str, status: &str) -> Value {
        wait_for(&format!("archive {id} to be {status}"), || async {
            let archive = self.send("GET", &self.path(&format!("archive/{id}")), None).await.json();
            (archive["status"] == status).then_some(archive)
        })
        .await
    }
}

/// A publisher as a join's answer lets it in.
pub fn options(world: &World, joined: &Value, name: &str) -> Options {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let router = &joined["router"];
    let mut display: Value = serde_json::from_str(joined["display"].as_str().expect("display")).expect("JSON");
    display["name"] = json!(name);
    Options {
        url: text(&router["url"]).expect("url"),
        pin: text(&router["pin"]),
        token: text(&router["token"]),
        display: display.to_string(),
        ..Options::new(&world.janus, router["room"].as_str().expect("room"), name)
    }
}

/// A publisher that joins as the feed that the answer of a join names.
pub fn signed_options(world: &World, joined: &Value, name: &str) -> Options {
    let id = joined["feedId"].as_str().expect("feed").to_owned();
    Options { id, ..options(world, joined, name) }
}

/// Waits for the API to answer.
pub async fn served(world: &World) {
    let client = client();
    let address = format!("http://{}/openapi.json", world.api());
    wait_for("the API to answer", || async { client.get(&address).send().await.ok().map(drop) }).await;
}
