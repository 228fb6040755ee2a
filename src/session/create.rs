//! Parses the form of `POST /session/create`, with the quirks of each SDK. Pure.
//!
//! The parser is lenient: it ignores the content type and unknown fields, takes booleans in any case, and treats empty fields and the
//! word `null` as missing. It refuses contradictory fields by name, because a session that is not archived as its creator expects
//! is worse than an error.

use std::net::IpAddr;

use crate::model::archive_options::{NAME_CHARS_MAX, OutputMode, Resolution};
use crate::model::layout::Layout;
use crate::model::session::{ArchiveMode, MediaMode};

/// Largest form, in bytes. Most of it may be the style sheet of a layout.
pub const FORM_BYTES_MAX: usize = 64 << 10;

/// A session to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSession {
    /// Routed by default, like Vonage's server; some SDKs always send a mode.
    pub media_mode: MediaMode,
    /// Manual by default.
    pub archive_mode: ArchiveMode,
    /// The address of its first client, to choose the nearest media router.
    pub location: Option<IpAddr>,
    /// End-to-end encryption.
    pub e2ee: bool,
    /// Options of its automatic archives.
    pub archive: AutomaticArchive,
}

/// Options of a session's automatic archives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AutomaticArchive {
    /// Their name.
    pub name: Option<String>,
    /// Their size.
    pub resolution: Option<Resolution>,
    /// An extension (`archiveOutputMode`): one MP4, one file a stream, or both.
    pub output_mode: Option<OutputMode>,
    /// An extension (`archiveLayout`): a layout in JSON, as when an archive is started.
    pub layout: Option<Layout>,
}

/// Why a session cannot be created.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// The form is longer than [`FORM_BYTES_MAX`].
    #[error("the form has {0} bytes, the limit is {FORM_BYTES_MAX}")]
    TooLarge(usize),
    /// A field has an invalid value.
    #[error("{field} cannot be {value:?}: {expected}")]
    InvalidValue {
        /// The field's name in the form.
        field: &'static str,
        /// The value that was sent, shortened.
        value: String,
        /// The valid values.
        expected: &'static str,
    },
    /// Two fields contradict each other.
    #[error("{0}")]
    Contradiction(&'static str),
}

/// Reads a form.
///
/// # Errors
/// See [`CreateError`].
pub fn parse(body: &[u8]) -> Result<NewSession, CreateError> {
    if body.len() > FORM_BYTES_MAX {
        return Err(CreateError::TooLarge(body.len()));
    }
    let form = FormFields::read(body);
    let session = NewSession {
        media_mode: form.keyword("p2p.preference", MEDIA_MODES, "enabled (relayed) or disabled (routed)")?,
        archive_mode: form.keyword("archiveMode", ARCHIVE_MODES, "manual or always")?,
        location: form.parsed("location", "an IP address")?,
        e2ee: form.keyword("e2ee", BOOLEANS, "true or false")?,
        archive: AutomaticArchive {
            name: form.text("archiveName").map(archive_name).transpose()?,
            resolution: form
                .json_word("archiveResolution", "640x480, 480x640, 1280x720, 720x1280, 1920x1080 or 1080x1920")?,
            output_mode: form.json_word("archiveOutputMode", "composed, individual or both")?,
            layout: form.json("archiveLayout", "a layout in JSON, such as {\"type\":\"pip\"}")?,
        },
    };
    check_combination(&session)?;
    Ok(session)
}

/// Refuses fields that contradict each other.
fn check_combination(session: &NewSession) -> Result<(), CreateError> {
    let (always, relayed) = (session.archive_mode == ArchiveMode::Always, session.media_mode == MediaMode::Relayed);
    let refused = [
        (always && relayed, "archiveMode always needs a routed session: send p2p.preference=disabled"),
        (session.e2ee && relayed, "e2ee needs a routed session: send p2p.preference=disabled"),
        (session.e2ee && always, "a session with e2ee cannot be archived: its media cannot be read"),
        (
            !always && session.archive != AutomaticArchive::default(),
            "archiveName, archiveResolution, archiveOutputMode and archiveLayout are for archiveMode always only",
        ),
        (
            session.archive.output_mode == Some(OutputMode::Individual)
                && (session.archive.resolution.is_some() || session.archive.layout.is_some()),
            "archiveResolution and archiveLayout are for composed archives: archiveOutputMode individual has neither",
        ),
    ];
    refused.into_iter().find(|(refused, _)| *refused).map_or(Ok(()), |(_, why)| Err(CreateError::Contradiction(why)))
}

