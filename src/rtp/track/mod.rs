//! The rules of one track: from packets as they arrive to frames as they are written. Pure.
//!
//! - With no packet missing, a frame leaves as soon as its last packet is there: packets in memory are lost when the
//!   process dies.
//! - A missing packet is waited for as long as a retransmission may take. Then it is lost, counted once, and its frame is
//!   dropped. All whole frames are kept, in order, once.
//! - Frames leave in decoding order, with their times of presentation.
//! - Video begins with a keyframe. Keyframes cost every viewer of the session bandwidth, so they are requested sparingly:
//!   at the beginning, after a loss, when media resumes, and when frames became smaller.
//! - Time without media is a gap with a cause, except where the codec says that it is silence.

mod arrivals;
#[cfg(test)]
mod b_frame_tests;
mod frames;
#[cfg(test)]
mod gap_tests;
mod jitter_buffer;
#[cfg(test)]
mod keyframe_tests;
mod keyframes;
mod presentation;
#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::Bytes;

use super::clock::{ClockFit, Pause, TrackClock};
use super::depacketize::{Depacketizer, FrameBoundaries};
use crate::model::ids::TrackKind;
use crate::model::media::{Codec, Frame, FrameSpans, Gap, GapCause, SenderReport, TrackFormat, TrackStats};
use crate::model::time::{MediaSpan, MediaTime, NtpTime, ticks_to_span};
use arrivals::Arrivals;
use jitter_buffer::{BufferedPacket, JitterBuffer, Placement};
use keyframes::Keyframes;
use presentation::Presentation;

const MS: MediaSpan = 1_000_000;
/// A packet of another sequence is on probation for this time: its successor proves that the sequence is real (RFC 3550,
/// appendix A.1).
const PROBATION_MAX: MediaSpan = 1_000 * MS;
/// How far behind a packet on probation its successor may be, in sequence numbers.
const PROBATION_AHEAD_MAX: u64 = 100;
/// Packets that come this long after the publisher stopped were sent before.
const MUTED_LATE_MAX: MediaSpan = 1_000 * MS;
/// A repaired packet and its neighbour are on the same clock when their RTP times are this near.
const NEIGHBOUR_MAX: MediaSpan = 10_000 * MS;
/// In each period of this length, at most so many starts of the clock are told.
const CLOCK_STARTS_PERIOD: MediaSpan = 60_000 * MS;
const CLOCK_STARTS_MAX: u32 = 10;

/// The limits of the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackOptions {
    /// How long a missing video packet is waited for.
    pub video_hold: Duration,
    /// How long a missing audio packet is waited for. Janus retransmits no audio, so only reordering counts.
    pub audio_hold: Duration,
    /// From this time without media on there is a gap, and not a low frame rate or silence.
    pub stall: Duration,
    /// The least time between two keyframe requests. While no keyframe comes, the intervals grow.
    pub keyframe_interval_min: Duration,
    /// A keyframe is requested after this time without one. `None` requests none without another reason.
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
    /// From the payload type.
    pub codec: Codec,
    /// Sequence number, extended over the wrap.
    pub seq: u64,
    /// RTP timestamp.
    pub rtp: u32,
    /// The marker bit.
    pub marker: bool,
    /// Without RTP header and padding.
    pub payload: Bytes,
    /// Time of arrival.
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
    /// No keyframe came for [`TrackOptions::keyframe_interval_max`].
    Interval,
    /// Frames became smaller, and the router may have larger ones.
    Smaller,
    /// The track is in the archive from now on, and its file begins.
    Selected,
}

/// An output of the rules.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Output {
    /// The frames that follow have this format.
    Format(TrackFormat),
    /// A frame to write.
    Frame(Frame),
    /// Media is missing.
    Gap(Gap),
    /// A sender report to keep.
    SenderReport(SenderReport),
    /// The provisional clock begins at this time, or is anchored anew there: later frames have their times from it.
    ClockBegins(MediaTime),
    /// The sender should send a keyframe.
    RequestKeyframe { reason: KeyframeReason },
}

