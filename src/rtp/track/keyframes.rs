//! When to ask for a keyframe. Every one costs every viewer of the session, so: only with a reason, and
//! until one comes with growing pauses.

use std::cmp::Ordering;
use std::time::Duration;

use super::{KeyframeReason, MS, span};
use crate::model::time::{MediaSpan, MediaTime};

/// Pauses between requests for the same keyframe, in least intervals. A request may be lost on its way; a
/// publisher that does not send needs no more of them.
const PAUSES: [MediaSpan; 6] = [1, 1, 2, 4, 8, 15];

/// How long after a picture became smaller a keyframe is asked for. Janus sends any lower layer when the highest ends, and
/// climbs from there only with a keyframe of a higher one. A publisher whose pictures are just smaller is left alone
/// after the last.
const SMALLER: [MediaSpan; 3] = [1_000 * MS, 3_000 * MS, 7_000 * MS];

/// Whether a picture became smaller, and for how long it has been.
#[derive(Debug, Default)]
struct Smaller {
    pixels: u64,
    since: Option<MediaTime>,
    /// How many of the moments are past.
    past: usize,
}

impl Smaller {
    /// A keyframe of this many pixels came.
    fn came(&mut self, pixels: u64, now: MediaTime) {
        match pixels.cmp(&std::mem::replace(&mut self.pixels, pixels)) {
            Ordering::Less => (self.since, self.past) = (Some(now), 0),
            Ordering::Equal => {}
            Ordering::Greater => self.since = None,
        }
    }

    /// Whether to ask now. Moments that nobody looked at are one.
    fn poll(&mut self, now: MediaTime) -> bool {
        let Some(since) = self.since else { return false };
        let past = SMALLER.iter().filter(|moment| now - since >= **moment).count();
        std::mem::replace(&mut self.past, past) < past
    }
}

#[derive(Debug)]
pub(super) struct Keyframes {
    interval_min: MediaSpan,
    interval_max: Option<MediaSpan>,
    wanted: Option<KeyframeReason>,
    asked: Option<MediaTime>,
    tries: usize,
    seen: MediaTime,
    smaller: Smaller,
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
            smaller: Smaller::default(),
        }
    }

    /// A keyframe is wanted; the first reason counts.
    pub fn want(&mut self, reason: KeyframeReason) {
        self.wanted.get_or_insert(reason);
    }

    /// A keyframe of this many pixels came.
    pub fn came(&mut self, pixels: u64, now: MediaTime) {
        self.smaller.came(pixels, now);
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
        if self.smaller.poll(now) {
            self.want(KeyframeReason::Smaller);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_that_became_smaller_is_asked_for_a_few_times_as_long_as_it_is() {
        let (large, medium, small) = (640 * 480, 320 * 240, 160 * 120);
        // Keyframes that come, each with the second of it, and the seconds at which one is asked for.
        for (name, keyframes, asked) in [
            ("the first", vec![(0, small)], vec![]),
            ("the same again", vec![(0, large), (5, large)], vec![]),
            ("larger", vec![(0, small), (5, large)], vec![]),
            ("smaller", vec![(0, large), (5, small)], vec![6, 8, 12]),
            ("smaller, and still so when asked", vec![(0, large), (5, small), (7, small), (9, small)], vec![6, 8, 12]),
            ("larger again", vec![(0, large), (5, small), (7, large)], vec![6]),
            ("a layer between", vec![(0, large), (5, small), (7, medium)], vec![6]),
            ("smaller still", vec![(0, large), (5, medium), (7, small)], vec![6, 8, 10, 14]),
            ("smaller another time", vec![(0, large), (5, small), (7, large), (20, small)], vec![6, 21, 23, 27]),
        ] {
            let mut smaller = Smaller::default();
            let mut asks = Vec::new();
            for second in 0..40 {
                let now = MediaTime::from_millis(1000 * second);
                for (_, pixels) in keyframes.iter().filter(|(at, _)| *at == second) {
                    smaller.came(*pixels, now);
                }
                if smaller.poll(now) {
                    asks.push(second);
                }
            }
            assert_eq!(asks, asked, "{name}");
        }
    }

    #[test]
    fn moments_that_nobody_looked_at_are_one() {
        let mut smaller = Smaller::default();
        smaller.came(2, MediaTime::ZERO);
        smaller.came(1, MediaTime::ZERO);
        assert!(smaller.poll(MediaTime::from_millis(60_000)) && !smaller.poll(MediaTime::from_millis(90_000)));
    }
}
