//! The message broker. [`Broker`] is the contract, [`RabbitBroker`] keeps it with RabbitMQ. The only module that names `lapin`.
//!
//! ```text
//! archiver.sessions (topic)
//!   session.started.<region> ─► archiver.started.<region>   quorum; consumed while there is room for a job
//!   session.ended.<region>   ─► archiver.ended.<region>     quorum; consumed always
//! archiver.retry (topic)     ─► archiver.retry.<region>     waits, then goes back with the same routing key
//! archiver.dead (topic)      ─► archiver.dead               what came too often; consumed into the parked jobs
//! Janus's event handlers     ─► archiver.janus              hints; consumed by the bridge
//! archiver.nudges (fanout)   ─► a queue of each worker      look into the catalog at once
//! archiver.archives (topic)                                 for whoever wants to hear of archives
//!   archive.<status>.<region>
//! ```
//!
//! Started and ended events have queues of their own, so that a full worker still hears that a session ended.
//! A started event is only taken while there is room: the others stay for other workers. A delivery is acked
//! when what it asks for is durable in the catalog, never later.

mod consumer;
mod hints;
mod nudge;
mod publisher;
mod rabbit;
mod topology;

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

/// A message broker as one process uses it: session events, archive events, nudges between processes, hints of media routers.
/// Methods that run until `cancel` reconnect with back-off, without a limit.
#[async_trait]
pub trait Broker: Send + Sync + std::fmt::Debug {
    /// Connects and declares everything. For `archiver check`.
    ///
    /// # Errors
    /// When the broker is away or refuses.
    async fn probe(&self) -> Result<(), BrokerError>;

    /// Opens a connection that publishes session events. Declares exchanges and queues first, so that each event has a queue.
    ///
    /// # Errors
    /// When the broker is away or refuses.
    async fn publisher(&self) -> Result<Box<dyn Publisher>, BrokerError>;

    /// Opens a connection that publishes archive events.
    ///
    /// # Errors
    /// When the broker is away or refuses.
    async fn archive_publisher(&self) -> Result<Box<dyn ArchivePublisher>, BrokerError>;

    /// Consumes session events until `cancel`. `room` is the number of jobs that may still be accepted: started events are taken
    /// only while it is not zero. A panic of the handler costs the event one delivery.
    ///
    /// Dead letters have a connection of their own, so that events are delivered even if the dead letters' queue has no leader.
    /// `state` covers the events' connection only.
    async fn consume(
        &self,
        room: watch::Receiver<usize>,
        state: &watch::Sender<BrokerState>,
        cancel: &CancellationToken,
        handler: &dyn DeliveryHandler,
    );

    /// Sends a nudge to all workers each time `wanted` is notified, until `cancel`.
    async fn keep_nudging(&self, wanted: &Notify, cancel: &CancellationToken);

    /// Calls `nudged` for each nudge, until `cancel`. It must not block.
    async fn hear_nudges(&self, nudged: &(dyn Fn() + Send + Sync), cancel: &CancellationToken);

    /// Calls `take` for each message of a queue of hints, until `cancel`. Declares the queue, durable and of bounded length,
    /// unless it exists. `take` must not block.
    async fn listen(&self, queue: &str, take: &(dyn for<'m> Fn(&'m [u8]) + Send + Sync), cancel: &CancellationToken);
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
    /// Publishes an event; it is in a queue when this returns.
    ///
    /// # Errors
    /// When no queue takes it, or the broker does not confirm it.
    async fn publish(&self, routing_key: &str, body: &[u8], headers: &Headers) -> Result<(), BrokerError>;

    /// Closes the connection.
    ///
    /// # Errors
    /// When it is lost already.
    async fn close(self: Box<Self>) -> Result<(), BrokerError>;
}

/// A connection that publishes archive events with confirms.
#[async_trait]
pub trait ArchivePublisher: Send + Sync {
    /// Publishes an event with its id; the broker has it when this returns, and so has each queue that is bound for it.
    /// That there is none is no error: nobody need listen.
    ///
    /// # Errors
    /// When the broker does not confirm it.
    async fn publish(&self, routing_key: &str, id: &str, body: &[u8]) -> Result<(), BrokerError>;

    /// Closes the connection.
    ///
    /// # Errors
    /// When it is lost already.
    async fn close(self: Box<Self>) -> Result<(), BrokerError>;
}

