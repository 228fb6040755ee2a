//! The rules of one track: from packets as they arrive to frames as they are written. Pure.
//!
//! - Nothing waits without need: with no packet missing, a frame leaves as soon as its last packet is there,
//!   for what waits here is lost when the process dies.
//! - A missing packet is waited for as long as a retransmission may take; then it is lost, counted once, and
//!   the frame it belonged to is dropped. Frames that are whole are all kept, in order, once.
//! - A picture begins with a keyframe. Keyframes cost every viewer of the session, so they are asked for
//!   sparingly: at the beginning, after a loss, when media resumes, and when pictures became smaller.
//! - Time that passes without media is a gap with a cause, except where the codec says that it is silence.

mod frames;
mod jitter_buffer;
mod keyframes;
#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::Bytes;

use super::clock::{Fit, Pause, TrackClock};
use super::depacketize::{Depacketizer, Edges};
use crate::model::ids::TrackKind;
use crate::model::media::{Codec, Frame, Gap, GapCause, SenderReport, TrackFormat, TrackStats};
use crate::model::time::{MediaSpan, MediaTime, NtpTime, ticks_to_span};
use jitter_buffer::{Held, Placed, Queue};
use keyframes::Keyframes;

const MS: MediaSpan = 1_000_000;
/// A packet of another sequence waits this long for its successor, which proves that the sequence is real.
const STRAY_MAX: MediaSpan = 1_000 * MS;
/// How far behind a stray packet its successor may be.
const STRAY_AHEAD_MAX: u64 = 100;
/// Packets that come this long after the publisher stopped were sent before.
const MUTED_LATE_MAX: MediaSpan = 1_000 * MS;
/// A repaired packet and its neighbour are on the same clock when their RTP times are this near.
const NEIGHBOUR_MAX: MediaSpan = 10_000 * MS;

/// The limits of the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackOptions {
    /// How long a missing packet of a picture is waited for.
    pub video_hold: Duration,
    /// How long a missing packet of sound is waited for: Janus retransmits none, so only reordering counts.
    pub audio_hold: Duration,
    /// Time without media after which it is a gap and not a slow picture or silence.
    pub stall: Duration,
    /// The least time between two requests for a keyframe. While one does not come, the pauses grow.
    pub keyframe_interval_min: Duration,
    /// A keyframe is asked for when none came for so long; `None` never asks without a reason.
    pub keyframe_interval_max: Option<Duration>,
}

impl Default for TrackOptions {
    fn default() -> Self {
        Self {
            video_hold: Duration::from_millis(1500),
            audio_hold: Duration::from_millis(200),
            stall: Duration::from_secs(2),
            keyframe_interval_min: Duration::from_secs(1),
            keyframe_interval_max: None,
        }
    }
}

/// A packet as it arrived.
#[derive(Debug, Clone)]
pub struct RtpInput {
    /// By its payload type.
    pub codec: Codec,
    /// Extended over the wrap.
    pub seq: u64,
    /// RTP timestamp.
    pub rtp: u32,
    /// The marker bit.
    pub marker: bool,
    /// Without RTP header and padding.
    pub payload: Bytes,
    /// When.
    pub arrived: MediaTime,
}

/// Why a keyframe is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyframeReason {
    /// The track has just been subscribed to, or still waits for its first.
    Begin,
    /// A packet was lost for good.
    Loss,
    /// Media resumed after a pause.
    Resume,
    /// None came for long.
    Interval,
    /// The picture became smaller, and the router may have a larger one.
    Smaller,
    /// From now on the picture is in the archive: a file of it begins.
    Selected,
}

/// What the rules say.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// The frames that follow have this format.
    Format(TrackFormat),
    /// A frame to write.
    Frame(Frame),
    /// Media is missing.
    Gap(Gap),
    /// A sender report to keep.
    SenderReport(SenderReport),
    /// The sender should send a keyframe.
    RequestKeyframe {
        /// Why.
        reason: KeyframeReason,
    },
}

