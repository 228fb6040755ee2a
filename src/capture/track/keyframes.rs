//! When to ask for a keyframe. Every one costs every viewer of the session, so: only with a reason, and
//! until one comes with growing pauses.

use std::time::Duration;

use super::{KeyframeReason, span};
use crate::time::{MediaSpan, MediaTime};

/// Pauses between requests for the same keyframe, in least intervals. A request may be lost on its way; a
/// publisher that does not send needs no more of them.
const PAUSES: [MediaSpan; 6] = [1, 1, 2, 4, 8, 15];

#[derive(Debug)]
pub(super) struct Keyframes {
    interval_min: MediaSpan,
    interval_max: Option<MediaSpan>,
    wanted: Option<KeyframeReason>,
    asked: Option<MediaTime>,
    tries: usize,
    seen: MediaTime,
}

impl Keyframes {
    pub fn new(interval_min: Duration, interval_max: Option<Duration>, now: MediaTime) -> Self {
        Self {
            interval_min: span(interval_min),
            interval_max: interval_max.map(span),
            wanted: None,
            asked: None,
            tries: 0,
            seen: now,
        }
    }

    /// A keyframe is wanted; the first reason counts.
    pub fn want(&mut self, reason: KeyframeReason) {
        self.wanted.get_or_insert(reason);
    }

    /// A keyframe came.
    pub fn came(&mut self, now: MediaTime) {
        self.wanted = None;
        self.tries = 0;
        self.seen = now;
    }

    /// Another source: what was asked of the last one counts no more.
    pub fn restart(&mut self) {
        self.asked = None;
        self.tries = 0;
    }

    /// Whether to ask now.
    pub fn poll(&mut self, now: MediaTime) -> Option<KeyframeReason> {
        if self.wanted.is_none() && self.interval_max.is_some_and(|interval| now - self.seen >= interval) {
            self.wanted = Some(KeyframeReason::Interval);
        }
        let reason = self.wanted?;
        let pause = self.interval_min.saturating_mul(PAUSES[self.tries.saturating_sub(1).min(PAUSES.len() - 1)]);
        if self.asked.is_some_and(|asked| now - asked < pause) {
            return None;
        }
        self.asked = Some(now);
        self.tries += 1;
        Some(reason)
    }
}
