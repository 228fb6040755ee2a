//! Consuming from the node in memory, with the rules of archiver's consumer: one delivery at a time, started events while there is capacity.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use archiver::broker::{ATTEMPT, Admission, BrokerError, BrokerState, Delivery, DeliveryHandler, Outcome};
use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::node::{DEAD, Message, Number};
use super::{Connection, GOOD_AFTER, MemoryBroker, pause, unavailable};
use crate::faults::Fault;

/// An event that made the handler panic goes back after this; as in archiver.
const AFTER_PANIC: Duration = Duration::from_millis(250);

/// What a connection consumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Events,
    DeadLetters,
}

/// Consumes until `cancel`. Dead letters have a connection of their own.
pub(super) async fn consume(
    broker: &MemoryBroker,
    capacity: watch::Receiver<usize>,
    state: &watch::Sender<BrokerState>,
    cancel: &CancellationToken,
    handler: &dyn DeliveryHandler,
) {
    let dead_state = watch::Sender::new(BrokerState::Disconnected);
    let consumer = |source, capacity, state| Consumer { broker, source, capacity, state, handler };
    let mut events = consumer(Source::Events, capacity.clone(), state);
    let mut dead = consumer(Source::DeadLetters, capacity, &dead_state);
    tokio::join!(events.run(cancel), dead.run(cancel));
}

struct Consumer<'a> {
    broker: &'a MemoryBroker,
    source: Source,
    capacity: watch::Receiver<usize>,
    state: &'a watch::Sender<BrokerState>,
    handler: &'a dyn DeliveryHandler,
}

impl Consumer<'_> {
    async fn run(&mut self, cancel: &CancellationToken) {
        let mut attempt = 0;
        loop {
            let begun = Instant::now();
            let ended = cancel.run_until_cancelled(self.session()).await;
            self.state.send_replace(BrokerState::Disconnected);
            // Without an error the sender of the capacity is gone, or the consumer is cancelled.
            if !matches!(ended, Some(Err(_))) {
                return;
            }
            attempt = if begun.elapsed() > GOOD_AFTER { 0 } else { attempt };
            if cancel.run_until_cancelled(sleep(pause(attempt))).await.is_none() {
                return;
            }
            attempt += 1;
        }
    }

    /// One connection's life.
    async fn session(&mut self) -> Result<(), BrokerError> {
        let connection = self.broker.connect().await?;
        let mut admission = Admission::new(Instant::now());
        let mut changes = self.broker.rabbit.changed.subscribe();
        self.state.send_replace(BrokerState::Connected);
        loop {
            changes.mark_unchanged();
            if !connection.is_open() {
                return Err(unavailable("deliver events"));
            }
            if self.capacity.has_changed().is_ok_and(|changed| changed) {
                self.capacity.mark_unchanged();
                admission.reported();
            }
            let now = Instant::now();
            admission.expire(now);
            let next_retry = self.broker.rabbit.node().promote(now);
            if let Some((delivery, message)) = self.next(&connection, &admission) {
                if self.handle(&connection, delivery, message).await? == Some(Outcome::Accepted) {
                    admission.accepted(Instant::now());
                }
                continue;
            }
            tokio::select! {
                biased;
                changed = self.capacity.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    admission.reported();
                }
                _ = changes.changed() => {}
                () = sleep_until(admission.until()), if admission.is_waiting() => {}
                () = sleep_until(next_retry.unwrap_or(now)), if next_retry.is_some() => {}
            }
        }
    }

    /// The next message that may be taken now.
    fn next(&self, connection: &Connection, admission: &Admission) -> Option<(Number, Message)> {
        let (region, mut node) = (&self.broker.region, self.broker.rabbit.node());
        if self.source == Source::DeadLetters {
            return node.deliver(connection.number, DEAD);
        }
        let ended = node.deliver(connection.number, &format!("ended.{region}"));
        let admits = admission.admits(*self.capacity.borrow());
        ended.or_else(|| admits.then(|| node.deliver(connection.number, &format!("started.{region}"))).flatten())
    }

    /// Passes a message to the handler. `None` when it returned to its queue.
    async fn handle(
        &self,
        connection: &Connection,
        number: Number,
        message: Message,
    ) -> Result<Option<Outcome>, BrokerError> {
        let (broker, is_dead) = (self.broker, self.source == Source::DeadLetters);
        let fault = broker.faults.meet("deliver", &message.routing_key).await;
        let attempt = message.headers.get(ATTEMPT).and_then(|attempt| attempt.parse().ok()).unwrap_or(0_u32);
        let delivery = Delivery {
            body: message.body.clone(),
            routing_key: message.routing_key.clone(),
            headers: message.headers.clone(),
            attempt,
            dead: is_dead,
        };
        // The call is inside the future, because a handler may panic before its first await.
        let handled = AssertUnwindSafe(async { self.handler.handle(delivery).await }).catch_unwind().await;
        let outcome = match handled {
            Ok(Outcome::Retry) if is_dead => {
                sleep(broker.retry_after).await;
                broker.rabbit.change(|node| node.give_back(number));
                return Ok(None);
            }
            Ok(Outcome::Retry) => {
                let mut retried = message.clone();
                retried.headers.insert(ATTEMPT.to_owned(), attempt.saturating_add(1).to_string());
                let retried = Message::new(&retried.routing_key, &retried.body, &retried.headers);
                let due = Instant::now() + broker.retry_after;
                let put = |node: &mut super::Node| {
                    node.publish_later(retried.clone(), due);
                    true
                };
                broker.publish(connection, &message.routing_key, put).await?;
                Outcome::Retry
            }
            Ok(outcome) => outcome,
            Err(_panic) => {
                sleep(if is_dead { broker.retry_after } else { AFTER_PANIC }).await;
                broker.rabbit.change(|node| node.give_back(number));
                return Ok(None);
            }
        };
        if broker.faults.meet("ack", &message.routing_key).await.is_some() {
            broker.disconnect();
        }
        if !broker.rabbit.change(|node| node.ack(number)) {
            return Err(unavailable("take an ack"));
        }
        if fault == Some(Fault::Duplicated) {
            broker.rabbit.change(|node| node.publish(message));
        }
        Ok(Some(outcome))
    }
}
