//! A message broker in memory: RabbitMQ as archiver uses it. Queues by region, acks, redelivery, dead letters, wake-ups, hints.

mod consumer;
mod node;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use archiver::broker::{
    ArchivePublisher, Broker, BrokerError, BrokerState, DeliveryHandler, Headers, Publisher, SharedBroker,
};
use archiver::model::fault::Backoff;
use archiver::model::ids::Region;
use async_trait::async_trait;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::faults::{Fault, Faults};
use node::{Message, Node, Number};

pub use node::ArchiveMessage;

/// As archiver's consumers reconnect, but without jitter.
const RECONNECT: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(15) };
/// Opening a connection, and a confirm, take at most this long; as in archiver.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// A connection that lived this long was a good one: the pauses begin at the shortest again. As in archiver.
const GOOD_AFTER: Duration = Duration::from_secs(10);
/// Between two wake-ups; as in archiver.
const WAKEUP_PAUSE: Duration = Duration::from_millis(200);

/// The pause before the next try to connect.
fn pause(attempt: u32) -> Duration {
    RECONNECT.delay(attempt, 0.5)
}

fn unavailable(doing: &'static str) -> BrokerError {
    BrokerError::Unavailable { doing, source: "the connection is lost".into() }
}

/// A RabbitMQ node in memory. Clones are the same node.
#[derive(Debug, Clone)]
pub struct MemoryRabbit {
    node: Arc<Mutex<Node>>,
    /// Counts the node's changes, to wake tasks that wait for one.
    changed: watch::Sender<u64>,
}

impl Default for MemoryRabbit {
    fn default() -> Self {
        Self { node: Arc::default(), changed: watch::channel(0).0 }
    }
}

impl MemoryRabbit {
    /// A node without queues.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The node as a process of a region sees it. Events with [`archiver::broker::Outcome::Retry`] are delivered again after `retry_after`.
    #[must_use]
    pub fn process(&self, region: &Region, retry_after: Duration) -> MemoryBroker {
        let process = self.change(Node::number);
        MemoryBroker { rabbit: self.clone(), process, region: region.clone(), retry_after, faults: Faults::default() }
    }

    /// Stops the node: all connections are lost, nobody can connect. Its queues are durable.
    pub fn stop(&self) {
        self.change(|node| {
            node.stopped = true;
            node.close_all(None);
        });
    }

    /// Starts the node again.
    pub fn start(&self) {
        self.change(|node| node.stopped = false);
    }

    /// The number of messages in `started.<region>`, `ended.<region>`, `retry.<region>` or `dead` that are not delivered.
    #[must_use]
    pub fn waiting(&self, queue: &str) -> usize {
        self.node().waiting(queue)
    }

    /// Deletes a queue with its messages, and closes all connections.
    pub fn delete_queue(&self, queue: &str) {
        self.change(|node| node.delete(queue));
    }

    /// Publishes a hint as a media router's event handler does.
    pub fn hint(&self, queue: &str, body: &[u8]) {
        self.change(|node| node.hint(queue, body));
    }

    /// All archive events so far.
    #[must_use]
    pub fn archive_messages(&self) -> Vec<ArchiveMessage> {
        self.node().archives.clone()
    }

    fn node(&self) -> MutexGuard<'_, Node> {
        self.node.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, act: impl FnOnce(&mut Node) -> T) -> T {
        let done = act(&mut self.node());
        self.changed.send_modify(|changes| *changes += 1);
        done
    }
}

/// A node as one process sees it. Clones belong to the same process.
///
/// Faults, by operation and with the routing key: `connect` ([`Fault::Unavailable`], [`Fault::Refused`], [`Fault::Hang`],
/// [`Fault::Slow`]); `publish` (these, [`Fault::LostAnswer`]: it is in its queue and not confirmed, [`Fault::Duplicated`]: it is there
/// twice, [`Fault::Lost`]: it is confirmed and nowhere); `deliver` ([`Fault::Slow`], [`Fault::Duplicated`]: it comes again after its ack);
/// `ack` ([`Fault::Unavailable`]: the connection is lost before the ack).
#[derive(Debug, Clone)]
pub struct MemoryBroker {
    rabbit: MemoryRabbit,
    process: Number,
    region: Region,
    retry_after: Duration,
    faults: Faults,
}

