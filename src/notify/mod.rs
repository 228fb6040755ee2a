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

use std::sync::Arc;

use dispatcher::{keep_calling, keep_clean};
use publisher::keep_publishing;
use tokio_util::sync::CancellationToken;

pub use dispatcher::{Render, Telling};
pub use url_policy::{Resolver, SystemResolver, UrlError, check_url};
pub use webhook::{SendError, Sender};

/// Tells of archives until `cancel`. Any number of processes may do so at the same time: each notice is told by one of them.
pub async fn keep_telling(telling: Telling, cancel: CancellationToken) {
    let telling = Arc::new(telling);
    tokio::join!(keep_calling(&telling, &cancel), keep_publishing(&telling, &cancel), keep_clean(&telling, &cancel));
}

/// Publishes events only, and cleans up: for a worker whose fleet may have no API.
pub async fn keep_telling_events(telling: Telling, cancel: CancellationToken) {
    let telling = Arc::new(telling);
    tokio::join!(keep_publishing(&telling, &cancel), keep_clean(&telling, &cancel));
}
