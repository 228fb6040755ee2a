//! Which time of which announced track is missing from the log, and why. Pure.
//!
//! The promise of an archive: each second of each announced track is in the log, or in a gap that has one cause. The log notes
//! the gaps that its writer saw: between two frames. Nobody writes down a track that never came, nor the end of one that fell
//! silent. Both follow from the session's history: it has which tracks were announced, and what stood in the way of capturing.

use std::collections::BTreeMap;

use crate::model::archive_options::ArchiveOptions;
use crate::model::ids::{Epoch, StreamId, TrackId, TrackKind};
use crate::model::intervals::{Interval, Intervals};
use crate::model::media::{Gap, GapCause, MissingMedia};
use crate::model::time::{MediaSpan, MediaTime};
use crate::recording::history::{Event, EventKind};
use crate::recording::reader::TrackIndex;

const SECOND: MediaSpan = 1_000_000_000;
const MILLISECOND: MediaSpan = 1_000_000;
/// Frames may be this far apart: the earlier one lasts as long. By default the log notes a longer pause (`[capture] stall`).
const FRAME_MAX: MediaSpan = 2 * SECOND;
/// All streams that are in a room are announced within this after the first one, by an owner that has just joined.
const JOIN_MAX: MediaSpan = 2 * SECOND;
/// What is missing at the beginning or end of an announced track for less than this is the time that signalling takes.
const EDGE_MAX: MediaSpan = SECOND;

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
    blame: Vec<(MediaTime, GapCause)>,
}

impl TrackHistory {
    fn cause_at(&self, at: MediaTime) -> GapCause {
        self.blame.iter().take_while(|(from, _)| *from <= at).last().map_or(GapCause::Worker, |(_, cause)| *cause)
    }

    /// An interval in pieces of one cause each. A piece that is no longer than signalling takes goes with the piece after it: the
    /// time to subscribe is no cause of its own.
    fn split(&self, whole: Interval) -> Vec<Gap> {
        let inner = self.blame.iter().map(|(from, _)| *from).filter(|at| whole.from < *at && *at < whole.to);
        let mut edges: Vec<MediaTime> = std::iter::once(whole.from).chain(inner).collect();
        edges.push(whole.to);
        let mut gaps: Vec<Gap> = Vec::new();
        let mut begun = whole.from;
        for piece in edges.windows(2).map(|w| Interval::new(w[0], w[1])).filter(|piece| !piece.is_empty()) {
            if piece.len() < EDGE_MAX {
                continue;
            }
            gaps.push(Gap { from: begun, to: piece.to, cause: self.cause_at(piece.from) });
            begun = piece.to;
        }
        match gaps.last_mut() {
            Some(last) => last.to = whole.to,
            None => gaps.push(Gap { from: whole.from, to: whole.to, cause: self.cause_at(whole.to + (-1)) }),
        }
        gaps
    }

    /// All that is missing of the track, in order and without overlap. `captured` is the time of its frames, `logged` the gaps
    /// that the log has.
    pub(super) fn missing(&self, captured: &Intervals, logged: &[Gap]) -> Vec<Gap> {
        // While a track is not announced, nothing is sent, and a worker need not be there. What a router or a disk lost was sent: a
        // router that is restarted forgets its streams. Older versions noted no announcements: all that is known is the log.
        let counts = |gap: &Gap| {
            let whole = Intervals::from(Interval::new(gap.from, gap.to));
            match gap.cause {
                GapCause::NotSent | GapCause::Worker if !self.announced.is_empty() => {
                    whole.intersection(&self.announced)
                }
                _ => whole,
            }
        };
        let mut known = captured.clone();
        let mut gaps = Vec::new();
        for gap in logged {
            let rest = counts(gap).without(&known);
            gaps.extend(rest.iter().map(|one| Gap { from: one.from, to: one.to, cause: gap.cause }));
            known = known.union(&rest);
        }
        let rest = self.announced.without(&known.bridged(FRAME_MAX));
        gaps.extend(rest.iter().filter(|one| one.len() >= EDGE_MAX).flat_map(|one| self.split(one)));
        gaps.sort_by_key(|gap| gap.from);
        joined(gaps)
    }
}

/// Gaps that touch and have one cause become one.
fn joined(gaps: Vec<Gap>) -> Vec<Gap> {
    let mut out: Vec<Gap> = Vec::with_capacity(gaps.len());
    for gap in gaps {
        match out.last_mut() {
            Some(last) if last.to == gap.from && last.cause == gap.cause => last.to = gap.to,
            _ => out.push(gap),
        }
    }
    out
}

/// What a report says of a track's coverage.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TrackCoverage {
    /// The codec's name as it was announced; empty if it was not.
    pub codec: String,
    /// What stood in the way of capturing.
    pub details: Vec<String>,
    /// What is missing, in order and without overlap.
    pub gaps: Vec<Gap>,
}

/// The coverage of all tracks that were announced or captured, of the kinds that the archive has.
pub(super) fn of_log(
    tracks: &[TrackIndex],
    events: &[Event],
    options: &ArchiveOptions,
) -> BTreeMap<TrackId, TrackCoverage> {
    let parts = || tracks.iter().flat_map(|track| &track.segments).flat_map(|s| s.parts.iter().map(|p| (s.epoch, p)));
    let alive = |epoch: Epoch| parts().filter(|(of, _)| *of < epoch).map(|(_, p)| p.to).max().unwrap_or_default();
    let end = parts().map(|(_, part)| part.to).max().unwrap_or_default();
    let mut found = histories(events, alive, end);
    for track in tracks {
        found.entry(track.track).or_default();
    }
    let log = |id: &TrackId| tracks.iter().find(|track| track.track == *id);
    let covered = |(id, history): (TrackId, TrackHistory)| {
        let (captured, logged) = log(&id).map(|track| (captured(track), track.missing())).unwrap_or_default();
        let gaps = history.missing(&captured, &logged);
        (id, TrackCoverage { codec: history.codec, details: history.reasons, gaps })
    };
    found.into_iter().filter(|(id, _)| options.has(id.kind)).map(covered).collect()
}

/// The time of a track's frames.
fn captured(track: &TrackIndex) -> Intervals {
    track.segments.iter().flat_map(|segment| &segment.parts).map(|part| Interval::new(part.from, part.to)).collect()
}

/// The media that an archive lacks, the longest first.
pub(super) fn lacking(coverage: &BTreeMap<TrackId, TrackCoverage>) -> Vec<MissingMedia> {
    let mut all = Vec::new();
    for (track, covered) in coverage {
        let mut by_cause: BTreeMap<GapCause, MediaSpan> = BTreeMap::new();
        for gap in covered.gaps.iter().filter(|gap| gap.cause.is_loss()) {
            *by_cause.entry(gap.cause).or_default() += gap.to - gap.from;
        }
        all.extend(by_cause.into_iter().map(|(cause, span)| MissingMedia {
            stream_id: track.stream,
            kind: track.kind,
            cause,
            duration_ms: span / MILLISECOND,
            details: covered.details.clone(),
        }));
    }
    all.sort_by_key(|one| std::cmp::Reverse(one.duration_ms));
    all
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
