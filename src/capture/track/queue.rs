//! Packets of one track in the order of their sequence numbers, with the places of those that are missing.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::capture::depacketize::Edges;
use crate::time::MediaTime;

/// Packets that may wait behind a missing one. At 1,200 bytes each about 5 MB.
const PACKETS_MAX: usize = 4096;
/// A sequence number further ahead than this is not a loss but another sequence.
const AHEAD_MAX: u64 = 3000;
/// Given-up places that are remembered, to tell a late packet from a second copy.
const GIVEN_UP_MAX: usize = 1024;

/// A packet that waits for its neighbours.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub ticks: i64,
    pub marker: bool,
    pub edges: Edges,
    pub payload: Bytes,
    pub arrived: MediaTime,
}

/// What became of a packet that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placed {
    InOrder,
    OutOfOrder,
    Duplicate,
    Late,
    /// It belongs to another sequence: the queue must be restarted.
    Elsewhere,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Queue {
    next: Option<u64>,
    slots: VecDeque<Option<Held>>,
    given_up: VecDeque<u64>,
}

impl Queue {
    /// Where a packet with this number would go.
    pub fn place(&self, seq: u64) -> Placed {
        let Some(next) = self.next else { return Placed::InOrder };
        if seq < next {
            return match next - seq {
                behind if behind > AHEAD_MAX => Placed::Elsewhere,
                _ if self.given_up.contains(&seq) => Placed::Late,
                _ => Placed::Duplicate,
            };
        }
        let at = seq - next;
        let len = self.slots.len() as u64;
        match at {
            at if at > len + AHEAD_MAX => Placed::Elsewhere,
            at if at >= len => Placed::InOrder,
            at if self.slots.get(usize::try_from(at).unwrap_or(usize::MAX)).is_some_and(Option::is_some) => {
                Placed::Duplicate
            }
            _ => Placed::OutOfOrder,
        }
    }

    /// Puts a packet in its place, which `place` allowed.
    pub fn insert(&mut self, seq: u64, held: Held) {
        let next = *self.next.get_or_insert(seq);
        let at = usize::try_from(seq - next).unwrap_or(usize::MAX);
        while self.slots.len() <= at {
            self.slots.push_back(None);
        }
        self.slots[at] = Some(held);
    }

    /// Whether so many packets wait that the front one is given up whatever its age.
    pub fn is_full(&self) -> bool {
        self.slots.len() > PACKETS_MAX
    }

    pub fn get(&self, at: usize) -> Option<Option<&Held>> {
        self.slots.get(at).map(Option::as_ref)
    }

    /// When the first packet behind the place `at` arrived.
    pub fn first_behind(&self, at: usize) -> Option<MediaTime> {
        self.slots.iter().skip(at).flatten().map(|held| held.arrived).min()
    }

    /// Takes the first `count` places; missing ones are given up. Returns the packets and how many were missing.
    pub fn take(&mut self, count: usize, packets: &mut Vec<Held>) -> u64 {
        let mut missing = 0;
        for _ in 0..count.min(self.slots.len()) {
            let Some(next) = &mut self.next else { break };
            match self.slots.pop_front().flatten() {
                Some(held) => packets.push(held),
                None => {
                    missing += 1;
                    self.given_up.push_back(*next);
                    if self.given_up.len() > GIVEN_UP_MAX {
                        self.given_up.pop_front();
                    }
                }
            }
            *next += 1;
        }
        missing
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Forgets all; the next packet begins a new sequence.
    pub fn restart(&mut self) {
        self.next = None;
        self.slots.clear();
        self.given_up.clear();
    }
}
