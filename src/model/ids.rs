//! Identifiers. Each is a type of its own, so that a stream can never be passed for a session.
//!
//! Text that comes from outside is checked once, here, when it is parsed: every id is short, printable
//! and safe as a path component and as part of an object key.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Longest session id in bytes. Vonage's are about 70 characters, Janus accepts any string.
pub const SESSION_ID_BYTES_MAX: usize = 255;
/// Longest application, worker, region or event id in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is empty.
    #[error("{what} is empty")]
    Empty {
        /// Which id.
        what: &'static str,
    },
    /// The text is longer than allowed.
    #[error("{what} has {len} bytes, the limit is {max}")]
    TooLong {
        /// Which id.
        what: &'static str,
        /// Bytes found.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// A character is not allowed.
    #[error("{what} has the character {found:?} at byte {at}; allowed are letters, digits and {allowed}")]
    BadCharacter {
        /// Which id.
        what: &'static str,
        /// The character.
        found: char,
        /// Its place.
        at: usize,
        /// The punctuation that is allowed.
        allowed: &'static str,
    },
    /// The text is not a UUID.
    #[error("{what} is not a UUID")]
    NotUuid {
        /// Which id.
        what: &'static str,
    },
}

fn checked(what: &'static str, text: &str, max: usize, allowed: &'static str) -> Result<String, IdError> {
    if text.is_empty() {
        return Err(IdError::Empty { what });
    }
    if text.len() > max {
        return Err(IdError::TooLong { what, len: text.len(), max });
    }
    let bad = text.char_indices().find(|(_, c)| !c.is_ascii_alphanumeric() && !allowed.contains(*c));
    if let Some((at, found)) = bad {
        return Err(IdError::BadCharacter { what, found, at, allowed });
    }
    // "." and ".." are the only names of allowed characters that mean something to a file system.
    if text.chars().all(|c| c == '.') {
        return Err(IdError::BadCharacter { what, found: '.', at: 0, allowed });
    }
    Ok(text.to_owned())
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:expr, $allowed:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                checked($what, text, $max, $allowed).map(Self)
            }
        }
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "minLength": 1, "maxLength": $max })
            }
        }
    };
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID.
            #[must_use]
            pub const fn from_uuid(id: Uuid) -> Self {
                Self(id)
            }
            /// The UUID.
            #[must_use]
            pub const fn as_uuid(&self) -> &Uuid {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Uuid::try_parse(text).map(Self).map_err(|_| IdError::NotUuid { what: $what })
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }
    };
}

text_id! {
    /// The call. Vonage's session ids are URL-safe base64 with a prefix; any short printable name works.
    SessionId, "session id", SESSION_ID_BYTES_MAX, "-_.~=+:@"
}
text_id! {
    /// The application that owns a session: a UUID (unified) or a numeric API key (legacy).
    ApplicationId, "application id", NAME_BYTES_MAX, "-_"
}
text_id! {
    /// The id of an event, given by its sender (CloudEvents `id`).
    EventId, "event id", NAME_BYTES_MAX, "-_.~=+:@/"
}
text_id! {
    /// A region: one queue each.
    Region, "region", 63, "-_"
}
text_id! {
    /// A media router's name in the configuration, where its address and secrets are.
    RouterName, "router name", NAME_BYTES_MAX, "-_."
}
text_id! {
    /// A room at a media router.
    RoomId, "room", SESSION_ID_BYTES_MAX, "-_.~=+:@"
}
text_id! {
    /// One worker process's place in the fleet: stays the same over its restarts.
    WorkerId, "worker id", NAME_BYTES_MAX, "-_."
}

uuid_id! {
    /// Our duty to archive one session conversation; named by the event that began it.
    JobId, "job id"
}
uuid_id! {
    /// The result of a job.
    ArchiveId, "archive id"
}
uuid_id! {
    /// What one connection publishes.
    StreamId, "stream id"
}
uuid_id! {
    /// One refused or failed thing that waits for a person.
    ParkedId, "parked job id"
}

uuid_id! {
    /// One thing that is told of an archive's change: the same however often it is told, so that a receiver knows it again.
    NoticeId, "notice id"
}

uuid_id! {
    /// A worker's data folder: two workers of one name have different ones.
    InstanceId, "instance id"
}

/// Name space of the ids that are made from other ids.
const NAMESPACE: Uuid = Uuid::from_u128(0x6b2c_41a6_93f4_4f0b_8f5e_2d1c_90d3_77aa);

impl JobId {
    /// The job that an event names. The same event names the same job, however often it arrives.
    #[must_use]
    pub fn of_event(session: &SessionId, event: &EventId) -> Self {
        Self(Uuid::new_v5(&NAMESPACE, format!("job\n{session}\n{event}").as_bytes()))
    }
}

