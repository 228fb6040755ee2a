//! The message broker: the trait [`Broker`], and [`RabbitBroker`] for RabbitMQ. The only module that uses `lapin`.
//!
//! ```text
//! archiver.sessions (topic)
//!   session.started.<region> ─► archiver.started.<region>   quorum; consumed while there is capacity for a job
//!   session.ended.<region>   ─► archiver.ended.<region>     quorum; consumed always
//! archiver.retry (topic)     ─► archiver.retry.<region>     waits, then is published again with its routing key
//! archiver.dead (topic)      ─► archiver.dead               delivered too often; consumed and parked
//! Janus's event handlers     ─► archiver.janus              hints; consumed by the bridge
//! archiver.nudges (fanout)   ─► a queue of each worker      wake-ups: look at the catalog now
//! archiver.archives (topic)                                 for applications that consume archive events
//!   archive.<status>.<region>
//! ```
//!
//! Started and ended events have separate queues, so that a full worker still gets the end of a session. A worker takes started
//! events only while it has capacity; the others stay for other workers. A delivery is acked as soon as its effect is durable in the
//! catalog.

mod consumer;
mod hints;
mod limits;
mod publisher;
mod rabbit;
mod topology;
mod wakeup;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::model::fault::{Fault, FaultKind, HasFault};
use crate::model::ids::Region;

pub use consumer::{ATTEMPT, Admission, BrokerState, Delivery, Outcome};
pub use rabbit::RabbitBroker;

/// A started event's routing key is this and the region.
pub const STARTED_KEY: &str = "session.started";
/// An ended event's routing key is this and the region.
pub const ENDED_KEY: &str = "session.ended";

/// The routing key of an archive's change is this, the status, and the region.
pub const ARCHIVE_KEY: &str = "archive";

/// Headers of a message.
pub type Headers = BTreeMap<String, String>;

/// A shared broker.
pub type SharedBroker = Arc<dyn Broker>;

/// A message broker as one process uses it: session events, archive events, wake-ups between processes, hints of media routers.
/// Methods that run until `cancel` reconnect with back-off, without a limit.
#[async_trait]
pub trait Broker: Send + Sync + std::fmt::Debug {
    /// Connects and declares everything. For `archiver check`.
    ///
    /// # Errors
    /// When the broker is unavailable or refuses.
    async fn probe(&self) -> Result<(), BrokerError>;

    /// Opens a connection that publishes session events. Declares exchanges and queues first, so that each event has a queue.
    ///
    /// # Errors
    /// When the broker is unavailable or refuses.
    async fn publisher(&self) -> Result<Box<dyn Publisher>, BrokerError>;

    /// Opens a connection that publishes archive events.
    ///
    /// # Errors
    /// When the broker is unavailable or refuses.
    async fn archive_publisher(&self) -> Result<Box<dyn ArchivePublisher>, BrokerError>;

    /// Consumes session events until `cancel`. `capacity` is the number of jobs that may still be accepted: started events are taken
    /// only while it is not zero. A panic of the handler costs the event one delivery.
    ///
    /// Dead letters have a connection of their own, so that events are delivered even if the dead letters' queue has no leader.
    /// `state` covers the events' connection only.
    async fn consume(
        &self,
        capacity: watch::Receiver<usize>,
        state: &watch::Sender<BrokerState>,
        cancel: &CancellationToken,
        handler: &dyn DeliveryHandler,
    );

    /// Wakes all workers each time `requested` is notified, until `cancel`.
    async fn publish_wakeups(&self, requested: &Notify, cancel: &CancellationToken);

    /// Calls `on_wakeup` for each wake-up, until `cancel`. It must not block.
    async fn consume_wakeups(&self, on_wakeup: &(dyn Fn() + Send + Sync), cancel: &CancellationToken);

    /// Calls `handle` for each message of a queue of hints, until `cancel`. Declares the queue, durable and of bounded length,
    /// unless it exists. `handle` must not block.
    async fn consume_hints(
        &self,
        queue: &str,
        handle: &(dyn for<'m> Fn(&'m [u8]) + Send + Sync),
        cancel: &CancellationToken,
    );
}

