//! The contract and the policy, sample by sample.

use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::policy::{Decision, Skip, decide};
use super::*;
use crate::model::ids::RouterName;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/events")
}

fn valid() -> Value {
    serde_json::from_slice(&std::fs::read(fixtures().join("valid/started-routed-always.json")).expect("sample"))
        .expect("JSON")
}

fn with(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut event = valid();
    change(&mut event);
    serde_json::to_vec(&event).expect("JSON")
}

#[test]
fn valid_samples_are_read_and_fit_the_schema() {
    for (file, schema) in
        [("started", schemars::schema_for!(Envelope<Started>)), ("ended", schemars::schema_for!(Envelope<Ended>))]
    {
        let path = fixtures().join(format!("{file}.schema.json"));
        let text = serde_json::to_string_pretty(&schema).expect("JSON") + "\n";
        if std::env::var_os("UPDATE_FIXTURES").is_some() {
            std::fs::write(&path, &text).expect("write");
        }
        let kept = std::fs::read_to_string(&path).expect("schema");
        assert_eq!(kept, text, "{} is old: run the tests with UPDATE_FIXTURES=1", path.display());
        let validator = jsonschema::validator_for(schema.as_value()).expect("schema");
        for entry in std::fs::read_dir(fixtures().join("valid")).expect("samples").flatten() {
            let bytes = std::fs::read(entry.path()).expect("sample");
            assert!(parse(&bytes).is_ok(), "{:?}: {:?}", entry.path(), parse(&bytes));
            if entry.file_name().to_string_lossy().starts_with(file) {
                let value = serde_json::from_slice(&bytes).expect("JSON");
                assert!(validator.is_valid(&value), "{:?}", entry.path());
            }
        }
    }
}

#[test]
fn the_policy_is_a_table() {
    let known = |name: &RouterName| name.as_str() == "janus-1";
    for (media, archive, router, expected) in [
        ("routed", "always", "janus-1", "archive"),
        ("routed", "manual", "janus-1", "skip"),
        ("relayed", "manual", "janus-1", "skip"),
        ("relayed", "always", "janus-1", "policy_relayed_always"),
        ("routed", "always", "janus-2", "router_unknown"),
        ("routed", "manual", "janus-2", "skip"),
    ] {
        let bytes = with(|e| {
            e["data"]["mediaMode"] = json!(media);
            e["data"]["archiveMode"] = json!(archive);
            e["data"]["router"]["name"] = json!(router);
        });
        let Ok(SessionEvent::Started(event)) = parse(&bytes) else { panic!("{media} {archive}") };
        let found = match decide(&event.data, known) {
            Decision::Archive => "archive",
            Decision::Skip(Skip::Manual | Skip::Relayed) => "skip",
            Decision::Refuse(kind, _) => kind.as_str(),
        };
        assert_eq!(found, expected, "{media} {archive} {router}");
    }
}

