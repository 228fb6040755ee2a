//! Bodies of requests that create sessions and change their streams. Pure.
//!
//! The form of a new session is read with the quirks of each SDK: the content type and unknown fields are ignored, booleans may have
//! any case, empty fields and the word `null` count as missing. Contradictory fields are refused by name, because a session that is
//! not archived as its creator expects is worse than an error.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error};
use serde_json::Value;
use utoipa::ToSchema;

use super::lenient::{JsonRequest, Texts, is_absent, parse_text};
use crate::api::error::ApiError;
use crate::job::change::check_classes;
use crate::model::archive_options::{NAME_CHARS_MAX, OutputMode, Resolution};
use crate::model::ids::StreamId;
use crate::model::layout::Layout;
use crate::model::session::{ArchiveMode, MediaMode};

/// Largest form, in bytes. Most of it may be the style sheet of a layout.
const FORM_BYTES_MAX: usize = 64 << 10;
/// Longest value in an error message, in characters.
const VALUE_CHARS_MAX: usize = 100;
/// Streams whose layout classes may be set at once.
const CLASS_ITEMS_MAX: usize = 200;

/// The form of a new session.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionForm {
    /// `disabled` (routed, the default) or `enabled` (relayed).
    // Some SDKs always send it.
    #[serde(rename = "p2p.preference", default = "routed", deserialize_with = "media_mode")]
    #[schema(value_type = Option<String>)]
    pub media_mode: MediaMode,
    /// `manual` or `always`.
    #[serde(default = "manual", deserialize_with = "archive_mode")]
    #[schema(value_type = Option<String>)]
    pub archive_mode: ArchiveMode,
    /// The first client's IP address: the session is held near to it.
    #[serde(default, deserialize_with = "location")]
    #[schema(value_type = Option<String>)]
    pub location: Option<IpAddr>,
    /// Media is encrypted from client to client.
    #[serde(default, deserialize_with = "e2ee")]
    #[schema(value_type = Option<bool>)]
    pub e2ee: bool,
    /// Of automatic archives: 1 to 80 characters.
    #[serde(default, deserialize_with = "archive_name")]
    pub archive_name: Option<String>,
    /// Of automatic archives: their size.
    #[serde(default, deserialize_with = "archive_resolution")]
    pub archive_resolution: Option<Resolution>,
    /// Ours, of automatic archives: `composed` without it.
    #[serde(default, deserialize_with = "archive_output_mode")]
    pub archive_output_mode: Option<OutputMode>,
    /// Ours, of automatic archives: a layout in JSON.
    #[serde(default, deserialize_with = "archive_layout")]
    #[schema(value_type = Option<String>)]
    pub archive_layout: Option<Layout>,
}

impl SessionForm {
    /// Reads a form.
    ///
    /// # Errors
    /// 400, with the field and its problem.
    pub fn read(body: &[u8]) -> Result<Self, ApiError> {
        if body.len() > FORM_BYTES_MAX {
            let size = body.len();
            return Err(ApiError::invalid(format!("the form has {size} bytes, the limit is {FORM_BYTES_MAX}")));
        }
        // The last of several fields with one name counts.
        let fields = url::form_urlencoded::parse(body);
        let fields: BTreeMap<String, String> =
            fields.map(|(name, value)| (name.into_owned(), value.trim().to_owned())).collect();
        let given = Texts(fields.into_iter().filter(|(_, value)| !is_absent(value)).collect());
        let form: Self = given.read().map_err(|e| {
            let value = given.0.get(&e.field).map_or("", String::as_str);
            let value: String = value.chars().take(VALUE_CHARS_MAX).collect();
            ApiError::invalid(format!("{} cannot be {value:?}: {}", e.field, e.what))
        })?;
        form.check().map_err(ApiError::invalid)?;
        if let Some(layout) = &form.archive_layout {
            layout.check().map_err(|error| ApiError::invalid(format!("archiveLayout: {error}")))?;
        }
        Ok(form)
    }

    /// Refuses fields that contradict each other.
    fn check(&self) -> Result<(), &'static str> {
        let (always, relayed) = (self.archive_mode == ArchiveMode::Always, self.media_mode == MediaMode::Relayed);
        let sized = self.archive_resolution.is_some() || self.archive_layout.is_some();
        let described = sized || self.archive_name.is_some() || self.archive_output_mode.is_some();
        let refused = [
            (always && relayed, "archiveMode always needs a routed session: send p2p.preference=disabled"),
            (self.e2ee && relayed, "e2ee needs a routed session: send p2p.preference=disabled"),
            (self.e2ee && always, "a session with e2ee cannot be archived: its media cannot be read"),
            (
                !always && described,
                "archiveName, archiveResolution, archiveOutputMode and archiveLayout are for archiveMode always only",
            ),
            (
                self.archive_output_mode == Some(OutputMode::Individual) && sized,
                "archiveResolution and archiveLayout are for composed archives: archiveOutputMode individual has neither",
            ),
        ];
        refused.into_iter().find(|(refused, _)| *refused).map_or(Ok(()), |(_, why)| Err(why))
    }
}

