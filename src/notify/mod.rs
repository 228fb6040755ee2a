//! Notices to developers of each change of status: callbacks to their applications, and events for whoever listens.
//!
//! ```text
//! Catalog::put_archive ─► notices ─► callbacks ─► POST, signed, to the application's address
//!                           │          └ once more: 5 s, 10 s … 15 min, for 24 h; then kept as undelivered
//!                           └──────► events ────► the exchange archiver.archives
//! ```
//!
//! Both are told at least once, in the order of each archive's changes; ids tell what came before.

pub mod address;
pub mod event;
mod events;
pub mod rules;
pub mod send;
pub mod sign;
pub mod tell;

pub use address::{Resolver, SystemResolver, UrlError, check_url};
pub use send::{SendError, Sender};
pub use tell::{Render, Telling, keep_telling, keep_telling_events};
