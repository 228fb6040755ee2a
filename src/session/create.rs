//! What a new session is to be: the form of `POST /session/create`, with the quirks of each SDK. Pure.
//!
//! Liberal in what is accepted: a form whatever its label says, booleans in any case, empty fields and the word `null` as if
//! they were not there, fields that are not known passed over. What contradicts itself is refused by name: a session that
//! would not be archived as its creator believes is worse than an error.

use std::net::IpAddr;

use crate::model::archive_options::{NAME_CHARS_MAX, OutputMode, Resolution};
use crate::model::layout::Layout;
use crate::model::session::{ArchiveMode, MediaMode};

/// Longest form, in bytes: the style sheet of a layout is by far the most of it.
pub const FORM_BYTES_MAX: usize = 64 << 10;

/// A session that somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSession {
    /// Where its media flows. Routed unless asked otherwise (Vonage's default of the server; some SDKs always ask).
    pub media_mode: MediaMode,
    /// When it is archived.
    pub archive_mode: ArchiveMode,
    /// Where its first client is: the nearest media router is chosen.
    pub location: Option<IpAddr>,
    /// Media is encrypted from client to client.
    pub e2ee: bool,
    /// What its automatic archives are.
    pub archive: AutomaticArchive,
}

/// What the automatic archives of a session are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AutomaticArchive {
    /// Their name.
    pub name: Option<String>,
    /// Their size.
    pub resolution: Option<Resolution>,
    /// Ours (`archiveOutputMode`): one MP4, one file a stream, or both.
    pub output_mode: Option<OutputMode>,
    /// Ours (`archiveLayout`): a layout in JSON, as when an archive is started.
    pub layout: Option<Layout>,
}

/// Why a session cannot be created.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// The form is larger than any that makes sense.
    #[error("the form has {0} bytes, the limit is {FORM_BYTES_MAX}")]
    TooLarge(usize),
    /// A field has a value that it cannot have.
    #[error("{field} cannot be {value:?}: {expected}")]
    Value {
        /// Its name on the wire.
        field: &'static str,
        /// What was sent.
        value: String,
        /// What may be sent.
        expected: &'static str,
    },
    /// Two fields contradict each other.
    #[error("{0}")]
    Together(&'static str),
}

/// Reads a form.
///
/// # Errors
/// See [`CreateError`].
pub fn parse(body: &[u8]) -> Result<NewSession, CreateError> {
    if body.len() > FORM_BYTES_MAX {
        return Err(CreateError::TooLarge(body.len()));
    }
    let form = Form::read(body);
    let session = NewSession {
        media_mode: form.one_of("p2p.preference", MEDIA_MODES, "enabled (relayed) or disabled (routed)")?,
        archive_mode: form.one_of("archiveMode", ARCHIVE_MODES, "manual or always")?,
        location: form.parsed("location", "an IP address")?,
        e2ee: form.one_of("e2ee", BOOLEANS, "true or false")?,
        archive: AutomaticArchive {
            name: form.text("archiveName").map(archive_name).transpose()?,
            resolution: form
                .json_word("archiveResolution", "640x480, 480x640, 1280x720, 720x1280, 1920x1080 or 1080x1920")?,
            output_mode: form.json_word("archiveOutputMode", "composed, individual or both")?,
            layout: form.json("archiveLayout", "a layout in JSON, such as {\"type\":\"pip\"}")?,
        },
    };
    check(&session)?;
    Ok(session)
}

/// What must not come together.
fn check(session: &NewSession) -> Result<(), CreateError> {
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
    refused.into_iter().find(|(refused, _)| *refused).map_or(Ok(()), |(_, why)| Err(CreateError::Together(why)))
}

fn archive_name(name: &str) -> Result<String, CreateError> {
    if name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
        let (field, expected) = ("archiveName", "1 to 80 characters in one line");
        return Err(CreateError::Value { field, value: shortened(name), expected });
    }
    Ok(name.to_owned())
}

/// The values of `p2p.preference`; the documentation's own sample sends `routed`.
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

/// Fields of a form; of one that comes twice the last counts.
struct Form(Vec<(String, String)>);

impl Form {
    fn read(body: &[u8]) -> Self {
        let fields = url::form_urlencoded::parse(body);
        Self(fields.map(|(name, value)| (name.into_owned(), value.trim().to_owned())).collect())
    }

    fn text(&self, name: &str) -> Option<&str> {
        let value = self.0.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        value.filter(|value| !value.is_empty() && !["null", "undefined", "None"].contains(value))
    }

    fn bad(&self, field: &'static str, expected: &'static str) -> CreateError {
        CreateError::Value { field, value: shortened(self.text(field).unwrap_or_default()), expected }
    }

    fn one_of<T: Copy>(
        &self,
        field: &'static str,
        values: &[(&str, T)],
        expected: &'static str,
    ) -> Result<T, CreateError> {
        let value = self.text(field).unwrap_or_default();
        let known = values.iter().find(|(name, _)| name.eq_ignore_ascii_case(value));
        known.map(|(_, value)| *value).ok_or_else(|| self.bad(field, expected))
    }

    fn parsed<T: std::str::FromStr>(
        &self,
        field: &'static str,
        expected: &'static str,
    ) -> Result<Option<T>, CreateError> {
        self.text(field).map(str::parse).transpose().map_err(|_| self.bad(field, expected))
    }

    /// A word that stands for a value, as it would in JSON.
    fn json_word<T: serde::de::DeserializeOwned>(
        &self,
        field: &'static str,
        expected: &'static str,
    ) -> Result<Option<T>, CreateError> {
        let word = |text: &str| serde_json::from_value(serde_json::Value::String(text.to_owned()));
        self.text(field).map(word).transpose().map_err(|_| self.bad(field, expected))
    }

    fn json<T: serde::de::DeserializeOwned>(
        &self,
        field: &'static str,
        expected: &'static str,
    ) -> Result<Option<T>, CreateError> {
        self.text(field).map(serde_json::from_str).transpose().map_err(|_| self.bad(field, expected))
    }
}

/// As much of a value as belongs into an error.
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
