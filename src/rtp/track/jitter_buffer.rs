//! Packets of one track in the order of their sequence numbers, with the places of those that are missing.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::model::time::{MediaSpan, MediaTime};
use crate::rtp::depacketize::FrameBoundaries;

/// Packets that may wait behind a missing one, and the most that a frame may have. At 1,200 bytes each
/// about 5 MB.
const PACKETS_MAX: usize = 4096;
/// A sequence number further ahead or behind than this is not a loss or a late packet, but a long loss or
/// another sequence.
const AHEAD_MAX: u64 = 3000;
/// A sequence number further ahead than this is no loss at all: 16 bits cannot tell.
const LOSS_MAX: u64 = 1 << 15;
/// Given-up places that are remembered, to tell a late packet from a second copy.
const GIVEN_UP_MAX: usize = 1024;

/// A packet that waits for its neighbours.
#[derive(Debug, Clone)]
pub(super) struct BufferedPacket {
    pub rtp: u32,
    /// Its media time.
    pub at: MediaTime,
    pub marker: bool,
    pub boundaries: FrameBoundaries,
    /// The publisher paused before it.
    pub after_pause: bool,
    /// The clock begins with it, or is anchored anew there.
    pub begins_clock: bool,
    /// The payload is invalid: its frame is damaged.
    pub malformed: bool,
    pub payload: Bytes,
    pub arrived: MediaTime,
}

/// Where a packet belongs in the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placement {
    InOrder,
    OutOfOrder,
    Duplicate,
    Late,
    /// Far ahead, but near enough to be behind a long loss.
    FarAhead,
    /// It belongs to another sequence: the buffer must be restarted.
    OtherSequence,
}

#[derive(Debug, Clone, Default)]
pub(super) struct JitterBuffer {
    next: Option<u64>,
    slots: VecDeque<Option<BufferedPacket>>,
    given_up: VecDeque<u64>,
}

impl JitterBuffer {
    /// Where a packet with this number would go.
    pub fn classify(&self, seq: u64) -> Placement {
        let Some(next) = self.next else { return Placement::InOrder };
        if seq < next {
            return match next - seq {
                behind if behind > AHEAD_MAX => Placement::OtherSequence,
                _ if self.given_up.contains(&seq) => Placement::Late,
                _ => Placement::Duplicate,
            };
        }
        let at = seq - next;
        let len = self.slots.len() as u64;
        match at {
            at if at > len + LOSS_MAX => Placement::OtherSequence,
            at if at > len + AHEAD_MAX => Placement::FarAhead,
            at if at >= len => Placement::InOrder,
            at if self.get(usize::try_from(at).unwrap_or(usize::MAX)).is_some_and(|slot| slot.is_some()) => {
                Placement::Duplicate
            }
            _ => Placement::OutOfOrder,
        }
    }

    /// Puts a packet in its place, which `classify` allowed.
    pub fn insert(&mut self, seq: u64, packet: BufferedPacket) {
        let next = *self.next.get_or_insert(seq);
        let at = usize::try_from(seq - next).unwrap_or(usize::MAX);
        while self.slots.len() <= at {
            self.slots.push_back(None);
        }
        self.slots[at] = Some(packet);
    }

    /// The packets nearest to a place, before it and after it.
    pub fn neighbours(&self, seq: u64) -> (Option<&BufferedPacket>, Option<&BufferedPacket>) {
        let at = self.next.and_then(|next| seq.checked_sub(next)).map_or(0, |at| usize::try_from(at).unwrap_or(0));
        let at = at.min(self.slots.len());
        (self.slots.range(..at).rev().flatten().next(), self.slots.range(at..).flatten().next())
    }

    /// Moves the media time of the packets from a number on: before it the publisher paused, and the clock begins with it.
    pub fn shift(&mut self, from: u64, by: MediaSpan) {
        let at = self.next.map_or(0, |next| usize::try_from(from.saturating_sub(next)).unwrap_or(usize::MAX));
        for (number, packet) in self.slots.iter_mut().skip(at).flatten().enumerate() {
            packet.at = packet.at + by;
            (packet.after_pause, packet.begins_clock) = (number == 0, number == 0);
        }
    }

    /// When the first packet of those that wait arrived.
    pub fn waiting_since(&self) -> Option<MediaTime> {
        self.slots.iter().flatten().map(|packet| packet.arrived).next()
    }

    /// Whether so many packets wait that the front one is given up whatever its age.
    pub fn is_full(&self) -> bool {
        self.slots.len() > PACKETS_MAX
    }

    pub fn get(&self, at: usize) -> Option<Option<&BufferedPacket>> {
        self.slots.get(at).map(Option::as_ref)
    }

    /// The first packet that is missing: its place, and its sequence number.
    pub fn first_missing(&self) -> Option<(usize, u64)> {
        let at = self.slots.iter().position(Option::is_none)?;
        Some((at, self.next? + at as u64))
    }

    /// When the first packet behind the place `at` arrived.
    pub fn first_behind(&self, at: usize) -> Option<MediaTime> {
        self.slots.iter().skip(at).flatten().map(|packet| packet.arrived).min()
    }

    /// Takes the first `count` places; missing ones are given up. Returns the packets and how many were missing.
    pub fn take(&mut self, count: usize, packets: &mut Vec<BufferedPacket>) -> u64 {
        let mut missing = 0;
        for _ in 0..count.min(self.slots.len()) {
            let Some(next) = &mut self.next else { break };
            match self.slots.pop_front().flatten() {
                Some(packet) => packets.push(packet),
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

    /// Gives up the places up to a number; nothing waits. Returns how many they were.
    pub fn skip_to(&mut self, seq: u64) -> u64 {
        let Some(next) = &mut self.next else { return 0 };
        let missing = seq.saturating_sub(*next);
        let remembered = missing.min(GIVEN_UP_MAX as u64);
        self.given_up.extend(seq - remembered..seq);
        while self.given_up.len() > GIVEN_UP_MAX {
            self.given_up.pop_front();
        }
        *next += missing;
        missing
    }

    /// Clears the buffer. The next packet begins a new sequence.
    pub fn restart(&mut self) {
        self.next = None;
        self.slots.clear();
        self.given_up.clear();
    }
}
