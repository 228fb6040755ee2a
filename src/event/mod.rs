//! The contract of session events: CloudEvents 1.0 in structured JSON, and the policy on them. Pure.
//!
//! `fixtures/events/` has the JSON Schema, generated from these types, with valid and invalid samples.

mod json;
pub mod policy;
pub mod stylesheet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stylesheet::Stylesheet;

use crate::fault::{Fault, FaultKind, HasFault};
use crate::ids::{ApplicationId, EventId, JobId, Region, RoomId, RouterName, SessionId, TrackKind};
use crate::time::Wallclock;

/// Largest event, in bytes. Real ones have a few hundred.
pub const EVENT_BYTES_MAX: usize = 64 << 10;
/// Deepest nesting. Real ones have three levels.
pub const EVENT_DEPTH_MAX: usize = 16;
/// Longest archive name in characters (Vonage's SDKs check the same).
pub const NAME_CHARS_MAX: usize = 80;
/// Longest custom style sheet in bytes.
pub const STYLESHEET_BYTES_MAX: usize = 16 << 10;
/// Vonage's range of `quantizationParameter`.
const QUANTIZATION: std::ops::RangeInclusive<u8> = 15..=40;
/// Vonage's range of `maxBitrate`, in bit/s.
const BITRATE: std::ops::RangeInclusive<u32> = 100_000..=6_000_000;

/// Type of a session's start, version 1.
pub const STARTED: &str = "archiver.session.started.v1";
/// Type of a session's end, version 1.
pub const ENDED: &str = "archiver.session.ended.v1";

/// Where the media of a session flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MediaMode {
    /// Through a media router.
    Routed,
    /// Between the clients.
    Relayed,
}

/// When a session is archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ArchiveMode {
    /// When somebody asks for it.
    Manual,
    /// By itself.
    Always,
}

/// What an archive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OutputMode {
    /// One file a stream, in a ZIP.
    Individual,
    /// One MP4.
    #[default]
    Composed,
    /// Both.
    Both,
}

impl OutputMode {
    /// The name in events and in the catalog.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Individual => "individual",
            Self::Composed => "composed",
            Self::Both => "both",
        }
    }
}

/// Vonage's six sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum Resolution {
    #[serde(rename = "640x480")]
    Sd,
    #[serde(rename = "480x640")]
    SdPortrait,
    #[serde(rename = "1280x720")]
    Hd,
    #[serde(rename = "720x1280")]
    HdPortrait,
    #[serde(rename = "1920x1080")]
    Fhd,
    #[serde(rename = "1080x1920")]
    FhdPortrait,
}

impl Resolution {
    /// Width and height in pixels.
    #[must_use]
    pub const fn size(self) -> (u32, u32) {
        match self {
            Self::Sd => (640, 480),
            Self::SdPortrait => (480, 640),
            Self::Hd => (1280, 720),
            Self::HdPortrait => (720, 1280),
            Self::Fhd => (1920, 1080),
            Self::FhdPortrait => (1080, 1920),
        }
    }
}

/// Vonage's layout types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub enum LayoutType {
    #[default]
    BestFit,
    Pip,
    VerticalPresentation,
    HorizontalPresentation,
    Custom,
}

/// How a composed archive looks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Layout {
    /// Its type.
    #[serde(rename = "type", default)]
    pub kind: LayoutType,
    /// Only with, and needed for, `custom`.
    pub stylesheet: Option<String>,
    /// Only with `bestFit`.
    pub screenshare_type: Option<LayoutType>,
}

/// Which streams a composed archive has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StreamMode {
    /// All.
    #[default]
    Auto,
    /// Those that are added while it is recorded.
    Manual,
}

