//! From the jitter buffer to frames: complete frames leave, lost packets are given up, gaps are reported.

use bytes::Bytes;

use super::jitter_buffer::BufferedPacket;
use super::{KeyframeReason, LastFrame, MS, Off, Output, Resync, TrackRules, span};
use crate::model::ids::TrackKind;
use crate::model::media::{Frame, Gap, GapCause};
use crate::model::time::{MediaSpan, MediaTime, ticks_to_span};
use crate::rtp::depacketize::{AssembledFrame, PayloadError, h264};

/// A missing packet of a source that has repaired nothing yet is waited for so long before a keyframe is requested. Until then the packets
/// behind it may have overtaken it.
const UNREPAIRED_WAIT: MediaSpan = 50 * MS;
/// A loss shorter than this is counted but makes no gap.
const LOSS_GAP_MIN: MediaSpan = 100 * MS;

impl TrackRules {
    fn hold(&self) -> MediaSpan {
        span(match self.kind {
            TrackKind::Audio => self.options.audio_hold,
            TrackKind::Video => self.options.video_hold,
        })
    }

    /// Releases complete frames. Gives up packets that are missing for too long, or with `give_up` all that are missing.
    pub(super) fn drain(&mut self, now: MediaTime, give_up: bool, out: &mut Vec<Output>) {
        if give_up {
            self.classify_pause(now, true);
        }
        if self.source.as_ref().is_some_and(|source| source.clock.is_classifying_pause())
            && !self.jitter_buffer.is_full()
        {
            return;
        }
        while let Some(front) = self.jitter_buffer.get(0) {
            match front {
                None if self.expired(0, now, give_up) => self.give_up(0, now, out),
                None => break,
                Some(packet) => match self.frame_end(packet.rtp) {
                    FrameEnd::Complete(count) => self.release(count, now, out),
                    FrameEnd::Hole(at) if self.expired(at, now, give_up) => self.give_up(at, now, out),
                    FrameEnd::Unfinished if give_up || self.jitter_buffer.is_full() => {
                        self.give_up(self.jitter_buffer.len(), now, out);
                    }
                    FrameEnd::Hole(_) | FrameEnd::Unfinished => break,
                },
            }
        }
        self.request_for_unrepaired(now);
        self.request_keyframe(now, out);
    }

    /// Requests a keyframe for a packet that is missing, once, if the source has repaired nothing yet. Frames that refer to the lost one are
    /// damaged until a keyframe comes: waiting for a repair that does not come makes that longer.
    fn request_for_unrepaired(&mut self, now: MediaTime) {
        if self.kind == TrackKind::Audio || self.repairs.seen || self.keyframes.is_wanted() {
            return;
        }
        let Some((hole, seq)) = self.jitter_buffer.first_missing() else { return };
        let waits = self.jitter_buffer.first_behind(hole).is_none_or(|arrived| now - arrived < UNREPAIRED_WAIT);
        if waits || self.repairs.requested_for == Some(seq) || self.is_harmless(hole) {
            return;
        }
        self.repairs.requested_for = Some(seq);
        self.keyframes.request_once(KeyframeReason::Loss);
    }

    /// Whether only a discardable frame lacks packets, if those at `hole` do not come: no frame refers to such a frame.
    fn is_harmless(&self, hole: usize) -> bool {
        let mut before = (0..hole).filter_map(|at| self.jitter_buffer.get(at).flatten()).peekable();
        let holes = (hole..).take_while(|at| matches!(self.jitter_buffer.get(*at), Some(None))).count();
        let next = self.jitter_buffer.get(hole + holes).flatten();
        let front = self.jitter_buffer.get(0).flatten().map(|packet| packet.rtp);
        before.peek().is_some()
            && before.all(|packet| packet.boundaries.discardable)
            && match next {
                Some(next) if Some(next.rtp) == front => next.boundaries.discardable,
                _ => holes <= 1,
            }
    }

    fn expired(&self, hole: usize, now: MediaTime, give_up: bool) -> bool {
        give_up
            || self.jitter_buffer.is_full()
            || self.jitter_buffer.first_behind(hole).is_some_and(|arrived| now - arrived >= self.hold())
    }

