//! What happens to a sender in a cell of the matrix.

use super::table::Sender;

/// An event of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// Nothing.
    Steady,
    /// The picture has another size, and then the first one again.
    Sizes,
    /// The picture is off for a while, then the sound.
    Mute,
    /// Another picture and another sound in the same tracks.
    ReplaceTrack,
    /// The picture (the sound, of who has no picture) is taken out of the connection, and added again.
    Renegotiation,
    /// The sender is killed.
    Crash,
    /// The sender leaves, and comes again with the same ids.
    Reconnect,
    /// The sender is killed, and comes again with the same stream id beside its ghost.
    Ghost,
}

impl Event {
    pub const ALL: [Self; 8] = [
        Self::Steady,
        Self::Sizes,
        Self::Mute,
        Self::ReplaceTrack,
        Self::Renegotiation,
        Self::Crash,
        Self::Reconnect,
        Self::Ghost,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Sizes => "sizes",
            Self::Mute => "mute",
            Self::ReplaceTrack => "replace-track",
            Self::Renegotiation => "renegotiation",
            Self::Crash => "crash",
            Self::Reconnect => "reconnect",
            Self::Ghost => "reconnect-ghost",
        }
    }

    /// Why a cell has no meaning; none if it has one.
    pub fn does_not_apply(self, sender: &Sender) -> Option<&'static str> {
        (self == Self::Sizes && !sender.has_video).then_some("a sound has no size")
    }
}
