//! Capture: live media to parts and segments, undecoded.
//!
//! ```text
//! UDP ─► peer (str0m) ─packets─► track rules (pure) ─frames─► track log ─parts─► disk
//!                                                                  └─sealed segments─► store
//! ```

pub mod clock;
pub mod depacketize;
pub mod history;
pub mod log;
pub mod peer;
pub mod restore;
pub mod ship;
pub mod spool;
pub mod track;