/// The values of `p2p.preference`. The sample in Vonage's documentation sends `routed`.
const MEDIA_MODES: &[(&str, MediaMode)] = &[
    ("disabled", MediaMode::Routed),
    ("routed", MediaMode::Routed),
    ("enabled", MediaMode::Relayed),
    ("relayed", MediaMode::Relayed),
];
const ARCHIVE_MODES: &[(&str, ArchiveMode)] = &[("manual", ArchiveMode::Manual), ("always", ArchiveMode::Always)];
const BOOLEANS: &[(&str, bool)] = &[("false", false), ("0", false), ("true", true), ("1", true)];

const fn routed() -> MediaMode {
    MediaMode::Routed
}

const fn manual() -> ArchiveMode {
    ArchiveMode::Manual
}

fn media_mode<'de, D: Deserializer<'de>>(text: D) -> Result<MediaMode, D::Error> {
    keyword(text, MEDIA_MODES, "enabled (relayed) or disabled (routed)")
}

fn archive_mode<'de, D: Deserializer<'de>>(text: D) -> Result<ArchiveMode, D::Error> {
    keyword(text, ARCHIVE_MODES, "manual or always")
}

fn location<'de, D: Deserializer<'de>>(text: D) -> Result<Option<IpAddr>, D::Error> {
    parse_text(text, |_| "an IP address".to_owned()).map(Some)
}

fn e2ee<'de, D: Deserializer<'de>>(text: D) -> Result<bool, D::Error> {
    keyword(text, BOOLEANS, "true or false")
}

fn archive_name<'de, D: Deserializer<'de>>(text: D) -> Result<Option<String>, D::Error> {
    let name = String::deserialize(text)?;
    if name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
        return Err(D::Error::custom("1 to 80 characters in one line"));
    }
    Ok(Some(name))
}

fn archive_resolution<'de, D: Deserializer<'de>>(text: D) -> Result<Option<Resolution>, D::Error> {
    json_word(text, "640x480, 480x640, 1280x720, 720x1280, 1920x1080 or 1080x1920")
}

fn archive_output_mode<'de, D: Deserializer<'de>>(text: D) -> Result<Option<OutputMode>, D::Error> {
    json_word(text, "composed, individual or both")
}

fn archive_layout<'de, D: Deserializer<'de>>(text: D) -> Result<Option<Layout>, D::Error> {
    let expected = "a layout in JSON, such as {\"type\":\"pip\"}";
    serde_json::from_str(&String::deserialize(text)?).map(Some).map_err(|_| D::Error::custom(expected))
}

/// One of these words, in any case.
fn keyword<'de, D: Deserializer<'de>, T: Copy>(
    text: D,
    values: &[(&str, T)],
    expected: &'static str,
) -> Result<T, D::Error> {
    let text = String::deserialize(text)?;
    let known = values.iter().find(|(word, _)| word.eq_ignore_ascii_case(&text));
    known.map(|(_, value)| *value).ok_or_else(|| D::Error::custom(expected))
}

/// A value that JSON writes as a string.
fn json_word<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    text: D,
    expected: &'static str,
) -> Result<Option<T>, D::Error> {
    let word = Value::String(String::deserialize(text)?);
    serde_json::from_value(word).map(Some).map_err(|_| D::Error::custom(expected))
}

/// Layout classes of a stream.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = StreamClasses)]
pub struct Item {
    /// The stream.
    #[schema(value_type = uuid::Uuid)]
    id: StreamId,
    /// Its classes from now on.
    layout_class_list: Vec<String>,
}

/// Layout classes of streams.
#[derive(Debug, Deserialize, ToSchema)]
pub struct LayoutClasses {
    /// Each of them.
    items: Vec<Item>,
}

impl JsonRequest for LayoutClasses {
    type Checked = Vec<(StreamId, Vec<String>)>;

