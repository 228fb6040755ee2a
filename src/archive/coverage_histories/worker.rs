//! A worker in one epoch of a random history: what of `job::room_session` the session's history depends on.

use crate::model::media::GapCause;
use crate::rtp::track::TrackRules;

/// The tracks of a stream, as the router announces them: whether each is muted.
pub(super) type Tracks = [Option<bool>; 2];

pub(super) fn kinds(tracks: Option<Tracks>) -> [bool; 2] {
    tracks.unwrap_or_default().map(|track| track.is_some())
}

pub(super) enum Link {
    None { retry: i64 },
    Pending { until: i64, tracks: [bool; 2] },
    Live { since: i64, connected: bool, tracks: [bool; 2] },
}

/// What a subscription meets.
#[derive(Clone, Copy)]
pub(super) struct Meets {
    /// The router can be reached, and knows the stream.
    pub router: bool,
    pub refuses: bool,
    pub supported: [bool; 2],
    /// Media comes through.
    pub path: bool,
    /// How long the requests take, in milliseconds.
    pub takes: i64,
}

/// A worker in one epoch.
pub(super) struct Worker {
    pub joined: Option<i64>,
    /// Signalling is lost, as it has noted.
    pub router_lost: bool,
    pub stream: Option<Tracks>,
    pub link: Link,
    pub over_limit: bool,
    /// Why the stream is not captured, as the history has it.
    pub noted: Option<GapCause>,
    pub unsupported: [bool; 2],
    pub rules: [Option<TrackRules>; 2],
    pub starved: [Option<GapCause>; 2],
    pub storage: [bool; 2],
    /// Earlier segments were fetched.
    pub knows_ends: bool,
}

impl Worker {
    pub const fn new(knows_ends: bool) -> Self {
        Self {
            joined: None,
            router_lost: false,
            stream: None,
            link: Link::None { retry: 0 },
            over_limit: false,
            noted: None,
            unsupported: [false; 2],
            rules: [None, None],
            starved: [None; 2],
            storage: [false; 2],
            knows_ends,
        }
    }

    pub fn receives(&self, kind: usize) -> bool {
        !self.unsupported[kind] && matches!(self.link, Link::Live { connected: true, tracks, .. } if tracks[kind])
    }

    /// What is wrong with a track's media.
    pub fn trouble(&self, kind: usize) -> Option<GapCause> {
        if self.storage[kind] { Some(GapCause::Storage) } else { self.starved[kind] }
    }

    pub const fn is_subscribed(&self) -> bool {
        matches!(self.link, Link::Live { .. })
    }

    pub fn is_connected(&self) -> bool {
        matches!(self.link, Link::Live { connected: true, .. })
    }
}
