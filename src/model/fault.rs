//! The one taxonomy of failures.
//!
//! Each module has its own error type; each of its variants maps to one [`Fault`], and the fault alone
//! decides the log level, whether a delivery is acked, the back-off, parking, HTTP status and callback text.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Whose doing it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blame {
    /// This program or its machine.
    Ours,
    /// Where media and events come from: publisher, media router, broker.
    Source,
    /// Where archives go: storage, catalog.
    Destination,
    /// Who asked: an event, a command, a configuration.
    Request,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retry {
    /// At once.
    Now,
    /// With back-off, for hours if need be.
    Backoff,
    /// Never by itself: a person must act.
    Never,
}

macro_rules! fault_kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $blame:ident, $retry:ident, $advice:literal;)*) => {
        /// A closed list; the snake_case names are metric labels, parking reasons and README headings.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum FaultKind {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
        }

        impl FaultKind {
            /// All kinds.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The stable name.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The fault of this kind.
            #[must_use]
            pub const fn fault(self) -> Fault {
                match self { $(Self::$name => Fault { kind: self, blame: Blame::$blame, retry: Retry::$retry },)* }
            }

            /// What a person should do.
            #[must_use]
            pub const fn advice(self) -> &'static str {
                match self { $(Self::$name => $advice,)* }
            }
        }
    };
}

fault_kinds! {
    /// An event is not JSON, not UTF-8, or not a CloudEvent.
    EventMalformed = "event_malformed", Request, Never, "mend the sender of the event; `archiver jobs show` has the body as it came";
    /// An event is larger or deeper than allowed.
    EventOversized = "event_oversized", Request, Never, "mend the sender: an event is a few hundred bytes";
    /// An event's type, version or schema is unknown.
    EventUnknown = "event_unknown", Request, Never, "update this program, or publish the version it knows, then replay";
    /// A field of an event is missing, of a wrong type or out of range.
    EventInvalid = "event_invalid", Request, Never, "mend the named field at the sender, publish a new event, discard this one";
    /// Media mode relayed together with archive mode always: such a session never passes the router.
    PolicyRelayedAlways = "policy_relayed_always", Request, Never, "create the session with media mode routed, or archive mode manual";
    /// An event names a media router that the configuration does not have.
    RouterUnknown = "router_unknown", Request, Never, "add the router to the configuration and replay";
    /// The media router cannot be reached or answers with a passing error.
    RouterUnavailable = "router_unavailable", Source, Backoff, "check the router's address and health";
    /// The room does not exist at the router.
    RoomNotFound = "room_not_found", Source, Backoff, "create the room, or check its name in the event, then replay";
    /// The router refused: wrong secret, pin or token.
    RouterRefused = "router_refused", Source, Never, "check api_secret, token, pin and room_key of the router in the configuration, and [router.rooms.\"…\"] token for a room with a list of tokens, then replay";
    /// The router sent something that breaks its own protocol.
    RouterProtocol = "router_protocol", Source, Backoff, "check the router's version";
    /// The broker cannot be reached.
    BrokerUnavailable = "broker_unavailable", Source, Backoff, "check the broker; running captures go on";
    /// The broker refused the login or the topology.
    BrokerRefused = "broker_refused", Source, Backoff, "check the broker's user, virtual host and existing queue arguments";
    /// The catalog cannot be reached.
    CatalogUnavailable = "catalog_unavailable", Destination, Backoff, "check the database; captures go on";
    /// The catalog has something that must not be.
    CatalogCorrupt = "catalog_corrupt", Destination, Never, "restore the database, or rebuild it from the manifests";
    /// The store cannot be reached, or answers with a passing error.
    StoreUnavailable = "store_unavailable", Destination, Backoff, "check the object store; captured media waits in the spool";
    /// The store refused: wrong key, no permission, no such bucket.
    StoreRefused = "store_refused", Destination, Backoff, "check bucket, keys and permissions; captured media waits in the spool";
    /// What the store holds is not what was sent.
    StoreCorrupt = "store_corrupt", Destination, Backoff, "check the object store: size or checksum of an uploaded object differ";
    /// The spool is full.
    SpoolFull = "spool_full", Ours, Backoff, "give the spool more room, or mend the store so that it drains";
    /// A local file cannot be read or written.
    SpoolIo = "spool_io", Ours, Backoff, "check the spool's disk and permissions";
    /// GStreamer failed: an element is missing, or a pipeline ended with an error.
    MediaPipeline = "media_pipeline", Ours, Backoff, "run `archiver check`; look at the element that is named";
    /// A pipeline made no progress.
    MediaStalled = "media_stalled", Ours, Backoff, "the machine is overloaded, or an element hangs; try again";
    /// No track of a composed archive can be decoded.
    MediaUndecodable = "media_undecodable", Source, Never, "record sessions that are encrypted end to end as individual archives: these hold the media as it came";
    /// A finished file is not what the log says it should be.
    ArchiveInvalid = "archive_invalid", Ours, Never, "captured media is safe: `archiver jobs replay` makes the archive again";
    /// The configuration is wrong.
    ConfigInvalid = "config_invalid", Request, Never, "mend the named keys";
    /// A thing that was asked for is not there.
    NotFound = "not_found", Request, Never, "check the id";
    /// The thing is in a state in which this cannot be done.
    Conflict = "conflict", Request, Never, "look at its state, and try again when it has changed";
    /// Too much of it waits already.
    Busy = "busy", Request, Backoff, "wait until some of what was asked for is done, then ask again";
    /// Something was asked for that cannot be had.
    RequestInvalid = "request_invalid", Request, Never, "ask otherwise: the error says what can be had";
    /// An application's callback was not taken.
    CallbackFailed = "callback_failed", Destination, Backoff, "check the receiver at the application's callback URL; `archiver callbacks list` says what it answered, `archiver callbacks resend` sends it once more";
    /// A defect of this program.
    Bug = "bug", Ours, Backoff, "report it with the log lines around it";
}

