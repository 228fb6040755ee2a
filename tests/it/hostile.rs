//! Malformed and hostile events by the real road: each is parked with its own reason, and a session that is being
//! recorded all the while does not notice.

use crate::BINARY;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use archiver::broker::{Broker, BrokerConfig, ENDED_KEY, RabbitBroker, STARTED_KEY};
use archiver_testkit::content::Content;
use archiver_testkit::publisher::{Options, Publisher};
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::World;
use serde_json::{Value, json};

/// An event that must be refused.
struct Sample {
    name: String,
    fault: String,
    body: Vec<u8>,
}

/// What the unit tests keep as files, by the fault that each is refused for.
fn kept() -> Vec<Sample> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/events/invalid");
    let list = |dir: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(dir).expect("samples").map(|entry| entry.expect("entry").path()).collect()
    };
    let name = |path: &Path| path.file_stem().expect("a name").to_string_lossy().into_owned();
    let sample = |fault: &Path, path: &Path| Sample {
        name: name(path),
        fault: fault.file_name().expect("a name").to_string_lossy().into_owned(),
        body: std::fs::read(path).expect("sample"),
    };
    list(&root).iter().flat_map(|fault| list(fault).into_iter().map(|path| sample(fault, &path))).collect()
}

/// What means harm, and is too large to keep as a file.
fn hostile(good: &Value) -> Vec<Sample> {
    let with = |path: &str, value: Value| {
        let mut event = good.clone();
        *event.pointer_mut(path).expect("path") = value;
        event.to_string().into_bytes()
    };
    let good = good.to_string();
    let utf16 = |order: fn(u16) -> [u8; 2]| good.encode_utf16().flat_map(order).collect::<Vec<_>>();
    let (big, bad) = ("event_oversized", "event_malformed");
    [
        ("arrays 60,000 deep", big, b"[".repeat(60_000)),
        ("objects 10,000 deep", big, br#"{"a":"#.repeat(10_000)),
        ("a session id of 100,000 letters", big, with("/data/sessionId", json!("x".repeat(100_000)))),
        ("10 MiB of blanks", big, vec![b' '; 10 << 20]),
        ("1 MiB of quotation marks", big, vec![b'"'; 1 << 20]),
        (
            "100,000 names",
            big,
            format!("{{{}}}", (0..100_000).map(|n| format!("\"{n}\":0,")).collect::<String>()).into_bytes(),
        ),
        ("UTF-16 of little endians", bad, utf16(u16::to_le_bytes)),
        ("UTF-16 of big endians", bad, utf16(u16::to_be_bytes)),
        ("a text that never ends", bad, [b"\"".as_slice(), &b"a".repeat(60_000)].concat()),
        ("escapes only", bad, br"\u0000".repeat(9000)),
        ("an event after an event", bad, [good.as_bytes(), good.as_bytes()].concat()),
        ("a protocol buffer", bad, vec![0x0a, 0x24, 0x38, 0x66, 0x12, 0x04, 0xff, 0xfe]),
    ]
    .into_iter()
    .map(|(name, fault, body)| Sample { name: name.to_owned(), fault: fault.to_owned(), body })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_malformed_or_hostile_event_is_parked_for_its_own_reason_and_the_worker_is_untouched() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    world.start_worker().expect("worker");
    let pid = world.worker_pid();
    world.janus.create_room("calm", json!({})).await.expect("room");
    let started = world.started("calm");
    world.publish(&started).expect("publish");
    let publisher = Publisher::start(Options::new(&world.janus, "calm", "alice")).await.expect("publisher");
    world.recording(2).await;
    let (malformed, hostile) = (kept(), hostile(&world.started("harm")));
    assert!(malformed.len() >= 30 && hostile.len() >= 10, "{} and {}", malformed.len(), hostile.len());
    let config = BrokerConfig::new(world.rabbit.url().into(), "eu".parse().expect("region"));
    let events = RabbitBroker::new(config).publisher().await.expect("broker");
    let all: Vec<&Sample> = malformed.iter().chain(&hostile).collect();
    for (n, sample) in all.iter().enumerate() {
        // By both queues, and what is an event is no better where the other kind is expected.
        let key = if n % 2 == 0 { STARTED_KEY } else { ENDED_KEY };
        events.publish(&format!("{key}.eu"), &sample.body, &BTreeMap::new()).await.expect("publish");
    }
    let parked = wait_for("all to be parked", || async {
        let list = world.json(&["jobs", "list", "--json"]).ok()?;
        let parked = list["parked"].as_array()?.clone();
        (parked.len() >= all.len()).then_some(parked)
    })
    .await;
    assert_eq!(parked.len(), all.len());
    let mut reasons = BTreeSet::new();
    for sample in &all {
        let id = archiver::model::ids::ParkedId::of_content(&sample.fault, &sample.body).to_string();
        let entry = parked.iter().find(|entry| entry["parked"] == id.as_str());
        let entry = entry.unwrap_or_else(|| panic!("{} is not parked as {}", sample.name, sample.fault));
        assert_eq!((&entry["fault"], &entry["times"]), (&json!(sample.fault), &json!(1)), "{}", sample.name);
        let detail = entry["detail"].as_str().expect("a reason");
        // What is wrong, and what to do.
        assert!(detail.len() < 2000 && detail.contains("; "), "{}: {detail}", sample.name);
        let shown = world.command(&["jobs", "show", &id]).expect("show");
        let text = String::from_utf8_lossy(&shown.stdout);
        assert!(shown.status.success() && text.contains(&sample.fault), "{}: {text}", sample.name);
        reasons.insert(detail.to_owned());
    }
    println!("{} events, {} different reasons", all.len(), reasons.len());
    assert!(reasons.len() >= 30, "{reasons:?}");
    assert_eq!(world.worker_pid(), pid);
    let ended = world.ended("calm");
    world.publish(&ended).expect("publish");
    let archive = world.archive("calm", "available").await;
    let truth = publisher.crash().timeline();
    let archive = world.download(&archive).expect("download");
    let matched = Content::read(&archive.files("alice")[0]).expect("file").against(&truth);
    assert_eq!((matched.missing.len(), matched.strange), (0, 0));
    assert_eq!(archive.track("alice", "video").expect("track")["gaps"], json!([]));
    assert!(world.archives("harm").expect("archives").is_empty());
}
