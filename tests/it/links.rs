//! Our own links: a local folder as the store has none, so the API signs them and serves the archives itself. No worker runs
//! here: archives are put into the catalog and the folder as a worker would.

use crate::BINARY;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;

use archiver::catalog::{ArchiveRow, ArchiveStatus, SharedCatalog};
use archiver::config::Settings;
use archiver::model::archive_options::{ArchiveOptions, OutputMode};
use archiver::model::ids::{ArchiveId, JobId};
use archiver::model::time::Wallclock;
use archiver::store::keys::{Keys, Kind};
use archiver::store::{Body, PutOptions, SharedStore};
use archiver_testkit::api::{self, Application, now};
use archiver_testkit::child::Server;
use archiver_testkit::net::free_port;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use reqwest::{Method, StatusCode};
use secrecy::ExposeSecret;
use sha2::Sha256;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SECRET: &str = "a secret of forty characters, more or less";
/// What `store.link_valid` is unless it is configured.
const VALID: u64 = 600;

/// `archiver api` alone, with a folder as its store.
struct Service {
    dir: tempfile::TempDir,
    at: SocketAddr,
    client: reqwest::Client,
    catalog: SharedCatalog,
    store: SharedStore,
    _api: Server,
}

impl Service {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("folder");
        let port = || free_port(LOOPBACK).expect("port");
        let at = SocketAddr::new(LOOPBACK, port());
        // Neither a broker nor a router is needed to serve what is there.
        let text = format!(
            "[worker]\nid = \"w\"\nregion = \"eu\"\ndata_dir = \"{0}/data\"\n[broker]\nurl = \"amqp://127.0.0.1:{1}/%2f\"\n\
             [store]\nkind = \"dir\"\npath = \"{0}/archives\"\n\
             [[router]]\nname = \"janus-1\"\nurl = \"ws://127.0.0.1:{1}\"\n\
             [http]\nbind = \"127.0.0.1:{2}\"\n[api]\nbind = \"{at}\"\n",
            dir.path().display(),
            port(),
            port(),
        );
        let config = dir.path().join("archiver.toml");
        std::fs::write(&config, text).expect("configuration");
        let mut command = Command::new(BINARY);
        command.arg("api").env("ARCHIVER_CONFIG", &config).env("NO_COLOR", "1");
        let server = Server::start("api", dir.path(), &mut command).expect("api");
        api::ready(at).await;
        let settings = Settings::load(Some(&config), &BTreeMap::new()).expect("configuration");
        let catalog = archiver::app::services::catalog(&settings).await.expect("catalog");
        let store = archiver::app::services::store(&settings).await.expect("store");
        archiver::runtime::tls::choose_provider();
        let client = reqwest::Client::builder().build().expect("client");
        Self { dir, at, client, catalog, store, _api: server }
    }

    fn application(&self, id: &str) -> Application {
        let mut command = Command::new(BINARY);
        command.args(["apps", "add", "--legacy", "--id", id, "--secret", SECRET, "--json"]);
        let out = command.env("ARCHIVER_CONFIG", self.dir.path().join("archiver.toml")).output().expect("apps add");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Application { id: id.to_owned(), key: SECRET.to_owned() }
    }

    /// A finished archive of an application, with this in its file. Returns its id and its object's key.
    async fn archive(&self, of: &Application, kind: Kind, content: &str) -> (ArchiveId, String) {
        let (job, application) = (JobId::from_uuid(uuid::Uuid::new_v4()), of.id.parse().expect("id"));
        let archive = ArchiveId::of_job(job);
        let key = Keys::new(of.id.parse().expect("id"), archive).key(kind);
        let put = self.store.put(&key, Body::bytes(content.to_owned()), PutOptions::default()).await;
        put.expect("the file is stored");
        let output_mode = if kind == Kind::Zip { OutputMode::Individual } else { OutputMode::Composed };
        let row = ArchiveRow {
            archive,
            job,
            session: "2_MX4x".parse().expect("id"),
            application,
            name: Some("Weekly: 1".to_owned()),
            status: ArchiveStatus::Available,
            reason: "session ended".to_owned(),
            output_mode: output_mode.as_str().to_owned(),
            created_at: Wallclock::now(),
            updated_at: Wallclock::now(),
            duration_s: 1,
            size: i64::try_from(content.len()).expect("a size"),
            sha256: String::new(),
            revision: 1,
            log_read: None,
            object_key: Some(key.clone()),
            missing: None,
            options: ArchiveOptions { output_mode, ..ArchiveOptions::default() },
        };
        assert!(self.catalog.put_archive(&row).await.expect("catalog"));
        (archive, key)
    }

    /// The link that an archive is answered with.
    async fn link(&self, of: &Application, archive: ArchiveId) -> String {
        let line = format!("GET /v2/project/{}/archive/{archive}", of.id);
        let answer = api::send(self.at, &line, &[("x-opentok-auth", &of.token())], "").await.expect("an answer");
        let archive = answer.json().expect("JSON");
        archive["url"].as_str().unwrap_or_else(|| panic!("no link: {archive}")).to_owned()
    }

    async fn fetch(&self, method: Method, link: &str, range: Option<&str>) -> reqwest::Response {
        let mut request = self.client.request(method, link);
        if let Some(range) = range {
            request = request.header("range", range);
        }
        request.send().await.expect("an answer")
    }

    /// A link that is not good: told so in the API's words, and nothing of the file.
    async fn refused(&self, what: &str, link: &str) {
        for range in [None, Some("bytes=0-3")] {
            let answer = self.fetch(Method::GET, link, range).await;
            assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{what}: {link}");
            let told: serde_json::Value = serde_json::from_str(&answer.text().await.expect("text")).expect("JSON");
            assert!(told["message"].as_str().is_some_and(|m| m.contains("not valid")), "{what}: {told}");
        }
        let head = self.fetch(Method::HEAD, link, None).await;
        assert_eq!(head.status(), StatusCode::FORBIDDEN, "{what}: {link}");
    }
}

