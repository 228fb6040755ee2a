//! What records a session in the random histories. The rules of the tracks are those that record. What the driver, the media thread
//! and the log thread do around them is told again here, without I/O and tasks.

use std::path::Path;

use super::log::Log;
use super::worker::{Link, Meets, Tracks, Worker, kinds};
use crate::model::ids::{Epoch, StreamId, TrackId, TrackKind, WorkerId};
use crate::model::intervals::Interval;
use crate::model::media::GapCause;
use crate::model::time::MediaTime;
use crate::recording::Record;
use crate::recording::history::{Announced, Event, EventKind};
use crate::recording::reader::TrackIndex;
use crate::rtp::track::{Output, RtpInput, TrackOptions, TrackRules};

pub(super) const KINDS: [TrackKind; 2] = [TrackKind::Audio, TrackKind::Video];
/// Milliseconds of a frame.
pub(super) const FRAME: i64 = 100;
/// Milliseconds from a failed subscription to the next one, from a refusal to the next one, and in which a connection must come up.
const RESUBSCRIBE: i64 = 500;
const REFUSED: i64 = 2_000;
const CONNECT_MAX: i64 = 10_000;

pub(super) fn ms(at: i64) -> MediaTime {
    MediaTime::from_millis(at)
}

pub(super) fn track(kind: TrackKind) -> TrackId {
    TrackId { stream: stream(), kind }
}

fn stream() -> StreamId {
    "00000000-0000-4000-8000-000000000001".parse().expect("id")
}

/// The workers of a session, one after the other, and all that they write.
#[derive(Default)]
pub(super) struct Recorder {
    pub now: i64,
    pub history: Vec<Event>,
    logs: [Log; 2],
    epoch: u32,
    pub worker: Option<Worker>,
    pub disk_fails: bool,
    /// A keyframe was requested.
    pub wants_keyframe: bool,
}

impl Recorder {
    pub fn is_connected(&self) -> bool {
        self.worker.as_ref().is_some_and(Worker::is_connected)
    }

    pub fn knows_stream(&self) -> bool {
        self.worker.as_ref().is_some_and(|worker| worker.stream.is_some())
    }

    fn note(&mut self, kind: EventKind) {
        self.history.push(Event { at: ms(self.now), kind });
    }

    pub fn begin(&mut self, knows_ends: bool) {
        self.epoch += 1;
        let worker: WorkerId = "worker-1".parse().expect("id");
        self.note(EventKind::EpochBegan { epoch: Epoch(self.epoch), worker, nothing_before: false });
        self.worker = Some(Worker::new(knows_ends));
    }

    /// The worker ends: it hands over, or is killed.
    pub fn end(&mut self, killed: bool) {
        if !killed {
            self.source_lost(GapCause::Worker);
        }
        self.worker = None;
        for log in &mut self.logs {
            log.close(killed, self.epoch, self.disk_fails);
        }
    }

    /// The session ends: a worker notes that, the next one if there is none.
    pub fn session_ended(&mut self) {
        if self.worker.is_none() {
            self.begin(true);
        }
        self.note(EventKind::Ended { reason: "session ended".to_owned() });
        self.end(false);
    }

    /// The worker joins the room, if it has not yet.
    pub fn join(&mut self) -> bool {
        let now = self.now;
        let Some(worker) = self.worker.as_mut().filter(|worker| worker.joined.is_none()) else { return false };
        worker.joined = Some(now);
        self.note(EventKind::Joined);
        true
    }

    /// The worker notices that the router is away, if it has joined.
    pub fn router_lost(&mut self) -> bool {
        let Some(worker) = self.worker.as_mut().filter(|worker| worker.joined.is_some()) else { return false };
        worker.router_lost = true;
        self.note(EventKind::RouterLost);
        true
    }

    /// Signalling is back. A router that was restarted has ended all subscriptions; its room may be made later than it is back.
    /// Returns whether the worker knows that nobody is there.
    pub fn router_back(&mut self, restarted: bool, late_room: bool) -> bool {
        let now = self.now;
        if !self.worker.as_ref().is_some_and(|worker| worker.router_lost) {
            return false;
        }
        if restarted && self.worker.as_ref().is_some_and(Worker::is_subscribed) {
            self.unlink(GapCause::Router, true);
        }
        if restarted && late_room {
            self.hear(None, false);
        }
        if let Some(worker) = &mut self.worker {
            worker.router_lost = false;
            if let Link::None { retry } = &mut worker.link {
                *retry = now;
            }
        }
        self.note(EventKind::RouterBack);
        restarted && late_room
    }