/// The state of one track.
#[derive(Debug)]
pub struct TrackRules {
    kind: TrackKind,
    options: TrackOptions,
    source: Option<Source>,
    format: Option<TrackFormat>,
    jitter_buffer: JitterBuffer,
    /// A packet of another sequence: the first one of a new source, or a stray one.
    probation: Option<RtpInput>,
    /// The first packet after a pause that is being classified.
    paused_seq: u64,
    start_limiter: StartLimiter,
    /// Packets are dropped up to the beginning of a frame.
    resync: Option<Resync>,
    needs_keyframe: bool,
    keyframes: Keyframes,
    /// There is a source that keyframes can be requested from.
    connected: bool,
    /// Since when the publisher sends nothing, as the router says.
    muted: Option<MediaTime>,
    /// The publisher switched the track off before anything else was missing.
    off: Option<Off>,
    last: Option<LastFrame>,
    presentation: Presentation,
    spans: FrameSpans,
    lost_since_frame: u64,
    repairs: Repairs,
    /// What came and was said to be sent since the last frame.
    arrivals: Arrivals,
    gap_cause: Option<GapCause>,
    /// Frames could not be written, and none has left since.
    storage_lost: bool,
    stats: TrackStats,
    packets: Vec<BufferedPacket>,
}

/// How the packets of one codec become frames with times.
#[derive(Debug)]
struct Source {
    depacketizer: Depacketizer,
    clock: TrackClock,
}

/// Tells where the clock began. Each start ends a part of the log: a sender must not cause many.
#[derive(Debug, Clone, Copy, Default)]
struct StartLimiter {
    /// When the period began in which starts are counted.
    since: Option<MediaTime>,
    count: u32,
}

impl StartLimiter {
    /// Tells those of packets that leave the jitter buffer: frames that have their times from the clock before have left.
    fn tell(&mut self, packets: &[BufferedPacket], now: MediaTime, out: &mut Vec<Output>) {
        let Some(at) = packets.iter().find(|packet| packet.begins_clock).map(|packet| packet.at) else { return };
        if self.since.is_none_or(|since| now - since >= CLOCK_STARTS_PERIOD) {
            *self = Self { since: Some(now), count: 0 };
        }
        if self.count < CLOCK_STARTS_MAX {
            self.count += 1;
            out.push(Output::ClockBegins(at));
        }
    }
}

/// Whether the source repairs what is lost.
#[derive(Debug, Clone, Copy, Default)]
struct Repairs {
    /// A missing packet came. Until then it is not known that any will: Janus keeps no packets before it knows the round trip time.
    seen: bool,
    /// The missing packet, by its sequence number, for which a keyframe was requested without waiting for its repair.
    requested_for: Option<u64>,
}

/// A time in which the publisher sends nothing.
#[derive(Debug, Clone, Copy)]
struct Off {
    since: MediaTime,
    /// It still is off without it.
    until: Option<MediaTime>,
}

/// The frame that is shown last.
#[derive(Debug, Clone, Copy)]
struct LastFrame {
    start: MediaTime,
    /// The end of all frames.
    end: MediaTime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resync {
    /// A source begins: its first packets may be of a frame that began before the subscription. Such a frame is not damaged.
    Joined,
    /// The next frame may lack its beginning.
    Unsure,
    /// The frame with this RTP time is damaged, and counted.
    Damaged(u32),
}

impl TrackRules {
    /// A track that was just subscribed to. The next `tick` requests a video track's first keyframe.
    #[must_use]
    pub fn new(kind: TrackKind, options: TrackOptions, now: MediaTime) -> Self {
        let mut keyframes = Keyframes::new(options.keyframe_interval_min, options.keyframe_interval_max, now);
        keyframes.request(KeyframeReason::Begin);
        Self {
            kind,
            options,
            source: None,
            format: None,
            jitter_buffer: JitterBuffer::default(),
            probation: None,
            paused_seq: 0,
            start_limiter: StartLimiter::default(),
            resync: Some(Resync::Joined),
            needs_keyframe: kind == TrackKind::Video,
            keyframes,
            connected: true,
            muted: None,
            off: None,
            last: None,
            presentation: Presentation::default(),
            spans: FrameSpans::default(),
            lost_since_frame: 0,
            repairs: Repairs::default(),
            arrivals: Arrivals::new(now),
            gap_cause: None,
            storage_lost: false,
            stats: TrackStats::default(),
            packets: Vec::new(),
        }
    }

