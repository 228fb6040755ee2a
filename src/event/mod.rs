//! Session events: CloudEvents 1.0 in structured JSON, and the policy on them. Pure.
//!
//! `fixtures/events/` has the JSON Schema, generated from these types, with valid and invalid samples.

mod json;
pub mod policy;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::archive_options::ArchiveOptions;
use crate::model::fault::{Fault, FaultKind, HasFault};
use crate::model::field_error::FieldError;
use crate::model::ids::{ApplicationId, EventId, JobId, Region, SessionId};
use crate::model::job_spec::JobSpec;
use crate::model::session::{ArchiveMode, MediaMode, RouterRoom};
use crate::model::time::Wallclock;

/// Largest event, in bytes. Real ones have a few hundred.
pub const EVENT_BYTES_MAX: usize = 64 << 10;
/// Deepest nesting. Real ones have three levels.
pub const EVENT_DEPTH_MAX: usize = 16;
/// Type of a session's start, version 1.
pub const STARTED: &str = "archiver.session.started.v1";
/// Type of a session's end, version 1.
pub const ENDED: &str = "archiver.session.ended.v1";

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
    #[serde(default, deserialize_with = "address_or_none")]
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

/// Anything but an IP address is read as no hint.
fn address_or_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<std::net::IpAddr>, D::Error> {
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

/// A parsed event.
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

impl From<Envelope<Started>> for JobSpec {
    fn from(event: Envelope<Started>) -> Self {
        let started_at = event.at();
        let Envelope { id, source, data, .. } = event;
        Self {
            event: id,
            source,
            started_at,
            session: data.session_id,
            application: data.application_id,
            media_mode: data.media_mode,
            archive_mode: data.archive_mode,
            location: data.location,
            region: data.region,
            router: data.router,
            archive: data.archive,
        }
    }
}

impl From<JobSpec> for Envelope<Started> {
    fn from(spec: JobSpec) -> Self {
        Self {
            specversion: "1.0".to_owned(),
            id: spec.event,
            source: spec.source,
            kind: STARTED.to_owned(),
            time: spec.started_at.map(Wallclock::to_rfc3339),
            data: Started {
                session_id: spec.session,
                application_id: spec.application,
                media_mode: spec.media_mode,
                archive_mode: spec.archive_mode,
                location: spec.location,
                region: spec.region,
                router: spec.router,
                archive: spec.archive,
            },
        }
    }
}

impl<T> Envelope<T> {
    /// The time of the event by its sender's clock; optional.
    #[must_use]
    pub fn at(&self) -> Option<Wallclock> {
        self.time.as_deref().and_then(Wallclock::parse_rfc3339)
    }
}

/// Why an event is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages name the fields")]
pub enum EventError {
    /// Too many bytes, or nested too deeply.
    #[error("the event {problem}")]
    Oversized { problem: String },
    /// Not UTF-8, not JSON, or not an object.
    #[error("the event is not JSON: {problem}")]
    Malformed { problem: String },
    /// Unknown version or type.
    #[error("{problem}; this program knows CloudEvents 1.0 with the types {STARTED} and {ENDED}")]
    Unknown { problem: String },
    /// A field is missing, of a wrong type or out of range; `field` is its path.
    #[error("field {field}: {problem}")]
    Invalid { field: String, problem: String },
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

fn invalid(field: &str, problem: impl Into<String>) -> EventError {
    EventError::Invalid { field: field.to_owned(), problem: problem.into() }
}

/// Parses an event. Size and nesting are checked before the JSON is parsed.
///
/// # Errors
/// See [`EventError`].
pub fn parse(bytes: &[u8]) -> Result<SessionEvent, EventError> {
    if bytes.len() > EVENT_BYTES_MAX {
        return Err(EventError::Oversized {
            problem: format!("has {} bytes, at most {EVENT_BYTES_MAX} are read", bytes.len()),
        });
    }
    let text = std::str::from_utf8(bytes).map_err(|e| EventError::Malformed { problem: format!("{e}") })?;
    let depth = nesting_depth(text);
    if depth > EVENT_DEPTH_MAX {
        return Err(EventError::Oversized {
            problem: format!("is nested {depth} levels deep, at most {EVENT_DEPTH_MAX} are read"),
        });
    }
    let json::Strict(value) =
        serde_json::from_str(text).map_err(|e| EventError::Malformed { problem: e.to_string() })?;
    let Some(envelope) = value.as_object() else {
        return Err(EventError::Malformed { problem: "it is not an object".to_owned() });
    };
    let attribute = |name: &str| match envelope.get(name) {
        None => Err(invalid(name, "is missing; a CloudEvent needs specversion, id, source, type and data")),
        Some(value) => value.as_str().ok_or_else(|| invalid(name, "is not a text")),
    };
    let version = attribute("specversion")?;
    if version != "1.0" {
        let version: String = version.chars().take(100).collect();
        return Err(EventError::Unknown { problem: format!("specversion is {version:?}") });
    }
    let source = attribute("source")?;
    if source.is_empty() || source.len() > 1000 {
        return Err(invalid("source", "has no or too many characters"));
    }
    match attribute("type")? {
        STARTED => {
            let event: Envelope<Started> = deserialize_envelope(&value)?;
            check_started(&event.data)?;
            check_time(event.time.as_deref())?;
            Ok(SessionEvent::Started(Box::new(event)))
        }
        ENDED => {
            let event: Envelope<Ended> = deserialize_envelope(&value)?;
            check_time(event.time.as_deref())?;
            Ok(SessionEvent::Ended(Box::new(event)))
        }
        other => {
            Err(EventError::Unknown { problem: format!("type is {:?}", other.chars().take(100).collect::<String>()) })
        }
    }
}

fn deserialize_envelope<T: serde::de::DeserializeOwned>(value: &serde_json::Value) -> Result<T, EventError> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let field = e.path().to_string();
        let problem: String = e.into_inner().to_string().chars().take(300).collect();
        EventError::Invalid { field, problem }
    })
}

fn check_time(time: Option<&str>) -> Result<(), EventError> {
    match time {
        Some(text) if Wallclock::parse_rfc3339(text).is_none() => Err(invalid("time", "is not a time of RFC 3339")),
        _ => Ok(()),
    }
}

fn check_started(data: &Started) -> Result<(), EventError> {
    let wrong = data.archive.check().map_err(|error| error.within("data.archive"));
    wrong.map_err(|FieldError { field, what }| EventError::Invalid { field, problem: what })?;
    if data.media_mode == MediaMode::Routed && data.router.is_none() {
        return Err(invalid("data.router", "is missing: a routed session has a room at a media router"));
    }
    Ok(())
}

/// How deep brackets are nested outside of strings. Checked before a recursive parser reads the text.
fn nesting_depth(text: &str) -> usize {
    let (mut depth, mut max_depth, mut in_text, mut escaped) = (0_usize, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => {
                depth += 1;
                max_depth = max_depth.max(depth);
            }
            b'}' | b']' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    max_depth
}

#[cfg(test)]
mod tests;