/// What the archive should be like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveOptions {
    /// 1 to 80 characters.
    pub name: Option<String>,
    /// What it is.
    #[serde(default)]
    pub output_mode: OutputMode,
    /// Of a composed archive.
    pub resolution: Option<Resolution>,
    /// Of a composed archive.
    pub layout: Option<Layout>,
    /// Of a composed archive.
    #[serde(default)]
    pub stream_mode: StreamMode,
    /// Whether sound is archived.
    #[serde(default = "yes")]
    pub has_audio: bool,
    /// Whether pictures are archived.
    #[serde(default = "yes")]
    pub has_video: bool,
    /// Quality of a composed picture: 15 to 40, smaller is better. Not together with `maxBitrate`.
    pub quantization_parameter: Option<u8>,
    /// Limit of a composed picture: 100,000 to 6,000,000 bit/s.
    pub max_bitrate: Option<u32>,
    /// Sets it apart from other archives of the session at the same time: 1 to 80 characters. One at a time has none.
    pub multi_archive_tag: Option<String>,
}

impl ArchiveOptions {
    /// Whether tracks of a kind are archived.
    #[must_use]
    pub const fn has(&self, kind: TrackKind) -> bool {
        match kind {
            TrackKind::Audio => self.has_audio,
            TrackKind::Video => self.has_video,
        }
    }
}

const fn yes() -> bool {
    true
}

impl Default for ArchiveOptions {
    fn default() -> Self {
        Self {
            name: None,
            output_mode: OutputMode::default(),
            resolution: None,
            layout: None,
            stream_mode: StreamMode::default(),
            has_audio: true,
            has_video: true,
            quantization_parameter: None,
            max_bitrate: None,
            multi_archive_tag: None,
        }
    }
}

/// Where the session's room is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouterRoom {
    /// The router's name in the configuration: address and secrets are there, never in an event.
    pub name: RouterName,
    /// The room at that router.
    pub room: RoomId,
    /// How one gets in.
    #[serde(default, skip_serializing_if = "RoomAccess::is_shared")]
    pub access: RoomAccess,
}

impl RouterRoom {
    /// A room that is entered with the pin of its router's rooms, if they have one.
    #[must_use]
    pub const fn shared(name: RouterName, room: RoomId) -> Self {
        Self { name, room, access: RoomAccess::Shared }
    }
}

/// How one gets into a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RoomAccess {
    /// With the pin of the router's rooms, if the configuration has one.
    #[default]
    Shared,
    /// With a pin of its own, made of the router's `room_key`: a room that this program created.
    Derived,
}

impl RoomAccess {
    #[allow(clippy::trivially_copy_pass_by_ref)]
    const fn is_shared(&self) -> bool {
        matches!(self, Self::Shared)
    }
}

/// Data of [`STARTED`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Started {
    /// The session.
    pub session_id: SessionId,
    /// Whose session.
    pub application_id: ApplicationId,
    /// Routed or relayed.
    pub media_mode: MediaMode,
    /// Manual or always.
    pub archive_mode: ArchiveMode,
    /// A hint where the clients are: an IP address. What is none is taken for no hint: nothing is lost by it,
    /// but an archive would be if the event were refused.
    #[serde(default, deserialize_with = "hint")]
    #[schemars(with = "Option<String>")]
    pub location: Option<std::net::IpAddr>,
    /// The region whose workers archive it.
    pub region: Region,
    /// Where its room is. A relayed session has none.
    pub router: Option<RouterRoom>,
    /// What the archive should be like.
    #[serde(default)]
    pub archive: ArchiveOptions,
}

fn hint<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<std::net::IpAddr>, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(value.as_str().and_then(|text| text.trim().parse().ok()))
}

/// Data of [`ENDED`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// The session.
    pub session_id: SessionId,
    /// Whose session.
    pub application_id: ApplicationId,
    /// The region whose workers archive it.
    pub region: Region,
}

/// The envelope (CloudEvents 1.0, JSON event format section 3). Further attributes are passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Envelope<T> {
    /// `1.0`.
    pub specversion: String,
    /// Unique for its source: the same id is the same event.
    pub id: EventId,
    /// Who sends it.
    pub source: String,
    /// [`STARTED`] or [`ENDED`].
    #[serde(rename = "type")]
    pub kind: String,
    /// When it happened, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// What happened.
    pub data: T,
}