    fn check(self) -> Result<Self::Checked, ApiError> {
        if self.items.len() > CLASS_ITEMS_MAX {
            return Err(ApiError::invalid(format!("items has more than {CLASS_ITEMS_MAX} streams")));
        }
        for item in &self.items {
            check_classes(&item.layout_class_list).map_err(|e| ApiError::invalid(e.to_string()))?;
        }
        Ok(self.items.into_iter().map(|item| (item.id, item.layout_class_list)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modes(body: &str) -> (MediaMode, ArchiveMode, bool) {
        let session = SessionForm::read(body.as_bytes()).unwrap_or_else(|e| panic!("{body}: {e:?}"));
        (session.media_mode, session.archive_mode, session.e2ee)
    }

    #[test]
    fn what_each_sdk_sends_is_understood() {
        use ArchiveMode::{Always, Manual};
        use MediaMode::{Relayed, Routed};
        for (sdk, body, expected) in [
            ("vonage-python without options", "", (Routed, Manual, false)),
            ("@vonage/video", "archiveMode=manual&p2p.preference=disabled&location=null", (Routed, Manual, false)),
            ("Vonage's own sample", "p2p.preference=routed", (Routed, Manual, false)),
            (
                "vonage-python",
                "p2p.preference=disabled&archiveMode=always&media_mode=routed&e2ee=False",
                (Routed, Always, false),
            ),
            ("vonage-python, e2ee", "p2p.preference=disabled&e2ee=True", (Routed, Manual, true)),
            ("opentok-node", "location=&p2p.preference=enabled", (Relayed, Manual, false)),
            (
                "opentok-php",
                "api_key=123456&archiveMode=always&p2p.preference=disabled&archiveResolution=640x480",
                (Routed, Always, false),
            ),
            (
                "opentok-.net",
                "location=&p2p.preference=disabled&archiveMode=always&archiveName=&archiveResolution=640x480&e2ee=False",
                (Routed, Always, false),
            ),
            (
                "opentok-.net, relayed",
                "location=&p2p.preference=enabled&archiveMode=manual&e2ee=False",
                (Relayed, Manual, false),
            ),
            ("a field that comes twice", "archiveMode=manual&archiveMode=always", (Routed, Always, false)),
        ] {
            assert_eq!(modes(body), expected, "{sdk}");
        }
    }

    #[test]
    fn an_automatic_archive_is_as_it_is_asked_for() {
        let body = "archiveMode=always&archiveName=Team+%26+guests&archiveResolution=1280x720&archiveOutputMode=both\
                    &archiveLayout=%7B%22type%22%3A%22pip%22%7D&location=203.0.113.7";
        let session = SessionForm::read(body.as_bytes()).expect("a session");
        assert_eq!(session.location, Some("203.0.113.7".parse().expect("address")));
        assert_eq!(session.archive_name.as_deref(), Some("Team & guests"));
        assert_eq!(session.archive_resolution, Some(Resolution::Hd));
        assert_eq!(session.archive_output_mode, Some(OutputMode::Both));
        assert_eq!(session.archive_layout.map(|layout| layout.kind), Some(crate::model::layout::LayoutType::Pip));
    }

    #[test]
    fn what_contradicts_itself_or_cannot_be_is_refused_by_name() {
        for (body, named) in [
            ("archiveMode=always&p2p.preference=enabled", "archiveMode always needs a routed session"),
            ("e2ee=true&p2p.preference=enabled", "e2ee needs a routed session"),
            ("e2ee=true&archiveMode=always", "e2ee cannot be archived"),
            ("archiveName=x", "for archiveMode always only"),
            ("archiveMode=manual&archiveResolution=640x480", "for archiveMode always only"),
            ("archiveMode=always&archiveOutputMode=individual&archiveResolution=640x480", "individual has neither"),
            ("archiveMode=sometimes", "archiveMode cannot be \"sometimes\": manual or always"),
            ("p2p.preference=maybe", "p2p.preference cannot be"),
            ("location=Berlin", "location cannot be \"Berlin\": an IP address"),
            ("e2ee=perhaps", "e2ee cannot be"),
            ("archiveMode=always&archiveResolution=800x600", "archiveResolution cannot be \"800x600\""),
            ("archiveMode=always&archiveLayout=pip", "archiveLayout cannot be"),
            // A session that could never be composed would be found out by nobody before its first archive.
            ("archiveMode=always&archiveLayout=%7B%22type%22%3A%22custom%22%7D", "archiveLayout: stylesheet goes with"),
            (
                "archiveMode=always&archiveLayout=%7B%22type%22%3A%22pip%22%2C%22screenshareType%22%3A%22pip%22%7D",
                "archiveLayout: screenshareType goes only with",
            ),
        ] {
            let error = SessionForm::read(body.as_bytes()).expect_err(body);
            assert!(error.status == 400 && error.message.contains(named), "{body}: {error:?}");
        }
        let long = format!("archiveMode=always&archiveName={}", "x".repeat(81));
        assert!(SessionForm::read(long.as_bytes()).expect_err("too long").message.contains("1 to 80"));
        let too_large = SessionForm::read(&vec![b'a'; FORM_BYTES_MAX + 1]);
        assert_eq!(too_large, Err(ApiError::invalid("the form has 65537 bytes, the limit is 65536")));
    }
}
