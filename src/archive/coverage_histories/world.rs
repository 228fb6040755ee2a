//! A session in simulated time: a publisher, a media router, and the way from there to the worker that records.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::chance::{Chance, Random};
use super::recorder::{FRAME, Recorder, ms};
use super::truth::Truth;
use super::worker::{Meets, Tracks};
use crate::model::media::{Codec, GapCause};
use crate::rtp::track::RtpInput;

const CODECS: [Codec; 2] = [Codec::Pcmu, Codec::Vp8];
/// A whole keyframe, and a frame that is none, as VP8 packets (RFC 7741).
const KEYFRAME: &[u8] = &[0x10, 0, 0, 0, 0x9d, 0x01, 0x2a, 0x80, 0x02, 0xe0, 0x01, 1];
const INTER_FRAME: &[u8] = &[0x10, 0x01, 1];
const AUDIO: &[u8] = &[0xff; 800];
/// A worker has heard of all that is in the room so many milliseconds after it joined, with a step for the news.
pub(super) const HEARD: i64 = 2_000 + FRAME;

/// What a publisher sends of one kind. Times are in milliseconds.
#[derive(Clone, Copy, Default)]
pub(super) struct Source {
    pub added: bool,
    pub supported: bool,
    pub muted_until: i64,
    /// Nothing is sent, and nobody says so.
    pub silent_until: i64,
    pub packets: u32,
    pub sequence: u64,
}

/// The way from the router to the worker.
pub(super) enum Path {
    Up,
    /// Packets are lost until then.
    Lossy(i64),
    /// Nothing comes, and the worker notices it then.
    Broken(i64),
}

/// The router cannot be reached by signalling.
pub(super) struct Outage {
    /// It was restarted: it has no streams and no subscriptions.
    pub restarted: bool,
    pub noticed_at: i64,
    pub back_at: i64,
    /// Its room is made later than it is back.
    pub late_room: bool,
}

pub(super) struct World {
    pub random: Random,
    pub recorder: Recorder,
    /// How often each thing happened.
    pub happened: BTreeMap<Chance, u64>,
    /// How it was with each track in each step.
    pub truths: Vec<[Truth; 2]>,
    pub present: bool,
    /// The router knows the publisher.
    pub published: bool,
    pub publishes_at: i64,
    /// How often it was published: each time it is another one for the router.
    publication: u64,
    /// The publication that a worker heard of.
    heard_of: u64,
    pub sources: [Source; 2],
    pub path: Path,
    pub outage: Option<Outage>,
    /// When the last outage ended.
    back_at: i64,
    pub refuses_until: i64,
    pub limited_until: i64,
    /// The router sends reports and no media.
    pub blocked_until: i64,
    pub disk_fails_until: i64,
    /// When the next worker begins.
    pub starts_at: i64,
    /// What a worker heard of last.
    pub known: Tracks,
    /// That worker had heard of all that was there.
    pub heard_all: bool,
    /// A muted track was sent meanwhile, and the worker did not hear that it was switched on.
    pub unmuted: [bool; 2],
    /// The router that is back did not have the stream any more, and it has not come back.
    pub forgot: bool,
    /// Packets are of no use, or did not come, as reports say, since the last frame.
    pub unseen: [bool; 2],
    /// Packets were lost on the way since the last that came.
    pub lossy: [bool; 2],
    /// The step in which the first frame came over the connection that is there: since then a gap in the numbers can be seen.
    pub heard: [Option<usize>; 2],
}

