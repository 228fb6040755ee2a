//! Finds sessions that start, and publishes `session.started` to the workers. A platform then only has to create a session with
//! archive mode `always`.
//!
//! One task for each media router lists the clients in the router's rooms, every few seconds and at each hint of the router's event
//! handler. Hints can be lost or repeated; the router's lists are the truth. The published event is the same as a platform's.
//! Its id is derived from the number of the session's conversation, which is in the catalog. So publishing it again, by this process
//! after a crash or by another one, creates no second job. Nothing else needs to survive a restart.
//!
//! ```text
//! Janus ── event handler ─► RabbitMQ ─► hints ─┐
//! Janus ◄─ list, listparticipants ─────── watcher (one a router) ── rules ─► catalog: conversation n ─► outbox ─► RabbitMQ
//! ```

pub mod hint;
mod outbox;
pub mod rules;
mod watcher;

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::SharedBroker;
use crate::catalog::SharedCatalog;
use crate::config::BridgeSection;
use crate::router::Routers;
use crate::runtime::metrics::{HintLabels, HintOutcome, metrics};
use crate::runtime::supervise::panicked;

use hint::Hint;
use watcher::RouterWatcher;

/// Hints that wait for a router's watcher. Further ones are dropped: the next look at all rooms makes up for them.
const HINTS_MAX: usize = 256;

/// Services and settings of the bridge.
#[derive(Clone)]
pub struct Bridge {
    /// Sessions and jobs.
    pub catalog: SharedCatalog,
    /// The media routers, by name.
    pub routers: Routers,
    /// Carries hints and events.
    pub broker: SharedBroker,
    /// `[bridge]`.
    pub settings: BridgeSection,
}

/// Runs the bridge until `cancel`; returns at once if the settings disable it. Any number of processes may run it at the same time.
pub async fn run(bridge: Bridge, cancel: CancellationToken) {
    if !bridge.settings.enabled {
        return;
    }
    let tasks = TaskTracker::new();
    let (outbox, outbox_queue) = outbox::outbox();
    tasks.spawn(run_outbox(Arc::clone(&bridge.broker), outbox_queue, cancel.clone()));
    let mut hint_senders = Vec::new();
    for (name, router) in bridge.routers {
        let (sender, hints) = mpsc::channel(HINTS_MAX);
        hint_senders.push(sender);
        let (catalog, settings) = (bridge.catalog.clone(), bridge.settings.clone());
        let watcher = RouterWatcher::new(catalog, name, router, outbox.clone(), settings);
        tasks.spawn(run_watcher(watcher, hints, cancel.clone()));
    }
    tasks.spawn(run_hint_consumer(bridge.broker, bridge.settings.queue.clone(), hint_senders, cancel));
    tasks.close();
    tasks.wait().await;
}

async fn run_outbox(broker: SharedBroker, mut queue: outbox::OutboxQueue, cancel: CancellationToken) {
    let mut publishing = async || outbox::run(broker.as_ref(), &mut queue, &cancel).await;
    while panicked("publishing starts of sessions", &cancel, publishing()).await {}
}

async fn run_watcher(mut watcher: RouterWatcher, mut hints: mpsc::Receiver<Hint>, cancel: CancellationToken) {
    while panicked("watching a media router", &cancel, async {
        cancel.run_until_cancelled(watcher.run(&mut hints)).await;
    })
    .await
    {
        watcher.reset();
    }
}

/// Holds the only senders of hints: a watcher ends when its sender is dropped.
async fn run_hint_consumer(
    broker: SharedBroker,
    queue: String,
    watchers: Vec<mpsc::Sender<Hint>>,
    cancel: CancellationToken,
) {
    while panicked("consuming hints", &cancel, consume_hints(&broker, &queue, &watchers, &cancel)).await {}
}

async fn consume_hints(
    broker: &SharedBroker,
    queue: &str,
    watchers: &[mpsc::Sender<Hint>],
    cancel: &CancellationToken,
) {
    let count = |outcome| {
        metrics().router_hints.get_or_create(&HintLabels { outcome }).inc();
    };
    let handle = |body: &[u8]| match hint::read(body) {
        None => {
            count(HintOutcome::Malformed);
            tracing::debug!(bytes = body.len(), "malformed message of a media router's event handler");
        }
        Some(hints) if hints.is_empty() => count(HintOutcome::NothingNew),
        Some(hints) => {
            count(HintOutcome::Used);
            // A message does not name its router. Each watcher gets the hint, and knows its own rooms.
            for (hint, watcher) in hints.iter().flat_map(|hint| watchers.iter().map(move |watcher| (hint, watcher))) {
                watcher.try_send(hint.clone()).unwrap_or_default();
            }
        }
    };
    broker.consume_hints(queue, &handle, cancel).await;
}
