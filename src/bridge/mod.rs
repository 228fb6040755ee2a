//! Finds sessions to have started, and tells workers: so that creating a session with archive mode always is all a platform does.
//!
//! For each media router a task looks who is in its rooms, every few seconds and at once when the router's event handler gives a
//! hint. Hints get lost and repeated; the router's own lists are the truth. A start is an event as a platform would publish it.
//! Its id is made of the number of the session's conversation, which is in the catalog, so that publishing it again, by this
//! process after a crash or by another one, makes no second job. Nothing else needs to survive a restart.
//!
//! ```text
//! Janus ── event handler ─► RabbitMQ ─► hints ─┐
//! Janus ◄─ list, listparticipants ───────── watch (one a router) ── rules ─► catalog: conversation n ─► outbox ─► RabbitMQ
//! ```

pub mod hint;
mod outbox;
pub mod rules;
mod watch;

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

/// Hints that wait for a router's task; what comes when there are more is found by the next look at everything.
const HINTS_MAX: usize = 256;

/// What the bridge works with.
#[derive(Clone)]
pub struct Bridge {
    /// Sessions and jobs.
    pub catalog: SharedCatalog,
    /// The routers, by their names.
    pub routers: Routers,
    /// Where workers take their events from, and hints are.
    pub broker: SharedBroker,
    /// `[bridge]`.
    pub settings: BridgeSection,
}

/// Runs until `cancel`; at once when the settings do not want it. Any number of processes may run it at the same time.
pub async fn bridge(deps: Bridge, cancel: CancellationToken) {
    if !deps.settings.enabled {
        return;
    }
    let tasks = TaskTracker::new();
    let (outbox, letters) = outbox::outbox();
    tasks.spawn(keep_delivering(Arc::clone(&deps.broker), letters, cancel.clone()));
    let mut hints = Vec::new();
    for (name, router) in deps.routers {
        let (sender, receiver) = mpsc::channel(HINTS_MAX);
        hints.push(sender);
        let watch = watch::Watch::new(deps.catalog.clone(), name, router, outbox.clone(), deps.settings.clone());
        tasks.spawn(keep_watching(watch, receiver, cancel.clone()));
    }
    tasks.spawn(keep_listening(deps.broker, deps.settings.queue.clone(), hints, cancel));
    tasks.close();
    tasks.wait().await;
}

async fn keep_delivering(broker: SharedBroker, mut letters: outbox::Letters, cancel: CancellationToken) {
    let mut delivering = async || outbox::deliver(broker.as_ref(), &mut letters, &cancel).await;
    while panicked("publishing starts of sessions", &cancel, delivering()).await {}
}

async fn keep_watching(mut watch: watch::Watch, mut hints: mpsc::Receiver<Hint>, cancel: CancellationToken) {
    while panicked("the watch over a media router", &cancel, async {
        cancel.run_until_cancelled(watch.run(&mut hints)).await;
    })
    .await
    {
        watch.forget();
    }
}

/// Whoever listens has the only ends of the routers' queues: without them each watch would end.
async fn keep_listening(
    broker: SharedBroker,
    queue: String,
    routers: Vec<mpsc::Sender<Hint>>,
    cancel: CancellationToken,
) {
    while panicked("listening for hints", &cancel, listen(&broker, &queue, &routers, &cancel)).await {}
}

async fn listen(broker: &SharedBroker, queue: &str, routers: &[mpsc::Sender<Hint>], cancel: &CancellationToken) {
    let count = |outcome| {
        metrics().router_hints.get_or_create(&HintLabels { outcome }).inc();
    };
    let take = |body: &[u8]| match hint::read(body) {
        None => {
            count(HintOutcome::Malformed);
            tracing::debug!(bytes = body.len(), "a message of a media router is not understood");
        }
        Some(hints) if hints.is_empty() => count(HintOutcome::NothingNew),
        Some(hints) => {
            count(HintOutcome::Used);
            // It does not matter which router it is of: each knows its own rooms.
            for (hint, router) in hints.iter().flat_map(|hint| routers.iter().map(move |router| (hint, router))) {
                router.try_send(hint.clone()).unwrap_or_default();
            }
        }
    };
    broker.consume_hints(queue, &take, cancel).await;
}