    /// How far the frame at the front reaches.
    fn frame_end(&self, rtp: u32) -> FrameEnd {
        let mut at = 0;
        loop {
            match self.jitter_buffer.get(at) {
                None => return FrameEnd::Unfinished,
                Some(None) => return FrameEnd::Hole(at),
                Some(Some(packet)) if packet.rtp != rtp => return FrameEnd::Complete(at),
                Some(Some(packet)) if packet.boundaries.last || packet.marker => return FrameEnd::Complete(at + 1),
                Some(Some(_)) => at += 1,
            }
        }
    }

    pub(super) fn count_lost(&mut self, missing: u64) {
        self.stats.lost += missing;
        self.lost_since_frame += missing;
    }

    /// Gives up the hole at `at`, and with it the packets before it, which are of the same frame.
    fn give_up(&mut self, at: usize, now: MediaTime, out: &mut Vec<Output>) {
        let mut holes = 0;
        while matches!(self.jitter_buffer.get(at + holes), Some(None)) {
            holes += 1;
        }
        let harmless = self.is_harmless(at);
        self.packets.clear();
        let missing = self.jitter_buffer.take(at + holes, &mut self.packets);
        self.count_lost(missing);
        self.start_limiter.tell(&self.packets, now, out);
        if self.kind == TrackKind::Audio {
            return;
        }
        let front = self.packets.first().map(|packet| packet.rtp);
        if missing > 0 && !harmless {
            self.keyframes.request(KeyframeReason::Loss);
        }
        match front {
            Some(rtp) => self.damage(rtp),
            None if missing > 0 => self.resync = Some(Resync::Unsure),
            None => {}
        }
    }

    /// Drops the packets of a damaged frame. It is counted once.
    fn damage(&mut self, rtp: u32) {
        if self.resync != Some(Resync::Damaged(rtp)) {
            self.stats.frames_damaged += 1;
            self.resync = Some(Resync::Damaged(rtp));
        }
    }

    /// Takes the packets of a complete frame from the jitter buffer, and emits the frame.
    fn release(&mut self, count: usize, now: MediaTime, out: &mut Vec<Output>) {
        let mut packets = std::mem::take(&mut self.packets);
        packets.clear();
        self.jitter_buffer.take(count, &mut packets);
        self.start_limiter.tell(&packets, now, out);
        self.assemble(&packets, now, out);
        packets.clear();
        self.packets = packets;
    }

    fn assemble(&mut self, packets: &[BufferedPacket], now: MediaTime, out: &mut Vec<Output>) {
        let payloads: Vec<&[u8]> = packets.iter().map(|packet| &*packet.payload).filter(|p| !p.is_empty()).collect();
        let (Some(source), Some(front), false) = (&mut self.source, packets.first(), payloads.is_empty()) else {
            return;
        };
        if packets.iter().any(|packet| packet.after_pause) {
            self.gap_cause.get_or_insert(GapCause::NotSent);
        }
        let begins =
            packets.iter().find(|packet| !packet.payload.is_empty()).is_some_and(|packet| packet.boundaries.first);
        let malformed = packets.iter().any(|packet| packet.malformed);
        let torn = !malformed && (!begins || self.resync == Some(Resync::Damaged(front.rtp)));
        let assembled =
            if torn || malformed { Err(PayloadError::Invalid) } else { source.depacketizer.assemble(&payloads) };
        match assembled {
            Ok(frame) => {
                self.resync = None;
                if !frame.data.is_empty() {
                    let rtp = (front.rtp, source.clock.rate());
                    self.emit(frame, front.at, rtp, now, out);
                }
            }
            Err(error) => {
                // A torn frame follows a loss, which was handled already.
                if !torn || self.resync.is_none() {
                    tracing::debug!(%error, "a frame cannot be put together");
                    self.gap_cause.get_or_insert(GapCause::Unsupported);
                    self.keyframes.request(KeyframeReason::Loss);
                }
                if self.kind == TrackKind::Audio {
                    return;
                }
                if torn && self.resync == Some(Resync::Joined) {
                    self.stats.frames_before_keyframe += 1;
                    self.resync = Some(Resync::Damaged(front.rtp));
                } else {
                    self.damage(front.rtp);
                }
            }
        }
    }

