//! What a session's history says of its tracks: when they were announced, and to what missing media is put down. Pure.

use std::collections::BTreeMap;

use crate::model::ids::{Epoch, StreamId, TrackId, TrackKind};
use crate::model::intervals::{Interval, Intervals};
use crate::model::media::GapCause;
use crate::model::time::{MediaSpan, MediaTime};
use crate::recording::history::{Event, EventKind};

/// All streams that are in a room are announced within this after the first one, by an owner that has just joined.
const JOIN_MAX: MediaSpan = 2_000_000_000;

/// What a session's history says of one track.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TrackHistory {
    /// When the publisher announced it.
    pub announced: Intervals,
    /// The codec's name, as the router gave it last.
    pub codec: String,
    /// What stood in the way of capturing, in the words of whoever said so, each once.
    pub reasons: Vec<String>,
    /// To what missing media is put down, each from a time on, in order.
    pub blame: Vec<(MediaTime, GapCause)>,
}

/// A stream while the history is read.
#[derive(Debug, Default)]
struct Stream {
    /// What keeps it from being captured.
    missing: Option<GapCause>,
    tracks: BTreeMap<TrackKind, Track>,
}

/// An announced track while the history is read.
#[derive(Debug)]
struct Track {
    since: MediaTime,
    muted: bool,
    missing: Option<GapCause>,
}

/// Streams that the owner before knew, until the next owner says whether they are still there.
#[derive(Debug, Default)]
struct Handover {
    streams: BTreeMap<StreamId, Stream>,
    /// When the next owner began.
    at: MediaTime,
    /// The next owner announces all that is there as soon as it has joined the room.
    until: Option<MediaTime>,
}

/// Reads a session's history, in the order of its times.
#[derive(Debug, Default)]
struct Reading {
    streams: BTreeMap<StreamId, Stream>,
    handover: Handover,
    router_lost: bool,
    found: BTreeMap<TrackId, TrackHistory>,
}

/// What a session's history says of its tracks. `alive` is when the owner before an epoch was last seen to work. Announcements
/// that nothing ended end with `end`.
pub(super) fn histories(
    events: &[Event],
    alive: impl Fn(Epoch) -> MediaTime,
    end: MediaTime,
) -> BTreeMap<TrackId, TrackHistory> {
    let mut reading = Reading::default();
    let mut ended = false;
    for (at, event) in events.iter().enumerate() {
        let before = at.checked_sub(1).map(|before| events[before].at);
        match &event.kind {
            EventKind::EpochBegan { epoch, .. } => {
                let died = alive(*epoch).max(before.unwrap_or(event.at)).min(event.at);
                reading.owner_changed(died, event.at);
            }
            EventKind::Ended { .. } => {
                reading.all_gone(event.at);
                ended = true;
            }
            what => reading.event(event.at, what),
        }
    }
    if !ended {
        reading.all_gone(end.max(events.last().map_or(end, |event| event.at)));
    }
    reading.found
}

impl Reading {
    fn event(&mut self, at: MediaTime, what: &EventKind) {
        match what {
            EventKind::Tracks { stream, tracks } => {
                let announced: BTreeMap<TrackKind, &str> =
                    tracks.iter().rev().map(|track| (track.kind, track.codec.as_str())).collect();
                self.announced(at, *stream, &announced);
            }
            EventKind::StreamGone { stream } => {
                if let Some(gone) = self.streams.remove(stream) {
                    self.ended(at, *stream, gone);
                }
            }
            EventKind::Muted { stream, kind, muted } => {
                if let Some(track) = self.streams.get_mut(stream).and_then(|s| s.tracks.get_mut(kind)) {
                    track.muted = *muted;
                }
                self.blame(at, *stream);
            }
            EventKind::Capture { stream, kind, missing, detail } => {
                let Some(known) = self.streams.get_mut(stream) else { return };
                match kind {
                    None => known.missing = *missing,
                    Some(kind) => known.tracks.get_mut(kind).into_iter().for_each(|track| track.missing = *missing),
                }
                let tracks = known.tracks.keys().filter(|of| kind.is_none_or(|kind| kind == **of));
                for kind in tracks.copied().collect::<Vec<_>>() {
                    let reasons = &mut self.found.entry(TrackId { stream: *stream, kind }).or_default().reasons;
                    reasons.extend(detail.iter().filter(|text| !reasons.contains(text)).cloned().collect::<Vec<_>>());
                }
                self.blame(at, *stream);
            }
            EventKind::RouterLost | EventKind::RouterBack => {
                self.router_lost = matches!(what, EventKind::RouterLost);
                for stream in self.streams.keys().copied().collect::<Vec<_>>() {
                    self.blame(at, stream);
                }
            }
            EventKind::EpochBegan { .. }
            | EventKind::Ended { .. }
            | EventKind::Stream { .. }
            | EventKind::Layer { .. }
            | EventKind::Layout { .. }
            | EventKind::Classes { .. }
            | EventKind::StreamMode { .. }
            | EventKind::Selected { .. } => {}
        }
    }

