//! Answers as the SDKs of Java, .NET, PHP and Ruby read them: types as strict as theirs.

use std::collections::HashMap;
use std::process::Command;

use archiver_testkit::api::Answer;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

use super::recorded::Sdk;

/// The statuses that SDKs know; another one is an error to those of Java, .NET and PHP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
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
pub struct List<T> {
    pub count: u64,
    pub items: Vec<T>,
}

/// What the SDKs read of an error.
#[derive(Debug, Deserialize)]
#[allow(dead_code)]
pub struct Failure {
    /// .NET reads it into an enumeration of 32 bits.
    pub code: i32,
    pub message: String,
    /// Ruby and PHP say this one.
    pub description: String,
}

/// What a stream shows: Java knows these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VideoType {
    Camera,
    Screen,
    Custom,
}

/// A stream of a session: Java wants a UUID, PHP texts and a list that are not null.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stream {
    pub id: Uuid,
    pub video_type: VideoType,
    pub name: String,
    pub layout_class_list: Vec<String>,
}

/// A success whose body is JSON.
pub fn typed<T: DeserializeOwned>(what: &str, answer: &Answer) -> T {
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
pub fn session_id(sdk: Sdk, answer: &Answer) -> String {
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
pub fn application_in(session: &str) -> String {
    use base64::Engine;
    let ordinary = session[2..].replace('-', "+").replace('_', "/");
    let lenient = base64::engine::GeneralPurposeConfig::new()
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent);
    let engine = base64::engine::GeneralPurpose::new(&base64::alphabet::STANDARD, lenient);
    let text = String::from_utf8_lossy(&engine.decode(ordinary).expect("base64")).into_owned();
    text.split('~').nth(1).expect("a second field").to_owned()
}

/// An error as the SDKs read it.
pub fn failure(what: &str, answer: &Answer, status: u16) -> Failure {
    assert_eq!(answer.status, status, "{what}: {answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"), "{what}: {answer:?}");
    let failure: Failure = serde_json::from_str(&answer.body).unwrap_or_else(|e| panic!("{what}: {e}: {answer:?}"));
    assert!(!failure.message.is_empty() && failure.message == failure.description, "{what}: {failure:?}");
    failure
}

/// What an SDK reads of an archive: its id and its status.
pub fn archive_of(sdk: Sdk, answer: &Answer, session: &str) -> (String, Status) {
    let name = sdk.name();
    if sdk.is_legacy() {
        let archive: Legacy = typed(name, answer);
        assert_eq!((archive.partner_id, archive.session_id.as_str()), (123_456, session), "{name}: {answer:?}");
        assert!(archive.output_mode == OutputMode::Composed || archive.resolution.is_none(), "{name}: {answer:?}");
        return (archive.id.to_string(), archive.status);
    }
    let archive: Unified = typed(name, answer);
    assert_eq!((archive.event.as_str(), archive.session_id.as_str()), ("archive", session), "{name}: {answer:?}");
    (archive.id.to_string(), archive.status)
}

/// What an SDK reads of a list: each archive and its session.
pub fn archives_of(sdk: Sdk, what: &str, answer: &Answer) -> Vec<(String, String)> {
    let whole = |count: u64, here: usize| assert!(count >= here as u64, "{what}: {answer:?}");
    if sdk.is_legacy() {
        let list: List<Legacy> = typed(what, answer);
        whole(list.count, list.items.len());
        return list.items.into_iter().map(|item| (item.id.to_string(), item.session_id)).collect();
    }
    let list: List<Unified> = typed(what, answer);
    whole(list.count, list.items.len());
    list.items.into_iter().map(|item| (item.id.to_string(), item.session_id)).collect()
}
