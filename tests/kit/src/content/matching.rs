//! What was sent against what is in the file.

use std::collections::{BTreeMap, HashMap};

use super::Content;
#[cfg(doc)]
use crate::publisher::media::LOOP_SECONDS;

/// What a publisher sent, on one clock for all publishers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Timeline {
    /// Pictures: number, when taken in seconds since 1970.
    pub frames: Vec<(u32, f64)>,
    /// Beeps: second, when begun in seconds since 1970.
    pub beeps: Vec<(u32, f64)>,
}

impl Timeline {
    /// When each picture was taken, by its number. A number comes again after a minute ([`LOOP_SECONDS`]): its first time
    /// counts, for a publisher that goes on while its archive is being made.
    #[must_use]
    pub fn first_frames(&self) -> HashMap<u32, f64> {
        self.frames.iter().rev().copied().collect()
    }

    /// When each second's beep began, by the second's number; the first time, as for [`first_frames`](Self::first_frames).
    #[must_use]
    pub fn first_beeps(&self) -> HashMap<u32, f64> {
        self.beeps.iter().rev().copied().collect()
    }
}

/// Pictures come each 33 ms: what is missing for longer than this, in seconds, is a hole.
const HOLE_MIN: f64 = 0.14;

/// The same picture or beep in the truth and in the file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// When it was taken, in seconds since 1970.
    pub sent: f64,
    /// When it is shown or heard, in seconds of the file's time.
    pub seen: f64,
}

impl Pair {
    /// Where the file's time zero is on the truth's clock, by this pair.
    #[must_use]
    pub fn zero(&self) -> f64 {
        self.sent - self.seen
    }
}

/// A file held against the truth.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Matched {
    /// Pictures found.
    pub frames: Vec<Pair>,
    /// Beeps found.
    pub beeps: Vec<Pair>,
    /// Pictures sent between the first and the last found one that are not in the file: their times of sending.
    pub missing: Vec<f64>,
    /// Pictures sent before the first found one.
    pub before: usize,
    /// Pictures sent after the last found one.
    pub after: usize,
    /// Pictures that are in the file at their time, but do not show their number: an earlier one that they build on
    /// is missing. They are neither found nor missing.
    pub damaged: usize,
    /// Other pictures of the file that were never sent, come twice or out of order, or cannot be read.
    pub strange: usize,
}

/// The same number comes again only after so many seconds, more or less.
const WINDOW: f64 = 1.0;
/// Sound and pictures of a file are no further apart, in seconds. Seconds come again after about a minute.
const APART_MAX: f64 = 25.0;
/// A picture without a readable number is taken for the one that belongs there when it is so near, in seconds.
const SAME_PLACE: f64 = 0.012;

impl Content {
    /// Finds each picture and beep in the truth.
    #[must_use]
    pub fn against(&self, truth: &Timeline) -> Matched {
        let mut matched = Matched::default();
        let seen: Vec<(u32, f64)> = self.frames.iter().filter_map(|f| Some((u32::from(f.number?), f.pts))).collect();
        let pairs = match_up(&truth.frames, &seen, None);
        matched.strange = self.frames.len() - pairs.len();
        let found: Vec<usize> = pairs.iter().map(|p| p.0).collect();
        if let (Some(first), Some(last)) = (found.first(), found.last()) {
            let mut is_found = vec![false; truth.frames.len()];
            found.iter().for_each(|n| is_found[*n] = true);
            matched.missing = (*first..*last).filter(|n| !is_found[*n]).map(|n| truth.frames[n].1).collect();
            matched.before = *first;
            matched.after = truth.frames.len() - 1 - last;
        } else {
            matched.after = truth.frames.len();
        }
        matched.frames = pairs.into_iter().map(|p| p.1).collect();
        matched.find_damaged(self);
        let heard: Vec<(u32, f64)> = self.beeps.iter().map(|b| (b.second, b.at)).collect();
        // Where many beeps are lost, those that are left may fit an earlier minute as well.
        let zeros: Vec<f64> = matched.frames.iter().map(Pair::zero).collect();
        let near = percentile(&zeros, 50.0);
        matched.beeps = match_up(&truth.beeps, &heard, near).into_iter().map(|p| p.1).collect();
        matched
    }
}