/// The state of one track.
#[derive(Debug)]
pub struct TrackRules {
    kind: TrackKind,
    options: TrackOptions,
    source: Option<Source>,
    format: Option<TrackFormat>,
    queue: Queue,
    /// A packet from elsewhere in the sequence: the first of another one, or nonsense.
    stray: Option<RtpInput>,
    /// The first packet after a pause that is being judged.
    paused_at: u64,
    /// Packets are dropped up to the beginning of a frame.
    resync: Option<Resync>,
    needs_keyframe: bool,
    keyframes: Keyframes,
    /// There is somebody to ask for a keyframe.
    connected: bool,
    /// Since when the publisher sends nothing, as the router says.
    muted: Option<MediaTime>,
    last: Option<Last>,
    lost_since_frame: u64,
    gap_cause: Option<GapCause>,
    stats: TrackStats,
    packets: Vec<Held>,
}

/// How the packets of one codec become frames with times.
#[derive(Debug)]
struct Source {
    depacketizer: Depacketizer,
    clock: TrackClock,
}

/// The frame that left last.
#[derive(Debug, Clone, Copy)]
struct Last {
    start: MediaTime,
    end: MediaTime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resync {
    /// The next frame may lack its beginning.
    Unsure,
    /// The frame with this RTP time is damaged, and counted.
    Damaged(u32),
}

impl TrackRules {
    /// A track that was just subscribed to. A picture's first keyframe is asked for by the next `tick`.
    #[must_use]
    pub fn new(kind: TrackKind, options: TrackOptions, now: MediaTime) -> Self {
        let mut keyframes = Keyframes::new(options.keyframe_interval_min, options.keyframe_interval_max, now);
        keyframes.want(KeyframeReason::Begin);
        Self {
            kind,
            options,
            source: None,
            format: None,
            queue: Queue::default(),
            stray: None,
            paused_at: 0,
            resync: Some(Resync::Unsure),
            needs_keyframe: kind == TrackKind::Video,
            keyframes,
            connected: true,
            muted: None,
            last: None,
            lost_since_frame: 0,
            gap_cause: None,
            stats: TrackStats::default(),
            packets: Vec::new(),
        }
    }

    /// What was counted since the last call.
    pub fn take_stats(&mut self) -> TrackStats {
        std::mem::take(&mut self.stats)
    }

    /// A packet arrived.
    pub fn push(&mut self, input: RtpInput, out: &mut Vec<Output>) {
        if input.codec.kind() != self.kind {
            self.stats.malformed += 1;
            return;
        }
        let other_codec = self.source.as_ref().is_some_and(|s| s.depacketizer.codec() != input.codec);
        let placed = match self.queue.place(input.seq) {
            Placed::FarAhead if self.expects(&input) => {
                // The same sequence after a long loss.
                self.drain(input.arrived, true, out);
                let missing = self.queue.skip_to(input.seq);
                self.lose(missing);
                self.resync = Some(Resync::Unsure);
                self.keyframes.want(KeyframeReason::Loss);
                Placed::InOrder
            }
            Placed::FarAhead | Placed::Elsewhere => return self.elsewhere(input, out),
            placed => placed,
        };
        match placed {
            Placed::Duplicate => self.stats.duplicate += 1,
            // The codec has changed meanwhile.
            Placed::OutOfOrder if other_codec => self.stats.late += 1,
            Placed::Late => self.stats.late += 1,
            placed => {
                if other_codec {
                    self.drain(input.arrived, true, out);
                }
                self.place(input, placed, out);
            }
        }
    }

    /// Time passed. To be called a few times a second.
    pub fn tick(&mut self, now: MediaTime, out: &mut Vec<Output>) {
        if self.stray.as_ref().is_some_and(|stray| now - stray.arrived >= STRAY_MAX) {
            self.drop_stray();
        }
        self.judge_pause(now, false);
        self.drain(now, false, out);
    }