fn archive_name(name: &str) -> Result<String, CreateError> {
    if name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
        let (field, expected) = ("archiveName", "1 to 80 characters in one line");
        return Err(CreateError::InvalidValue { field, value: shortened(name), expected });
    }
    Ok(name.to_owned())
}

/// The values of `p2p.preference`. The sample in Vonage's documentation sends `routed`.
const MEDIA_MODES: &[(&str, MediaMode)] = &[
    ("", MediaMode::Routed),
    ("disabled", MediaMode::Routed),
    ("routed", MediaMode::Routed),
    ("enabled", MediaMode::Relayed),
    ("relayed", MediaMode::Relayed),
];
const ARCHIVE_MODES: &[(&str, ArchiveMode)] =
    &[("", ArchiveMode::Manual), ("manual", ArchiveMode::Manual), ("always", ArchiveMode::Always)];
const BOOLEANS: &[(&str, bool)] = &[("", false), ("false", false), ("0", false), ("true", true), ("1", true)];

/// The fields of a form. If a name comes twice, the last value counts.
struct FormFields(Vec<(String, String)>);

impl FormFields {
    fn read(body: &[u8]) -> Self {
        let fields = url::form_urlencoded::parse(body);
        Self(fields.map(|(name, value)| (name.into_owned(), value.trim().to_owned())).collect())
    }

    fn text(&self, name: &str) -> Option<&str> {
        let value = self.0.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        value.filter(|value| !value.is_empty() && !["null", "undefined", "None"].contains(value))
    }

    fn invalid_value(&self, field: &'static str, expected: &'static str) -> CreateError {
        CreateError::InvalidValue { field, value: shortened(self.text(field).unwrap_or_default()), expected }
    }

    fn keyword<T: Copy>(
        &self,
        field: &'static str,
        values: &[(&str, T)],
        expected: &'static str,
    ) -> Result<T, CreateError> {
        let value = self.text(field).unwrap_or_default();
        let known = values.iter().find(|(name, _)| name.eq_ignore_ascii_case(value));
        known.map(|(_, value)| *value).ok_or_else(|| self.invalid_value(field, expected))
    }

    fn parsed<T: std::str::FromStr>(
        &self,
        field: &'static str,
        expected: &'static str,
    ) -> Result<Option<T>, CreateError> {
        self.text(field).map(str::parse).transpose().map_err(|_| self.invalid_value(field, expected))
    }

    /// A value that JSON writes as a string.
    fn json_word<T: serde::de::DeserializeOwned>(
        &self,
        field: &'static str,
        expected: &'static str,
    ) -> Result<Option<T>, CreateError> {
        let word = |text: &str| serde_json::from_value(serde_json::Value::String(text.to_owned()));
        self.text(field).map(word).transpose().map_err(|_| self.invalid_value(field, expected))
    }

    fn json<T: serde::de::DeserializeOwned>(
        &self,
        field: &'static str,
        expected: &'static str,
    ) -> Result<Option<T>, CreateError> {
        self.text(field).map(serde_json::from_str).transpose().map_err(|_| self.invalid_value(field, expected))
    }
}

/// A value, shortened for an error message.
fn shortened(value: &str) -> String {
    value.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modes(body: &str) -> (MediaMode, ArchiveMode, bool) {
        let session = parse(body.as_bytes()).unwrap_or_else(|e| panic!("{body}: {e}"));
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
        let session = parse(body.as_bytes()).expect("a session");
        assert_eq!(session.location, Some("203.0.113.7".parse().expect("address")));
        let archive = session.archive;
        assert_eq!(archive.name.as_deref(), Some("Team & guests"));
        assert_eq!((archive.resolution, archive.output_mode), (Some(Resolution::Hd), Some(OutputMode::Both)));
        assert_eq!(archive.layout.map(|layout| layout.kind), Some(crate::model::layout::LayoutType::Pip));
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
        ] {
            let error = parse(body.as_bytes()).expect_err(body).to_string();
            assert!(error.contains(named), "{body}: {error}");
        }
        let long = format!("archiveMode=always&archiveName={}", "x".repeat(81));
        assert!(parse(long.as_bytes()).expect_err("too long").to_string().contains("1 to 80"));
        assert_eq!(parse(&vec![b'a'; FORM_BYTES_MAX + 1]), Err(CreateError::TooLarge(FORM_BYTES_MAX + 1)));
    }
}
