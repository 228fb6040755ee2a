//! Reconciles the known streams of a room with Janus's list of participants. Pure.
//!
//! Notifications are fast but can be missed. The list of participants is complete but has no tracks. When they differ twice in a row,
//! the list is right: a stream that is not in it is gone, and joining the room again returns the tracks of a stream that is not
//! known. One difference proves nothing, because a notification may have overtaken the list.

use std::collections::{BTreeMap, BTreeSet};

use super::wire::{Moderation, Participants};
use crate::router::StreamInfo;

/// Streams of one room that are tracked; Janus's default limit is far lower.
const STREAMS_MAX: usize = 2000;
/// Lists between two attempts to learn the tracks of unknown streams.
const UNKNOWN_EVERY: u32 = 15;

/// What follows from a list of participants.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RosterChange {
    /// Streams that are gone.
    pub gone: Vec<String>,
    /// The room must be joined again.
    pub rejoin: bool,
}

/// The known streams, and the observer's id.
#[derive(Debug, Default)]
pub(super) struct Roster {
    streams: BTreeMap<String, StreamInfo>,
    /// The observer's id.
    own: Option<String>,
    /// Streams that were missing in the last list.
    absent: BTreeSet<String>,
    /// Consecutive lists with unknown streams.
    unknown: u32,
}

impl Roster {
    /// The observer has joined with this id.
    pub fn joined_as(&mut self, own: Option<String>) {
        self.own = own;
        self.absent.clear();
    }

    /// Forgets the streams, not the observer's id.
    pub fn clear(&mut self) {
        self.streams.clear();
        self.absent.clear();
    }

    /// The known streams that a list of publishers does not have.
    pub fn not_in(&self, publishers: &[StreamInfo]) -> Vec<String> {
        let listed: BTreeSet<&str> = publishers.iter().map(|p| p.router_id.as_str()).collect();
        self.streams.keys().filter(|id| !listed.contains(id.as_str())).cloned().collect()
    }

    /// A stream is present. Returns whether it is new or has changed.
    pub fn present(&mut self, stream: &StreamInfo) -> bool {
        self.absent.remove(&stream.router_id);
        let known = self.streams.get(&stream.router_id);
        if known == Some(stream) || (known.is_none() && self.streams.len() >= STREAMS_MAX) {
            return false;
        }
        self.streams.insert(stream.router_id.clone(), stream.clone());
        true
    }

    /// A stream is gone. Returns whether it was known.
    pub fn gone(&mut self, router_id: &str) -> bool {
        self.absent.remove(router_id);
        self.streams.remove(router_id).is_some()
    }

    /// The stream after a moderator muted or unmuted a track; `None` if stream or track are unknown.
    pub fn moderated(&self, moderation: &Moderation) -> Option<StreamInfo> {
        let mut stream = self.streams.get(&moderation.router_id)?.clone();
        stream.tracks.iter_mut().find(|t| t.mid == moderation.mid)?.muted = moderation.muted;
        Some(stream)
    }

    /// Compares Janus's list with the known streams.
    pub fn listed(&mut self, list: &Participants) -> RosterChange {
        let publishing: BTreeSet<&str> = list.publishing.iter().map(String::as_str).collect();
        let absent: BTreeSet<String> =
            self.streams.keys().filter(|id| !publishing.contains(id.as_str())).cloned().collect();
        let gone = absent.intersection(&self.absent).cloned().collect();
        self.absent = absent;
        let room_for_more = self.streams.len() < STREAMS_MAX;
        if room_for_more && publishing.iter().any(|id| !self.streams.contains_key(*id)) {
            self.unknown += 1;
        } else {
            self.unknown = 0;
        }
        // A moderator removed the observer, or the room was created again.
        let kicked = self.own.as_ref().is_some_and(|own| !list.observers.contains(own));
        RosterChange { gone, rejoin: kicked || self.unknown % UNKNOWN_EVERY == 2 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::TrackKind;
    use crate::model::media::VideoType;
    use crate::router::{Signature, TrackInfo};

    fn stream(id: &str) -> StreamInfo {
        let track = TrackInfo {
            mid: "0".to_owned(),
            kind: TrackKind::Video,
            codec: "vp8".to_owned(),
            description: None,
            muted: false,
        };
        StreamInfo {
            router_id: id.to_owned(),
            stream_id: None,
            name: None,
            connection_data: None,
            signature: Signature::Absent,
            video_type: VideoType::Camera,
            tracks: vec![track],
        }
    }

    fn roster() -> Roster {
        let mut roster = Roster::default();
        roster.joined_as(Some("me".to_owned()));
        assert!(roster.present(&stream("a")));
        roster
    }

    fn list(publishing: &[&str], observers: &[&str]) -> Participants {
        let own = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        Participants { clients: publishing.len(), publishing: own(publishing), observers: own(observers) }
    }

    #[test]
    fn a_stream_is_news_once_and_again_when_it_changed() {
        let mut roster = roster();
        assert!(!roster.present(&stream("a")));
        let named = StreamInfo { name: Some("A".to_owned()), ..stream("a") };
        assert!(roster.present(&named));
        assert!(roster.gone("a"));
        assert!(!roster.gone("a"));
    }

    #[test]
    fn a_stream_that_two_lists_in_a_row_do_not_have_is_gone() {
        let mut roster = roster();
        assert!(roster.listed(&list(&[], &["me"])).gone.is_empty());
        assert!(roster.listed(&list(&["a"], &["me"])).gone.is_empty());
        assert!(roster.listed(&list(&[], &["me"])).gone.is_empty());
        assert_eq!(roster.listed(&list(&[], &["me"])), RosterChange { gone: vec!["a".to_owned()], rejoin: false });
    }

    #[test]
    fn who_is_not_in_the_list_enters_anew() {
        let mut roster = roster();
        assert!(!roster.listed(&list(&["a"], &["me", "other"])).rejoin);
        assert!(roster.listed(&list(&["a"], &["other"])).rejoin);
        roster.joined_as(None);
        assert!(!roster.listed(&list(&["a"], &[])).rejoin);
    }

    #[test]
    fn an_unknown_stream_is_asked_for_at_the_second_list_then_seldom() {
        let mut roster = roster();
        let asked: Vec<u32> = (1..=40).filter(|_| roster.listed(&list(&["a", "b"], &["me"])).rejoin).collect();
        assert_eq!(asked, [2, 17, 32]);
        assert!(roster.present(&stream("b")));
        assert!((1..=40).all(|_| !roster.listed(&list(&["a", "b"], &["me"])).rejoin));
    }

    #[test]
    fn a_moderator_switches_one_track() {
        let roster = roster();
        let moderation =
            |id: &str, mid: &str| Moderation { router_id: id.to_owned(), mid: mid.to_owned(), muted: true };
        assert!(roster.moderated(&moderation("a", "0")).expect("stream").tracks[0].muted);
        assert_eq!(roster.moderated(&moderation("a", "9")), None);
        assert_eq!(roster.moderated(&moderation("z", "0")), None);
    }

    #[test]
    fn streams_are_bounded() {
        let mut roster = Roster::default();
        for n in 0..STREAMS_MAX {
            assert!(roster.present(&stream(&n.to_string())));
        }
        assert!(!roster.present(&stream("one more")));
        assert!(!(0..20).any(|_| roster.listed(&list(&["one more"], &[])).rejoin));
    }
}
