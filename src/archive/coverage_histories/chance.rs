//! What can happen by chance in the random histories.

/// A small generator of numbers, the same on each machine (xorshift64*).
pub(super) struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, end: i64) -> i64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        i64::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8).expect("56 bits") % end
    }
}

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Chance {
    Announce,
    /// It comes as one stream too many.
    Limit,
    Leave,
    /// The publisher switches a track off for a while, and says so.
    Mute,
    /// It sends nothing of a track for a while, and says nothing.
    Silence,
    AddOrRemoveTrack,
    ChangeCodec,
    Refuse,
    BreakConnection,
    LosePackets,
    /// The router sends reports of a track, and no media.
    ReportsAlone,
    LoseSignalling,
    RestartRouter,
    KillWorker,
    HandOver,
    FailDisk,
}

impl Chance {
    pub const ALL: [Self; 16] = [
        Self::Announce,
        Self::Limit,
        Self::Leave,
        Self::Mute,
        Self::Silence,
        Self::AddOrRemoveTrack,
        Self::ChangeCodec,
        Self::Refuse,
        Self::BreakConnection,
        Self::LosePackets,
        Self::ReportsAlone,
        Self::LoseSignalling,
        Self::RestartRouter,
        Self::KillWorker,
        Self::HandOver,
        Self::FailDisk,
    ];
}