    /// The counts since the last call.
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
        let placement = match self.jitter_buffer.classify(input.seq) {
            Placement::FarAhead if self.is_plausible(&input) => {
                // The same sequence after a long loss.
                self.drain(input.arrived, true, out);
                let missing = self.jitter_buffer.skip_to(input.seq);
                self.count_lost(missing);
                self.resync = Some(Resync::Unsure);
                self.keyframes.request(KeyframeReason::Loss);
                Placement::InOrder
            }
            Placement::FarAhead | Placement::OtherSequence => return self.start_probation(input, out),
            placement => placement,
        };
        match placement {
            Placement::Duplicate => self.stats.duplicate += 1,
            // The codec has changed meanwhile.
            Placement::OutOfOrder if other_codec => self.stats.late += 1,
            Placement::Late => self.stats.late += 1,
            placement => {
                if other_codec {
                    self.drain(input.arrived, true, out);
                }
                self.accept(input, placement, out);
            }
        }
    }

    /// Handles what is due by now. To be called a few times a second.
    pub fn tick(&mut self, now: MediaTime, out: &mut Vec<Output>) {
        if self.probation.as_ref().is_some_and(|probation| now - probation.arrived >= PROBATION_MAX) {
            self.end_probation();
        }
        self.classify_pause(now, false);
        self.drain(now, false, out);
    }

    /// All packets that arrived before this moment have left. Packets that wait for missing ones, for a pause to be
    /// classified, or on probation hold it back.
    #[must_use]
    pub fn watermark(&self, now: MediaTime) -> MediaTime {
        let probation = self.probation.as_ref().map(|probation| probation.arrived);
        self.jitter_buffer.waiting_since().into_iter().chain(probation).fold(now, MediaTime::min)
    }

    /// A sender report says that so many packets were sent, in all.
    pub fn packets_sent(&mut self, packets: u32, now: MediaTime) {
        self.arrivals.reported(packets, now);
    }

    /// Why media is missing now although it seems to be sent; `None` while frames come, or nothing says that they should.
    #[must_use]
    pub fn starved(&self, now: MediaTime) -> Option<GapCause> {
        if self.storage_lost {
            return Some(GapCause::Storage);
        }
        let waits = self.muted.is_none() && self.connected && self.arrivals.silent_for(now) >= span(self.options.stall);
        waits.then(|| self.arrivals.lack()).flatten()
    }

    /// A sender report came: `rtp` was at `ntp`.
    pub fn sender_report(&mut self, ntp: NtpTime, rtp: u32, arrived: MediaTime, out: &mut Vec<Output>) {
        let Some(source) = self.source.as_ref().filter(|source| source.clock.has_begun()) else { return };
        match source.clock.report_time(rtp, arrived) {
            Some(pts) => out.push(Output::SenderReport(SenderReport { ntp, pts, arrived })),
            None => self.stats.reports_refused += 1,
        }
    }

    /// The publisher switched the track off or on. Time without media is the publisher's while it is off.
    pub fn set_publisher_muted(&mut self, muted: bool, now: MediaTime, out: &mut Vec<Output>) {
        if muted {
            self.muted.get_or_insert(now);
            self.drain(now, false, out);
            match &mut self.off {
                // Packets that wait end the time in which it was off before.
                Some(off) if self.jitter_buffer.waiting_since().is_none() => off.until = None,
                None if self.gap_cause.is_none() => self.off = Some(Off { since: now, until: None }),
                _ => {}
            }
        } else if self.muted.take().is_some() {
            if let Some(off) = &mut self.off {
                off.until = Some(now);
            }
            self.keyframes.request(KeyframeReason::Resume);
            self.request_keyframe(now, out);
        }
    }

