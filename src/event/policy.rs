//! What is done with a session that started: one pure function.

use super::Started;
use crate::model::fault::FaultKind;
use crate::model::ids::RouterName;
use crate::model::session::{ArchiveMode, MediaMode};

/// The decision on an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Archive it.
    Archive,
    /// Nothing to do; counted.
    Skip(Skip),
    /// Park it.
    Refuse(FaultKind, String),
}

/// Why there is nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// Its media never passes the router.
    Relayed,
    /// Nobody wants it archived by itself.
    Manual,
}

/// Decides on an event. `knows` tells whether the configuration has a router.
#[must_use]
pub fn decide(event: &Started, knows: impl Fn(&RouterName) -> bool) -> Decision {
    match (event.media_mode, event.archive_mode) {
        (MediaMode::Relayed, ArchiveMode::Always) => Decision::Refuse(
            FaultKind::PolicyRelayedAlways,
            "a relayed session never passes the media router, so it cannot be archived".to_owned(),
        ),
        (MediaMode::Relayed, ArchiveMode::Manual) => Decision::Skip(Skip::Relayed),
        (MediaMode::Routed, ArchiveMode::Manual) => Decision::Skip(Skip::Manual),
        (MediaMode::Routed, ArchiveMode::Always) => match &event.router {
            Some(router) if !knows(&router.name) => Decision::Refuse(
                FaultKind::RouterUnknown,
                format!("the configuration of this worker has no media router called {}", router.name),
            ),
            None => Decision::Refuse(FaultKind::EventInvalid, "field data.router: is missing".to_owned()),
            Some(_) => Decision::Archive,
        },
    }
}
