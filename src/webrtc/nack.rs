//! When to ask the router again for packets that are missing (RTCP NACK, RFC 4585 section 6.2.1).
//!
//! `str0m` asks five times, 33 ms apart, and is done after 165 ms. But Janus does not answer a second request for
//! a packet within 200 ms, so that most of those are wasted, and one lost answer loses the picture. A recorder
//! has time: it asks soon, and then again each time that an answer is possible.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A packet is asked for when it is missing for so long: others may only have overtaken it.
const FIRST: Duration = Duration::from_millis(15);
/// And then so often. Janus 1.1.2 answers once in 200 ms.
const AGAIN: Duration = Duration::from_millis(210);
/// And no longer than the track rules wait for it.
const MISSING_MAX: Duration = Duration::from_millis(1500);
/// `str0m` asks for nothing that is further behind, in packets.
const BEHIND_MAX: u64 = 100;

/// The missing packets of one video track.
#[derive(Debug, Default)]
pub(super) struct Nacks {
    highest: Option<u64>,
    /// Sequence number → when it is to be asked for, and when it was found missing.
    missing: BTreeMap<u64, (Instant, Instant)>,
}

impl Nacks {
    /// Takes note of a packet.
    pub fn seen(&mut self, seq: u64, now: Instant) {
        let highest = *self.highest.get_or_insert(seq);
        if seq <= highest {
            self.missing.remove(&seq);
            return;
        }
        for number in (highest + 1).max(seq.saturating_sub(BEHIND_MAX))..seq {
            self.missing.insert(number, (now + FIRST, now));
        }
        self.highest = Some(seq);
        if let Some(oldest) = seq.checked_sub(BEHIND_MAX) {
            self.missing = self.missing.split_off(&oldest);
        }
    }

    /// Forgets everything: another sequence follows.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Whether it is time to ask. If so it is taken for asked.
    pub fn due(&mut self, now: Instant) -> bool {
        self.missing.retain(|_, (_, since)| now.saturating_duration_since(*since) < MISSING_MAX);
        let mut due = false;
        for (at, _) in self.missing.values_mut().filter(|(at, _)| *at <= now) {
            *at = now + AGAIN;
            due = true;
        }
        due
    }

    /// When it is time to ask.
    pub fn next(&self) -> Option<Instant> {
        self.missing.values().map(|(at, _)| *at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(nacks: &mut Nacks, start: Instant, until_ms: u64) -> Vec<u64> {
        (0..until_ms).filter(|ms| nacks.due(start + Duration::from_millis(*ms))).collect()
    }

    #[test]
    fn a_missing_packet_is_asked_for_soon_and_then_as_often_as_it_can_be_answered() {
        let (mut nacks, start) = (Nacks::default(), Instant::now());
        nacks.seen(10, start);
        nacks.seen(12, start);
        assert_eq!(nacks.next(), Some(start + FIRST));
        assert_eq!(times(&mut nacks, start, 3000), [15, 225, 435, 645, 855, 1065, 1275, 1485]);
        assert_eq!(nacks.next(), None);
    }

    #[test]
    fn what_has_come_is_not_asked_for() {
        let (mut nacks, start) = (Nacks::default(), Instant::now());
        for seq in [10, 13, 11, 12, 14, 14, 9] {
            nacks.seen(seq, start);
        }
        assert_eq!(nacks.next(), None);
    }

    #[test]
    fn a_packet_that_goes_missing_later_has_times_of_its_own() {
        let (mut nacks, start) = (Nacks::default(), Instant::now());
        nacks.seen(10, start);
        nacks.seen(12, start);
        nacks.seen(14, start + Duration::from_millis(100));
        assert_eq!(times(&mut nacks, start, 400), [15, 115, 225, 325]);
    }

    #[test]
    fn no_more_is_remembered_than_can_be_asked_for() {
        let (mut nacks, start) = (Nacks::default(), Instant::now());
        nacks.seen(0, start);
        nacks.seen(1_000_000_000, start);
        assert_eq!(nacks.missing.len() as u64, BEHIND_MAX);
        nacks.seen(1_000_000_090, start);
        assert!(nacks.missing.len() as u64 <= BEHIND_MAX);
    }
}
