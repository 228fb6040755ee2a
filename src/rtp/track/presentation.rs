//! The times of frames that come in decoding order. Pure.
//!
//! Times never go back, but for B-frames: an encoder sends them behind pictures that are shown later. Such a frame goes back in RTP time, and
//! lies between the last keyframe and the frame that is shown last. Whatever a sender says, times go back no further than that.

use crate::model::time::{MediaSpan, MediaTime, ticks_to_span};
use crate::rtp::clock::BACK_MAX;

/// Where the frames of a track are shown.
#[derive(Debug, Default)]
pub(super) struct Presentation {
    /// Whether the track's format has frames that are shown before others that come earlier.
    may_reorder: bool,
    /// The RTP time of the frame that is shown last.
    newest_rtp: u32,
    keyframe: Option<MediaTime>,
    /// How far a frame went back, at most.
    depth: MediaSpan,
}

impl Presentation {
    /// The frames that follow are of another format.
    pub const fn set_may_reorder(&mut self, may_reorder: bool) {
        self.may_reorder = may_reorder;
    }

    /// The time of a frame that would be shown at `at`. `newest` is the start of the frame that is shown last.
    pub fn place(
        &mut self,
        at: MediaTime,
        (rtp, rate): (u32, u32),
        keyframe: bool,
        newest: Option<MediaTime>,
    ) -> MediaTime {
        let back = ticks_to_span(i64::from(rtp.wrapping_sub(self.newest_rtp).cast_signed()), rate);
        let pts = match newest {
            None => at,
            // All frames that come before a keyframe are shown before it.
            Some(newest) if self.may_reorder && !keyframe && (-BACK_MAX..0).contains(&back) => {
                let after_keyframe = self.keyframe.map_or(newest, |keyframe| keyframe.min(newest));
                at.max(after_keyframe + 1).max(newest + -BACK_MAX)
            }
            // Where a clock was anchored again a little early, a frame follows the one before.
            Some(newest) => at.max(newest + 1),
        };
        match newest {
            Some(newest) if pts <= newest => self.depth = self.depth.max(newest - pts),
            _ => self.newest_rtp = rtp,
        }
        if keyframe {
            self.keyframe = Some(pts);
        }
        pts
    }

    /// The start of the first frame that may still come behind a frame: those that it was sent ahead of.
    pub fn first_to_come(&self, pts: MediaTime, keyframe: bool) -> MediaTime {
        if self.may_reorder && !keyframe { pts + -self.depth } else { pts }
    }
}
