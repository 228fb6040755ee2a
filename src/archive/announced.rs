//! What a session's history says of its tracks: when they were announced, and to what missing media is put down. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::ids::{Epoch, StreamId, TrackId, TrackKind};
use crate::model::intervals::{Interval, Intervals};
use crate::model::media::GapCause;
use crate::model::time::{MediaSpan, MediaTime};
use crate::recording::history::{Event, EventKind};

/// An owner announces all streams that are in the room within this after it has joined. So it does when the router is back.
const JOIN_MAX: MediaSpan = 2_000_000_000;

/// From this on, time at the end of a capture of which no history is left is told.
const UNKNOWN_MIN: MediaSpan = 1_000_000_000;
/// From this on, time in which no owner was in the room is told though the next one found no stream: most sessions have none at first.
const UNSEEN_MIN: MediaSpan = 10_000_000_000;
/// From this on, time in which the router could not be reached is told though nobody came. A session at the router outlives a shorter one.
const UNREACHED_MIN: MediaSpan = 30_000_000_000;

/// What stands in the way of capturing a track, from a moment on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blame {
    /// Nothing, as far as is known.
    Nothing,
    /// Signalling with the router is lost. Media may still come.
    Signalling,
    /// Media cannot come, or is known not to.
    Cause(GapCause),
}

/// What a session's history says of one track.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TrackHistory {
    /// When the publisher announced it.
    pub announced: Intervals,
    /// When it was not in the room between two announcements, as the router said. A router that was lost forgets who is there: what
    /// it no longer knows when it is back is not in this set.
    pub absent: Intervals,
    /// The codec's name, as the router gave it last.
    pub codec: String,
    /// What stood in the way of capturing, in the words of whoever said so, each once.
    pub reasons: Vec<String>,
    /// To what missing media is put down, each from a time on, in order.
    pub blame: Vec<(MediaTime, Blame)>,
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
    /// The last that is known of the owner before.
    died: MediaTime,
    /// When the next owner began.
    at: MediaTime,
    /// The next owner has announced all that is there by then. Unknown until it has joined the room.
    until: Option<MediaTime>,
}

/// A time in which nobody knows who published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UnknownTime {
    /// When.
    pub span: Interval,
    /// Why.
    pub why: Unknown,
}

/// Why nobody knows who published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unknown {
    /// The machine that has the history is lost, or not back yet.
    HistoryLost,
    /// No owner had joined the room: what kept them away.
    Unseen(GapCause),
}

impl Unknown {
    /// To what missing media is put down.
    pub const fn cause(self) -> GapCause {
        match self {
            Self::HistoryLost => GapCause::Worker,
            Self::Unseen(cause) => cause,
        }
    }
}

/// A time in which nobody noted who published. What is found behind it may have been there all that time.
#[derive(Debug, Clone, Copy)]
struct Blind {
    /// The last that is known before it.
    since: MediaTime,
    why: Unknown,
    /// All that is there is announced by then. Unknown until an owner has joined the room.
    until: Option<MediaTime>,
}

/// Reads a session's history, in the order of its times.
#[derive(Debug, Default)]
struct Reading {
    streams: BTreeMap<StreamId, Stream>,
    handover: Handover,
    blind: Option<Blind>,
    /// Times of which there is no history, and in which no stream is known to have been there.
    unknown: Vec<UnknownTime>,
    /// Until when an owner is known to have been in the room, if one was.
    seen_until: Option<MediaTime>,
    /// The present owner has joined.
    has_joined: bool,
    /// The owner before it had joined, and was there to the end.
    was_joined: bool,
    /// Older versions do not note that an owner has joined.
    notes_joining: bool,
    /// Since when the router cannot be reached.
    router_lost: Option<MediaTime>,
    /// When the router was back last.
    router_back: Option<MediaTime>,
    /// Tracks that left the room, and when.
    absent: BTreeMap<TrackId, MediaTime>,
    found: BTreeMap<TrackId, TrackHistory>,
}

/// The known ends of a log. They count if its history has no end.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ends {
    /// The last captured frame's end.
    pub log: MediaTime,
    /// When the catalog says that the capture had ended. The machine with the rest of the log is lost, or is not back yet.
    pub capture: Option<MediaTime>,
}

/// What a session's history says of its tracks. `alive` is when the owner before an epoch, which began at a time, was last seen to work.
pub(super) fn histories(
    events: &[Event],
    alive: impl Fn(Epoch, MediaTime) -> MediaTime,
    end: Ends,
) -> BTreeMap<TrackId, TrackHistory> {
    read(events, alive, end).found
}