/// An open connection. Dropping it closes it, as the death of its process does: unacked messages return to their queues.
#[derive(Debug)]
struct Connection {
    rabbit: MemoryRabbit,
    number: Number,
}

impl Connection {
    fn is_open(&self) -> bool {
        self.rabbit.node().is_open(self.number)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.rabbit.change(|node| node.close(self.number));
    }
}

impl MemoryBroker {
    /// The faults of this process.
    #[must_use]
    pub const fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The broker as its users take it.
    #[must_use]
    pub fn shared(&self) -> SharedBroker {
        Arc::new(self.clone())
    }

    /// All connections of this process are lost. It may connect again.
    pub fn disconnect(&self) {
        self.rabbit.change(|node| node.close_all(Some(self.process)));
    }

    /// All connections of this process are lost, and it cannot connect until [`Self::rejoin`].
    pub fn cut_off(&self) {
        self.rabbit.change(|node| {
            node.cut_off.insert(self.process);
            node.close_all(Some(self.process));
        });
    }

    /// The process can connect again.
    pub fn rejoin(&self) {
        self.rabbit.change(|node| node.cut_off.remove(&self.process));
    }

    async fn connect(&self) -> Result<Connection, BrokerError> {
        const DOING: &str = "take a connection";
        let late = |_| BrokerError::Timeout { doing: DOING, seconds: ANSWER_MAX.as_secs() };
        match timeout(ANSWER_MAX, self.faults.meet("connect", "")).await.map_err(late)? {
            None => {}
            Some(Fault::Refused) => {
                return Err(BrokerError::Refused { doing: DOING, reply: "fault injected by the test".to_owned() });
            }
            Some(_) => return Err(unavailable(DOING)),
        }
        let number = self.rabbit.change(|node| node.connect(self.process, &self.region));
        let number = number.ok_or_else(|| unavailable(DOING))?;
        Ok(Connection { rabbit: self.rabbit.clone(), number })
    }

    /// Publishes over a connection: `put` routes the message, and returns whether a queue took it.
    async fn publish(
        &self,
        connection: &Connection,
        routing_key: &str,
        put: impl Fn(&mut Node) -> bool + Send + Sync,
    ) -> Result<(), BrokerError> {
        const DOING: &str = "confirm a message";
        let late = |_| BrokerError::Timeout { doing: DOING, seconds: ANSWER_MAX.as_secs() };
        let fault = timeout(ANSWER_MAX, self.faults.meet("publish", routing_key)).await.map_err(late)?;
        if !connection.is_open() {
            return Err(unavailable(DOING));
        }
        let times = match fault {
            None | Some(Fault::LostAnswer) => 1,
            Some(Fault::Duplicated) => 2,
            Some(Fault::Lost) => return Ok(()),
            Some(Fault::Refused) => {
                return Err(BrokerError::Refused {
                    doing: DOING,
                    reply: "the queue did not accept the message".to_owned(),
                });
            }
            Some(_) => return Err(unavailable(DOING)),
        };
        let taken = self.rabbit.change(|node| (0..times).all(|_| put(node)));
        match fault {
            Some(Fault::LostAnswer) => Err(unavailable(DOING)),
            _ if !taken => Err(BrokerError::Unroutable { routing_key: routing_key.to_owned() }),
            _ => Ok(()),
        }
    }

    /// Runs `session` repeatedly, with back-off, until `cancel`.
    async fn run_with_reconnect<F: Future<Output = Result<(), BrokerError>> + Send>(
        &self,
        cancel: &CancellationToken,
        session: impl Fn() -> F + Send + Sync,
    ) {
        let mut attempt = 0;
        loop {
            let begun = Instant::now();
            let ended = cancel.run_until_cancelled(session()).await;
            attempt = if begun.elapsed() > GOOD_AFTER { 0 } else { attempt };
            if ended.is_none() || cancel.run_until_cancelled(sleep(pause(attempt))).await.is_none() {
                return;
            }
            attempt += 1;
        }
    }

