//! Sets of media time: sorted intervals that neither overlap nor touch. Pure.

use crate::model::time::{MediaSpan, MediaTime};

/// From `from`, inclusive, to `to`, exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    /// Inclusive.
    pub from: MediaTime,
    /// Exclusive; later than `from` in a set.
    pub to: MediaTime,
}

impl Interval {
    /// An interval; empty if `to` is not later than `from`.
    #[must_use]
    pub const fn new(from: MediaTime, to: MediaTime) -> Self {
        Self { from, to }
    }

    /// Its length in nanoseconds.
    #[must_use]
    pub fn len(self) -> MediaSpan {
        (self.to - self.from).max(0)
    }

    /// Whether it has no length.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.from >= self.to
    }
}

/// A set of media time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Intervals(Vec<Interval>);

impl Intervals {
    /// The intervals, in order.
    pub fn iter(&self) -> impl Iterator<Item = Interval> + '_ {
        self.0.iter().copied()
    }

    /// Whether the set is empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The set with holes shorter than `span` filled.
    #[must_use]
    pub fn bridged(&self, span: MediaSpan) -> Self {
        let mut out: Vec<Interval> = Vec::with_capacity(self.0.len());
        for next in self.iter() {
            match out.last_mut() {
                Some(last) if next.from - last.to < span => last.to = last.to.max(next.to),
                _ => out.push(next),
            }
        }
        Self(out)
    }

    /// What is in either set.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.iter().chain(other.iter()).collect()
    }

    /// What is in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let (mut a, mut b) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut out = Vec::new();
        while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
            let both = Interval::new(x.from.max(y.from), x.to.min(y.to));
            if !both.is_empty() {
                out.push(both);
            }
            if x.to < y.to {
                a.next()
            } else {
                b.next()
            };
        }
        Self(out)
    }

    /// What is in this set and not in the other.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut out = Vec::new();
        let mut rest = other.0.as_slice();
        for whole in self.iter() {
            while rest.first().is_some_and(|hole| hole.to <= whole.from) {
                rest = &rest[1..];
            }
            let mut from = whole.from;
            for hole in rest.iter().take_while(|hole| hole.from < whole.to) {
                out.push(Interval::new(from, hole.from));
                from = from.max(hole.to);
            }
            out.push(Interval::new(from, whole.to));
        }
        out.retain(|part| !part.is_empty());
        Self(out)
    }
}

impl From<Interval> for Intervals {
    fn from(one: Interval) -> Self {
        [one].into_iter().collect()
    }
}

impl FromIterator<Interval> for Intervals {
    /// In any order; those that overlap or touch become one.
    fn from_iter<I: IntoIterator<Item = Interval>>(intervals: I) -> Self {
        let mut all: Vec<Interval> = intervals.into_iter().filter(|one| !one.is_empty()).collect();
        all.sort_unstable_by_key(|one| one.from);
        Self(all).bridged(1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(pairs: &[(i64, i64)]) -> Intervals {
        pairs.iter().map(|(from, to)| Interval::new(MediaTime(*from), MediaTime(*to))).collect()
    }

    #[test]
    fn intervals_are_united_bridged_cut_and_intersected() {
        assert_eq!(set(&[(5, 7), (0, 2), (2, 3), (6, 9), (4, 4)]), set(&[(0, 3), (5, 9)]));
        assert_eq!(set(&[(0, 3), (5, 9)]).bridged(3), set(&[(0, 9)]));
        assert_eq!(set(&[(0, 3), (5, 9)]).bridged(2), set(&[(0, 3), (5, 9)]));
        assert_eq!(set(&[(0, 10)]).without(&set(&[(-5, 1), (3, 4), (9, 20)])), set(&[(1, 3), (4, 9)]));
        assert_eq!(set(&[(0, 4), (6, 10)]).without(&set(&[(2, 8)])), set(&[(0, 2), (8, 10)]));
        assert_eq!(set(&[(0, 4), (6, 10)]).intersection(&set(&[(2, 8), (9, 11)])), set(&[(2, 4), (6, 8), (9, 10)]));
    }

    fn sets() -> impl Strategy<Value = Intervals> {
        let one = (0_i64..60, 0_i64..12).prop_map(|(from, len)| Interval::new(MediaTime(from), MediaTime(from + len)));
        prop::collection::vec(one, 0..8).prop_map(Intervals::from_iter)
    }

    fn has(set: &Intervals, at: i64) -> bool {
        set.iter().any(|one| one.from <= MediaTime(at) && MediaTime(at) < one.to)
    }

    proptest! {
        #[test]
        fn each_moment_is_where_the_sets_say(a in sets(), b in sets()) {
            for at in 0..75 {
                let (in_a, in_b) = (has(&a, at), has(&b, at));
                prop_assert_eq!(has(&a.union(&b), at), in_a || in_b);
                prop_assert_eq!(has(&a.intersection(&b), at), in_a && in_b);
                prop_assert_eq!(has(&a.without(&b), at), in_a && !in_b);
            }
        }
    }
}