/// Finds the shift on which most agree, then pairs in order. Returns index in the truth, and pair. `near`: a shift that it is not far from.
#[allow(clippy::cast_possible_truncation)]
fn match_up(sent: &[(u32, f64)], seen: &[(u32, f64)], near: Option<f64>) -> Vec<(usize, Pair)> {
    let mut places: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (n, (number, _)) in sent.iter().enumerate() {
        places.entry(*number).or_default().push(n);
    }
    let all = |number: &u32| places.get(number).into_iter().flatten().copied();
    let mut votes: BTreeMap<i64, usize> = BTreeMap::new();
    for (number, at) in seen {
        for place in all(number) {
            let shift = sent[place].1 - at;
            if near.is_some_and(|near| (shift - near).abs() > APART_MAX) {
                continue;
            }
            let bin = (2.0 * shift / WINDOW).round() as i64;
            *votes.entry(bin).or_default() += 1;
        }
    }
    // A shift near the border of two bins votes for both.
    let weight = |bin: i64| [bin - 1, bin, bin + 1].iter().filter_map(|b| votes.get(b)).sum::<usize>();
    // Of those that are as good as each other the earliest: the numbers come again when the file has ended. A misread number votes for any.
    let best = votes.keys().map(|bin| weight(*bin)).max().unwrap_or_default();
    let good = || votes.keys().copied().filter(|bin| weight(*bin) * 100 >= best * 99);
    let Some(first) = good().next() else { return Vec::new() };
    let Some(bin) = good().filter(|bin| bin - first <= 2).max_by_key(|bin| (weight(*bin), votes[bin])) else {
        return Vec::new();
    };
    #[allow(clippy::cast_precision_loss)]
    let shift = bin as f64 * WINDOW / 2.0;
    let mut pairs: Vec<(usize, Pair)> = Vec::new();
    for (number, at) in seen {
        let place = all(number).find(|place| (sent[*place].1 - at - shift).abs() < WINDOW);
        let next = pairs.last().map_or(0, |p| p.0 + 1);
        if let Some(place) = place.filter(|place| *place >= next) {
            pairs.push((place, Pair { sent: sent[place].1, seen: *at }));
        }
    }
    pairs
}

impl Matched {
    /// Where pictures are missing in the file, in seconds since 1970: from, to.
    #[must_use]
    pub fn holes(&self) -> Vec<(f64, f64)> {
        let pairs = self.frames.windows(2).map(|pair| (pair[0].sent, pair[1].sent));
        pairs.filter(|(from, to)| to - from > HOLE_MIN).collect()
    }

    /// Moves missing pictures whose place in the file is taken by a strange one to the damaged ones.
    fn find_damaged(&mut self, content: &Content) {
        let zeros: Vec<f64> = self.frames.iter().map(Pair::zero).collect();
        let Some(zero) = percentile(&zeros, 50.0) else { return };
        // Both are in the order of the file.
        let mut found = self.frames.iter().peekable();
        let mut strange: Vec<f64> = content.frames.iter().map(|f| f.pts).collect();
        #[allow(clippy::float_cmp)]
        strange.retain(|pts| found.next_if(|f| f.seen == *pts).is_none());
        self.missing.retain(|sent| {
            let place = strange.iter().position(|pts| (sent - zero - pts).abs() < SAME_PLACE);
            place.map(|place| strange.swap_remove(place)).is_none()
        });
        let damaged = self.strange - strange.len();
        self.damaged = damaged;
        self.strange -= damaged;
    }

    /// Share of the pictures sent between the first and the last found one that are in the file, damaged ones too.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn share(&self) -> f64 {
        let there = self.frames.len() + self.damaged;
        there as f64 / (there + self.missing.len()).max(1) as f64
    }

    /// For each beep, how much later it is in the file than the picture taken at the same time; in seconds, negative when earlier.
    #[must_use]
    pub fn sound_after_picture(&self) -> Vec<f64> {
        let offset = |beep: &Pair| {
            let near: Vec<f64> =
                self.frames.iter().filter(|f| (f.sent - beep.sent).abs() < 0.25).map(Pair::zero).collect();
            Some(percentile(&near, 50.0)? - beep.zero())
        };
        self.beeps.iter().filter_map(offset).collect()
    }
}

/// For each pair of `a`, how much later it is in its file than what `b` sent at the same time, given both
/// files have the same time line; in seconds.
#[must_use]
pub fn apart(a: &[Pair], b: &[Pair]) -> Vec<f64> {
    let near = |pair: &Pair| {
        let zeros: Vec<f64> = b.iter().filter(|o| (o.sent - pair.sent).abs() < 1.0).map(Pair::zero).collect();
        Some(percentile(&zeros, 50.0)? - pair.zero())
    };
    a.iter().filter_map(near).collect()
}

/// The value that `percent` of all values do not exceed; none without values.
#[must_use]
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub fn percentile(values: &[f64], percent: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = (percent / 100.0 * (sorted.len() as f64 - 1.0)).round();
    sorted.get(place.max(0.0) as usize).copied()
}