    /// What is in the room now.
    pub fn hear(&mut self, there: Option<Tracks>, limited: bool) {
        let Some(worker) = self.worker.as_mut().filter(|worker| worker.stream != there) else { return };
        let known = std::mem::replace(&mut worker.stream, there);
        let Some(tracks) = there else {
            self.unlink(GapCause::NotSent, false);
            return self.note(EventKind::StreamGone { stream: stream() });
        };
        if kinds(known) != kinds(there) {
            let announced = |kind: TrackKind| Announced { mid: kind.as_str().to_owned(), kind, codec: String::new() };
            let all = (0..2).filter(|kind| tracks[*kind].is_some()).map(|kind| announced(KINDS[kind])).collect();
            self.note(EventKind::Tracks { stream: stream(), tracks: all });
        }
        for kind in (0..2).filter(|kind| !kinds(known)[*kind] && tracks[*kind].is_some()) {
            if let Some(trouble) = self.worker.as_ref().and_then(|worker| worker.trouble(kind)) {
                self.note_track(kind, Some(trouble));
            }
        }
        for (kind, muted) in tracks.iter().enumerate().filter_map(|(kind, track)| Some((kind, (*track)?))) {
            let before = known.unwrap_or_default()[kind];
            if before.unwrap_or(false) != muted {
                self.note(EventKind::Muted { stream: stream(), kind: KINDS[kind], muted });
            }
            if before != Some(muted) {
                self.with_rules(kind, |rules, now, out| rules.set_publisher_muted(muted, now, out));
            }
        }
        let (now, Some(worker)) = (self.now, &mut self.worker) else { return };
        if known.is_none() {
            worker.link = Link::None { retry: now };
            worker.over_limit = limited;
            worker.noted = Some(GapCause::Worker);
            worker.unsupported = [false; 2];
            if limited {
                self.note_capture(Some(GapCause::Limit));
            }
        }
        self.unlink_if_changed();
    }

    fn unlink_if_changed(&mut self) {
        let changed =
            |worker: &Worker| matches!(worker.link, Link::Live { tracks, .. } if tracks != kinds(worker.stream));
        if self.worker.as_ref().is_some_and(changed) {
            self.unlink(GapCause::Worker, true);
        }
    }

    pub fn place_is_free(&mut self) {
        let now = self.now;
        if let Some(worker) = self.worker.as_mut().filter(|worker| worker.over_limit && worker.stream.is_some()) {
            (worker.over_limit, worker.link) = (false, Link::None { retry: now });
            self.note_capture(Some(GapCause::Worker));
        }
    }

    /// The connection, or the subscription, is lost.
    pub fn unlink(&mut self, cause: GapCause, again: bool) {
        let now = self.now;
        let Some(worker) = &mut self.worker else { return };
        let link = std::mem::replace(&mut worker.link, Link::None { retry: now + RESUBSCRIBE });
        if matches!(link, Link::Live { .. }) {
            self.source_lost(cause);
        }
        if again {
            self.note_capture(Some(cause));
        }
    }

    fn source_lost(&mut self, cause: GapCause) {
        for kind in 0..2 {
            self.with_rules(kind, |rules, now, out| rules.source_lost(cause, now, out));
        }
    }

    fn note_capture(&mut self, missing: Option<GapCause>) {
        let Some(worker) = &mut self.worker else { return };
        if std::mem::replace(&mut worker.noted, missing) != missing {
            self.note(EventKind::Capture { stream: stream(), kind: None, missing, detail: None });
        }
    }

    fn note_track(&mut self, kind: usize, missing: Option<GapCause>) {
        self.note(EventKind::Capture { stream: stream(), kind: Some(KINDS[kind]), missing, detail: None });
    }

    /// The negotiation refused these tracks, and no others.
    pub fn note_unsupported(&mut self, now: [bool; 2]) {
        let Some(worker) = &mut self.worker else { return };
        let before = std::mem::replace(&mut worker.unsupported, now);
        for kind in (0..2).filter(|kind| before[*kind] || now[*kind]) {
            let trouble = self.worker.as_ref().and_then(|worker| worker.trouble(kind));
            self.note_track(kind, if now[kind] { Some(GapCause::Unsupported) } else { trouble });
        }
    }

    /// What is not subscribed to is subscribed to, or the attempt fails.
    pub fn subscribe(&mut self, meets: Meets) {
        let now = self.now;
        let Some(worker) = &mut self.worker else { return };
        let tracks = kinds(worker.stream);
        match worker.link {
            Link::None { retry } if retry <= now && tracks != [false; 2] && !worker.over_limit => {
                worker.link = Link::Pending { until: now + meets.takes, tracks };
            }
            Link::Pending { until, tracks } if until <= now => self.attempt_ended(tracks, meets),
            Link::Live { since, connected: false, tracks } if meets.path && now - since >= meets.takes => {
                worker.link = Link::Live { since, connected: true, tracks };
                self.note_capture(None);
                for kind in 0..2 {
                    self.with_rules(kind, |rules, now, out| rules.source_connected(now, out));
                }
            }
            Link::Live { since, connected: false, .. } if now - since > CONNECT_MAX => {
                self.unlink(GapCause::Router, true);
            }
            _ => {}
        }
    }

