//! What is wrong with the media of a session's subscribed tracks. The media thread tells of media that does not come, and the log
//! thread of media that cannot be written; the history has one cause. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::ids::{StreamId, TrackId};
use crate::model::media::GapCause;

/// The tracks whose media is missing.
#[derive(Debug, Default)]
pub(super) struct TrackHealth {
    starved: BTreeMap<TrackId, GapCause>,
    /// Frames of these cannot be written.
    failing: BTreeSet<TrackId>,
}

impl TrackHealth {
    /// Why media of a track is missing, if it is.
    pub fn cause(&self, track: TrackId) -> Option<GapCause> {
        if self.failing.contains(&track) { Some(GapCause::Storage) } else { self.starved.get(&track).copied() }
    }

    /// Whether media of any track cannot be written.
    pub fn is_failing(&self) -> bool {
        !self.failing.is_empty() || self.starved.values().any(|cause| *cause == GapCause::Storage)
    }

    /// A stream is gone, and all that was wrong with it.
    pub fn forget(&mut self, stream: StreamId) {
        self.failing.retain(|track| track.stream != stream);
        self.starved.retain(|track, _| track.stream != stream);
    }

    /// Media does not come, or comes again. Returns whether the cause is another one now.
    pub fn set_starved(&mut self, track: TrackId, cause: Option<GapCause>) -> bool {
        self.changes(track, |health| match cause {
            Some(cause) => drop(health.starved.insert(track, cause)),
            None => drop(health.starved.remove(&track)),
        })
    }

    /// Media cannot be written, or can be again. Returns whether the cause is another one now.
    pub fn set_failing(&mut self, track: TrackId, failing: bool) -> bool {
        self.changes(track, |health| {
            if failing {
                health.failing.insert(track);
            } else {
                health.failing.remove(&track);
            }
        })
    }

    fn changes(&mut self, track: TrackId, change: impl FnOnce(&mut Self)) -> bool {
        let before = self.cause(track);
        change(self);
        self.cause(track) != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::{SessionId, TrackKind};

    #[test]
    fn a_disk_that_fails_is_told_until_it_recovers_whatever_the_track_starves_of_meanwhile() {
        let session: SessionId = "s".parse().expect("id");
        let track = |kind| TrackId { stream: StreamId::of_router(&session, "a"), kind };
        let (audio, video) = (track(TrackKind::Audio), track(TrackKind::Video));
        let mut health = TrackHealth::default();
        assert!(health.set_failing(video, true));
        assert!(!health.set_starved(video, Some(GapCause::NotReceived)));
        assert_eq!((health.cause(video), health.cause(audio)), (Some(GapCause::Storage), None));
        assert!(!health.set_starved(video, None), "media comes again, and cannot be written");
        assert!(!health.set_starved(video, Some(GapCause::NotReceived)));
        assert!(health.set_failing(video, false));
        assert_eq!(health.cause(video), Some(GapCause::NotReceived));
        assert!(health.set_starved(video, None) && health.cause(video).is_none());
    }
}