    /// Waits for a change of the node, and checks that the connection is still open.
    async fn changed(&self, connection: &Connection, changes: &mut watch::Receiver<u64>) -> Result<(), BrokerError> {
        // The sender lives in `self`.
        changes.changed().await.unwrap_or_default();
        if connection.is_open() { Ok(()) } else { Err(unavailable("deliver messages")) }
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    async fn probe(&self) -> Result<(), BrokerError> {
        self.connect().await.map(drop)
    }

    async fn publisher(&self) -> Result<Box<dyn Publisher>, BrokerError> {
        let connection = self.connect().await?;
        Ok(Box::new(MemoryPublisher { broker: self.clone(), connection }))
    }

    async fn archive_publisher(&self) -> Result<Box<dyn ArchivePublisher>, BrokerError> {
        let connection = self.connect().await?;
        Ok(Box::new(MemoryPublisher { broker: self.clone(), connection }))
    }

    async fn consume(
        &self,
        capacity: watch::Receiver<usize>,
        state: &watch::Sender<BrokerState>,
        cancel: &CancellationToken,
        handler: &dyn DeliveryHandler,
    ) {
        consumer::consume(self, capacity, state, cancel, handler).await;
    }

    async fn publish_wakeups(&self, requested: &Notify, cancel: &CancellationToken) {
        let session = || async {
            let connection = self.connect().await?;
            loop {
                requested.notified().await;
                let wake = |node: &mut Node| {
                    node.wakeups += 1;
                    true
                };
                if let Err(error) = self.publish(&connection, "nudges", wake).await {
                    // Sent again over the next connection.
                    requested.notify_one();
                    return Err(error);
                }
                sleep(WAKEUP_PAUSE).await;
            }
        };
        self.run_with_reconnect(cancel, session).await;
    }

    async fn consume_wakeups(&self, on_wakeup: &(dyn Fn() + Send + Sync), cancel: &CancellationToken) {
        let session = || async {
            let connection = self.connect().await?;
            let (mut changes, mut heard) = (self.rabbit.changed.subscribe(), self.rabbit.node().wakeups);
            // For wake-ups that were sent before the connection.
            on_wakeup();
            loop {
                self.changed(&connection, &mut changes).await?;
                let all = self.rabbit.node().wakeups;
                (heard..all).for_each(|_| on_wakeup());
                heard = all;
            }
        };
        self.run_with_reconnect(cancel, session).await;
    }

    async fn consume_hints(
        &self,
        queue: &str,
        handle: &(dyn for<'m> Fn(&'m [u8]) + Send + Sync),
        cancel: &CancellationToken,
    ) {
        let session = || async {
            let connection = self.connect().await?;
            let mut changes = self.rabbit.changed.subscribe();
            self.rabbit.change(|node| node.declare_hints(queue));
            loop {
                let hint = self.rabbit.node().take_hint(queue);
                match hint {
                    Some(hint) => handle(&hint),
                    None => self.changed(&connection, &mut changes).await?,
                }
            }
        };
        self.run_with_reconnect(cancel, session).await;
    }
}

/// A connection that publishes.
struct MemoryPublisher {
    broker: MemoryBroker,
    connection: Connection,
}

#[async_trait]
impl Publisher for MemoryPublisher {
    async fn publish(&self, routing_key: &str, body: &[u8], headers: &Headers) -> Result<(), BrokerError> {
        let message = Message::new(routing_key, body, headers);
        self.broker.publish(&self.connection, routing_key, |node| node.publish(message.clone())).await
    }

    async fn close(self: Box<Self>) {}
}

#[async_trait]
impl ArchivePublisher for MemoryPublisher {
    async fn publish(&self, routing_key: &str, id: &str, body: &[u8]) -> Result<(), BrokerError> {
        let message = ArchiveMessage { routing_key: routing_key.to_owned(), id: id.to_owned(), body: body.to_vec() };
        let put = |node: &mut Node| {
            node.archives.push(message.clone());
            true
        };
        self.broker.publish(&self.connection, routing_key, put).await
    }

    async fn close(self: Box<Self>) {}
}