impl World {
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            recorder: Recorder::default(),
            happened: BTreeMap::new(),
            truths: Vec::new(),
            present: false,
            published: false,
            publishes_at: 0,
            publication: 0,
            heard_of: 0,
            sources: [Source::default(); 2],
            path: Path::Up,
            outage: None,
            back_at: i64::MIN / 2,
            refuses_until: 0,
            limited_until: 0,
            blocked_until: 0,
            disk_fails_until: 0,
            starts_at: 0,
            known: [None; 2],
            heard_all: true,
            unmuted: [false; 2],
            forgot: false,
            unseen: [false; 2],
            lossy: [false; 2],
            heard: [None; 2],
        }
    }

    pub const fn now(&self) -> i64 {
        self.recorder.now
    }

    pub fn step(&mut self) {
        self.router();
        self.way();
        self.worker();
        self.chance();
        self.news();
        self.subscribe();
        for kind in 0..2 {
            self.media(kind);
        }
        self.recorder.tick();
        let truths = [0, 1].map(|kind| self.truth(kind));
        self.truths.push(truths);
        self.recorder.now += FRAME;
    }

    /// The router is back, or is noticed to be away; it takes the publisher.
    fn router(&mut self) {
        let now = self.now();
        if let Some(Outage { restarted, noticed_at, back_at, late_room }) = self.outage {
            if now == noticed_at && self.recorder.router_lost() {
                self.both_noticed(GapCause::Router);
            }
            if now >= back_at {
                (self.outage, self.back_at) = (None, now);
                self.forgot |= !self.published && self.recorder.knows_stream();
                if self.recorder.router_back(restarted, late_room) {
                    self.known = [None; 2];
                }
            }
        }
        if self.present && !self.published && now >= self.publishes_at && !self.is_restarting() {
            self.published = true;
            self.publication += 1;
        }
        if now == self.limited_until {
            self.recorder.place_is_free();
        }
    }

    /// The way to the worker is up again, or is noticed to be broken.
    fn way(&mut self) {
        let now = self.now();
        match self.path {
            Path::Broken(noticed_at) if now >= noticed_at => {
                self.path = Path::Up;
                if self.recorder.is_connected() {
                    self.recorder.unlink(GapCause::Router, true);
                    self.both_noticed(GapCause::Router);
                }
            }
            Path::Lossy(until) if now >= until => self.path = Path::Up,
            _ => {}
        }
    }

    fn worker(&mut self) {
        let now = self.now();
        self.recorder.disk_fails = now < self.disk_fails_until;
        if self.recorder.worker.is_none() && now >= self.starts_at {
            // It may be on another machine, with a store that is slow.
            let knows_ends = self.random.below(4) > 0;
            self.recorder.begin(knows_ends);
        }
    }

    fn both_noticed(&mut self, cause: GapCause) {
        for kind in 0..2 {
            self.noticed(kind, cause);
        }
    }

    fn is_restarting(&self) -> bool {
        self.outage.as_ref().is_some_and(|outage| outage.restarted)
    }

    /// The worker has heard of the publication that is there.
    pub const fn is_heard_of(&self) -> bool {
        self.published && self.heard_of == self.publication
    }

    pub fn is_silent(&self, kind: usize) -> bool {
        self.now() < self.sources[kind].silent_until
    }

    /// Media would come.
    pub fn receives(&self) -> bool {
        self.is_heard_of() && matches!(self.path, Path::Up) && self.recorder.is_connected()
    }

    /// What the worker hears of the room.
    fn news(&mut self) {
        let now = self.now();
        if self.outage.is_some() || self.recorder.worker.is_none() {
            return;
        }
        // A publisher that left while the router was away, or just after, cannot be told from one that a restarted router forgot.
        self.forgot |= !self.is_heard_of() && self.recorder.knows_stream() && now - self.back_at <= HEARD;
        let there = self.sources.map(|source| source.added.then_some(now < source.muted_until));
        let there = self.published.then_some(there);
        let joins = self.recorder.join();
        if self.heard_of != self.publication {
            self.recorder.hear(None, false);
        }
        self.heard_of = self.publication;
        self.recorder.hear(there, now < self.limited_until);
        self.known = there.unwrap_or_default();
        self.unmuted = [0, 1].map(|kind| self.unmuted[kind] && self.known[kind] == Some(true));
        self.forgot &= self.known == [None; 2];
        let known = self.known;
        for kind in (0..2).filter(|kind| joins && known[*kind].is_some()) {
            self.noticed(kind, GapCause::Worker);
        }
    }

    fn subscribe(&mut self) {
        let meets = Meets {
            router: self.outage.is_none() && self.published,
            refuses: self.now() < self.refuses_until,
            supported: self.sources.map(|source| source.supported),
            path: !self.is_restarting() && !matches!(self.path, Path::Broken(_)),
            takes: FRAME * (1 + self.random.below(4)),
        };
        self.recorder.subscribe(meets);
    }

    fn media(&mut self, kind: usize) {
        let now = self.now();
        let (muted, blocked) = (now < self.sources[kind].muted_until, now < self.blocked_until);
        let sent = self.published && self.sources[kind].added && !muted && !self.is_silent(kind);
        self.sources[kind].packets += u32::from(sent);
        self.sources[kind].sequence += u64::from(sent && !blocked);
        if !self.recorder.worker.as_ref().is_some_and(|worker| worker.receives(kind)) || !self.is_heard_of() {
            (self.unseen[kind], self.lossy[kind], self.heard[kind]) = (false, false, None);
            return;
        }
        self.unseen[kind] |= sent && blocked;
        self.lossy[kind] |= sent && !blocked && matches!(self.path, Path::Lossy(_));
        if !matches!(self.path, Path::Up) {
            return;
        }
        if sent && !blocked {
            self.deliver(kind);
        }
        if now % 1_000 == 0 {
            self.recorder.report(kind, self.sources[kind].packets);
        }
    }

    /// A packet comes to the worker.
    fn deliver(&mut self, kind: usize) {
        let now = self.now();
        let payload = match kind {
            0 => AUDIO,
            _ if std::mem::take(&mut self.recorder.wants_keyframe) => KEYFRAME,
            _ => INTER_FRAME,
        };
        let packet = RtpInput {
            codec: CODECS[kind],
            seq: self.sources[kind].sequence,
            rtp: u32::try_from(now * i64::from(CODECS[kind].clock_rate()) / 1_000).expect("short"),
            marker: kind == 1,
            payload: Bytes::from_static(payload),
            arrived: ms(now),
        };
        self.recorder.packet(kind, packet);
        if std::mem::take(&mut self.lossy[kind]) {
            self.noticed(kind, GapCause::Network);
            self.lossy_since_the_last_frame(kind);
        }
        if payload != INTER_FRAME {
            self.heard[kind].get_or_insert(self.truths.len());
        }
        self.unmuted[kind] |= self.known[kind] == Some(true);
        // A decoder cannot begin with what comes before a keyframe.
        self.unseen[kind] = self.heard[kind].is_none();
    }
}