/// An event that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionEvent {
    /// A session started.
    Started(Box<Envelope<Started>>),
    /// A session ended.
    Ended(Box<Envelope<Ended>>),
}

impl Envelope<Started> {
    /// The job that this event names.
    #[must_use]
    pub fn job(&self) -> JobId {
        JobId::of_event(&self.data.session_id, &self.id)
    }
}

impl<T> Envelope<T> {
    /// When it happened, by its sender's clock. Senders need not say.
    #[must_use]
    pub fn at(&self) -> Option<Wallclock> {
        self.time.as_deref().and_then(Wallclock::parse_rfc3339)
    }
}

/// Why an event is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// Too many bytes, or nested too deeply.
    #[error("the event {what}")]
    Oversized {
        /// What is too much.
        what: String,
    },
    /// Not UTF-8, not JSON, or not an object.
    #[error("the event is not JSON: {what}")]
    Malformed {
        /// Where and why.
        what: String,
    },
    /// Not a version or type that is known.
    #[error("{what}; this program knows CloudEvents 1.0 with the types {STARTED} and {ENDED}")]
    Unknown {
        /// What is not known.
        what: String,
    },
    /// A field is missing, of a wrong type or out of range.
    #[error("field {field}: {what}")]
    Invalid {
        /// Its path.
        field: String,
        /// What is wrong with it.
        what: String,
    },
}

impl HasFault for EventError {
    fn fault(&self) -> Fault {
        match self {
            Self::Oversized { .. } => FaultKind::EventOversized,
            Self::Malformed { .. } => FaultKind::EventMalformed,
            Self::Unknown { .. } => FaultKind::EventUnknown,
            Self::Invalid { .. } => FaultKind::EventInvalid,
        }
        .fault()
    }
}

fn invalid(field: &str, what: impl Into<String>) -> EventError {
    EventError::Invalid { field: field.to_owned(), what: what.into() }
}

/// Reads an event. Bounds are checked before anything is built from it.
///
/// # Errors
/// See [`EventError`].
pub fn parse(bytes: &[u8]) -> Result<SessionEvent, EventError> {
    if bytes.len() > EVENT_BYTES_MAX {
        return Err(EventError::Oversized {
            what: format!("has {} bytes, at most {EVENT_BYTES_MAX} are read", bytes.len()),
        });
    }
    let text = std::str::from_utf8(bytes).map_err(|e| EventError::Malformed { what: format!("{e}") })?;
    let depth = depth(text);
    if depth > EVENT_DEPTH_MAX {
        return Err(EventError::Oversized {
            what: format!("is nested {depth} levels deep, at most {EVENT_DEPTH_MAX} are read"),
        });
    }
    let json::Strict(value) = serde_json::from_str(text).map_err(|e| EventError::Malformed { what: e.to_string() })?;
    let Some(envelope) = value.as_object() else {
        return Err(EventError::Malformed { what: "it is not an object".to_owned() });
    };
    let attribute = |name: &str| match envelope.get(name) {
        None => Err(invalid(name, "is missing; a CloudEvent needs specversion, id, source, type and data")),
        Some(value) => value.as_str().ok_or_else(|| invalid(name, "is not a text")),
    };
    let version = attribute("specversion")?;
    if version != "1.0" {
        let version: String = version.chars().take(100).collect();
        return Err(EventError::Unknown { what: format!("specversion is {version:?}") });
    }
    let source = attribute("source")?;
    if source.is_empty() || source.len() > 1000 {
        return Err(invalid("source", "has no or too many characters"));
    }
    match attribute("type")? {
        STARTED => {
            let event: Envelope<Started> = typed(&value)?;
            check_started(&event.data)?;
            check_time(event.time.as_deref())?;
            Ok(SessionEvent::Started(Box::new(event)))
        }
        ENDED => {
            let event: Envelope<Ended> = typed(&value)?;
            check_time(event.time.as_deref())?;
            Ok(SessionEvent::Ended(Box::new(event)))
        }
        other => {
            Err(EventError::Unknown { what: format!("type is {:?}", other.chars().take(100).collect::<String>()) })
        }
    }
}

