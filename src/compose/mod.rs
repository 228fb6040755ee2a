//! From a capture log to one picture and one sound: composed archives.
//!
//! Everything here is a function of the log and the session's history, never of the live network: run again over a
//! finished log it gives the same picture.

mod canvas;
pub mod child;
mod clock;
pub mod composer;
mod custom;
pub mod follow;
pub mod geometry;
mod inputs;
pub mod layout;
mod limiter;
mod scale;
pub mod stills;
pub(crate) mod timeline;