    /// What arrived before this moment has left. What waits for missing packets, or for the verdict on a pause, holds
    /// it back.
    #[must_use]
    pub fn settled(&self, now: MediaTime) -> MediaTime {
        let stray = self.stray.as_ref().map(|stray| stray.arrived);
        self.queue.waiting_since().into_iter().chain(stray).fold(now, MediaTime::min)
    }

    /// A sender report came: `rtp` was at `ntp`.
    pub fn sender_report(&mut self, ntp: NtpTime, rtp: u32, arrived: MediaTime, out: &mut Vec<Output>) {
        if let Some(pts) = self.source.as_ref().and_then(|source| source.clock.report_time(rtp)) {
            out.push(Output::SenderReport(SenderReport { ntp, pts, arrived }));
        }
    }

    /// The publisher switched the track off or on. Time without media is the publisher's from then on.
    pub fn publisher_muted(&mut self, muted: bool, now: MediaTime, out: &mut Vec<Output>) {
        if muted {
            self.muted.get_or_insert(now);
            self.drain(now, false, out);
            self.gap_cause.get_or_insert(GapCause::Publisher);
        } else if self.muted.take().is_some() {
            self.keyframes.want(KeyframeReason::Resume);
            self.ask_keyframe(now, out);
        }
    }

    /// A file of the track begins now: it needs a keyframe.
    pub fn selected(&mut self) {
        if self.kind == TrackKind::Video {
            self.keyframes.want(KeyframeReason::Selected);
        }
    }

    /// The source has ended: another PeerConnection may bring the track again, with another sequence. What
    /// waits for missing packets is given up now, and what is missing until then is put down to `cause`,
    /// unless the publisher had stopped before.
    pub fn source_lost(&mut self, cause: GapCause, now: MediaTime, out: &mut Vec<Output>) {
        self.drop_stray();
        self.drain(now, true, out);
        self.queue.restart();
        self.resync = Some(Resync::Unsure);
        self.source = None;
        self.needs_keyframe = self.kind == TrackKind::Video;
        self.connected = false;
        self.keyframes.want(KeyframeReason::Begin);
        self.gap_cause.get_or_insert(cause);
    }

    /// The source is connected, for the first time or again: a keyframe can be asked for now.
    pub fn source_began(&mut self, now: MediaTime, out: &mut Vec<Output>) {
        self.connected = true;
        if self.needs_keyframe {
            self.keyframes.restart();
            self.ask_keyframe(now, out);
        }
    }

    /// An earlier epoch wrote this track up to `end`: what is missing since then is put down to `cause`.
    pub fn continue_from(&mut self, end: MediaTime, cause: GapCause) {
        self.last = Some(Last { start: end, end });
        self.gap_cause = Some(cause);
    }

    fn expects(&self, input: &RtpInput) -> bool {
        self.source.as_ref().is_some_and(|source| source.clock.expects(input.rtp, input.arrived))
    }

    /// A packet from elsewhere in the sequence. Two of them, one after the other, begin a new sequence; one
    /// alone is a packet from long ago, or nonsense.
    fn elsewhere(&mut self, input: RtpInput, out: &mut Vec<Output>) {
        let Some(stray) = self.stray.take() else {
            self.stray = Some(input);
            return;
        };
        let follows = input.seq > stray.seq && input.seq - stray.seq <= STRAY_AHEAD_MAX;
        if !follows {
            self.stats.late += 1;
            self.stray = Some(input);
            return;
        }
        self.drain(input.arrived, true, out);
        self.queue.restart();
        self.resync = Some(Resync::Unsure);
        self.keyframes.want(KeyframeReason::Resume);
        self.push(stray, out);
        self.push(input, out);
    }

    fn drop_stray(&mut self) {
        self.stats.late += u64::from(self.stray.take().is_some());
    }

