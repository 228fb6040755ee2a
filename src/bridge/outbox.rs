//! Publishes starts of sessions: one connection for all routers' tasks, made when it is needed, and anew when it is lost.

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::broker::{Broker, BrokerError, Headers, Publisher, STARTED_KEY};
use crate::event::{Envelope, Started};
use crate::runtime::metrics::{StartLabels, StartOutcome, metrics};

/// Events that wait.
const WAITING_MAX: usize = 64;

struct Letter {
    event: Box<Envelope<Started>>,
    answer: oneshot::Sender<Result<(), BrokerError>>,
}

/// Where to publish to.
#[derive(Clone)]
pub(super) struct Outbox(mpsc::Sender<Letter>);

/// The other end.
pub(super) struct Letters(mpsc::Receiver<Letter>);

pub(super) fn outbox() -> (Outbox, Letters) {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    (Outbox(sender), Letters(receiver))
}

impl Outbox {
    /// Publishes an event; it is in a queue of its region when this returns.
    pub async fn publish(&self, event: Envelope<Started>) -> Result<(), BrokerError> {
        let closed = |_| BrokerError::Unavailable { doing: "take a start", source: "the bridge is ending".into() };
        let (answer, answered) = oneshot::channel();
        let letter = Letter { event: Box::new(event), answer };
        self.0.send(letter).await.map_err(|_| closed(()))?;
        answered.await.map_err(|_| closed(())).flatten()
    }
}

/// Publishes until `cancel`.
pub(super) async fn deliver(broker: &dyn Broker, letters: &mut Letters, cancel: &CancellationToken) {
    let mut open = None;
    loop {
        let letter = tokio::select! {
            () = cancel.cancelled() => break,
            letter = letters.0.recv() => letter,
        };
        let Some(letter) = letter else { break };
        let sent = tokio::select! {
            () = cancel.cancelled() => break,
            sent = send(broker, &mut open, &letter.event) => sent,
        };
        let outcome = match &sent {
            Ok(()) => StartOutcome::Published,
            Err(BrokerError::Unroutable { .. }) => StartOutcome::Unroutable,
            Err(_) => StartOutcome::Failed,
        };
        metrics().session_starts.get_or_create(&StartLabels { outcome }).inc();
        // Nobody waits for the answer any more only when the bridge ends.
        letter.answer.send(sent).unwrap_or_default();
    }
    if let Some(publisher) = open
        && let Err(error) = publisher.close().await
    {
        tracing::debug!("{}", crate::model::fault::chain(&error));
    }
}

/// A connection that lay idle may have been lost without our knowledge: then once more on another.
async fn send(
    broker: &dyn Broker,
    open: &mut Option<Box<dyn Publisher>>,
    event: &Envelope<Started>,
) -> Result<(), BrokerError> {
    let key = format!("{STARTED_KEY}.{}", event.data.region);
    let body = serde_json::to_vec(event).expect("plain data");
    if let Some(publisher) = open.take() {
        match publisher.publish(&key, &body, &Headers::new()).await {
            Err(BrokerError::Unavailable { .. }) => {}
            Err(error @ BrokerError::Timeout { .. }) => return Err(error),
            other => {
                *open = Some(publisher);
                return other;
            }
        }
    }
    let publisher = broker.publisher().await?;
    let sent = publisher.publish(&key, &body, &Headers::new()).await;
    *open = Some(publisher);
    sent
}