/// Handles deliveries.
#[async_trait]
pub trait DeliveryHandler: Send + Sync {
    /// Processes one event.
    async fn handle(&self, delivery: Delivery) -> Outcome;
}

#[async_trait]
impl<F, A> DeliveryHandler for F
where
    F: Fn(Delivery) -> A + Send + Sync,
    A: Future<Output = Outcome> + Send,
{
    async fn handle(&self, delivery: Delivery) -> Outcome {
        self(delivery).await
    }
}

/// A connection that publishes events with confirms.
#[async_trait]
pub trait Publisher: Send + Sync {
    /// Publishes an event. When this returns, the event is in a queue.
    ///
    /// # Errors
    /// When no queue takes the event, or the broker does not confirm it.
    async fn publish(&self, routing_key: &str, body: &[u8], headers: &Headers) -> Result<(), BrokerError>;

    /// Closes the connection. Each published message is confirmed before, so that nothing can fail here.
    async fn close(self: Box<Self>);
}

/// A connection that publishes archive events with confirms.
#[async_trait]
pub trait ArchivePublisher: Send + Sync {
    /// Publishes an event with its id. When this returns, each queue that is bound for it has the event. It is not an error if none
    /// is bound.
    ///
    /// # Errors
    /// When the broker does not confirm the event.
    async fn publish(&self, routing_key: &str, id: &str, body: &[u8]) -> Result<(), BrokerError>;

    /// Closes the connection. Each published message is confirmed before, so that nothing can fail here.
    async fn close(self: Box<Self>);
}

/// Largest frame, in bytes: RabbitMQ offers 128 KiB, and `lapin` (4.12, `io_loop.rs`) holds buffers of 64 frames for each connection: at
/// that size half of a worker's memory. Longer messages go in several frames.
const FRAME_BYTES_MAX: u32 = 16 << 10;

/// How to reach RabbitMQ.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// `amqp://` or `amqps://`, with user and password.
    pub url: SecretString,
    /// The region whose queues are consumed.
    pub region: Region,
    /// Prefix of all exchanges and queues.
    pub prefix: String,
    /// AMQP heartbeat: a connection without traffic for twice this time is dead.
    pub heartbeat: Duration,
    /// Delay before an event with [`Outcome::Retry`] is delivered again.
    pub retry_after: Duration,
}

impl BrokerConfig {
    /// A broker with the defaults.
    #[must_use]
    pub fn new(url: SecretString, region: Region) -> Self {
        Self {
            url,
            region,
            prefix: "archiver".to_owned(),
            heartbeat: Duration::from_secs(10),
            retry_after: Duration::from_secs(5),
        }
    }

    fn uri(&self) -> String {
        let url = self.url.expose_secret();
        let joint = if url.contains('?') { '&' } else { '?' };
        let frame_max =
            if url.contains("frame_max=") { String::new() } else { format!("&frame_max={FRAME_BYTES_MAX}") };
        format!("{url}{joint}heartbeat={}&connection_timeout=5000{frame_max}", self.heartbeat.as_secs().max(1))
    }

    fn name(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.prefix)
    }

    fn regional(&self, suffix: &str) -> String {
        format!("{}.{suffix}.{}", self.prefix, self.region)
    }
}

/// Why an operation of the broker failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages name the fields")]
pub enum BrokerError {
    /// Not connected, or the connection was lost.
    #[error("the broker is not available while it should {doing}")]
    Unavailable {
        doing: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Refused: login, permission, or a queue that exists with other arguments.
    #[error("the broker refused to {doing}: {reply}")]
    Refused { doing: &'static str, reply: String },
    /// The broker is at fault. One such fault is for good: the supervisor of dead-lettering has ended (rabbitmq-server#16652).
    #[error(
        "the broker could not {doing}: {reply}; if its log names rabbit_fifo_dlx_sup, restart that node: it takes no queues until then"
    )]
    Internal { doing: &'static str, reply: String },
    /// No queue takes messages with this routing key.
    #[error("no queue takes {routing_key}: does a worker of that region run, or has one ever run?")]
    Unroutable { routing_key: String },
    /// No answer in time.
    #[error("the broker did not {doing} within {seconds} s")]
    Timeout { doing: &'static str, seconds: u64 },
    /// The broker has raised a memory or disk alarm: it accepts no messages, and still delivers those in its queues.
    #[error(
        "the broker accepts no messages while its memory or disk alarm lasts (see `rabbitmq-diagnostics alarms`); it still delivers what is in its queues"
    )]
    Blocked,
}

