//! The node: queues, unacked deliveries, connections.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use archiver::broker::{ENDED_KEY, Headers, STARTED_KEY};
use archiver::model::ids::Region;
use tokio::time::Instant;

/// A message that returns to its queue more often than this is a dead letter; as in archiver's topology.
const DELIVERIES_MAX: u32 = 20;
/// The length of a queue of hints; the oldest are dropped. As in archiver's topology.
const HINTS_MAX: usize = 10_000;

/// The queue of dead letters.
pub(super) const DEAD: &str = "dead";

/// A message of the exchange of sessions.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub routing_key: String,
    pub body: Vec<u8>,
    pub headers: Headers,
    /// How often it returned to its queue.
    returned: u32,
}

impl Message {
    pub fn new(routing_key: &str, body: &[u8], headers: &Headers) -> Self {
        Self { routing_key: routing_key.to_owned(), body: body.to_vec(), headers: headers.clone(), returned: 0 }
    }
}

/// An archive event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveMessage {
    /// Its routing key.
    pub routing_key: String,
    /// Its message id.
    pub id: String,
    /// Its body.
    pub body: Vec<u8>,
}

/// A message that was delivered and not acked.
#[derive(Debug)]
struct Unacked {
    queue: String,
    message: Message,
    connection: u64,
}

/// A name of this node: of a process, a connection or a delivery.
pub(super) type Number = u64;

#[derive(Debug, Default)]
pub(super) struct Node {
    /// The node is stopped.
    pub stopped: bool,
    /// Processes that cannot connect.
    pub cut_off: BTreeSet<Number>,
    queues: BTreeMap<String, VecDeque<Message>>,
    /// Messages that wait before they are delivered again, and until when.
    retries: Vec<(Instant, Message)>,
    unacked: BTreeMap<Number, Unacked>,
    /// Open connections, with their processes.
    connections: BTreeMap<Number, Number>,
    hints: BTreeMap<String, VecDeque<Vec<u8>>>,
    pub wakeups: u64,
    pub archives: Vec<ArchiveMessage>,
    last: Number,
}

/// The queue that takes a routing key.
fn queue_of(routing_key: &str) -> Option<String> {
    [(STARTED_KEY, "started"), (ENDED_KEY, "ended")].into_iter().find_map(|(key, queue)| {
        let region = routing_key.strip_prefix(key)?.strip_prefix('.')?;
        Some(format!("{queue}.{region}"))
    })
}

impl Node {
    /// A unique number.
    pub fn number(&mut self) -> Number {
        self.last += 1;
        self.last
    }

    /// Connects a process and declares its region's queues, unless it cannot connect.
    pub fn connect(&mut self, process: Number, region: &Region) -> Option<Number> {
        if self.stopped || self.cut_off.contains(&process) {
            return None;
        }
        for queue in [format!("started.{region}"), format!("ended.{region}"), DEAD.to_owned()] {
            self.queues.entry(queue).or_default();
        }
        let connection = self.number();
        self.connections.insert(connection, process);
        Some(connection)
    }

    pub fn is_open(&self, connection: Number) -> bool {
        self.connections.contains_key(&connection)
    }

    /// Closes a connection; its unacked messages return to their queues.
    pub fn close(&mut self, connection: Number) {
        self.connections.remove(&connection);
        let left = self.unacked.iter().rev().filter(|(_, unacked)| unacked.connection == connection);
        let left: Vec<Number> = left.map(|(delivery, _)| *delivery).collect();
        for delivery in left {
            self.give_back(delivery);
        }
    }

    /// Closes all connections of a process, or of all processes.
    pub fn close_all(&mut self, of: Option<Number>) {
        let gone = self.connections.iter().filter(|(_, process)| of.is_none_or(|of| of == **process));
        let gone: Vec<Number> = gone.map(|(connection, _)| *connection).collect();
        for connection in gone {
            self.close(connection);
        }
    }

    /// Puts a message into the queue of its routing key. Returns whether there is one.
    pub fn publish(&mut self, message: Message) -> bool {
        let queue = queue_of(&message.routing_key).and_then(|queue| self.queues.get_mut(&queue));
        queue.map(|queue| queue.push_back(message)).is_some()
    }

    /// Keeps a message until `due`; then it is published again with its routing key.
    pub fn publish_later(&mut self, message: Message, due: Instant) {
        self.retries.push((due, message));
    }

    /// Publishes the kept messages that are due. Returns when the next one is due.
    pub fn promote(&mut self, now: Instant) -> Option<Instant> {
        let (due, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.retries).into_iter().partition(|(at, _)| *at <= now);
        self.retries = waiting;
        for (_, message) in due {
            self.publish(message);
        }
        self.retries.iter().map(|(at, _)| *at).min()
    }

    /// Delivers the first message of a queue; it is then unacked.
    pub fn deliver(&mut self, connection: Number, queue: &str) -> Option<(Number, Message)> {
        let message = self.queues.get_mut(queue)?.pop_front()?;
        let delivery = self.number();
        let unacked = Unacked { queue: queue.to_owned(), message: message.clone(), connection };
        self.unacked.insert(delivery, unacked);
        Some((delivery, message))
    }

    /// Acks a message. Returns whether it was unacked: it may have returned to its queue.
    pub fn ack(&mut self, delivery: Number) -> bool {
        self.unacked.remove(&delivery).is_some()
    }

    /// Returns a message to the head of its queue, or to the dead letters when it returned too often.
    pub fn give_back(&mut self, delivery: Number) {
        let Some(Unacked { queue, mut message, .. }) = self.unacked.remove(&delivery) else { return };
        message.returned += 1;
        if queue != DEAD && message.returned > DELIVERIES_MAX {
            message.returned = 0;
            self.queues.entry(DEAD.to_owned()).or_default().push_back(message);
        } else {
            self.queues.entry(queue).or_default().push_front(message);
        }
    }

    /// The number of messages in a queue that are not delivered; messages that wait are in `retry.<region>`.
    pub fn waiting(&self, queue: &str) -> usize {
        match queue.strip_prefix("retry") {
            Some(region) => self.retries.iter().filter(|(_, message)| message.routing_key.ends_with(region)).count(),
            None => self.queues.get(queue).map_or(0, VecDeque::len),
        }
    }

    /// Deletes a queue with its messages, and closes all connections.
    pub fn delete(&mut self, queue: &str) {
        self.queues.remove(queue);
        if let Some(region) = queue.strip_prefix("retry") {
            self.retries.retain(|(_, message)| !message.routing_key.ends_with(region));
        }
        self.close_all(None);
    }

    /// Declares a queue of hints.
    pub fn declare_hints(&mut self, queue: &str) {
        self.hints.entry(queue.to_owned()).or_default();
    }

    /// Publishes a hint; it is lost when nobody has declared the queue.
    pub fn hint(&mut self, queue: &str, body: &[u8]) {
        if let Some(queue) = self.hints.get_mut(queue) {
            queue.push_back(body.to_vec());
            if queue.len() > HINTS_MAX {
                queue.pop_front();
            }
        }
    }

    pub fn take_hint(&mut self, queue: &str) -> Option<Vec<u8>> {
        self.hints.get_mut(queue)?.pop_front()
    }
}