impl ArchiveId {
    /// The archive that a job makes.
    #[must_use]
    pub fn of_job(job: JobId) -> Self {
        Self(Uuid::new_v5(&NAMESPACE, format!("archive\n{job}").as_bytes()))
    }

    /// One that no other archive has: of what a person asks for once more.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl InstanceId {
    /// Of a new data folder.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl StreamId {
    /// Of what is missing when nobody knows which streams there were.
    pub const UNKNOWN: Self = Self(Uuid::nil());

    /// The stream's id at the router where that is a UUID (as the SDKs need it), else one made from it.
    /// Deterministic within a session, so a stream keeps its id over our restarts.
    #[must_use]
    pub fn of_router(session: &SessionId, at_router: &str) -> Self {
        Uuid::try_parse(at_router)
            .map_or_else(|_| Self(Uuid::new_v5(&NAMESPACE, format!("stream\n{session}\n{at_router}").as_bytes())), Self)
    }
}

impl NoticeId {
    /// The notice of an archive's change to a target (`callback` or `event`).
    #[must_use]
    pub fn of(archive: ArchiveId, target: &str, number: i64) -> Self {
        Self(Uuid::new_v5(&NAMESPACE, format!("notice\n{archive}\n{target}\n{number}").as_bytes()))
    }
}

impl ParkedId {
    /// A parked entry is named by what was refused, so that a second delivery of it is the same entry.
    #[must_use]
    pub fn of_content(reason: &str, body: &[u8]) -> Self {
        let mut name = format!("parked\n{reason}\n").into_bytes();
        name.extend_from_slice(body);
        Self(Uuid::new_v5(&NAMESPACE, &name))
    }
}

/// Whether a track is sound or picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TrackKind {
    /// Sound.
    Audio,
    /// Picture.
    Video,
}

impl TrackKind {
    /// `audio` or `video`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Audio => "audio",
            Self::Video => "video",
        }
    }
}

/// One audio or video flow of a stream. Written `<streamId>.audio` or `<streamId>.video`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrackId {
    /// The stream it belongs to.
    pub stream: StreamId,
    /// Sound or picture.
    pub kind: TrackKind,
}

impl fmt::Display for TrackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.stream, self.kind.as_str())
    }
}

impl fmt::Debug for TrackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TrackId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let bad = IdError::NotUuid { what: "track id" };
        let (stream, kind) = text.rsplit_once('.').ok_or(bad.clone())?;
        let kind = match kind {
            "audio" => TrackKind::Audio,
            "video" => TrackKind::Video,
            _ => return Err(bad),
        };
        Ok(Self { stream: stream.parse()?, kind })
    }
}

impl TryFrom<String> for TrackId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<TrackId> for String {
    fn from(id: TrackId) -> String {
        id.to_string()
    }
}

/// The part of a job done by one owner; grows with each owner. Object keys and segment names carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Epoch(pub u32);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_refuse_what_could_leave_their_folder() {
        for bad in ["", ".", "..", "...", "a/b", "a b", "a\n", "é", "a\0", &"x".repeat(256)] {
            assert!(bad.parse::<SessionId>().is_err(), "{bad:?}");
            assert!(bad.parse::<RoomId>().is_err(), "{bad:?}");
        }
        for good in ["1_MX4xMjM0NTY-fn5-", "room.7", "a~b=="] {
            assert!(good.parse::<SessionId>().is_ok(), "{good:?}");
        }
    }

    #[test]
    fn the_same_event_names_the_same_job_and_archive() {
        let session: SessionId = "s1".parse().expect("id");
        let (a, b): (EventId, EventId) = ("e1".parse().expect("id"), "e2".parse().expect("id"));
        assert_eq!(JobId::of_event(&session, &a), JobId::of_event(&session, &a));
        assert_ne!(JobId::of_event(&session, &a), JobId::of_event(&session, &b));
        assert_eq!(ArchiveId::of_job(JobId::of_event(&session, &a)), ArchiveId::of_job(JobId::of_event(&session, &a)));
    }

    #[test]
    fn a_router_uuid_stays_and_other_names_become_one() {
        let session: SessionId = "s1".parse().expect("id");
        let uuid = "2f6f2d9a-8d1c-4b1e-9c41-0b8a7d1f4c11";
        assert_eq!(StreamId::of_router(&session, uuid).to_string(), uuid);
        assert_ne!(StreamId::of_router(&session, "alice"), StreamId::of_router(&session, "bob"));
    }

    #[test]
    fn track_ids_are_written_and_read_back() {
        let session: SessionId = "s1".parse().expect("id");
        let track = TrackId { stream: StreamId::of_router(&session, "alice"), kind: TrackKind::Video };
        assert_eq!(track.to_string().parse::<TrackId>(), Ok(track));
        assert!("x.video".parse::<TrackId>().is_err());
    }
}
