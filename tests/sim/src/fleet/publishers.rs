//! Who sends which frames. Each frame says what it is, so that an archive can be compared with what was sent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use archiver::model::ids::{RoomId, TrackKind};
use archiver::model::media::Codec;
use bytes::Bytes;

use super::Millis;

/// One frame of all that are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrameId {
    /// Its publication.
    pub publication: u32,
    /// Its track.
    pub kind: TrackKind,
    /// Its place in the track, from 0.
    pub n: u32,
}

impl FrameId {
    /// Bytes of the text of an id in a frame.
    const BYTES: usize = 8;

    /// A packet that is a whole frame: Opus, or a keyframe of VP8 behind its payload descriptor.
    pub(super) fn payload(self) -> Bytes {
        let mut bytes = match self.kind {
            // Five frames of 20 ms (RFC 6716, section 3).
            TrackKind::Audio => vec![0x0b, 5],
            // RFC 7741, section 4.2; RFC 6386, section 9.1: 320x240.
            TrackKind::Video => vec![0x10, 0x10, 0, 0, 0x9d, 0x01, 0x2a, 0x40, 0x01, 0xf0, 0x00],
        };
        bytes.extend(self.publication.to_be_bytes());
        bytes.extend(self.n.to_be_bytes());
        bytes.into()
    }

    /// Reads the id of a frame of a log.
    pub(super) fn read(kind: TrackKind, frame: &[u8]) -> Option<Self> {
        let at = frame.len().checked_sub(Self::BYTES)?;
        let (publication, n) = frame[at..].split_at(4);
        let number = |bytes: &[u8]| Some(u32::from_be_bytes(bytes.try_into().ok()?));
        Some(Self { publication: number(publication)?, kind, n: number(n)? })
    }
}

/// The codec of a track.
pub(super) const fn codec(kind: TrackKind) -> Codec {
    match kind {
        TrackKind::Audio => Codec::Opus,
        TrackKind::Video => Codec::Vp8,
    }
}

/// RTP ticks in a second.
pub(super) const fn clock_rate(kind: TrackKind) -> u64 {
    match kind {
        TrackKind::Audio => 48_000,
        TrackKind::Video => 90_000,
    }
}

/// From one frame to the next.
pub(super) const fn interval(kind: TrackKind) -> Millis {
    match kind {
        TrackKind::Audio => 100,
        TrackKind::Video => 200,
    }
}

/// A stream that somebody publishes, from one moment to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// Its number.
    pub number: u32,
    /// Its room.
    pub room: RoomId,
    /// Its id at the router.
    pub router_id: String,
    /// When its first frames are sent.
    pub from: Millis,
    /// When it ends: no frame is sent then, or later.
    pub to: Option<Millis>,
}

impl Publication {
    /// When a frame is sent.
    #[must_use]
    pub const fn sent_at(&self, frame: FrameId) -> Millis {
        self.from + frame.n as Millis * interval(frame.kind)
    }

    /// The frames of a track that are sent in a span, its end included.
    pub(super) fn sent(&self, kind: TrackKind, after: Option<Millis>, until: Millis) -> Vec<FrameId> {
        let step = interval(kind);
        let first = match after {
            Some(after) if after >= self.from => (after - self.from) / step + 1,
            _ => 0,
        };
        let last = self.to.map_or(until, |to| until.min(to.saturating_sub(1)));
        if last < self.from {
            return Vec::new();
        }
        let n = |n: Millis| u32::try_from(n).expect("a simulation is short");
        (first..=(last - self.from) / step).map(|at| FrameId { publication: self.number, kind, n: n(at) }).collect()
    }
}

/// What became of the frames.
#[derive(Debug, Default)]
struct State {
    publications: Vec<Publication>,
    /// Who has each frame on disk: machine and life of its process.
    captured: BTreeMap<FrameId, Vec<Holder>>,
}

/// A process that wrote a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// Its machine.
    pub machine: usize,
    /// When it was written.
    pub at: Millis,
}

/// All publications of a simulation. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Publishers(Arc<Mutex<State>>);

impl Publishers {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody begins to publish. Returns the publication's number.
    pub(super) fn begin(&self, room: &RoomId, router_id: &str, from: Millis) -> u32 {
        let mut state = self.state();
        let number = u32::try_from(state.publications.len()).expect("few");
        let (room, router_id) = (room.clone(), router_id.to_owned());
        state.publications.push(Publication { number, room, router_id, from, to: None });
        number
    }

    /// Whoever publishes under an id at the router ends.
    pub(super) fn end(&self, room: &RoomId, router_id: &str, to: Millis) {
        let mut state = self.state();
        let running = |p: &&mut Publication| p.room == *room && p.router_id == router_id && p.to.is_none();
        state.publications.iter_mut().filter(running).for_each(|publication| publication.to = Some(to));
    }

    /// All publications.
    #[must_use]
    pub fn all(&self) -> Vec<Publication> {
        self.state().publications.clone()
    }

    /// Who has a frame on disk.
    #[must_use]
    pub fn holders(&self, frame: FrameId) -> Vec<Holder> {
        self.state().captured.get(&frame).cloned().unwrap_or_default()
    }

    pub(super) fn captured(&self, frame: FrameId, holder: Holder) {
        self.state().captured.entry(frame).or_default().push(holder);
    }

    /// The newest publication under an id at the router.
    pub(super) fn newest(&self, room: &RoomId, router_id: &str) -> Option<Publication> {
        let state = self.state();
        state.publications.iter().rev().find(|p| p.room == *room && p.router_id == router_id).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publication_sends_each_frame_once_from_its_beginning_to_its_end() {
        let publishers = Publishers::default();
        let room: RoomId = "r".parse().expect("room");
        publishers.begin(&room, "p", 1_000);
        publishers.end(&room, "p", 1_400);
        let publication = publishers.newest(&room, "p").expect("it is there");
        let sent = |after, until| -> Vec<u32> {
            publication.sent(TrackKind::Audio, after, until).into_iter().map(|frame| frame.n).collect()
        };
        for (after, until, expected) in [
            (None, 999, &[][..]),
            (None, 1_000, &[0]),
            (None, 1_199, &[0, 1]),
            (Some(1_000), 1_200, &[1, 2]),
            (Some(1_150), 1_200, &[2]),
            (Some(1_200), 1_299, &[]),
            (Some(900), 5_000, &[0, 1, 2, 3]),
            (Some(1_300), 5_000, &[]),
        ] {
            assert_eq!(sent(after, until), expected, "after {after:?} until {until}");
        }
    }

    #[test]
    fn a_frame_says_what_it_is() {
        for kind in [TrackKind::Audio, TrackKind::Video] {
            let frame = FrameId { publication: 3, kind, n: 70_000 };
            assert_eq!(FrameId::read(kind, &frame.payload()), Some(frame));
        }
        assert_eq!(FrameId::read(TrackKind::Audio, &[1, 2]), None);
    }
}
