//! How it can be with a track in a step of a random history.

use super::recorder::{FRAME, ms};
use crate::model::media::GapCause;
use crate::model::time::MediaTime;

/// How it is with a track, whatever the recorder knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Truth {
    /// It is captured.
    Arrives,
    /// It is not in the room, and the worker knows that.
    Absent,
    /// The router is or was away. The publisher that it had before is not back, or was not for a while; or nobody sees whether it is there.
    Forgotten,
    /// It is announced and not captured.
    Missing(GapCause),
    /// It is announced and not captured, and nobody can know which of the two the cause is.
    Either(GapCause, GapCause),
    /// It is not captured. The cause is this one as soon as somebody notices.
    Open(GapCause),
    /// Nobody can know it: the news does not reach the worker, or more goes wrong at once than can be told apart.
    Unknown,
}

/// The middle of a step.
pub(super) fn step_at(step: usize) -> MediaTime {
    ms(i64::try_from(step).expect("few") * FRAME + FRAME / 2)
}
