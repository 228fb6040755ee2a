//! Bodies and queries of requests, read into types. Pure.
//!
//! Liberal in what is accepted, as each SDK has its ways: `null` is as if the field were not there (opentok-python), the label
//! of a body does not count (vonage-python), fields that are not known are passed over, one field has two spellings (.NET).

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::api::error::ApiError;
use crate::archive::derive::clip::ClipRange;
use crate::archive::derive::queue::Remake;
use crate::catalog::{ArchiveFilter, ArchiveStatus};
use crate::job::change::{StreamsChange, check_classes};
use crate::model::archive_options::{ArchiveOptions, OutputMode, Resolution};
use crate::model::ids::{SessionId, StreamId};
use crate::model::layout::Layout;
use crate::model::time::Wallclock;
use crate::recording::history::Selection;

/// Archives of a page, unless the query says otherwise (Vonage's default).
pub const COUNT: u32 = 50;
/// Archives of a page at most (Vonage's limit).
pub const COUNT_MAX: u32 = 1000;
/// Streams whose layout classes may be set at once.
const CLASS_ITEMS_MAX: usize = 200;

/// What an archive is to be, and of which session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The session.
    pub session: SessionId,
    /// The archive.
    pub options: ArchiveOptions,
}

/// A JSON object without what is null.
fn object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let value: Value = match body.trim_ascii() {
        b"" => Value::Object(Map::new()),
        text => serde_json::from_slice(text).map_err(|e| ApiError::invalid(format!("the body is not JSON: {e}")))?,
    };
    match without_nulls(value) {
        Value::Object(object) => Ok(object),
        _ => Err(ApiError::invalid("the body is not a JSON object")),
    }
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(name, value)| (name, without_nulls(value))).collect())
        }
        other => other,
    }
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let field = e.path().to_string();
        let what: String = e.into_inner().to_string().chars().take(300).collect();
        ApiError::invalid(if field == "." { what } else { format!("{field}: {what}") })
    })
}

fn wrong((field, what): (impl std::fmt::Display, String)) -> ApiError {
    ApiError::invalid(format!("{field} {what}"))
}

/// .NET's legacy SDK writes the word in small letters when it starts an archive.
fn spelled(layout: &mut Map<String, Value>) {
    if let Some(value) = layout.remove("screensharetype") {
        layout.entry("screenshareType").or_insert(value);
    }
    // PHP and .NET send empty texts for what is not set.
    for field in ["screenshareType", "stylesheet"] {
        if layout.get(field).and_then(Value::as_str) == Some("") {
            layout.remove(field);
        }
    }
}

/// Reads the body of a start.
///
/// # Errors
/// 400, with the field and what is wrong with it.
pub fn start(body: &[u8]) -> Result<Start, ApiError> {
    let mut fields = object(body)?;
    let session = match fields.remove("sessionId") {
        Some(Value::String(text)) => text.parse().map_err(|e| ApiError::invalid(format!("sessionId: {e}")))?,
        _ => return Err(ApiError::invalid("sessionId is missing")),
    };
    for name in ["name", "multiArchiveTag", "resolution"] {
        if fields.get(name).and_then(Value::as_str) == Some("") {
            fields.remove(name);
        }
    }
    if fields.get("hasTranscription") == Some(&Value::Bool(true)) {
        return Err(ApiError::invalid("hasTranscription: this service makes no transcriptions"));
    }
    if let Some(Value::Object(layout)) = fields.get_mut("layout") {
        spelled(layout);
    }
    let options: ArchiveOptions = typed(Value::Object(fields))?;
    options.check().map_err(wrong)?;
    if options.output_mode == OutputMode::Individual {
        let composed_only = [
            ("resolution", options.resolution.is_some()),
            ("layout", options.layout.is_some()),
            ("maxBitrate", options.max_bitrate.is_some()),
            ("quantizationParameter", options.quantization_parameter.is_some()),
        ];
        if let Some((field, _)) = composed_only.iter().find(|(_, given)| *given) {
            return Err(ApiError::invalid(format!(
                "{field} is for composed archives only, and outputMode is individual"
            )));
        }
    }
    Ok(Start { session, options })
}