    /// A file of the track begins now: it needs a keyframe.
    pub fn selected(&mut self) {
        if self.kind == TrackKind::Video {
            self.keyframes.request(KeyframeReason::Selected);
        }
    }

    /// Frames that had left, from this one on, could not be written. The gap ends with the next keyframe.
    pub fn frames_lost(&mut self, from: MediaTime) {
        self.last = Some(LastFrame { start: from, end: from });
        self.gap_cause = Some(GapCause::Storage);
        self.off = None;
        self.storage_lost = true;
        self.needs_keyframe = self.kind == TrackKind::Video;
        self.keyframes.request(KeyframeReason::Loss);
    }

    /// The source has ended: another PeerConnection may bring the track again, with another sequence. Missing packets are
    /// given up now. The gap until then has the cause `cause`, unless the publisher had stopped before.
    pub fn source_lost(&mut self, cause: GapCause, now: MediaTime, out: &mut Vec<Output>) {
        self.end_probation();
        self.drain(now, true, out);
        self.jitter_buffer.restart();
        self.resync = Some(Resync::Joined);
        self.source = None;
        self.repairs = Repairs::default();
        self.start_limiter = StartLimiter::default();
        self.needs_keyframe = self.kind == TrackKind::Video;
        self.connected = false;
        self.keyframes.request(KeyframeReason::Begin);
        self.gap_cause.get_or_insert(cause);
        self.arrivals = Arrivals::new(now);
    }

    /// The source is connected, for the first time or again: a keyframe can be requested now.
    pub fn source_connected(&mut self, now: MediaTime, out: &mut Vec<Output>) {
        self.connected = true;
        if self.off.is_some_and(|off| off.until.is_none()) {
            // Another one was lost while the publisher sent nothing.
            self.gap_cause = None;
        }
        self.arrivals = Arrivals::new(now);
        if self.needs_keyframe {
            self.keyframes.restart();
            self.request_keyframe(now, out);
        }
    }

    /// An earlier epoch wrote this track up to `end`. The gap since then has the cause `cause`.
    pub fn continue_from(&mut self, end: MediaTime, cause: GapCause) {
        self.last = Some(LastFrame { start: end, end });
        self.gap_cause = Some(cause);
    }

    fn is_plausible(&self, input: &RtpInput) -> bool {
        self.source.as_ref().is_some_and(|source| source.clock.is_plausible(input.rtp, input.arrived))
    }

    /// Puts a packet of another sequence on probation. Two such packets, one after the other, begin a new sequence. One
    /// alone is a very late packet, or a stray one.
    fn start_probation(&mut self, input: RtpInput, out: &mut Vec<Output>) {
        let Some(probation) = self.probation.take() else {
            self.probation = Some(input);
            return;
        };
        let follows = input.seq > probation.seq && input.seq - probation.seq <= PROBATION_AHEAD_MAX;
        if !follows {
            self.stats.late += 1;
            self.probation = Some(input);
            return;
        }
        self.drain(input.arrived, true, out);
        self.jitter_buffer.restart();
        self.resync = Some(Resync::Unsure);
        self.keyframes.request(KeyframeReason::Resume);
        self.push(probation, out);
        self.push(input, out);
    }

    fn end_probation(&mut self) {
        self.stats.late += u64::from(self.probation.take().is_some());
    }