/// The times of which there is no history, and in which no stream is known to have been there.
pub(super) fn unknown(events: &[Event], alive: impl Fn(Epoch, MediaTime) -> MediaTime, end: Ends) -> Vec<UnknownTime> {
    read(events, alive, end).unknown
}

fn read(events: &[Event], alive: impl Fn(Epoch, MediaTime) -> MediaTime, end: Ends) -> Reading {
    let notes_joining = events.iter().any(|event| event.kind == EventKind::Joined);
    let mut reading = Reading { notes_joining, ..Reading::default() };
    let began = |event: &Event| match event.kind {
        EventKind::EpochBegan { epoch, .. } => Some(epoch.0),
        _ => None,
    };
    let epochs: BTreeSet<u32> = events.iter().filter_map(began).collect();
    let (mut ended, mut newest) = (false, None);
    for (at, event) in events.iter().enumerate() {
        let before = at.checked_sub(1).map(|before| events[before].at);
        match &event.kind {
            EventKind::EpochBegan { epoch, nothing_before, .. } => {
                let alive = alive(*epoch, event.at);
                reading.owner_changed(alive.max(before.unwrap_or(event.at)).min(event.at), event.at);
                // Events before the first of these are of the first epoch. What an archive should be like is noted at the origin.
                let is_of_owner = |event: &Event| !matches!(event.kind, EventKind::StreamMode { .. });
                let before_it = newest.unwrap_or_else(|| u32::from(events[..at].iter().any(is_of_owner)));
                let is_lost = (before_it + 1..epoch.0).any(|missing| !epochs.contains(&missing));
                if is_lost && !nothing_before {
                    reading.history_lost(alive.max(before.unwrap_or_default()).min(event.at), event.at);
                }
                newest = newest.max(Some(epoch.0));
                // An earlier owner may note an end and die before it tells the catalog. Then this owner captures on.
                ended = false;
            }
            EventKind::Ended { .. } => {
                reading.router_was_away(event.at);
                reading.all_gone(event.at);
                ended = true;
            }
            what => reading.event(event.at, what),
        }
    }
    if !ended {
        let known = events.last().map_or(end.log, |event| event.at.max(end.log));
        let ended_at = end.capture.map_or(known, |capture| capture.max(known));
        if ended_at > known {
            // Nobody knows when its streams left, and whether others came.
            reading.owner_changed(known, ended_at);
            if reading.handover.streams.is_empty() && ended_at - known >= UNKNOWN_MIN {
                let span = Interval::new(known, ended_at);
                reading.unknown.push(UnknownTime { span, why: Unknown::HistoryLost });
            }
        }
        reading.all_gone(ended_at);
    }
    reading
}