/// Reads the body of a change of layout.
///
/// # Errors
/// 400, with the field and what is wrong with it.
pub fn layout(body: &[u8]) -> Result<Layout, ApiError> {
    let mut fields = object(body)?;
    spelled(&mut fields);
    if !fields.contains_key("type") {
        return Err(ApiError::invalid(
            "type is missing: bestFit, pip, verticalPresentation, horizontalPresentation or custom",
        ));
    }
    let layout: Layout = typed(Value::Object(fields))?;
    layout.check().map_err(wrong)?;
    Ok(layout)
}

/// Reads the body of a change of streams.
///
/// # Errors
/// 400, with the field and what is wrong with it.
pub fn streams(body: &[u8]) -> Result<StreamsChange, ApiError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Wire {
        add_stream: Option<StreamId>,
        remove_stream: Option<StreamId>,
        #[serde(default = "yes")]
        has_audio: bool,
        #[serde(default = "yes")]
        has_video: bool,
    }
    const fn yes() -> bool {
        true
    }
    let wire: Wire = typed(Value::Object(object(body)?))?;
    if wire.add_stream.is_some() == wire.remove_stream.is_some() {
        return Err(ApiError::invalid("give one of addStream and removeStream: the id of a stream"));
    }
    Ok(StreamsChange {
        mode: None,
        add: wire.add_stream.into_iter().collect(),
        selection: Selection { has_audio: wire.has_audio, has_video: wire.has_video },
        remove: wire.remove_stream.into_iter().collect(),
    })
}

/// Reads the body of a change of layout classes.
///
/// # Errors
/// 400, with the field and what is wrong with it.
pub fn classes(body: &[u8]) -> Result<Vec<(StreamId, Vec<String>)>, ApiError> {
    #[derive(serde::Deserialize)]
    struct Wire {
        items: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Item {
        id: StreamId,
        layout_class_list: Vec<String>,
    }
    let wire: Wire = typed(Value::Object(object(body)?))?;
    if wire.items.len() > CLASS_ITEMS_MAX {
        return Err(ApiError::invalid(format!("items has more than {CLASS_ITEMS_MAX} streams")));
    }
    for item in &wire.items {
        check_classes(&item.layout_class_list).map_err(|e| ApiError::invalid(e.to_string()))?;
    }
    Ok(wire.items.into_iter().map(|item| (item.id, item.layout_class_list)).collect())
}

/// Milliseconds of seconds.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn milliseconds(field: &str, seconds: Option<f64>) -> Result<Option<u32>, ApiError> {
    let Some(seconds) = seconds else { return Ok(None) };
    let range = 0.0..f64::from(u32::MAX) / 1000.0;
    if !range.contains(&seconds) {
        return Err(ApiError::invalid(format!("{field} is a number of seconds from 0 on")));
    }
    Ok(Some((seconds * 1000.0).round() as u32))
}

fn part(from: Option<f64>, to: Option<f64>) -> Result<(Option<u32>, Option<u32>), ApiError> {
    let (from, to) = (milliseconds("from", from)?, milliseconds("to", to)?);
    match to {
        Some(to) if to <= from.unwrap_or(0) => {
            Err(ApiError::invalid("the part ends before it begins: to is more than from"))
        }
        _ => Ok((from, to)),
    }
}

/// Reads what part of an archive is wanted, in seconds.
///
/// # Errors
/// 400, with the field and what is wrong with it.
pub fn clip(body: &[u8]) -> Result<Remake, ApiError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Wire {
        from: Option<f64>,
        to: Option<f64>,
        #[serde(default)]
        at_keyframe: bool,
    }
    let wire: Wire = typed(Value::Object(object(body)?))?;
    let (from, to_ms) = part(wire.from, wire.to)?;
    if from.is_none() && to_ms.is_none() {
        return Err(ApiError::invalid("give from, to, or both: seconds from the archive's beginning"));
    }
    Ok(Remake::Clip(ClipRange { from_ms: from.unwrap_or(0), to_ms, at_keyframe: wire.at_keyframe }))
}

/// Reads how an archive is to be composed anew.
///
/// # Errors
/// 400, with the field and what is wrong with it.
pub fn recompose(body: &[u8]) -> Result<Remake, ApiError> {
    #[derive(serde::Deserialize)]
    struct Wire {
        layout: Option<Layout>,
        resolution: Option<Resolution>,
        from: Option<f64>,
        to: Option<f64>,
    }
    let mut fields = object(body)?;
    if let Some(Value::Object(layout)) = fields.get_mut("layout") {
        spelled(layout);
    }
    let wire: Wire = typed(Value::Object(fields))?;
    if let Some(layout) = &wire.layout {
        layout.check().map_err(wrong)?;
    }
    let (from_ms, to_ms) = part(wire.from, wire.to)?;
    Ok(Remake::Recompose { layout: wire.layout, resolution: wire.resolution, from_ms, to_ms })
}