fn header<'a>(answer: &'a reqwest::Response, name: &str) -> &'a str {
    answer.headers().get(name).map_or("", |value| value.to_str().expect("text"))
}

/// A part of a link's query, with something else in its place.
fn changed(link: &str, field: &str, to: &str) -> String {
    let begin = link.find(&format!("{field}=")).expect("in the link") + field.len() + 1;
    let end = link[begin..].find('&').map_or(link.len(), |n| begin + n);
    assert_ne!(&link[begin..end], to);
    format!("{}{to}{}", &link[..begin], &link[end..])
}

fn value<'a>(link: &'a str, field: &str) -> &'a str {
    let rest = link.split_once(&format!("{field}=")).expect("in the link").1;
    rest.split('&').next().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_of_ours_is_served_as_players_ask_for_it() {
    let service = Service::start().await;
    let app = service.application("123456");
    let content = "0123456789".repeat(20_000);
    for (kind, file_type, extension) in [(Kind::Mp4, "video/mp4", "mp4"), (Kind::Zip, "application/zip", "zip")] {
        let (archive, key) = service.archive(&app, kind, &content).await;
        let link = service.link(&app, archive).await;
        assert!(link.starts_with(&format!("http://{}/links/{key}?", service.at)), "{link}");
        let expires: u64 = value(&link, "expires").parse().expect("seconds");
        assert!((VALID - 60..=VALID).contains(&(expires - now())), "{link}");

        let whole = service.fetch(Method::GET, &link, None).await;
        assert_eq!(whole.status(), StatusCode::OK);
        let disposition = format!("attachment; filename=\"Weekly-1-{archive}.{extension}\"");
        for (name, expected) in
            [("content-type", file_type), ("content-disposition", &disposition), ("accept-ranges", "bytes")]
        {
            assert_eq!(header(&whole, name), expected, "{name}");
        }
        assert_eq!(whole.text().await.expect("the file"), content);

        let head = service.fetch(Method::HEAD, &link, None).await;
        assert_eq!((head.status(), header(&head, "content-type")), (StatusCode::OK, file_type));
        assert_eq!(header(&head, "content-length"), content.len().to_string());
        assert!(head.bytes().await.expect("nothing").is_empty());

        for (range, told, part) in [
            ("bytes=4-7", "bytes 4-7/200000", &content[4..=7]),
            ("bytes=199990-", "bytes 199990-199999/200000", &content[199_990..]),
            ("bytes=-3", "bytes 199997-199999/200000", &content[199_997..]),
            ("bytes=131070-131080", "bytes 131070-131080/200000", &content[131_070..=131_080]),
        ] {
            let answer = service.fetch(Method::GET, &link, Some(range)).await;
            assert_eq!((answer.status(), header(&answer, "content-range")), (StatusCode::PARTIAL_CONTENT, told));
            assert_eq!(header(&answer, "content-length"), part.len().to_string(), "{range}");
            assert_eq!(header(&answer, "content-type"), file_type, "{range}");
            assert_eq!(answer.text().await.expect("a part"), part, "{range}");
        }
        let beyond = service.fetch(Method::GET, &link, Some("bytes=200000-")).await;
        assert_eq!(beyond.status(), StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(header(&beyond, "content-range"), "bytes */200000");

        service.store.delete(&key).await.expect("deleted");
        assert_eq!(service.fetch(Method::GET, &link, None).await.status(), StatusCode::NOT_FOUND);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_ended_or_was_changed_opens_nothing() {
    let service = Service::start().await;
    let (app, stranger) = (service.application("123456"), service.application("654321"));
    let (archive, key) = service.archive(&app, Kind::Mp4, "what is said in confidence").await;
    let (_, other) = service.archive(&app, Kind::Mp4, "something else").await;
    let (_, theirs) = service.archive(&stranger, Kind::Mp4, "of somebody else").await;
    let manifest = key.replace("archive.mp4", "manifest.json");
    let options = PutOptions::default();
    service.store.put(&manifest, Body::bytes("{}".to_owned()), options).await.expect("the manifest is stored");
    let link = service.link(&app, archive).await;
    assert_eq!(service.fetch(Method::GET, &link, None).await.status(), StatusCode::OK);

    for (what, other) in
        [("another archive", &other), ("another application's", &theirs), ("another object", &manifest)]
    {
        service.refused(what, &link.replace(&key, other)).await;
    }
    let later = (now() + 2 * VALID).to_string();
    let signature = value(&link, "signature");
    let flipped = format!("{}{}", if signature.starts_with('A') { 'B' } else { 'A' }, &signature[1..]);
    for (field, to) in [
        ("expires", later.as_str()),
        ("name", "other.mp4"),
        ("signature", flipped.as_str()),
        ("signature", &signature[..20]),
        ("signature", ""),
    ] {
        service.refused(field, &changed(&link, field, to)).await;
    }

    // With the service's own secret: a link that ends in time is good, and the same one that has ended is not.
    let secret = service.catalog.shared_secret("links", &"none yet".to_owned().into()).await.expect("catalog");
    let signed = |key: &str, expires: u64| {
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(secret.expose_secret().as_bytes()).expect("a key");
        mac.update(format!("{key}\n{expires}\na.mp4").as_bytes());
        let signature = URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes());
        format!("http://{}/links/{key}?expires={expires}&name=a.mp4&signature={signature}", service.at)
    };
    let good = service.fetch(Method::GET, &signed(&key, now() + 60), None).await;
    assert_eq!(good.text().await.expect("text"), "what is said in confidence");
    service.refused("ended", &signed(&key, now() - 2)).await;
    // What is no object of an archive is not served, however well it is signed.
    let odd = key.replace("archive.mp4", "secret.txt");
    service.store.put(&odd, Body::bytes("odd".to_owned()), PutOptions::default()).await.expect("the file is stored");
    service.refused("no object of an archive", &signed(&odd, now() + 60)).await;
}