    /// Puts a packet in its place in the queue, and lets out what is complete with it.
    fn place(&mut self, input: RtpInput, placed: Placed, out: &mut Vec<Output>) {
        if self.source.as_ref().is_none_or(|s| s.depacketizer.codec() != input.codec) {
            self.change_codec(input.codec);
        }
        if self.muted.is_some_and(|since| input.arrived - since > MUTED_LATE_MAX) {
            // Media says more than a router that has not told us yet.
            self.muted = None;
        }
        if !self.connected {
            self.connected = true;
            self.keyframes.restart();
        }
        let Some(source) = &mut self.source else { return };
        let edges = match source.depacketizer.edges(&input.payload, input.marker) {
            Ok(edges) => Some(edges),
            // Padding has no payload and takes a place in the sequence all the same.
            Err(_) if input.payload.is_empty() => Some(Edges { first: false, last: false, discardable: true }),
            Err(_) => None,
        };
        let at = if placed == Placed::InOrder {
            let (at, fit) = source.clock.observe(input.rtp, input.arrived);
            if let Fit::Late { .. } = fit {
                self.paused_at = input.seq;
            }
            at
        } else {
            // A repaired packet is late by design: it says nothing of the clock, but its neighbours do, also
            // when the clock was anchored anew since.
            let exact = source.clock.media_time(input.rtp);
            let neighbours = self.queue.neighbours(input.seq);
            let about = time_between(neighbours, input.rtp, source.clock.rate()).unwrap_or(exact);
            if (about - exact).abs() < MS { exact } else { about }
        };
        if edges.is_some() {
            self.stats.packets += 1;
            self.stats.bytes += input.payload.len() as u64;
            self.stats.repaired += u64::from(placed == Placed::OutOfOrder);
        } else {
            self.stats.malformed += 1;
        }
        let held = Held {
            rtp: input.rtp,
            at,
            marker: input.marker,
            after_pause: false,
            malformed: edges.is_none(),
            edges: edges.unwrap_or(Edges { first: false, last: input.marker, discardable: false }),
            payload: input.payload,
            arrived: input.arrived,
        };
        self.queue.insert(input.seq, held);
        self.judge_pause(input.arrived, false);
        self.drain(input.arrived, false, out);
    }

    /// Another payload type: the sequence goes on, and so does the clock if it has the same rate.
    fn change_codec(&mut self, codec: Codec) {
        let clock = self.source.take().map(|source| source.clock).filter(|clock| clock.rate() == codec.clock_rate());
        let clock = clock.unwrap_or_else(|| TrackClock::new(codec.clock_rate()));
        self.source = Some(Source { depacketizer: Depacketizer::new(codec), clock });
        self.format = None;
        self.needs_keyframe = self.kind == TrackKind::Video;
        self.keyframes.want(KeyframeReason::Begin);
    }

    fn judge_pause(&mut self, now: MediaTime, at_once: bool) {
        let Some(source) = &mut self.source else { return };
        if let Some(Pause::Sender { by }) = source.clock.judge(now, at_once) {
            self.queue.shift(self.paused_at, by);
        }
    }

    fn ask_keyframe(&mut self, now: MediaTime, out: &mut Vec<Output>) {
        if self.kind == TrackKind::Audio || self.muted.is_some() || !self.connected {
            return;
        }
        if let Some(reason) = self.keyframes.poll(now) {
            self.stats.keyframes_requested += 1;
            out.push(Output::RequestKeyframe { reason });
        }
    }
}

/// The media time of a repaired packet, by that of a neighbour.
fn time_between(neighbours: (Option<&Held>, Option<&Held>), rtp: u32, rate: u32) -> Option<MediaTime> {
    let by = |held: &Held| {
        let away = ticks_to_span(i64::from(rtp.wrapping_sub(held.rtp).cast_signed()), rate);
        (away.abs() <= NEIGHBOUR_MAX).then(|| held.at + away)
    };
    let (before, after) = neighbours;
    // The same frame's time first: a pause lies between frames, not in them.
    let same = [before, after].into_iter().flatten().find(|held| held.rtp == rtp).map(|held| held.at);
    same.or_else(|| before.and_then(by)).or_else(|| after.and_then(by))
}

fn span(duration: Duration) -> MediaSpan {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
