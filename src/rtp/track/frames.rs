//! From the queue to frames: what is complete leaves, what is lost is given up, what is missing is noted.

use bytes::Bytes;

use super::jitter_buffer::Held;
use super::{KeyframeReason, Last, MS, Output, Resync, TrackRules, span};
use crate::model::ids::TrackKind;
use crate::model::media::{Frame, Gap, GapCause};
use crate::model::time::{MediaSpan, MediaTime, ticks_to_span};
use crate::rtp::depacketize::{Assembled, PayloadError};

/// What a picture is taken to last when nothing tells: one at 30 a second.
const PICTURE_SPAN: MediaSpan = 33 * MS;
/// What a picture lasts at most when the next one is late.
const PICTURE_SPAN_MAX: MediaSpan = 200 * MS;
/// A loss shorter than this is counted but makes no gap.
const LOSS_GAP_MIN: MediaSpan = 100 * MS;

impl TrackRules {
    fn hold(&self) -> MediaSpan {
        span(match self.kind {
            TrackKind::Audio => self.options.audio_hold,
            TrackKind::Video => self.options.video_hold,
        })
    }

    /// Lets out what is complete, and gives up what has waited too long (or all that is missing).
    pub(super) fn drain(&mut self, now: MediaTime, give_up: bool, out: &mut Vec<Output>) {
        if give_up {
            self.judge_pause(now, true);
        }
        if self.source.as_ref().is_some_and(|source| source.clock.is_judging()) && !self.queue.is_full() {
            return;
        }
        while let Some(front) = self.queue.get(0) {
            match front {
                None if self.expired(0, now, give_up) => self.give_up(0),
                None => break,
                Some(held) => match self.frame_end(held.rtp) {
                    FrameEnd::Complete(count) => self.release(count, now, out),
                    FrameEnd::Hole(at) if self.expired(at, now, give_up) => self.give_up(at),
                    FrameEnd::Unfinished if give_up || self.queue.is_full() => self.give_up(self.queue.len()),
                    FrameEnd::Hole(_) | FrameEnd::Unfinished => break,
                },
            }
        }
        self.ask_keyframe(now, out);
    }

    fn expired(&self, hole: usize, now: MediaTime, give_up: bool) -> bool {
        give_up
            || self.queue.is_full()
            || self.queue.first_behind(hole).is_some_and(|arrived| now - arrived >= self.hold())
    }

    /// How far the frame at the front reaches.
    fn frame_end(&self, rtp: u32) -> FrameEnd {
        let mut at = 0;
        loop {
            match self.queue.get(at) {
                None => return FrameEnd::Unfinished,
                Some(None) => return FrameEnd::Hole(at),
                Some(Some(held)) if held.rtp != rtp => return FrameEnd::Complete(at),
                Some(Some(held)) if held.edges.last || held.marker => return FrameEnd::Complete(at + 1),
                Some(Some(_)) => at += 1,
            }
        }
    }

    pub(super) fn lose(&mut self, missing: u64) {
        self.stats.lost += missing;
        self.lost_since_frame += missing;
    }

    /// Gives up the hole at `at`, and with it the packets before it, which are of the same frame.
    fn give_up(&mut self, at: usize) {
        let mut holes = 0;
        while matches!(self.queue.get(at + holes), Some(None)) {
            holes += 1;
        }
        let next = self.queue.get(at + holes).flatten().map(|held| (held.rtp, held.edges.discardable));
        self.packets.clear();
        let missing = self.queue.take(at + holes, &mut self.packets);
        self.lose(missing);
        if self.kind == TrackKind::Audio {
            return;
        }
        let front = self.packets.first().map(|held| held.rtp);
        // Nothing leans on a discardable frame, if it is the only one that misses something.
        let harmless = front.is_some_and(|rtp| {
            self.packets.iter().all(|held| held.edges.discardable)
                && match next {
                    Some((next_rtp, discardable)) if next_rtp == rtp => discardable,
                    _ => missing <= 1,
                }
        });
        if missing > 0 && !harmless {
            self.keyframes.want(KeyframeReason::Loss);
        }
        match front {
            Some(rtp) => self.damage(rtp),
            None if missing > 0 => self.resync = Some(Resync::Unsure),
            None => {}
        }
    }

    /// A frame is damaged: what belongs to it is dropped. Counted once.
    fn damage(&mut self, rtp: u32) {
        if self.resync != Some(Resync::Damaged(rtp)) {
            self.stats.frames_damaged += 1;
            self.resync = Some(Resync::Damaged(rtp));
        }
    }

