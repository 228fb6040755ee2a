//! Publishes `session.started` events for all watchers on one connection. It is opened on demand, and reopened when it is lost.

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::broker::{Broker, BrokerError, Headers, Publisher, STARTED_KEY};
use crate::event::{Envelope, Started};
use crate::runtime::metrics::{StartLabels, StartOutcome, metrics};

/// Events that may wait.
const ENTRIES_MAX: usize = 64;

struct Entry {
    event: Box<Envelope<Started>>,
    result: oneshot::Sender<Result<(), BrokerError>>,
}

/// The watchers' side of the outbox.
#[derive(Clone)]
pub(super) struct Outbox(mpsc::Sender<Entry>);

/// The publisher's side of the outbox.
pub(super) struct OutboxQueue(mpsc::Receiver<Entry>);

pub(super) fn outbox() -> (Outbox, OutboxQueue) {
    let (sender, receiver) = mpsc::channel(ENTRIES_MAX);
    (Outbox(sender), OutboxQueue(receiver))
}

impl Outbox {
    /// Publishes an event. When this returns, the event is in a queue of its region.
    pub async fn publish(&self, event: Envelope<Started>) -> Result<(), BrokerError> {
        let closed = |_| BrokerError::Unavailable { doing: "take a start", source: "the bridge is ending".into() };
        let (result, published) = oneshot::channel();
        let entry = Entry { event: Box::new(event), result };
        self.0.send(entry).await.map_err(|_| closed(()))?;
        published.await.map_err(|_| closed(())).flatten()
    }
}

/// Publishes until `cancel`.
pub(super) async fn run(broker: &dyn Broker, queue: &mut OutboxQueue, cancel: &CancellationToken) {
    let mut connection = None;
    loop {
        let entry = tokio::select! {
            () = cancel.cancelled() => break,
            entry = queue.0.recv() => entry,
        };
        let Some(entry) = entry else { break };
        let sent = tokio::select! {
            () = cancel.cancelled() => break,
            sent = publish(broker, &mut connection, &entry.event) => sent,
        };
        let outcome = match &sent {
            Ok(()) => StartOutcome::Published,
            Err(BrokerError::Unroutable { .. }) => StartOutcome::Unroutable,
            Err(_) => StartOutcome::Failed,
        };
        metrics().session_starts.get_or_create(&StartLabels { outcome }).inc();
        // The watcher stops waiting only when the bridge ends.
        entry.result.send(sent).unwrap_or_default();
    }
    if let Some(publisher) = connection {
        publisher.close().await;
    }
}

/// Publishes on the open connection. If that was lost while it was idle, publishes once more on a new one.
async fn publish(
    broker: &dyn Broker,
    connection: &mut Option<Box<dyn Publisher>>,
    event: &Envelope<Started>,
) -> Result<(), BrokerError> {
    let key = format!("{STARTED_KEY}.{}", event.data.region);
    let body = serde_json::to_vec(event).expect("plain data");
    if let Some(publisher) = connection.take() {
        match publisher.publish(&key, &body, &Headers::new()).await {
            Err(BrokerError::Unavailable { .. }) => {}
            Err(error @ (BrokerError::Timeout { .. } | BrokerError::Blocked)) => return Err(error),
            other => {
                *connection = Some(publisher);
                return other;
            }
        }
    }
    let publisher = broker.publisher().await?;
    let sent = publisher.publish(&key, &body, &Headers::new()).await;
    *connection = Some(publisher);
    sent
}
