//! From a capture log to one picture and one sound: composed archives.
//!
//! Everything here is a function of the log and the session's history, never of the live network: run again over a
//! finished log it gives the same picture.

mod audio_input;
mod canvas;
pub mod child;
mod clock;
pub mod composer;
mod css_layout;
pub mod geometry;
pub mod layout;
mod limiter;
pub mod log_follower;
pub mod process;
mod scale;
pub mod thumbnails;
pub(crate) mod timeline;
mod track_reader;
pub mod undecodable;
pub mod verifier;
mod video_input;