/// Reads where callbacks are to go.
///
/// # Errors
/// 400, with the field and what is wrong with it.
pub fn callback(body: &[u8]) -> Result<String, ApiError> {
    #[derive(serde::Deserialize)]
    struct Wire {
        url: String,
        group: Option<String>,
        event: Option<String>,
    }
    let wire: Wire = typed(Value::Object(object(body)?))?;
    let other = |given: &Option<String>, known: &str| given.as_ref().is_some_and(|given| given != known);
    if other(&wire.group, "archive") || other(&wire.event, "status") {
        return Err(ApiError::invalid("callbacks are those of group archive, event status: there are no others here"));
    }
    Ok(wire.url)
}

/// Reads the query of a list. `session_id` is vonage-python's and vonage-ruby's word. `status`, `from` and `to` (milliseconds
/// since 1970, of `createdAt`) are ours.
///
/// # Errors
/// 400, with the parameter and what is wrong with it.
pub fn list(query: &str) -> Result<ArchiveFilter, ApiError> {
    let mut filter = ArchiveFilter { count: COUNT, ..ArchiveFilter::default() };
    for (name, value) in parameters(query) {
        let bad = |what: &str| ApiError::invalid(format!("{name} {what}"));
        let time = || value.parse::<i64>().map_err(|_| bad("is not a time in milliseconds since 1970"));
        match name.as_str() {
            "offset" => filter.offset = number(&name, &value)?,
            // More than a page may have is as much as it may have.
            "count" => filter.count = number(&name, &value)?.min(COUNT_MAX),
            "sessionId" | "session_id" => {
                filter.session = Some(value.parse().map_err(|_| bad("is not a session's id"))?);
            }
            "status" => {
                let status = value.parse::<ArchiveStatus>().map_err(|e| bad(&format!(": {e}")))?;
                if status == ArchiveStatus::Deleted {
                    return Err(bad("is not one of archives that are still there"));
                }
                filter.status = Some(status);
            }
            "from" => filter.from = Some(Wallclock(time()?.saturating_mul(1000))),
            "to" => filter.to = Some(Wallclock(time()?.saturating_mul(1000))),
            _ => {}
        }
    }
    Ok(filter)
}

/// Which part of a list is asked for: how many to pass over, and how many at most. All without a query.
///
/// # Errors
/// 400, with the parameter and what is wrong with it.
pub fn page(query: &str) -> Result<(usize, usize), ApiError> {
    let (mut offset, mut count) = (0, usize::MAX);
    for (name, value) in parameters(query) {
        match name.as_str() {
            "offset" => offset = number(&name, &value)? as usize,
            "count" => count = number(&name, &value)? as usize,
            _ => {}
        }
    }
    Ok((offset, count))
}

/// The parameters of a query, without those that SDKs send for nothing.
fn parameters(query: &str) -> impl Iterator<Item = (String, String)> + '_ {
    let parsed = url::form_urlencoded::parse(query.as_bytes());
    let parsed = parsed.map(|(name, value)| (name.into_owned(), value.trim().to_owned()));
    parsed.filter(|(_, value)| !value.is_empty() && !["null", "undefined", "None"].contains(&value.as_str()))
}

