//! From RTP packets to frames with media time. Pure: no input, no output, time is an argument.
//!
//! ```text
//! packets ─► jitter buffer ─► depacketizer ─► frames, with the track's clock ─► capture log
//! ```

pub mod clock;
pub mod depacketize;
pub mod track;