    fn announced(&mut self, at: MediaTime, stream: StreamId, announced: &BTreeMap<TrackKind, &str>) {
        self.confirm(at, stream);
        // It must be subscribed to first: that is ours to do.
        let known =
            self.streams.entry(stream).or_insert(Stream { missing: Some(GapCause::Worker), ..Stream::default() });
        let gone: Vec<TrackKind> = known.tracks.keys().filter(|kind| !announced.contains_key(kind)).copied().collect();
        for kind in gone {
            if let Some(track) = known.tracks.remove(&kind) {
                let found = self.found.entry(TrackId { stream, kind }).or_default();
                found.announced = found.announced.union(&Interval::new(track.since, at).into());
            }
        }
        for (kind, codec) in announced {
            known.tracks.entry(*kind).or_insert(Track { since: at, muted: false, missing: None });
            (*codec).clone_into(&mut self.found.entry(TrackId { stream, kind: *kind }).or_default().codec);
        }
        self.blame(at, stream);
    }

    /// Notes to what media of a stream that is missing from now on is put down.
    fn blame(&mut self, at: MediaTime, stream: StreamId) {
        let Some(known) = self.streams.get(&stream) else { return };
        for (kind, track) in &known.tracks {
            let cause = match (track.muted, self.router_lost) {
                (true, _) => GapCause::NotSent,
                (false, true) => GapCause::Router,
                (false, false) => track.missing.or(known.missing).unwrap_or(GapCause::NotSent),
            };
            let blame = &mut self.found.entry(TrackId { stream, kind: *kind }).or_default().blame;
            if blame.last().is_none_or(|(_, before)| *before != cause) {
                blame.push((at, cause));
            }
        }
    }

    fn ended(&mut self, at: MediaTime, stream: StreamId, gone: Stream) {
        for (kind, track) in gone.tracks {
            let found = self.found.entry(TrackId { stream, kind }).or_default();
            found.announced = found.announced.union(&Interval::new(track.since, at).into());
            // A later announcement begins with a cause of its own.
            found.blame.push((at, GapCause::Worker));
        }
    }

    /// A stream that is announced as soon as the next owner has joined was there all the time.
    fn confirm(&mut self, at: MediaTime, stream: StreamId) {
        if self.handover.streams.is_empty() {
            return;
        }
        let until = *self.handover.until.get_or_insert(at + JOIN_MAX);
        if at <= until
            && let Some(known) = self.handover.streams.remove(&stream)
        {
            self.streams.insert(stream, Stream { missing: Some(GapCause::Worker), ..known });
        }
    }

    fn all_gone(&mut self, at: MediaTime) {
        let Handover { streams, at: began, .. } = std::mem::take(&mut self.handover);
        for (stream, gone) in streams {
            self.ended(began, stream, gone);
        }
        for (stream, gone) in std::mem::take(&mut self.streams) {
            self.ended(at, stream, gone);
        }
    }

    /// Another owner announces anew what is there. Nobody was there between `died` and `at`.
    fn owner_changed(&mut self, died: MediaTime, at: MediaTime) {
        let streams = std::mem::take(&mut self.streams);
        for (stream, known) in &streams {
            for kind in known.tracks.keys() {
                let found = self.found.entry(TrackId { stream: *stream, kind: *kind }).or_default();
                found.blame.push((died, GapCause::Worker));
            }
        }
        self.all_gone(at);
        self.handover = Handover { streams, at, until: None };
        self.router_lost = false;
    }
}