    /// Puts a packet into the jitter buffer, and releases the frames that it completes.
    fn accept(&mut self, input: RtpInput, placement: Placement, out: &mut Vec<Output>) {
        if self.source.as_ref().is_none_or(|s| s.depacketizer.codec() != input.codec) {
            self.change_codec(input.codec);
        }
        if self.muted.is_some_and(|since| input.arrived - since > MUTED_LATE_MAX) {
            // Media comes: the publisher is not muted, the router has only not said so yet.
            self.muted = None;
        }
        if !self.connected {
            self.connected = true;
            self.keyframes.restart();
        }
        let Some(source) = &mut self.source else { return };
        let boundaries = match source.depacketizer.boundaries(&input.payload, input.marker) {
            Ok(boundaries) => Some(boundaries),
            // A padding packet has no payload, but has a sequence number.
            Err(_) if input.payload.is_empty() => {
                Some(FrameBoundaries { first: false, last: false, discardable: true })
            }
            Err(_) => None,
        };
        let mut begins_clock = false;
        let at = if placement == Placement::InOrder {
            let begins = !source.clock.has_begun();
            let (at, fit) = source.clock.observe(input.rtp, input.arrived);
            begins_clock = begins || fit == ClockFit::Jumped;
            if let ClockFit::Late { .. } = fit {
                self.paused_seq = input.seq;
            }
            at
        } else {
            // A repaired packet is late by design, so its arrival says nothing about the clock. Its neighbours do, also
            // when the clock was anchored again since.
            let exact = source.clock.media_time(input.rtp);
            let neighbours = self.jitter_buffer.neighbours(input.seq);
            let about = time_from_neighbours(neighbours, input.rtp, source.clock.rate()).unwrap_or(exact);
            if (about - exact).abs() < MS { exact } else { about }
        };
        self.arrivals.packet(boundaries.is_some());
        if boundaries.is_some() {
            self.stats.packets += 1;
            self.stats.bytes += input.payload.len() as u64;
            self.stats.repaired += u64::from(placement == Placement::OutOfOrder);
            self.repairs.seen |= placement == Placement::OutOfOrder;
        } else {
            self.stats.malformed += 1;
        }
        let packet = BufferedPacket {
            rtp: input.rtp,
            at,
            marker: input.marker,
            after_pause: false,
            begins_clock,
            malformed: boundaries.is_none(),
            boundaries: boundaries.unwrap_or(FrameBoundaries { first: false, last: input.marker, discardable: false }),
            payload: input.payload,
            arrived: input.arrived,
        };
        self.jitter_buffer.insert(input.seq, packet);
        self.classify_pause(input.arrived, false);
        self.drain(input.arrived, false, out);
    }

    /// Another payload type: the sequence goes on, and so does the clock if it has the same rate.
    fn change_codec(&mut self, codec: Codec) {
        let clock = self.source.take().map(|source| source.clock).filter(|clock| clock.rate() == codec.clock_rate());
        let clock = clock.unwrap_or_else(|| TrackClock::new(codec.clock_rate()));
        self.source = Some(Source { depacketizer: Depacketizer::new(codec), clock });
        self.format = None;
        self.needs_keyframe = self.kind == TrackKind::Video;
        self.keyframes.request(KeyframeReason::Begin);
    }

    fn classify_pause(&mut self, now: MediaTime, immediately: bool) {
        let Some(source) = &mut self.source else { return };
        if let Some(Pause::Sender { by }) = source.clock.classify_pause(now, immediately) {
            self.jitter_buffer.shift(self.paused_seq, by);
        }
    }

    fn request_keyframe(&mut self, now: MediaTime, out: &mut Vec<Output>) {
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
fn time_from_neighbours(
    neighbours: (Option<&BufferedPacket>, Option<&BufferedPacket>),
    rtp: u32,
    rate: u32,
) -> Option<MediaTime> {
    let by = |packet: &BufferedPacket| {
        let away = ticks_to_span(i64::from(rtp.wrapping_sub(packet.rtp).cast_signed()), rate);
        (away.abs() <= NEIGHBOUR_MAX).then(|| packet.at + away)
    };
    let (before, after) = neighbours;
    // A packet of the same frame counts first: a pause lies between frames, not within one.
    let same = [before, after].into_iter().flatten().find(|packet| packet.rtp == rtp).map(|packet| packet.at);
    same.or_else(|| before.and_then(by)).or_else(|| after.and_then(by))
}

fn span(duration: Duration) -> MediaSpan {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
