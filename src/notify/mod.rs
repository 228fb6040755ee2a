//! Notifications of each change of an archive's status: callbacks to applications, and events on the broker.
//!
//! ```text
//! Catalog::put_archive ─► notices ─► callbacks ─► POST, signed, to the application's URL
//!                           │          └ retried: 5 s, 10 s … 15 min, for 24 h; then kept as undelivered
//!                           └──────► events ────► the exchange archiver.archives
//! ```
//!
//! Both are delivered at least once, in the order of each archive's changes. Receivers detect duplicates by the id.

pub mod dispatcher;
pub mod payload;
mod publisher;
pub mod retry_policy;
pub mod signature;
pub mod url_policy;
pub mod webhook;

use std::sync::Arc;

use dispatcher::{run_callbacks, run_cleanup};
use publisher::run_publisher;
use tokio_util::sync::CancellationToken;

pub use dispatcher::{Dispatcher, Render};
pub use url_policy::{Resolver, SystemResolver, UrlError, check_url};
pub use webhook::{SendError, Sender};

/// Sends callbacks and publishes events until `cancel`. Any number of processes may do so at the same time: each claims its own
/// notifications.
pub async fn run(dispatcher: Dispatcher, cancel: CancellationToken) {
    let dispatcher = Arc::new(dispatcher);
    tokio::join!(
        run_callbacks(&dispatcher, &cancel),
        run_publisher(&dispatcher, &cancel),
        run_cleanup(&dispatcher, &cancel)
    );
}

/// Publishes events only, until `cancel`, and deletes old notifications. For a worker: there may be no API beside it.
pub async fn run_events(dispatcher: Dispatcher, cancel: CancellationToken) {
    let dispatcher = Arc::new(dispatcher);
    tokio::join!(run_publisher(&dispatcher, &cancel), run_cleanup(&dispatcher, &cancel));
}
