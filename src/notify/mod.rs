//! Notices to developers of each change of status: callbacks to their applications, and events for whoever listens.
//!
//! ```text
//! Catalog::put_archive ─► notices ─► callbacks ─► POST, signed, to the application's address
//!                           │          └ once more: 5 s, 10 s … 15 min, for 24 h; then kept as undelivered
//!                           └──────► events ────► the exchange archiver.archives
//! ```
//!
//! Both are told at least once, in the order of each archive's changes; ids tell what came before.

pub mod dispatcher;
pub mod payload;
mod publisher;
pub mod retry_policy;
pub mod signature;
pub mod url_policy;
pub mod webhook;

pub use dispatcher::{Render, Telling, keep_telling, keep_telling_events};
pub use url_policy::{Resolver, SystemResolver, UrlError, check_url};
pub use webhook::{SendError, Sender};