fn number(name: &str, value: &str) -> Result<u32, ApiError> {
    value.parse().map_err(|_| ApiError::invalid(format!("{name} is not a number from 0 on")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::archive_options::StreamMode;
    use crate::model::layout::LayoutType;

    #[test]
    fn what_each_sdk_sends_to_start_is_understood() {
        let python = br#"{"name":null,"sessionId":"s1","hasAudio":true,"hasVideo":true,"outputMode":"composed","resolution":null,
                          "multiArchiveTag":null,"maxBitrate":null,"streamMode":"auto"}"#;
        assert_eq!(start(python).expect("opentok-python").options, ArchiveOptions::default());
        let net =
            br#"{"sessionId":"s1","name":"","layout":{"type":"bestFit","stylesheet":null,"screensharetype":"pip"}}"#;
        let net = start(net).expect(".NET").options;
        assert_eq!(net.layout.expect("layout").screenshare_type, Some(LayoutType::Pip));
        let node =
            br#"{"sessionId":"s1","name":"n","resolution":"1280x720","quantizationParameter":25,"streamMode":"manual",
                        "multiArchiveTag":"t","unknown":[1]}"#;
        let node = start(node).expect("@vonage/video").options;
        assert_eq!((node.resolution, node.quantization_parameter), (Some(Resolution::Hd), Some(25)));
        assert_eq!((node.multi_archive_tag.as_deref(), node.stream_mode), (Some("t"), StreamMode::Manual));
    }

    #[test]
    fn what_cannot_be_had_is_refused_by_name() {
        for (body, named) in [
            ("", "sessionId is missing"),
            ("[]", "not a JSON object"),
            ("{", "not JSON"),
            (r#"{"sessionId":7}"#, "sessionId is missing"),
            (r#"{"sessionId":"a b"}"#, "sessionId"),
            (r#"{"sessionId":"s","hasAudio":false,"hasVideo":false}"#, "hasAudio is false like hasVideo"),
            (r#"{"sessionId":"s","resolution":"800x600"}"#, "resolution: unknown variant"),
            (r#"{"sessionId":"s","outputMode":"individual","resolution":"640x480"}"#, "resolution is for composed"),
            (r#"{"sessionId":"s","outputMode":"individual","layout":{"type":"pip"}}"#, "layout is for composed"),
            (r#"{"sessionId":"s","outputMode":"individual","maxBitrate":200000}"#, "maxBitrate is for composed"),
            (r#"{"sessionId":"s","maxBitrate":1}"#, "maxBitrate is not from"),
            (r#"{"sessionId":"s","maxBitrate":200000,"quantizationParameter":20}"#, "does not go with"),
            (r#"{"sessionId":"s","layout":{"type":"custom"}}"#, "layout.stylesheet goes with"),
            (r#"{"sessionId":"s","layout":{"type":"round"}}"#, "layout.type: unknown variant"),
            (r#"{"sessionId":"s","hasTranscription":true}"#, "no transcriptions"),
        ] {
            let error = start(body.as_bytes()).expect_err(body);
            assert!(error.status == 400 && error.message.contains(named), "{body}: {error:?}");
        }
        assert!(layout(b"{}").expect_err("no type").message.contains("type is missing"));
        assert!(layout(br#"{"type":"pip","screenshareType":"pip"}"#).is_err());
        for body in ["{}", r#"{"addStream":"x"}"#, r#"{"addStream":null}"#] {
            assert_eq!(streams(body.as_bytes()).expect_err(body).status, 400);
        }
        for body in [r#"{"items":{}}"#, r#"{"items":[{"id":"x","layoutClassList":[]}]}"#, "{}"] {
            assert_eq!(classes(body.as_bytes()).expect_err(body).status, 400);
        }
    }

    #[test]
    fn lists_are_asked_for_in_two_spellings_and_with_what_dangles() {
        let filter = list("offset=3&").expect("Java");
        assert_eq!((filter.offset, filter.count), (3, 50));
        for query in ["sessionId=s1&count=2000", "session_id=s1&count=1000&offset="] {
            let filter = list(query).expect(query);
            assert_eq!((filter.session.expect("session").as_str(), filter.count), ("s1", 1000));
        }
        let ours = list("status=available&from=1000&to=2000").expect("ours");
        assert_eq!((ours.status, ours.from), (Some(ArchiveStatus::Available), Some(Wallclock(1_000_000))));
        for bad in ["offset=-1", "count=many", "status=lost", "sessionId=a%20b", "from=yesterday"] {
            assert_eq!(list(bad).expect_err(bad).status, 400);
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_comes_makes_them_panic(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
            value in "[ -~]{0,60}",
        ) {
            let fields = ["sessionId", "layout", "name", "items", "addStream", "from", "to", "url", "stylesheet", "type"];
            let object = fields.map(|field| format!("{field:?}:{value}")).join(",");
            for body in [bytes, format!("{{{object}}}").into_bytes()] {
                let told = [
                    start(&body).map(drop), layout(&body).map(drop), streams(&body).map(drop), classes(&body).map(drop),
                    clip(&body).map(drop), recompose(&body).map(drop), callback(&body).map(drop), list(&value).map(drop),
                ];
                for error in told.into_iter().filter_map(Result::err) {
                    proptest::prop_assert!(error.status == 400 && !error.message.is_empty());
                }
            }
        }
    }
}