fn typed<T: serde::de::DeserializeOwned>(value: &serde_json::Value) -> Result<T, EventError> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let field = e.path().to_string();
        let what: String = e.into_inner().to_string().chars().take(300).collect();
        EventError::Invalid { field, what }
    })
}

fn check_time(time: Option<&str>) -> Result<(), EventError> {
    match time {
        Some(text) if Wallclock::parse_rfc3339(text).is_none() => Err(invalid("time", "is not a time of RFC 3339")),
        _ => Ok(()),
    }
}

fn check_started(data: &Started) -> Result<(), EventError> {
    data.archive.check().map_err(|(field, what)| invalid(&format!("data.archive.{field}"), what))?;
    if data.media_mode == MediaMode::Routed && data.router.is_none() {
        return Err(invalid("data.router", "is missing: a routed session has a room at a media router"));
    }
    Ok(())
}

/// Whether a text can be a name or a tag: 1 to 80 characters in one line.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().count() <= NAME_CHARS_MAX && !text.chars().any(char::is_control)
}

impl ArchiveOptions {
    /// Whether they can be had.
    ///
    /// # Errors
    /// The field that is wrong, and what is wrong with it.
    pub fn check(&self) -> Result<(), (String, String)> {
        let wrong = |field: &str, what: &str| Err((field.to_owned(), what.to_owned()));
        for (field, text) in [("name", &self.name), ("multiArchiveTag", &self.multi_archive_tag)] {
            if text.as_ref().is_some_and(|text| !is_name(text)) {
                return wrong(field, &format!("has none, more than {NAME_CHARS_MAX}, or control characters"));
            }
        }
        if !self.has_audio && !self.has_video {
            return wrong("hasAudio", "is false like hasVideo: nothing would be archived");
        }
        if self.quantization_parameter.is_some_and(|quality| !QUANTIZATION.contains(&quality)) {
            return wrong("quantizationParameter", "is not from 15 to 40");
        }
        if self.max_bitrate.is_some_and(|bits| !BITRATE.contains(&bits)) {
            return wrong("maxBitrate", "is not from 100000 to 6000000");
        }
        if self.max_bitrate.is_some() && self.quantization_parameter.is_some() {
            return wrong("maxBitrate", "does not go with quantizationParameter");
        }
        match &self.layout {
            Some(layout) => layout.check().map_err(|(field, what)| (format!("layout.{field}"), what)),
            None => Ok(()),
        }
    }
}

impl Layout {
    /// Whether it can be one.
    ///
    /// # Errors
    /// The field that is wrong, and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let (sheet, screen) = ("stylesheet", "screenshareType");
        if (self.kind == LayoutType::Custom) != self.stylesheet.is_some() {
            return Err((sheet, "goes with type custom, and only with it".to_owned()));
        }
        if self.stylesheet.as_ref().is_some_and(|s| s.len() > STYLESHEET_BYTES_MAX) {
            return Err((sheet, format!("has more than {STYLESHEET_BYTES_MAX} bytes")));
        }
        if let Some(Err(problem)) = self.stylesheet.as_deref().map(Stylesheet::parse) {
            return Err((sheet, problem.to_string()));
        }
        match self.screenshare_type {
            Some(LayoutType::Custom) => Err((screen, "may not be custom".to_owned())),
            Some(_) if self.kind != LayoutType::BestFit => Err((screen, "goes only with type bestFit".to_owned())),
            _ => Ok(()),
        }
    }
}

/// How deep brackets are nested outside of texts. Cheap, and done before a parser recurses.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest, mut in_text, mut escaped) = (0_usize, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests;
