//! The rules of one track: from packets as they arrive to frames as they are written. Pure.
//!
//! - Nothing waits without need: with no packet missing, a frame leaves as soon as its last packet is there,
//!   for what waits here is lost when the process dies.
//! - A missing packet is waited for as long as a retransmission may take; then it is lost, counted once, and
//!   the frame it belonged to is dropped. Frames that are whole are all kept, in order, once.
//! - A picture begins with a keyframe. Keyframes cost every viewer of the session, so they are asked for
//!   sparingly: at the beginning, after a loss, and when media resumes.
//! - Time that passes without media is a gap with a cause, except where the codec says that it is silence.

mod queue;
#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::Bytes;

use super::clock::{Fit, TrackClock};
use super::depacketize::{Assembled, Depacketizer};
use super::types::{Codec, Frame, Gap, GapCause, SenderReport, TrackFormat, TrackStats};
use crate::ids::TrackKind;
use crate::time::{MediaSpan, MediaTime, NtpTime, ticks_to_span};
use queue::{Held, Placed, Queue};

const MS: MediaSpan = 1_000_000;
/// What a picture is taken to last when nothing tells: one at 30 a second.
const PICTURE_SPAN: MediaSpan = 33 * MS;
/// What a picture lasts at most when the next one is late.
const PICTURE_SPAN_MAX: MediaSpan = 200 * MS;
/// A loss shorter than this is counted but makes no gap.
const LOSS_GAP_MIN: MediaSpan = 100 * MS;
/// A pause of at least this, which RTP time does not count, is looked at.
const PAUSE_MIN: MediaSpan = 1_000 * MS;
/// How long packets are watched after such a pause, to tell a sender that slept from a network that did.
const PROBATION: MediaSpan = 500 * MS;

/// The limits of the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackOptions {
    /// How long a missing packet of a picture is waited for.
    pub video_hold: Duration,
    /// How long a missing packet of sound is waited for: Janus retransmits none, so only reordering counts.
    pub audio_hold: Duration,
    /// Time without media after which it is a gap and not a slow picture or silence.
    pub stall: Duration,
    /// The least time between two requests for a keyframe.
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
    codec: Option<(Depacketizer, TrackClock)>,
    format: Option<TrackFormat>,
    queue: Queue,
    /// A frame was damaged: packets are dropped up to the beginning of another one, which must not have
    /// these ticks.
    resync: Option<Option<i64>>,
    needs_keyframe: bool,
    probation: Option<Probation>,
    /// End of the last frame that left, and its start.
    last: Option<(MediaTime, MediaTime)>,
    lost_since_frame: u64,
    gap_cause: Option<GapCause>,
    keyframe_asked: Option<MediaTime>,
    keyframe_seen: MediaTime,
    stats: TrackStats,
    packets: Vec<Held>,
}

/// After a pause that RTP time does not count: does RTP time catch up (the network slept), or not (the
/// sender did)?
#[derive(Debug, Clone, Copy)]
struct Probation {
    began: MediaTime,
    ticks: i64,
    late: MediaSpan,
}

