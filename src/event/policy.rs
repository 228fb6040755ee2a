//! The policy: decides whether a session that started is archived. Pure.

use super::Started;
use crate::model::fault::FaultKind;
use crate::model::ids::RouterName;
use crate::model::session::{ArchiveMode, MediaMode};

/// The decision on an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Archive it.
    Archive,
    /// Nothing to archive; only counted.
    Skip(Skip),
    /// Park it.
    Refuse(FaultKind, String),
}

/// Why an event needs no archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// The media does not pass the router.
    Relayed,
    /// Archives of the session are started over the API only.
    Manual,
}

/// Decides on an event. `is_configured` returns whether the configuration has a media router.
#[must_use]
pub fn decide(event: &Started, is_configured: impl Fn(&RouterName) -> bool) -> Decision {
    match (event.media_mode, event.archive_mode) {
        (MediaMode::Relayed, ArchiveMode::Always) => Decision::Refuse(
            FaultKind::PolicyRelayedAlways,
            "a relayed session never passes the media router, so it cannot be archived".to_owned(),
        ),
        (MediaMode::Relayed, ArchiveMode::Manual) => Decision::Skip(Skip::Relayed),
        (MediaMode::Routed, ArchiveMode::Manual) => Decision::Skip(Skip::Manual),
        (MediaMode::Routed, ArchiveMode::Always) => match &event.router {
            Some(router) if !is_configured(&router.name) => Decision::Refuse(
                FaultKind::RouterUnknown,
                format!("the configuration of this worker has no media router called {}", router.name),
            ),
            None => Decision::Refuse(FaultKind::EventInvalid, "field data.router: is missing".to_owned()),
            Some(_) => Decision::Archive,
        },
    }
}
