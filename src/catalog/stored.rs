//! Columns of a job that hold JSON.

use serde::de::IgnoredAny;
use serde::{Serialize, Serializer};

use crate::event::{Envelope, EventError, SessionEvent, Started};
use crate::model::desired::Desired;
use crate::model::fault::{Fault, FaultKind, HasFault};
use crate::model::ids::EventId;
use crate::model::job_spec::JobSpec;

/// A column of JSON: the stored text, and the value that was read from it.
///
/// The text is kept because another version of this program may have written it: comparing it, passing it on and showing it to
/// a person must not change it. A text that cannot be read is no error of the row. A worker needs the row's other columns to park
/// the job, and other rows must still be listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored<T, E> {
    text: String,
    value: Result<T, E>,
}

impl<T, E> Stored<T, E> {
    /// The text as it is stored.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The value.
    ///
    /// # Errors
    /// Why the text cannot be read.
    pub const fn value(&self) -> Result<&T, &E> {
        self.value.as_ref()
    }
}

/// The text: people and the API see the column as it is stored.
impl<T, E> Serialize for Stored<T, E> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

/// What a job is to do, stored as the event that said so.
pub type StoredSpec = Stored<JobSpec, SpecError>;

/// Why a job's event cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The text is not an event, or not one of this version.
    #[error(transparent)]
    Event(#[from] EventError),
    /// The event is of another type.
    #[error("the job's event is no start")]
    NotStarted,
}

impl HasFault for SpecError {
    fn fault(&self) -> Fault {
        match self {
            Self::Event(e) => e.fault(),
            Self::NotStarted => FaultKind::CatalogCorrupt.fault(),
        }
    }
}

/// Which event named a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventOrigin {
    /// Its id, unique for its source.
    pub id: EventId,
    /// Who sent it.
    pub source: String,
}

impl StoredSpec {
    /// Reads an event as it came.
    #[must_use]
    pub fn read(text: String) -> Self {
        let value = match crate::event::parse(text.as_bytes()) {
            Ok(SessionEvent::Started(event)) => Ok(JobSpec::from(*event)),
            Ok(SessionEvent::Ended(_)) => Err(SpecError::NotStarted),
            Err(error) => Err(error.into()),
        };
        Self { text, value }
    }

    /// Writes the event of a job that this program starts by itself.
    #[must_use]
    pub fn of(spec: JobSpec) -> Self {
        let text = serde_json::to_string(&Envelope::<Started>::from(spec.clone())).expect("plain data");
        Self { text, value: Ok(spec) }
    }

    /// Which event named the job. It can be known although the event's data cannot be read.
    #[must_use]
    pub fn origin(&self) -> Option<EventOrigin> {
        match &self.value {
            Ok(spec) => Some(EventOrigin { id: spec.event.clone(), source: spec.source.clone() }),
            Err(_) => {
                let Envelope::<IgnoredAny> { id, source, .. } = serde_json::from_str(&self.text).ok()?;
                Some(EventOrigin { id, source })
            }
        }
    }
}

/// What somebody asks of a running archive.
pub type StoredDesired = Stored<Desired, DesiredError>;

/// Why what is desired of an archive cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DesiredError(String);

impl StoredDesired {
    /// Reads what was written, by this version or another.
    #[must_use]
    pub fn read(text: String) -> Self {
        let value = serde_json::from_str(&text).map_err(|e| DesiredError(e.to_string()));
        Self { text, value }
    }

    /// Writes what is desired.
    #[must_use]
    pub fn of(desired: Desired) -> Self {
        let text = serde_json::to_string(&desired).expect("plain data");
        Self { text, value: Ok(desired) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::archive_options::ArchiveOptions;
    use crate::model::layout::{Layout, LayoutType};
    use crate::model::session::{ArchiveMode, MediaMode, RouterRoom};
    use crate::model::time::Wallclock;

    fn spec() -> JobSpec {
        JobSpec {
            event: "bridge-3".parse().expect("id"),
            source: "archiver/bridge".to_owned(),
            started_at: Some(Wallclock(1_800_000_000_123_456)),
            session: "s".parse().expect("id"),
            application: "app".parse().expect("id"),
            media_mode: MediaMode::Routed,
            archive_mode: ArchiveMode::Always,
            location: Some("203.0.113.7".parse().expect("address")),
            region: "eu".parse().expect("region"),
            router: Some(RouterRoom::shared("j".parse().expect("name"), "room".parse().expect("room"))),
            archive: ArchiveOptions { name: Some("N".to_owned()), ..ArchiveOptions::default() },
        }
    }

    #[test]
    fn a_spec_that_is_written_is_the_event_that_is_read() {
        for spec in [spec(), JobSpec { started_at: None, location: None, ..spec() }] {
            let stored = StoredSpec::of(spec.clone());
            assert_eq!(StoredSpec::read(stored.text().to_owned()), stored);
            assert_eq!(stored.value(), Ok(&spec));
        }
    }

    #[test]
    fn the_text_stays_as_another_version_wrote_it() {
        let text = r#" { "layout": {"type":"pip"}, "later": 1 } "#;
        let desired = StoredDesired::read(text.to_owned());
        let pip = Layout { kind: LayoutType::Pip, ..Layout::default() };
        assert_eq!(desired.value(), Ok(&Desired { layout: Some(pip), ..Desired::default() }));
        assert_eq!((desired.text(), serde_json::to_value(&desired).expect("json")), (text, text.into()));
    }

    #[test]
    fn a_text_that_cannot_be_read_has_a_reason_with_a_fault() {
        let event = StoredSpec::of(spec());
        let ended = r#"{"specversion":"1.0","id":"e","source":"p","type":"archiver.session.ended.v1",
            "data":{"sessionId":"s","applicationId":"app","region":"eu"}}"#;
        for (text, kind, origin) in [
            ("no JSON".to_owned(), FaultKind::EventMalformed, None),
            (event.text().replace("started.v1", "started.v9"), FaultKind::EventUnknown, Some("bridge-3")),
            (event.text().replace("\"eu\"", "\"e u\""), FaultKind::EventInvalid, Some("bridge-3")),
            (ended.to_owned(), FaultKind::CatalogCorrupt, Some("e")),
        ] {
            let stored = StoredSpec::read(text.clone());
            assert_eq!(stored.value().expect_err(&text).fault().kind, kind, "{text}");
            assert_eq!(stored.origin().map(|origin| origin.id.to_string()).as_deref(), origin, "{text}");
            assert_eq!(stored.text(), text);
        }
        for text in ["", "no JSON", "[]", r#"{"layout":7}"#] {
            assert!(StoredDesired::read(text.to_owned()).value().is_err(), "{text:?}");
        }
    }
}