impl Reading {
    fn event(&mut self, at: MediaTime, what: &EventKind) {
        if self.handover.until.is_some_and(|until| until < at) {
            self.handed_over();
        }
        self.blind = self.blind.filter(|blind| blind.until.is_none_or(|until| at <= until));
        match what {
            EventKind::Tracks { stream, tracks } => {
                let announced: BTreeMap<TrackKind, &str> =
                    tracks.iter().rev().map(|track| (track.kind, track.codec.as_str())).collect();
                self.announced(at, *stream, &announced);
            }
            EventKind::StreamGone { stream } => {
                self.seen(at);
                let forgotten =
                    self.router_lost.is_some() || self.router_back.is_some_and(|back| at - back <= JOIN_MAX);
                if let Some(gone) = self.streams.remove(stream) {
                    for kind in gone.tracks.keys().filter(|_| !forgotten) {
                        self.absent.insert(TrackId { stream: *stream, kind: *kind }, at);
                    }
                    let cause = if forgotten { GapCause::Router } else { GapCause::Worker };
                    self.ended(at, *stream, gone, cause);
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
            EventKind::Unseen { since, cause, owner_seen } => {
                let owner_seen = owner_seen.filter(|_| self.was_joined);
                owner_seen.into_iter().for_each(|seen| self.owner_lived(seen.min(at)));
                let since = owner_seen.map_or(*since, |seen| seen.max(*since));
                self.was_blind(since, at, *cause, UNSEEN_MIN);
            }
            EventKind::Left => self.seen(at),
            EventKind::Joined => {
                self.seen(at);
                self.has_joined = true;
                self.handover.until = Some(at + JOIN_MAX);
                if let Some(blind) = &mut self.blind {
                    blind.until = Some(at + JOIN_MAX);
                }
            }
            EventKind::RouterLost | EventKind::RouterBack => {
                if *what == EventKind::RouterLost {
                    self.router_lost.get_or_insert(at);
                    self.router_back = None;
                } else {
                    self.router_was_away(at);
                    self.router_back = Some(at);
                }
                for stream in self.streams.keys().copied().collect::<Vec<_>>() {
                    self.blame(at, stream);
                }
            }
            EventKind::EpochBegan { .. }
            | EventKind::Ended { .. }
            | EventKind::Stream { .. }
            | EventKind::Layer { .. }
            | EventKind::Encrypted { .. }
            | EventKind::Layout { .. }
            | EventKind::Classes { .. }
            | EventKind::StreamMode { .. }
            | EventKind::Selected { .. } => {}
        }
    }

    fn announced(&mut self, at: MediaTime, stream: StreamId, announced: &BTreeMap<TrackKind, &str>) {
        self.seen(at);
        self.confirm(at, stream);
        let is_new = !self.streams.contains_key(&stream);
        if let Some(blind) = &mut self.blind {
            // An older version did not note that it had joined.
            blind.until.get_or_insert(at + JOIN_MAX);
            // A stream is found, so the time before is told as missing of that stream.
            self.unknown.retain(|unknown| unknown.span.from != blind.since);
        }
        // Nobody knows since when it is there, so all that time is told as missing.
        let blind = self.blind.filter(|_| is_new);
        let since = blind.map_or(at, |blind| blind.since);
        // It must be subscribed to first: that is ours to do.
        let known =
            self.streams.entry(stream).or_insert(Stream { missing: Some(GapCause::Worker), ..Stream::default() });
        let gone: Vec<TrackKind> = known.tracks.keys().filter(|kind| !announced.contains_key(kind)).copied().collect();
        for kind in gone {
            if let Some(track) = known.tracks.remove(&kind) {
                let found = self.found.entry(TrackId { stream, kind }).or_default();
                found.announced = found.announced.union(&Interval::new(track.since, at).into());
                found.blame.push((at, Blame::Cause(GapCause::Worker)));
            }
        }
        // That of a stream that is back, too, which a router forgot with more tracks than it has now.
        for kind in [TrackKind::Audio, TrackKind::Video].into_iter().filter(|kind| !announced.contains_key(kind)) {
            self.absent.entry(TrackId { stream, kind }).or_insert(at);
        }
        for (kind, codec) in announced {
            known.tracks.entry(*kind).or_insert(Track { since, muted: false, missing: None });
            let track = TrackId { stream, kind: *kind };
            let found = self.found.entry(track).or_default();
            if let Some(left) = self.absent.remove(&track).filter(|left| *left < since) {
                found.absent = found.absent.union(&Interval::new(left, since).into());
            }
            if let Some(blind) = blind {
                found.blame.push((since, Blame::Cause(blind.why.cause())));
            }
            (*codec).clone_into(&mut found.codec);
        }
        self.blame(at, stream);
    }

    /// Notes to what media of a stream that is missing from now on is put down.
    fn blame(&mut self, at: MediaTime, stream: StreamId) {
        let Some(known) = self.streams.get(&stream) else { return };
        for (kind, track) in &known.tracks {
            // Without a subscription, what is wrong with a track's media does not count.
            let missing = known.missing.or(track.missing);
            let now = match (missing, self.router_lost.is_some()) {
                _ if track.muted => Blame::Cause(GapCause::NotSent),
                (Some(_), true) => Blame::Cause(GapCause::Router),
                (None, true) => Blame::Signalling,
                (Some(cause), false) => Blame::Cause(cause),
                (None, false) => Blame::Nothing,
            };
            let blame = &mut self.found.entry(TrackId { stream, kind: *kind }).or_default().blame;
            if blame.last().is_none_or(|(_, before)| *before != now) {
                blame.push((at, now));
            }
        }
    }

    /// A stream's announcements end. `cause` is that of media that is missing until it is announced again.
    fn ended(&mut self, at: MediaTime, stream: StreamId, gone: Stream, cause: GapCause) {
        for (kind, track) in gone.tracks {
            let found = self.found.entry(TrackId { stream, kind }).or_default();
            found.announced = found.announced.union(&Interval::new(track.since, at).into());
            found.blame.push((at, Blame::Cause(cause)));
        }
    }

    /// A stream that is announced as soon as the next owner has joined was there all the time. That owner says anew what stands in
    /// the way of capturing it.
    fn confirm(&mut self, at: MediaTime, stream: StreamId) {
        if self.handover.streams.is_empty() {
            return;
        }
        // An older version did not note that it had joined: then its first announcement shows it.
        self.handover.until.get_or_insert(at + JOIN_MAX);
        if let Some(mut known) = self.handover.streams.remove(&stream) {
            known.missing = Some(GapCause::Worker);
            for track in known.tracks.values_mut() {
                (track.muted, track.missing) = (false, None);
            }
            self.streams.insert(stream, known);
        }
    }

    /// Of the time between `since` and `at` no history is left.
    fn history_lost(&mut self, since: MediaTime, at: MediaTime) {
        // A job that waited for its first stream goes on at once, and lacks nothing.
        if at - since >= JOIN_MAX {
            self.blind = Some(Blind { since, why: Unknown::HistoryLost, until: None });
            self.unknown.push(UnknownTime { span: Interval::new(since, at), why: Unknown::HistoryLost });
        }
    }

    /// An owner is in the room.
    fn seen(&mut self, at: MediaTime) {
        self.seen_until = self.seen_until.max(Some(at));
    }

    /// Nobody was in the room since some time, as far as an owner knows that is there now. The history of one that was may have come later.
    /// `told_from`: from how long on it is told though nobody came.
    fn was_blind(&mut self, since: MediaTime, at: MediaTime, cause: GapCause, told_from: MediaSpan) {
        let since = self.seen_until.map_or(since, |seen| seen.max(since));
        let is_longer = self.blind.is_none_or(|blind| since < blind.since);
        if at - since < JOIN_MAX || !is_longer {
            return;
        }
        let why = Unknown::Unseen(cause);
        // What was told before of this time stays told.
        let was_told = self.unknown.extract_if(.., |unknown| unknown.span.from >= since).count() > 0;
        self.blind = Some(Blind { since, why, until: None });
        if was_told || at - since >= told_from {
            self.unknown.push(UnknownTime { span: Interval::new(since, at), why });
        }
    }

    /// The owner before lived until a time, and wrote nothing of tracks that were switched off: they were so until then.
    fn owner_lived(&mut self, until: MediaTime) {
        let Handover { streams, died, .. } = &self.handover;
        for (stream, known) in streams {
            for (kind, _) in known.tracks.iter().filter(|(_, track)| track.muted) {
                let track = TrackId { stream: *stream, kind: *kind };
                let last = self.found.get_mut(&track).and_then(|found| found.blame.last_mut());
                if let Some((at, Blame::Cause(GapCause::Worker))) = last.filter(|(at, _)| at == died) {
                    *at = until.max(*died);
                }
            }
        }
    }

    /// The router is reached again, or is given up. Who came meanwhile was not seen.
    fn router_was_away(&mut self, at: MediaTime) {
        let Some(lost) = self.router_lost.take() else { return };
        self.was_blind(lost, at, GapCause::Router, UNREACHED_MIN);
        if let Some(blind) = &mut self.blind {
            blind.until.get_or_insert(at + JOIN_MAX);
        }
        self.seen(at);
    }

    /// What the next owner has not found left while nobody was there.
    fn handed_over(&mut self) {
        let Handover { streams, at, .. } = std::mem::take(&mut self.handover);
        for (stream, gone) in streams {
            self.ended(at, stream, gone, GapCause::Worker);
        }
    }

    fn all_gone(&mut self, at: MediaTime) {
        self.handed_over();
        for (stream, gone) in std::mem::take(&mut self.streams) {
            self.ended(at, stream, gone, GapCause::Worker);
        }
    }

    /// Another owner announces anew what is there. Nobody was there between `died` and `at`.
    fn owner_changed(&mut self, died: MediaTime, at: MediaTime) {
        let mut streams = std::mem::take(&mut self.streams);
        for (stream, known) in &streams {
            for kind in known.tracks.keys() {
                let found = self.found.entry(TrackId { stream: *stream, kind: *kind }).or_default();
                found.blame.push((died, Blame::Cause(GapCause::Worker)));
            }
        }
        // An owner that did not join, or had no time to announce what is there, says nothing of the streams before it.
        let said_all = self.handover.until.map_or(!self.notes_joining, |until| until <= at);
        if !said_all {
            streams.append(&mut self.handover.streams);
        }
        // While the router was away, its owner saw nothing though it was alive.
        self.was_joined = self.router_lost.is_none() && (self.has_joined || !self.notes_joining);
        if self.was_joined {
            self.seen(died);
        }
        self.has_joined = false;
        self.all_gone(at);
        self.handover = Handover { streams, died, at, until: None };
        self.blind = None;
        (self.router_lost, self.router_back) = (None, None);
    }
}
