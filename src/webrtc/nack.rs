//! When to send the router a NACK for missing packets (RTCP, RFC 4585 section 6.2.1).
//!
//! `str0m` sends five NACKs, 33 ms apart, and gives up after 165 ms. But Janus does not answer a second NACK for a
//! packet within 200 ms. So most of those five are wasted, and one lost answer loses the frame. A recorder can wait
//! longer than a live player: the first NACK goes out soon, and the next ones at the interval that Janus answers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Delay of the first NACK: until then others may only have overtaken the packet.
const FIRST_NACK_DELAY: Duration = Duration::from_millis(15);
/// Interval of the further NACKs. Janus 1.1.2 answers once in 200 ms.
const NACK_INTERVAL: Duration = Duration::from_millis(210);
/// No NACK after this time: the track rules have given up the packet.
const MISSING_MAX: Duration = Duration::from_millis(1500);
/// `str0m` sends no NACK for packets further behind than this.
const BEHIND_MAX: u64 = 100;

/// The missing packets of one video track.
#[derive(Debug, Default)]
pub(super) struct Nacks {
    highest: Option<u64>,
    /// By sequence number.
    missing: BTreeMap<u64, MissingPacket>,
}

#[derive(Debug)]
struct MissingPacket {
    next_nack: Instant,
    missing_since: Instant,
}

impl Nacks {
    /// Notes that a packet was received.
    pub fn received(&mut self, seq: u64, now: Instant) {
        let highest = *self.highest.get_or_insert(seq);
        if seq <= highest {
            self.missing.remove(&seq);
            return;
        }
        for number in (highest + 1).max(seq.saturating_sub(BEHIND_MAX))..seq {
            self.missing.insert(number, MissingPacket { next_nack: now + FIRST_NACK_DELAY, missing_since: now });
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

    /// Whether a NACK is due. If so, it counts as sent.
    pub fn take_due(&mut self, now: Instant) -> bool {
        self.missing.retain(|_, packet| now.saturating_duration_since(packet.missing_since) < MISSING_MAX);
        let mut due = false;
        for packet in self.missing.values_mut().filter(|packet| packet.next_nack <= now) {
            packet.next_nack = now + NACK_INTERVAL;
            due = true;
        }
        due
    }

    /// When the next NACK is due.
    pub fn next(&self) -> Option<Instant> {
        self.missing.values().map(|packet| packet.next_nack).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(nacks: &mut Nacks, start: Instant, until_ms: u64) -> Vec<u64> {
        (0..until_ms).filter(|ms| nacks.take_due(start + Duration::from_millis(*ms))).collect()
    }

    #[test]
    fn a_missing_packet_is_asked_for_soon_and_then_as_often_as_it_can_be_answered() {
        let (mut nacks, start) = (Nacks::default(), Instant::now());
        nacks.received(10, start);
        nacks.received(12, start);
        assert_eq!(nacks.next(), Some(start + FIRST_NACK_DELAY));
        assert_eq!(times(&mut nacks, start, 3000), [15, 225, 435, 645, 855, 1065, 1275, 1485]);
        assert_eq!(nacks.next(), None);
    }

    #[test]
    fn what_has_come_is_not_asked_for() {
        let (mut nacks, start) = (Nacks::default(), Instant::now());
        for seq in [10, 13, 11, 12, 14, 14, 9] {
            nacks.received(seq, start);
        }
        assert_eq!(nacks.next(), None);
    }

    #[test]
    fn a_packet_that_goes_missing_later_has_times_of_its_own() {
        let (mut nacks, start) = (Nacks::default(), Instant::now());
        nacks.received(10, start);
        nacks.received(12, start);
        nacks.received(14, start + Duration::from_millis(100));
        assert_eq!(times(&mut nacks, start, 400), [15, 115, 225, 325]);
    }

    #[test]
    fn no_more_is_remembered_than_can_be_asked_for() {
        let (mut nacks, start) = (Nacks::default(), Instant::now());
        nacks.received(0, start);
        nacks.received(1_000_000_000, start);
        assert_eq!(nacks.missing.len() as u64, BEHIND_MAX);
        nacks.received(1_000_000_090, start);
        assert!(nacks.missing.len() as u64 <= BEHIND_MAX);
    }
}