    /// Emits a frame that would be shown at `at`; `rtp` is its RTP time, and the clock's rate.
    fn emit(&mut self, frame: AssembledFrame, at: MediaTime, rtp: (u32, u32), now: MediaTime, out: &mut Vec<Output>) {
        if self.needs_keyframe {
            if !frame.keyframe {
                self.stats.frames_before_keyframe += 1;
                return;
            }
            self.needs_keyframe = false;
        }
        let pts = self.presentation.place(at, rtp, frame.keyframe, self.last.map(|last| last.start));
        let duration = frame.ticks.map(|ticks| ticks_to_span(i64::from(ticks), rtp.1));
        let is_newest = self.last.is_none_or(|last| pts > last.start);
        if is_newest {
            let shown = self.presentation.first_to_come(pts, frame.keyframe);
            self.report_gap(shown, out);
        }
        if let Some(format) = frame.format
            && self.format.as_ref() != Some(&format)
        {
            self.presentation.set_may_reorder(h264::may_reorder(&format));
            self.format = Some(format.clone());
            out.push(Output::Format(format));
        }
        if frame.keyframe {
            let pixels = self.format.as_ref().map_or(0, |f| u64::from(f.width) * u64::from(f.height));
            self.keyframes.received(pixels, now);
            self.stats.keyframes += u64::from(self.kind == TrackKind::Video);
        }
        let lasts = duration.unwrap_or_else(|| self.spans.next(pts));
        let before = self.last.filter(|_| !is_newest);
        self.last = Some(LastFrame {
            start: before.map_or(pts, |last| last.start),
            end: before.map_or(pts + lasts, |last| last.end.max(pts + lasts)),
        });
        self.lost_since_frame = 0;
        self.arrivals.frame(now);
        self.storage_lost = false;
        self.gap_cause = None;
        self.off = self.muted.map(|since| Off { since, until: None });
        self.stats.frames += 1;
        out.push(Output::Frame(Frame { pts, duration, keyframe: frame.keyframe, data: Bytes::from(frame.data) }));
    }

    /// Reports what is missing before `pts`, where a frame is shown or those begin that it was sent ahead of, with its cause, if anything is.
    fn report_gap(&mut self, pts: MediaTime, out: &mut Vec<Output>) {
        let (off, stall) = (self.off.take(), span(self.options.stall));
        let Some(last) = self.last else { return };
        if pts - last.end >= stall {
            // Cancelled if this frame is a keyframe.
            self.keyframes.request(KeyframeReason::Resume);
        }
        // Nothing was sent up to the moment when the publisher switched the track on, or when sender reports begin to show packets
        // that did not come. What is missing since may be lost. The packets of this frame may have come before it was switched off.
        let off =
            off.filter(|off| off.since <= pts).map(|off| off.until.map_or(pts, |until| until.max(last.end).min(pts)));
        let begins = off.unwrap_or(last.end);
        let missing = pts - begins;
        let paused = self.arrivals.unseen().unwrap_or(GapCause::NotSent);
        let cause = match self.gap_cause {
            Some(cause) if missing >= LOSS_GAP_MIN => Some(cause),
            None if self.lost_since_frame > 0 && missing >= LOSS_GAP_MIN => Some(GapCause::Network),
            None if missing >= stall => Some(paused),
            _ => None,
        };
        // Packets that are further apart than a stall have a pause between them: lost ones cannot have lasted longer than this.
        let lost_max = i64::try_from(self.lost_since_frame).unwrap_or(i64::MAX).saturating_add(1).saturating_mul(stall);
        let mut gap = |from, to, cause| {
            if to - from >= LOSS_GAP_MIN {
                out.push(Output::Gap(Gap { from, to, cause }));
            }
        };
        match (off, cause) {
            (None, None) => {}
            (Some(_), None | Some(GapCause::NotSent)) => gap(last.end, pts, GapCause::NotSent),
            (_, Some(GapCause::Network)) if missing > lost_max => {
                gap(last.end, begins, GapCause::NotSent);
                gap(begins, begins + lost_max, GapCause::Network);
                gap(begins + lost_max, pts, paused);
            }
            (_, Some(cause)) => {
                let silent = self.arrivals.unseen_since().filter(|since| *since - begins >= stall);
                let lost = silent.filter(|_| cause == GapCause::NotReceived).unwrap_or(begins);
                gap(last.end, lost, GapCause::NotSent);
                gap(lost, pts, cause);
            }
        }
    }
}

enum FrameEnd {
    /// The number of packets.
    Complete(usize),
    /// The index of a missing packet.
    Hole(usize),
    /// More packets are to come.
    Unfinished,
}