    fn attempt_ended(&mut self, tracks: [bool; 2], meets: Meets) {
        let now = self.now;
        let Some(worker) = &mut self.worker else { return };
        let unsupported = [0, 1].map(|kind| tracks[kind] && !meets.supported[kind]);
        let (cause, pause) = match meets {
            Meets { router: false, .. } => (GapCause::Router, RESUBSCRIBE),
            Meets { refuses: true, .. } => (GapCause::Refused, REFUSED),
            _ if unsupported == tracks => (GapCause::Unsupported, REFUSED),
            _ => {
                worker.link = Link::Live { since: now, connected: false, tracks };
                self.note_unsupported(unsupported);
                return self.unlink_if_changed();
            }
        };
        worker.link = Link::None { retry: now + pause };
        if worker.noted != Some(cause) {
            self.note_unsupported(unsupported.map(|refused| refused && cause == GapCause::Unsupported));
            self.note_capture(Some(cause));
        }
    }

    /// Acts on the rules of a track, if media or a report of it came already.
    fn with_rules(&mut self, kind: usize, act: impl FnOnce(&mut TrackRules, MediaTime, &mut Vec<Output>)) {
        let Some(rules) = self.worker.as_mut().and_then(|worker| worker.rules[kind].as_mut()) else { return };
        let mut out = Vec::new();
        act(rules, ms(self.now), &mut out);
        for output in out {
            match output {
                Output::Frame(frame) => {
                    let to = frame.pts + frame.duration.unwrap_or(FRAME * 1_000_000);
                    self.logs[kind].frame(Interval::new(frame.pts, to), self.epoch, self.disk_fails);
                }
                Output::Gap(gap) => self.logs[kind].records.push(Record::Gap(gap)),
                Output::RequestKeyframe { .. } => self.wants_keyframe = true,
                Output::Format(_) | Output::SenderReport(_) | Output::ClockBegins(_) => {}
            }
        }
    }

    fn begin_rules(&mut self, kind: usize) {
        let Some(worker) = self.worker.as_mut().filter(|worker| worker.rules[kind].is_none()) else { return };
        let mut rules = TrackRules::new(KINDS[kind], TrackOptions::default(), ms(self.now));
        if let Some(end) = self.logs[kind].end().filter(|_| worker.knows_ends) {
            rules.continue_from(end, GapCause::Worker);
        }
        worker.rules[kind] = Some(rules);
    }

    pub fn packet(&mut self, kind: usize, packet: RtpInput) {
        self.begin_rules(kind);
        self.with_rules(kind, |rules, _, out| rules.push(packet, out));
    }

    pub fn report(&mut self, kind: usize, packets: u32) {
        self.begin_rules(kind);
        self.with_rules(kind, |rules, now, _| rules.packets_sent(packets, now));
    }

    pub fn tick(&mut self) {
        for kind in 0..2 {
            self.with_rules(kind, |rules, now, out| rules.tick(now, out));
            self.logs[kind].tick(ms(self.now), self.epoch, self.disk_fails);
            let (now, failing) = (ms(self.now), self.logs[kind].failing);
            let Some(worker) = &mut self.worker else { return };
            let starved = worker.rules[kind].as_ref().and_then(|rules| rules.starved(now));
            let before = worker.trouble(kind);
            worker.storage[kind] = failing;
            worker.starved[kind] = starved;
            let trouble = worker.trouble(kind);
            if trouble != before && !worker.unsupported[kind] {
                self.note_track(kind, trouble);
            }
        }
    }

    /// Frames could not be written, and none was since.
    pub const fn is_failing(&self, kind: usize) -> bool {
        self.logs[kind].failing
    }

    /// Up to when a track has frames.
    pub fn written(&self, kind: usize) -> MediaTime {
        self.logs[kind].end().unwrap_or_default()
    }

    /// When something was written last.
    pub fn last_sign(&self) -> MediaTime {
        let noted = self.history.last().map(|event| event.at);
        self.logs.iter().filter_map(Log::end).chain(noted).max().unwrap_or_default()
    }

    /// The log as the archive is made from it.
    pub fn tracks(&mut self) -> Vec<TrackIndex> {
        let index = |(kind, log): (TrackKind, &mut Log)| {
            TrackIndex::of_records(track(kind), Path::new("log"), std::mem::take(&mut log.records))
        };
        KINDS.into_iter().zip(&mut self.logs).map(index).collect()
    }

    pub fn frames(&self, kind: usize) -> &[Interval] {
        &self.logs[kind].frames
    }
}