impl TrackRules {
    /// A track that was just subscribed to. A picture's first keyframe is asked for by the next `tick`.
    #[must_use]
    pub fn new(kind: TrackKind, options: TrackOptions, now: MediaTime) -> Self {
        Self {
            kind,
            options,
            codec: None,
            format: None,
            queue: Queue::default(),
            resync: None,
            needs_keyframe: kind == TrackKind::Video,
            probation: None,
            last: None,
            lost_since_frame: 0,
            gap_cause: None,
            keyframe_asked: None,
            keyframe_seen: now,
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
        if self.codec.as_ref().is_none_or(|(d, _)| d.codec() != input.codec) {
            self.change_codec(input.codec);
        }
        let Some((depacketizer, _)) = &self.codec else { return };
        let edges = match depacketizer.edges(&input.payload, input.marker) {
            Ok(edges) => edges,
            // Padding has no payload and takes a place in the sequence all the same.
            Err(_) if input.payload.is_empty() => {
                super::depacketize::Edges { first: false, last: false, discardable: true }
            }
            Err(_) => {
                self.stats.malformed += 1;
                return;
            }
        };
        let placed = match self.queue.place(input.seq) {
            Placed::Elsewhere => {
                self.drain(input.arrived, true, out);
                self.queue.restart();
                self.resync = None;
                Placed::InOrder
            }
            placed => placed,
        };
        match placed {
            Placed::Duplicate => return self.stats.duplicate += 1,
            Placed::Late => return self.stats.late += 1,
            Placed::OutOfOrder => self.stats.repaired += 1,
            Placed::InOrder | Placed::Elsewhere => {}
        }
        let Some((_, clock)) = &mut self.codec else { return };
        let (ticks, fit) = if placed == Placed::InOrder {
            clock.observe(input.rtp, input.arrived)
        } else {
            // A repaired packet is late by design; it says nothing of the clock.
            (clock.peek(input.rtp), Fit::Good)
        };
        if let Fit::Late { by } = fit
            && by >= PAUSE_MIN
            && self.probation.is_none()
        {
            self.drain(input.arrived, false, out);
            self.probation = Some(Probation { began: input.arrived, ticks, late: by });
        }
        self.stats.packets += 1;
        self.stats.bytes += input.payload.len() as u64;
        let held = Held { ticks, marker: input.marker, edges, payload: input.payload, arrived: input.arrived };
        self.queue.insert(input.seq, held);
        self.judge_pause(input.arrived, ticks);
        self.drain(input.arrived, false, out);
    }

    /// Time passed. To be called a few times a second.
    pub fn tick(&mut self, now: MediaTime, out: &mut Vec<Output>) {
        if let Some(probation) = self.probation
            && now - probation.began >= PROBATION
        {
            self.judge_pause(now, probation.ticks);
        }
        self.drain(now, false, out);
        if self.kind == TrackKind::Video {
            let interval = self.options.keyframe_interval_max.map(span);
            if self.needs_keyframe {
                self.ask_keyframe(KeyframeReason::Begin, now, out);
            } else if interval.is_some_and(|i| now - self.keyframe_seen >= i) {
                self.ask_keyframe(KeyframeReason::Interval, now, out);
            }
        }
    }

    /// A sender report came: `rtp` was at `ntp`.
    pub fn sender_report(&mut self, ntp: NtpTime, rtp: u32, arrived: MediaTime, out: &mut Vec<Output>) {
        let pts = self.codec.as_ref().and_then(|(_, clock)| clock.report_time(rtp));
        if let Some(pts) = pts {
            out.push(Output::SenderReport(SenderReport { ntp, pts, arrived }));
        }
    }

    /// The publisher switched the track off or on. Time without media is the publisher's from then on.
    pub fn publisher_muted(&mut self, muted: bool, now: MediaTime, out: &mut Vec<Output>) {
        if muted {
            self.drain(now, false, out);
            self.gap_cause = Some(GapCause::Publisher);
        } else if self.kind == TrackKind::Video {
            self.ask_keyframe(KeyframeReason::Resume, now, out);
        }
    }

    /// The source has ended: another PeerConnection may bring the track again, with another sequence. What
    /// waits for missing packets is given up now, and what is missing until then is put down to `cause`.
    pub fn source_lost(&mut self, cause: GapCause, now: MediaTime, out: &mut Vec<Output>) {
        self.probation = None;
        self.drain(now, true, out);
        self.queue.restart();
        self.resync = None;
        self.codec = None;
        self.needs_keyframe = self.kind == TrackKind::Video;
        self.keyframe_asked = None;
        self.gap_cause = Some(cause);
    }

    /// An earlier epoch wrote this track up to `end`: what is missing since then is put down to `cause`.
    pub fn continue_from(&mut self, end: MediaTime, cause: GapCause) {
        self.last = Some((end, end));
        self.gap_cause = Some(cause);
    }

    fn change_codec(&mut self, codec: Codec) {
        // Another payload type: the sequence may go on, but no frame reaches over the change.
        self.queue.restart();
        self.resync = None;
        self.format = None;
        self.probation = None;
        self.needs_keyframe = self.kind == TrackKind::Video;
        self.codec = Some((Depacketizer::new(codec), TrackClock::new(codec.clock_rate())));
    }

    fn judge_pause(&mut self, now: MediaTime, ticks: i64) {
        let Some(pause) = self.probation else { return };
        let Some((_, clock)) = &mut self.codec else { return };
        let counted = clock.media_time(ticks) - clock.media_time(pause.ticks);
        if counted >= pause.late / 2 {
            // The sender went on meanwhile: its packets were only late.
            self.probation = None;
        } else if now - pause.began >= PROBATION {
            clock.anchor_at(pause.ticks, pause.began);
            self.probation = None;
            self.gap_cause.get_or_insert(GapCause::Publisher);
        }
    }

    fn ask_keyframe(&mut self, reason: KeyframeReason, now: MediaTime, out: &mut Vec<Output>) {
        let wait = span(self.options.keyframe_interval_min);
        if self.keyframe_asked.is_some_and(|asked| now - asked < wait) {
            return;
        }
        self.keyframe_asked = Some(now);
        self.stats.keyframes_requested += 1;
        out.push(Output::RequestKeyframe { reason });
    }

    fn hold(&self) -> MediaSpan {
        span(match self.kind {
            TrackKind::Audio => self.options.audio_hold,
            TrackKind::Video => self.options.video_hold,
        })
    }

    /// Lets out what is complete, and gives up what has waited too long (or all that is missing).
    fn drain(&mut self, now: MediaTime, give_up: bool, out: &mut Vec<Output>) {
        if self.probation.is_some() {
            return;
        }
        while let Some(front) = self.queue.get(0) {
            match front {
                None => {
                    if !self.expired(0, now, give_up) {
                        return;
                    }
                    self.give_up(0, now, out);
                }
                Some(held) => {
                    let ticks = held.ticks;
                    match self.frame_end(ticks) {
                        FrameEnd::Complete(count) => self.release(count, ticks, now, out),
                        FrameEnd::Hole(at) if self.expired(at, now, give_up) => self.give_up(at, now, out),
                        FrameEnd::Unfinished if give_up => self.give_up(self.queue.len(), now, out),
                        FrameEnd::Hole(_) | FrameEnd::Unfinished => return,
                    }
                }
            }
        }
    }

    fn expired(&self, hole: usize, now: MediaTime, give_up: bool) -> bool {
        give_up
            || self.queue.is_full()
            || self.queue.first_behind(hole).is_some_and(|arrived| now - arrived >= self.hold())
    }

    /// How far the frame at the front reaches.
    fn frame_end(&self, ticks: i64) -> FrameEnd {
        let mut at = 0;
        loop {
            match self.queue.get(at) {
                None => return FrameEnd::Unfinished,
                Some(None) => return FrameEnd::Hole(at),
                Some(Some(held)) if held.ticks != ticks => return FrameEnd::Complete(at),
                Some(Some(held)) if held.edges.last || held.marker => return FrameEnd::Complete(at + 1),
                Some(Some(_)) => at += 1,
            }
        }
    }

    /// Gives up the hole at `at`, and with it the packets before it, which are of the same frame.
    fn give_up(&mut self, at: usize, now: MediaTime, out: &mut Vec<Output>) {
        let mut holes = 0;
        while matches!(self.queue.get(at + holes), Some(None)) {
            holes += 1;
        }
        self.packets.clear();
        let missing = self.queue.take(at + holes, &mut self.packets);
        self.stats.lost += missing;
        self.lost_since_frame += missing;
        if self.kind == TrackKind::Audio {
            return;
        }
        let damaged = self.packets.first().map(|held| held.ticks);
        if damaged.is_some() {
            self.stats.frames_damaged += 1;
        }
        self.resync = Some(damaged);
        if missing > 0 {
            self.ask_keyframe(KeyframeReason::Loss, now, out);
        }
    }

    /// A frame is complete: its packets leave the queue.
    fn release(&mut self, count: usize, ticks: i64, now: MediaTime, out: &mut Vec<Output>) {
        self.packets.clear();
        self.queue.take(count, &mut self.packets);
        let begins = self.packets.first().is_some_and(|held| held.edges.first);
        if let Some(damaged) = self.resync {
            // H.264's packets all look like beginnings, so there the first timestamp after a loss is given up.
            let unclear = self.codec.as_ref().is_some_and(|(d, _)| d.codec() == Codec::H264) && damaged.is_none();
            let same = damaged == Some(ticks);
            if same || !begins || unclear {
                self.stats.frames_damaged += u64::from(!same);
                self.resync = if unclear && begins { None } else { Some(Some(ticks)) };
                return;
            }
            self.resync = None;
        }
        let packets = std::mem::take(&mut self.packets);
        let Some((depacketizer, clock)) = &mut self.codec else { return };
        let pts = clock.media_time(ticks);
        let rate = depacketizer.codec().clock_rate();
        let payloads: Vec<&[u8]> = packets.iter().map(|h| &*h.payload).filter(|p| !p.is_empty()).collect();
        if payloads.is_empty() {
            self.packets = packets;
            return;
        }
        let assembled = if payloads.len() == packets.len() || begins {
            depacketizer.assemble(&payloads)
        } else {
            Err(super::depacketize::PayloadError::Invalid)
        };
        match assembled {
            Ok(frame) if frame.data.is_empty() => {}
            Ok(frame) => self.emit(frame, pts, rate, now, out),
            Err(error) => {
                tracing::debug!(%error, "a frame cannot be put together");
                self.stats.frames_damaged += 1;
            }
        }
        self.packets = packets;
    }

    fn emit(&mut self, frame: Assembled, pts: MediaTime, rate: u32, now: MediaTime, out: &mut Vec<Output>) {
        if self.needs_keyframe {
            if !frame.keyframe {
                self.stats.frames_before_keyframe += 1;
                return self.ask_keyframe(KeyframeReason::Begin, now, out);
            }
            self.needs_keyframe = false;
        }
        // Times never go back: where a clock was anchored anew a little early, frames follow on.
        let pts = self.last.map_or(pts, |(_, start)| pts.max(start + 1));
        let duration = frame.ticks.map(|ticks| ticks_to_span(i64::from(ticks), rate));
        self.note_gap(pts, frame.keyframe, now, out);
        if let Some(format) = frame.format
            && self.format.as_ref() != Some(&format)
        {
            self.format = Some(format.clone());
            out.push(Output::Format(format));
        }
        if frame.keyframe {
            self.keyframe_seen = now;
            self.stats.keyframes += u64::from(self.kind == TrackKind::Video);
        }
        let lasts = duration
            .unwrap_or_else(|| self.last.map_or(PICTURE_SPAN, |(_, start)| (pts - start).clamp(MS, PICTURE_SPAN_MAX)));
        self.last = Some((pts + lasts, pts));
        self.lost_since_frame = 0;
        self.gap_cause = None;
        self.stats.frames += 1;
        out.push(Output::Frame(Frame { pts, duration, keyframe: frame.keyframe, data: Bytes::from(frame.data) }));
    }

    /// Before a frame is written: is there a gap before it, and whose?
    fn note_gap(&mut self, pts: MediaTime, keyframe: bool, now: MediaTime, out: &mut Vec<Output>) {
        let Some((end, _)) = self.last else { return };
        let missing = pts - end;
        let cause = match self.gap_cause {
            Some(cause) if missing >= LOSS_GAP_MIN => cause,
            None if self.lost_since_frame > 0 && missing >= LOSS_GAP_MIN => GapCause::Network,
            None if missing >= span(self.options.stall) => GapCause::Publisher,
            _ => return,
        };
        out.push(Output::Gap(Gap { from: end, to: pts, cause }));
        if self.kind == TrackKind::Video && !keyframe && missing >= span(self.options.stall) {
            self.ask_keyframe(KeyframeReason::Resume, now, out);
        }
    }
}

enum FrameEnd {
    /// So many packets.
    Complete(usize),
    /// The packet there is missing.
    Hole(usize),
    /// More packets are to come.
    Unfinished,
}

fn span(duration: Duration) -> MediaSpan {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