impl HasFault for BrokerError {
    fn fault(&self) -> Fault {
        match self {
            Self::Unavailable { .. } | Self::Internal { .. } | Self::Timeout { .. } | Self::Blocked => {
                FaultKind::BrokerUnavailable
            }
            Self::Refused { .. } => FaultKind::BrokerRefused,
            Self::Unroutable { .. } => FaultKind::NotFound,
        }
        .fault()
    }
}

fn failed(doing: &'static str) -> impl FnOnce(lapin::Error) -> BrokerError {
    use lapin::protocol::{AMQPErrorKind, AMQPHardError};
    // A node that shuts down closes its connections with this error. It is not a refusal.
    const SHUT_DOWN: AMQPErrorKind = AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED);
    const INTERNAL: AMQPErrorKind = AMQPErrorKind::Hard(AMQPHardError::INTERNALERROR);
    move |error| match error.kind() {
        lapin::ErrorKind::ProtocolError(reply) if *reply.kind() == INTERNAL => {
            BrokerError::Internal { doing, reply: reply.to_string() }
        }
        lapin::ErrorKind::ProtocolError(reply) if *reply.kind() != SHUT_DOWN => {
            BrokerError::Refused { doing, reply: reply.to_string() }
        }
        _ => BrokerError::Unavailable { doing, source: Box::new(error) },
    }
}

const CONNECT: &str = "take a connection";

/// The part of the topology that a connection declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Topology {
    /// Everything.
    All,
    /// The exchange of archive events. Queues are declared by their consumers.
    Archives,
}

async fn connect(config: &BrokerConfig) -> Result<lapin::Connection, BrokerError> {
    let properties = lapin::ConnectionProperties::default().with_connection_name("archiver".into());
    lapin::Connection::connect(&config.uri(), properties).await.map_err(failed(CONNECT))
}

/// Connects, declares everything and asks for confirms.
async fn open(config: &BrokerConfig) -> Result<(lapin::Connection, lapin::Channel), BrokerError> {
    open_with(config, Topology::All).await
}

async fn open_with(
    config: &BrokerConfig,
    topology: Topology,
) -> Result<(lapin::Connection, lapin::Channel), BrokerError> {
    limits::connecting(CONNECT, async {
        let connection = connect(config).await?;
        let channel = connection.create_channel().await.map_err(failed("open a channel"))?;
        match topology {
            Topology::All => topology::declare(&channel, config).await?,
            Topology::Archives => topology::declare_archives(&channel, config).await?,
        }
        let confirms = channel.confirm_select(lapin::options::ConfirmSelectOptions::default());
        confirms.await.map_err(failed("confirm messages"))?;
        Ok((connection, channel))
    })
    .await
}

#[cfg(test)]
mod tests {
    use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError};

    use super::*;

    #[test]
    fn a_fault_of_the_broker_is_no_refusal() {
        let kinds = [
            (AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED), FaultKind::BrokerRefused),
            (AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED), FaultKind::BrokerRefused),
            (AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED), FaultKind::BrokerUnavailable),
            (AMQPErrorKind::Hard(AMQPHardError::INTERNALERROR), FaultKind::BrokerUnavailable),
        ];
        for (kind, expected) in kinds {
            let reply = AMQPError::new(kind.clone(), "".into());
            let error = failed("declare queues")(lapin::ErrorKind::ProtocolError(reply).into());
            assert_eq!(error.fault().kind, expected, "{kind:?}");
        }
    }
}
