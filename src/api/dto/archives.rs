//! Bodies of requests that start and change archives. Pure.

use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::lenient::JsonRequest;
use crate::api::error::ApiError;
use crate::job::change::StreamsChange;
use crate::model::archive_options::{ArchiveOptions, OutputMode, Resolution, StreamMode};
use crate::model::desired::Selection;
use crate::model::field_error::FieldError;
use crate::model::ids::{SessionId, StreamId};
use crate::model::layout::Layout;

/// The answer to a field that a `check` of the model refuses.
pub(super) fn invalid_field(error: &FieldError) -> ApiError {
    ApiError::invalid(error.to_string())
}

impl JsonRequest for Layout {
    type Checked = Self;

    fn normalize(fields: &mut Map<String, Value>) -> Result<(), ApiError> {
        normalize_layout_keys(fields);
        if !fields.contains_key("type") {
            return Err(ApiError::invalid(
                "type is missing: bestFit, pip, verticalPresentation, horizontalPresentation or custom",
            ));
        }
        Ok(())
    }

    fn check(self) -> Result<Self, ApiError> {
        Layout::check(&self).map_err(|e| invalid_field(&e))?;
        Ok(self)
    }
}

/// Rewrites other spellings of a layout's fields, in a layout.
fn normalize_layout_keys(layout: &mut Map<String, Value>) {
    // .NET's legacy SDK writes this name in lower case when it starts an archive.
    if let Some(value) = layout.remove("screensharetype") {
        layout.entry("screenshareType").or_insert(value);
    }
    // PHP and .NET send empty texts for fields that are not set.
    remove_if_empty(layout, &["screenshareType", "stylesheet"]);
}

/// Rewrites other spellings of a layout's fields, in a body with a layout.
pub(super) fn normalize_layout(fields: &mut Map<String, Value>) {
    if let Some(Value::Object(layout)) = fields.get_mut("layout") {
        normalize_layout_keys(layout);
    }
}

fn remove_if_empty(fields: &mut Map<String, Value>, names: &[&str]) {
    for name in names {
        if fields.get(*name).and_then(Value::as_str) == Some("") {
            fields.remove(*name);
        }
    }
}

/// What an archive is to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StartArchive {
    /// The session.
    #[schema(value_type = String)]
    session_id: SessionId,
    /// 1 to 80 characters.
    name: Option<String>,
    /// True without it.
    has_audio: Option<bool>,
    /// True without it.
    has_video: Option<bool>,
    /// `composed` without it; `both` is ours.
    output_mode: Option<OutputMode>,
    /// Of composed archives: `640x480` without it.
    resolution: Option<Resolution>,
    /// Of composed archives.
    layout: Option<Layout>,
    /// `auto` without it.
    stream_mode: Option<StreamMode>,
    /// Sets it apart from other archives of the session at the same time.
    multi_archive_tag: Option<String>,
    /// Of composed archives: 100,000 to 6,000,000 bit/s.
    max_bitrate: Option<u32>,
    /// Of composed archives: 15 to 40; not together with `maxBitrate`.
    quantization_parameter: Option<u8>,
}

/// An archive to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewArchive {
    /// The session.
    pub session: SessionId,
    /// The archive.
    pub options: ArchiveOptions,
}

impl JsonRequest for StartArchive {
    type Checked = NewArchive;

    fn normalize(fields: &mut Map<String, Value>) -> Result<(), ApiError> {
        // The session's error comes before those of all other fields.
        match fields.get("sessionId") {
            Some(Value::String(text)) => {
                text.parse::<SessionId>().map_err(|e| ApiError::invalid(format!("sessionId: {e}")))?;
            }
            _ => return Err(ApiError::invalid("sessionId is missing")),
        }
        if fields.get("hasTranscription") == Some(&Value::Bool(true)) {
            return Err(ApiError::invalid("hasTranscription: this service makes no transcriptions"));
        }
        remove_if_empty(fields, &["name", "multiArchiveTag", "resolution"]);
        normalize_layout(fields);
        Ok(())
    }

    fn check(self) -> Result<NewArchive, ApiError> {
        let options = ArchiveOptions {
            name: self.name,
            output_mode: self.output_mode.unwrap_or_default(),
            resolution: self.resolution,
            layout: self.layout,
            stream_mode: self.stream_mode.unwrap_or_default(),
            has_audio: self.has_audio.unwrap_or(true),
            has_video: self.has_video.unwrap_or(true),
            quantization_parameter: self.quantization_parameter,
            max_bitrate: self.max_bitrate,
            multi_archive_tag: self.multi_archive_tag,
        };
        options.check().map_err(|e| invalid_field(&e))?;
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
        Ok(NewArchive { session: self.session_id, options })
    }
}

/// A stream to add or to remove: one of the two.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveStreams {
    /// The stream to add, or to have otherwise.
    #[schema(value_type = Option<uuid::Uuid>)]
    add_stream: Option<StreamId>,
    /// The stream to remove.
    #[schema(value_type = Option<uuid::Uuid>)]
    remove_stream: Option<StreamId>,
    /// With its sound; true without it.
    has_audio: Option<bool>,
    /// With its picture; true without it.
    has_video: Option<bool>,
}

impl JsonRequest for ArchiveStreams {
    type Checked = StreamsChange;

    fn check(self) -> Result<StreamsChange, ApiError> {
        if self.add_stream.is_some() == self.remove_stream.is_some() {
            return Err(ApiError::invalid("give one of addStream and removeStream: the id of a stream"));
        }
        Ok(StreamsChange {
            mode: None,
            add: self.add_stream.into_iter().collect(),
            selection: Selection {
                has_audio: self.has_audio.unwrap_or(true),
                has_video: self.has_video.unwrap_or(true),
            },
            remove: self.remove_stream.into_iter().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::archive_extensions::{ClipArchive, RecomposeArchive};
    use super::super::callbacks::RegisterCallback;
    use super::super::lenient::{read_json, read_query};
    use super::super::query::ListQuery;
    use super::super::sessions::LayoutClasses;
    use super::*;
    use crate::model::layout::LayoutType;

    fn start(body: &[u8]) -> Result<NewArchive, ApiError> {
        read_json::<StartArchive>(body)
    }

    fn layout(body: &[u8]) -> Result<Layout, ApiError> {
        read_json::<Layout>(body)
    }

    fn streams(body: &[u8]) -> Result<StreamsChange, ApiError> {
        read_json::<ArchiveStreams>(body)
    }

    fn classes(body: &[u8]) -> Result<Vec<(StreamId, Vec<String>)>, ApiError> {
        read_json::<LayoutClasses>(body)
    }

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
                    read_json::<ClipArchive>(&body).map(drop), read_json::<RecomposeArchive>(&body).map(drop),
                    read_json::<RegisterCallback>(&body).map(drop), read_query::<ListQuery>(&value).map(drop),
                ];
                for error in told.into_iter().filter_map(Result::err) {
                    proptest::prop_assert!(error.status == 400 && !error.message.is_empty());
                }
            }
        }
    }
}
