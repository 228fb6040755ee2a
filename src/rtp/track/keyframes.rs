//! When to request a keyframe. Each one costs every viewer of the session bandwidth, so a request needs a reason, and is
//! repeated at growing intervals until a keyframe comes.

use std::cmp::Ordering;
use std::time::Duration;

use super::{KeyframeReason, MS, span};
use crate::model::time::{MediaSpan, MediaTime};

/// Intervals between requests for the same keyframe, in units of the least interval. A request may be lost on its way; a
/// publisher that does not send needs no more of them.
const PAUSES: [MediaSpan; 6] = [1, 1, 2, 4, 8, 15];

/// How long after frames became smaller a keyframe is requested. Janus sends any lower layer when the highest ends, and
/// climbs from there only with a keyframe of a higher one. After the last request the smaller size is accepted.
const DOWNSCALE_REQUESTS: [MediaSpan; 3] = [1_000 * MS, 3_000 * MS, 7_000 * MS];

/// Whether frames became smaller, and for how long they have been.
#[derive(Debug, Default)]
struct Downscale {
    pixels: u64,
    since: Option<MediaTime>,
    /// How many of [`DOWNSCALE_REQUESTS`] are past.
    past: usize,
}

impl Downscale {
    /// A keyframe of this many pixels came.
    fn received(&mut self, pixels: u64, now: MediaTime) {
        match pixels.cmp(&std::mem::replace(&mut self.pixels, pixels)) {
            Ordering::Less => (self.since, self.past) = (Some(now), 0),
            Ordering::Equal => {}
            Ordering::Greater => self.since = None,
        }
    }

    /// Whether to request a keyframe now. Requests that were due between two calls are one.
    fn poll(&mut self, now: MediaTime) -> bool {
        let Some(since) = self.since else { return false };
        let past = DOWNSCALE_REQUESTS.iter().filter(|moment| now - since >= **moment).count();
        std::mem::replace(&mut self.past, past) < past
    }
}

#[derive(Debug)]
pub(super) struct Keyframes {
    interval_min: MediaSpan,
    interval_max: Option<MediaSpan>,
    wanted: Option<KeyframeReason>,
    /// Requested once, whether a keyframe comes or not.
    wanted_once: Option<KeyframeReason>,
    last_request: Option<MediaTime>,
    attempts: usize,
    last_keyframe: MediaTime,
    downscale: Downscale,
}

impl Keyframes {
    pub fn new(interval_min: Duration, interval_max: Option<Duration>, now: MediaTime) -> Self {
        Self {
            interval_min: span(interval_min),
            interval_max: interval_max.map(span),
            wanted: None,
            wanted_once: None,
            last_request: None,
            attempts: 0,
            last_keyframe: now,
            downscale: Downscale::default(),
        }
    }

    /// Requests a keyframe with the next [`Keyframes::poll`]. The first reason counts.
    pub fn request(&mut self, reason: KeyframeReason) {
        self.wanted.get_or_insert(reason);
    }

    /// Requests a keyframe once: the one that comes may be received much later, behind a missing packet that is waited for.
    pub fn request_once(&mut self, reason: KeyframeReason) {
        self.wanted_once.get_or_insert(reason);
    }

    /// Whether a keyframe is requested that has not come.
    pub fn is_wanted(&self) -> bool {
        self.wanted.is_some()
    }

    /// A keyframe of this many pixels came.
    pub fn received(&mut self, pixels: u64, now: MediaTime) {
        self.downscale.received(pixels, now);
        self.wanted = None;
        self.wanted_once = None;
        self.attempts = 0;
        self.last_keyframe = now;
    }

    /// Another source begins: requests to the last one do not count.
    pub fn restart(&mut self) {
        self.last_request = None;
        self.attempts = 0;
    }

    /// Whether to send a request now, and its reason.
    pub fn poll(&mut self, now: MediaTime) -> Option<KeyframeReason> {
        if self.wanted.is_none() && self.interval_max.is_some_and(|interval| now - self.last_keyframe >= interval) {
            self.wanted = Some(KeyframeReason::Interval);
        }
        if self.downscale.poll(now) {
            self.request(KeyframeReason::Smaller);
        }
        let reason = self.wanted.or(self.wanted_once)?;
        let pause = self.interval_min.saturating_mul(PAUSES[self.attempts.saturating_sub(1).min(PAUSES.len() - 1)]);
        if self.last_request.is_some_and(|last_request| now - last_request < pause) {
            return None;
        }
        self.last_request = Some(now);
        self.attempts += usize::from(self.wanted.is_some());
        self.wanted_once = None;
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
        for (name, keyframes, last_request) in [
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
            let mut smaller = Downscale::default();
            let mut asks = Vec::new();
            for second in 0..40 {
                let now = MediaTime::from_millis(1000 * second);
                for (_, pixels) in keyframes.iter().filter(|(at, _)| *at == second) {
                    smaller.received(*pixels, now);
                }
                if smaller.poll(now) {
                    asks.push(second);
                }
            }
            assert_eq!(asks, last_request, "{name}");
        }
    }

    #[test]
    fn moments_that_nobody_looked_at_are_one() {
        let mut smaller = Downscale::default();
        smaller.received(2, MediaTime::ZERO);
        smaller.received(1, MediaTime::ZERO);
        assert!(smaller.poll(MediaTime::from_millis(60_000)) && !smaller.poll(MediaTime::from_millis(90_000)));
    }
}