/// How to reach RabbitMQ.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// `amqp://` or `amqps://`, with user and password.
    pub url: SecretString,
    /// The region whose queues are consumed.
    pub region: Region,
    /// All names of exchanges and queues begin with it.
    pub prefix: String,
    /// A connection that is silent for twice this is dead.
    pub heartbeat: Duration,
    /// An event that could not be handled comes again after this.
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
        format!("{url}{joint}heartbeat={}&connection_timeout=5000", self.heartbeat.as_secs().max(1))
    }

    fn name(&self, what: &str) -> String {
        format!("{}.{what}", self.prefix)
    }

    fn regional(&self, what: &str) -> String {
        format!("{}.{what}.{}", self.prefix, self.region)
    }
}

/// Why the broker cannot do it.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// No connection, or none any more.
    #[error("the broker is not available while it should {doing}")]
    Unavailable {
        /// The operation.
        doing: &'static str,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It refused: login, permission, or a queue that was declared otherwise.
    #[error("the broker refused to {doing}: {why}")]
    Refused {
        /// The operation.
        doing: &'static str,
        /// Its words.
        why: String,
    },
    /// No queue takes messages with this routing key.
    #[error("no queue takes {routing_key}: does a worker of that region run, or has one ever run?")]
    Unroutable {
        /// The routing key.
        routing_key: String,
    },
    /// No answer in time.
    #[error("the broker did not {doing} within {seconds} s")]
    Timeout {
        /// The operation.
        doing: &'static str,
        /// How long we waited.
        seconds: u64,
    },
}

impl HasFault for BrokerError {
    fn fault(&self) -> Fault {
        match self {
            Self::Unavailable { .. } | Self::Timeout { .. } => FaultKind::BrokerUnavailable,
            Self::Refused { .. } => FaultKind::BrokerRefused,
            Self::Unroutable { .. } => FaultKind::NotFound,
        }
        .fault()
    }
}

fn failed(doing: &'static str) -> impl FnOnce(lapin::Error) -> BrokerError {
    use lapin::protocol::{AMQPErrorKind, AMQPHardError};
    // A node that shuts down says so; that is no refusal.
    const SHUT_DOWN: AMQPErrorKind = AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED);
    move |error| match error.kind() {
        lapin::ErrorKind::ProtocolError(why) if *why.kind() != SHUT_DOWN => {
            BrokerError::Refused { doing, why: why.to_string() }
        }
        _ => BrokerError::Unavailable { doing, source: Box::new(error) },
    }
}

const CONNECT: &str = "take a connection";

/// What a connection declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Declared {
    /// Everything.
    All,
    /// What archives are told by: no queues, for nobody may consume them here.
    Archives,
}

async fn connect(config: &BrokerConfig) -> Result<lapin::Connection, BrokerError> {
    let properties = lapin::ConnectionProperties::default().with_connection_name("archiver".into());
    lapin::Connection::connect(&config.uri(), properties).await.map_err(failed(CONNECT))
}

/// With a limit: a black hole answers nothing.
async fn in_time<T>(opening: impl Future<Output = Result<T, BrokerError>>) -> Result<T, BrokerError> {
    const SECONDS: u64 = 10;
    tokio::time::timeout(Duration::from_secs(SECONDS), opening)
        .await
        .map_err(|_| BrokerError::Timeout { doing: CONNECT, seconds: SECONDS })?
}

/// Connects, declares everything and asks for confirms.
async fn open(config: &BrokerConfig) -> Result<(lapin::Connection, lapin::Channel), BrokerError> {
    open_with(config, Declared::All).await
}

async fn open_with(
    config: &BrokerConfig,
    declared: Declared,
) -> Result<(lapin::Connection, lapin::Channel), BrokerError> {
    in_time(async {
        let connection = connect(config).await?;
        let channel = connection.create_channel().await.map_err(failed("open a channel"))?;
        match declared {
            Declared::All => topology::declare(&channel, config).await?,
            Declared::Archives => topology::declare_archives(&channel, config).await?,
        }
        let confirms = channel.confirm_select(lapin::options::ConfirmSelectOptions::default());
        confirms.await.map_err(failed("confirm messages"))?;
        Ok((connection, channel))
    })
    .await
}