/// What a failure means for those who must go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fault {
    /// What it is.
    pub kind: FaultKind,
    /// Whose doing.
    pub blame: Blame,
    /// What next.
    pub retry: Retry,
}

impl std::fmt::Display for FaultKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for FaultKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .iter()
            .copied()
            .find(|k| k.as_str() == text)
            .ok_or_else(|| format!("no fault kind is called {text:?}"))
    }
}

/// An error that knows its fault. Every module error implements it with an exhaustive match.
pub trait HasFault: std::error::Error {
    /// The one fault of this error.
    fn fault(&self) -> Fault;
}

/// Capped back-off with jitter, for retries that last as long as an outage.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// The first wait.
    pub first: Duration,
    /// The longest wait.
    pub max: Duration,
}

impl Backoff {
    /// The wait before try `attempt` (0 is the first retry). `jitter` in 0..1 picks a point in the upper
    /// half of the interval, so that a fleet does not come back in step.
    #[must_use]
    pub fn delay(&self, attempt: u32, jitter: f64) -> Duration {
        let full = self.first.saturating_mul(1_u32.checked_shl(attempt.min(20)).unwrap_or(u32::MAX)).min(self.max);
        full.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
    }
}

/// An error with its causes on one line, for logs and people.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_name_and_reads_back() {
        for kind in FaultKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(*kind));
            assert_eq!(kind.fault().kind, *kind);
            assert!(!kind.advice().is_empty());
        }
        assert!("nonsense".parse::<FaultKind>().is_err());
    }

    #[test]
    fn back_off_doubles_to_its_cap_and_keeps_half() {
        let backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(60) };
        assert_eq!(backoff.delay(0, 1.0), Duration::from_secs(1));
        assert_eq!(backoff.delay(3, 1.0), Duration::from_secs(8));
        assert_eq!(backoff.delay(3, 0.0), Duration::from_secs(4));
        assert_eq!(backoff.delay(30, 1.0), Duration::from_secs(60));
        assert_eq!(backoff.delay(u32::MAX, 0.0), Duration::from_secs(30));
    }
}