    /// A frame is complete: its packets leave the queue.
    fn release(&mut self, count: usize, now: MediaTime, out: &mut Vec<Output>) {
        let mut packets = std::mem::take(&mut self.packets);
        packets.clear();
        self.queue.take(count, &mut packets);
        self.assemble(&packets, now, out);
        packets.clear();
        self.packets = packets;
    }

    fn assemble(&mut self, packets: &[Held], now: MediaTime, out: &mut Vec<Output>) {
        let payloads: Vec<&[u8]> = packets.iter().map(|held| &*held.payload).filter(|p| !p.is_empty()).collect();
        let (Some(source), Some(front), false) = (&mut self.source, packets.first(), payloads.is_empty()) else {
            return;
        };
        if packets.iter().any(|held| held.after_pause) {
            self.gap_cause.get_or_insert(GapCause::Publisher);
        }
        let begins = packets.iter().find(|held| !held.payload.is_empty()).is_some_and(|held| held.edges.first);
        let malformed = packets.iter().any(|held| held.malformed);
        let torn = !malformed && (!begins || self.resync == Some(Resync::Damaged(front.rtp)));
        let assembled =
            if torn || malformed { Err(PayloadError::Invalid) } else { source.depacketizer.assemble(&payloads) };
        match assembled {
            Ok(frame) => {
                self.resync = None;
                if !frame.data.is_empty() {
                    let rate = source.clock.rate();
                    self.emit(frame, front.at, rate, now, out);
                }
            }
            Err(error) => {
                // A torn frame follows a loss, which has been dealt with.
                if !torn || self.resync.is_none() {
                    tracing::debug!(%error, "a frame cannot be put together");
                    self.gap_cause.get_or_insert(GapCause::Publisher);
                    self.keyframes.want(KeyframeReason::Loss);
                }
                if self.kind == TrackKind::Video {
                    self.damage(front.rtp);
                }
            }
        }
    }

    fn emit(&mut self, frame: Assembled, at: MediaTime, rate: u32, now: MediaTime, out: &mut Vec<Output>) {
        if self.needs_keyframe {
            if !frame.keyframe {
                self.stats.frames_before_keyframe += 1;
                return;
            }
            self.needs_keyframe = false;
        }
        // Times never go back: where a clock was anchored anew a little early, frames follow on.
        let pts = self.last.map_or(at, |last| at.max(last.start + 1));
        let duration = frame.ticks.map(|ticks| ticks_to_span(i64::from(ticks), rate));
        self.note_gap(pts, out);
        if let Some(format) = frame.format
            && self.format.as_ref() != Some(&format)
        {
            self.format = Some(format.clone());
            out.push(Output::Format(format));
        }
        if frame.keyframe {
            let pixels = self.format.as_ref().map_or(0, |f| u64::from(f.width) * u64::from(f.height));
            self.keyframes.came(pixels, now);
            self.stats.keyframes += u64::from(self.kind == TrackKind::Video);
        }
        let lasts = duration
            .unwrap_or_else(|| self.last.map_or(PICTURE_SPAN, |last| (pts - last.start).clamp(MS, PICTURE_SPAN_MAX)));
        self.last = Some(Last { start: pts, end: pts + lasts });
        self.lost_since_frame = 0;
        self.gap_cause = self.muted.map(|_| GapCause::Publisher);
        self.stats.frames += 1;
        out.push(Output::Frame(Frame { pts, duration, keyframe: frame.keyframe, data: Bytes::from(frame.data) }));
    }

    /// Before a frame is written: is there a gap before it, and whose?
    fn note_gap(&mut self, pts: MediaTime, out: &mut Vec<Output>) {
        let Some(last) = self.last else { return };
        let missing = pts - last.end;
        let stalled = missing >= span(self.options.stall);
        if stalled {
            // Taken back if this frame is one.
            self.keyframes.want(KeyframeReason::Resume);
        }
        let cause = match self.gap_cause {
            Some(cause) if missing >= LOSS_GAP_MIN => cause,
            None if self.lost_since_frame > 0 && missing >= LOSS_GAP_MIN => GapCause::Network,
            None if stalled => GapCause::Publisher,
            _ => return,
        };
        out.push(Output::Gap(Gap { from: last.end, to: pts, cause }));
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