/// Each malformed event with the fault and the words that a person gets.
pub fn malformed() -> Vec<(&'static str, Vec<u8>, &'static str, &'static str)> {
    fn set(path: &'static str, value: Value) -> Vec<u8> {
        with(|e| *e.pointer_mut(path).expect("path") = value)
    }
    fn remove(parent: &str, name: &str) -> Vec<u8> {
        with(|e| {
            e.pointer_mut(parent).and_then(Value::as_object_mut).expect("object").remove(name);
        })
    }
    let (invalid, unknown, bad, big) = ("event_invalid", "event_unknown", "event_malformed", "event_oversized");
    vec![
        ("empty", Vec::new(), bad, "EOF"),
        ("text", b"hello".to_vec(), bad, "expected value"),
        ("array", b"[]".to_vec(), bad, "not an object"),
        ("number", b"7".to_vec(), bad, "not an object"),
        ("null", b"null".to_vec(), bad, "not an object"),
        ("cut", valid().to_string().as_bytes()[..100].to_vec(), bad, "EOF"),
        ("trailing", [valid().to_string().as_bytes(), b"}"].concat(), bad, "trailing"),
        ("no specversion", remove("", "specversion"), invalid, "specversion: is missing"),
        ("specversion 0.3", set("/specversion", json!("0.3")), unknown, "specversion is \"0.3\""),
        ("specversion number", set("/specversion", json!(1)), invalid, "specversion: is not a text"),
        ("no id", remove("", "id"), invalid, "id"),
        ("empty id", set("/id", json!("")), invalid, "event id is empty"),
        ("long id", set("/id", json!("x".repeat(200))), invalid, "event id has 200 bytes"),
        ("id number", set("/id", json!(7)), invalid, "id"),
        ("no source", remove("", "source"), invalid, "source: is missing"),
        ("empty source", set("/source", json!("")), invalid, "source"),
        ("no type", remove("", "type"), invalid, "type: is missing"),
        ("type v2", set("/type", json!("archiver.session.started.v2")), unknown, "started.v2"),
        ("type other", set("/type", json!("com.example.thing")), unknown, "com.example.thing"),
        ("no data", remove("", "data"), invalid, "data"),
        ("data text", set("/data", json!("x")), invalid, "data"),
        ("no session", remove("/data", "sessionId"), invalid, "sessionId"),
        ("session path", set("/data/sessionId", json!("../../etc")), invalid, "'/' at byte 2"),
        ("session dots", set("/data/sessionId", json!("..")), invalid, "session id"),
        ("session long", set("/data/sessionId", json!("s".repeat(256))), invalid, "256 bytes"),
        ("no application", remove("/data", "applicationId"), invalid, "applicationId"),
        ("application space", set("/data/applicationId", json!("a b")), invalid, "application id"),
        ("media mode", set("/data/mediaMode", json!("direct")), invalid, "data.mediaMode"),
        ("archive mode", set("/data/archiveMode", json!("never")), invalid, "data.archiveMode"),
        ("archive mode bool", set("/data/archiveMode", json!(true)), invalid, "data.archiveMode"),
        ("no region", remove("/data", "region"), invalid, "region"),
        ("region star", set("/data/region", json!("eu.*")), invalid, "region"),
        ("no router", remove("/data", "router"), invalid, "data.router"),
        ("router text", set("/data/router", json!("janus")), invalid, "data.router"),
        ("no room", remove("/data/router", "room"), invalid, "room"),
        ("time", set("/time", json!("yesterday")), invalid, "RFC 3339"),
        ("name empty", set("/data/archive/name", json!("")), invalid, "data.archive.name"),
        ("name long", set("/data/archive/name", json!("n".repeat(81))), invalid, "more than 80"),
        ("name control", set("/data/archive/name", json!("a\u{7}b")), invalid, "control"),
        ("resolution", set("/data/archive", json!({ "resolution": "800x600" })), invalid, "data.archive.resolution"),
        ("output mode", set("/data/archive", json!({ "outputMode": "dvd" })), invalid, "data.archive.outputMode"),
        ("stream mode", set("/data/archive", json!({ "streamMode": "some" })), invalid, "data.archive.streamMode"),
        (
            "layout type",
            set("/data/archive", json!({ "layout": { "type": "mosaic" } })),
            invalid,
            "data.archive.layout",
        ),
        (
            "nothing",
            set("/data/archive", json!({ "hasAudio": false, "hasVideo": false })),
            invalid,
            "data.archive.hasAudio",
        ),
        ("quality", set("/data/archive", json!({ "quantizationParameter": 14 })), invalid, "quantizationParameter"),
        ("bitrate", set("/data/archive", json!({ "maxBitrate": 99_999 })), invalid, "data.archive.maxBitrate"),
        (
            "quality and bitrate",
            set("/data/archive", json!({ "maxBitrate": 100_000, "quantizationParameter": 15 })),
            invalid,
            "data.archive.maxBitrate",
        ),
        ("no stylesheet", set("/data/archive", json!({ "layout": { "type": "custom" } })), invalid, "stylesheet"),
        (
            "stylesheet",
            set("/data/archive", json!({ "layout": { "type": "pip", "stylesheet": "x" } })),
            invalid,
            "stylesheet",
        ),
        // Hostile ones.
        ("deep arrays", [b"[".repeat(60_000), b"]".repeat(5)].concat(), big, "nested 60000"),
        ("deep objects", br#"{"a":"#.repeat(10_000), big, "nested 10000"),
        ("deep in data", set("/data/location", (0..40).fold(json!(1), |v, _| json!([v]))), big, "nested"),
        ("huge text", set("/data/sessionId", json!("x".repeat(100_000))), big, "at most 65536"),
        ("megabytes", vec![b' '; 10 << 20], big, "at most 65536"),
        ("utf-16", valid().to_string().encode_utf16().flat_map(u16::to_le_bytes).collect(), bad, "not JSON"),
        (
            "latin-1",
            set("/source", json!("caf#")).iter().map(|b| if *b == b'#' { 0xe9 } else { *b }).collect(),
            bad,
            "utf-8",
        ),
        ("byte order mark", [b"\xef\xbb\xbf", valid().to_string().as_bytes()].concat(), bad, "expected value"),
        ("zero bytes", vec![0; 1000], bad, "expected value"),
        ("overlong", b"{\"id\":\"\xc0\xaf\"}".to_vec(), bad, "utf-8"),
        ("lone surrogate", br#"{"specversion":"\ud800"}"#.to_vec(), bad, "hex escape"),
        (
            "same key twice",
            br#"{"specversion":"1.0","data":{"mediaMode":"relayed","mediaMode":"routed"}}"#.to_vec(),
            bad,
            "\"mediaMode\" comes twice",
        ),
        ("same key twice escaped", br#"{"id":"a","\u0069d":"b"}"#.to_vec(), bad, "\"id\" comes twice"),
        ("prototype key", br#"{"__proto__":{"specversion":"1.0"}}"#.to_vec(), invalid, "specversion: is missing"),
        (
            "huge integer",
            br#"{"specversion":"1.0","source":"x","type":123456789012345678901234567890}"#.to_vec(),
            invalid,
            "type: is not a text",
        ),
        ("gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00".to_vec(), bad, "utf-8"),
        ("huge number", br#"{"specversion":"1.0","source":"x","type":1e999}"#.to_vec(), bad, "out of range"),
        ("NaN", br#"{"specversion":NaN}"#.to_vec(), bad, "expected value"),
    ]
}

/// Largest sample that is kept as a file; larger ones are made anew each time.
const FILE_BYTES_MAX: usize = 4096;

#[test]
fn malformed_and_hostile_events_are_refused_with_their_own_reason() {
    let all = malformed();
    assert!(all.len() >= 55);
    let update = std::env::var_os("UPDATE_FIXTURES").is_some();
    let mut files = std::collections::BTreeSet::new();
    for (name, bytes, fault, words) in all {
        let error = parse(&bytes).expect_err(name);
        assert_eq!(error.fault().kind.as_str(), fault, "{name}: {error}");
        assert!(error.to_string().contains(words), "{name}: {error}");
        assert!(error.to_string().len() < 1000, "{name}: a reason is for people");
        if bytes.len() > FILE_BYTES_MAX {
            continue;
        }
        let file = format!("{}.json", name.replace(' ', "-"));
        let path = fixtures().join("invalid").join(fault).join(&file);
        if update {
            std::fs::create_dir_all(path.parent().expect("folder")).expect("folder");
            std::fs::write(&path, &bytes).expect("write");
        }
        let kept = std::fs::read(&path).unwrap_or_default();
        assert!(kept == bytes, "{} is old: run the tests with UPDATE_FIXTURES=1", path.display());
        files.insert(file);
    }
    let folders = std::fs::read_dir(fixtures().join("invalid")).expect("samples").flatten();
    let kept = folders.flat_map(|folder| std::fs::read_dir(folder.path()).expect("folder").flatten());
    for entry in kept {
        let name = entry.file_name().into_string().expect("name");
        assert!(files.contains(&name), "{:?} is no sample any more", entry.path());
    }
}

#[test]
fn a_location_is_only_a_hint() {
    for (location, read) in [
        (json!("203.0.113.7"), Some("203.0.113.7")),
        (json!(" 2001:db8::1 "), Some("2001:db8::1")),
        (json!("Berlin"), None),
        (json!(""), None),
        (json!("null"), None),
        (json!(null), None),
        (json!(7), None),
        (json!({ "country": "de" }), None),
    ] {
        let Ok(SessionEvent::Started(event)) = parse(&with(|e| e["data"]["location"] = location.clone())) else {
            panic!("{location}")
        };
        assert_eq!(event.data.location, read.map(|r| r.parse().expect("address")), "{location}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(parse(&bytes).is_err());
    }

    #[test]
    fn a_changed_sample_is_an_event_or_refused(at in any::<prop::sample::Index>(), byte: u8) {
        let mut bytes = valid().to_string().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Err(error) = parse(&bytes) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
