//! Publishes with publisher confirms: only a confirmed message counts as published.

use std::time::Duration;

use async_trait::async_trait;
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use tokio::time::timeout;

use super::{
    ArchivePublisher, BrokerConfig, BrokerError, Headers, Publisher, Topology, failed, limits, open, open_with,
};

/// When the broker dies, a pending confirm may never arrive.
const CONFIRM_SECONDS: u64 = 10;
const DOING: &str = "confirm a message";

/// A connection that publishes session events.
pub(super) struct RabbitPublisher {
    config: BrokerConfig,
    connection: Connection,
    channel: Channel,
}

impl RabbitPublisher {
    /// Connects and declares exchanges and queues, so that each message has a queue.
    pub async fn connect(config: &BrokerConfig) -> Result<Self, BrokerError> {
        let (connection, channel) = open(config).await?;
        Ok(Self { config: config.clone(), connection, channel })
    }
}

#[async_trait]
impl Publisher for RabbitPublisher {
    async fn publish(&self, routing_key: &str, body: &[u8], headers: &Headers) -> Result<(), BrokerError> {
        let exchange = self.config.name("sessions");
        publish(&self.channel, &exchange, routing_key, body, headers).await.map_err(name_alarm(&self.connection))
    }

    async fn close(self: Box<Self>) {
        limits::close(self.connection, "done").await;
    }
}

/// A connection that publishes archive events.
pub(super) struct RabbitArchivePublisher {
    exchange: String,
    connection: Connection,
    channel: Channel,
}

impl RabbitArchivePublisher {
    /// Connects and declares the exchange.
    pub async fn connect(config: &BrokerConfig) -> Result<Self, BrokerError> {
        let (connection, channel) = open_with(config, Topology::Archives).await?;
        Ok(Self { exchange: config.name("archives"), connection, channel })
    }
}

#[async_trait]
impl ArchivePublisher for RabbitArchivePublisher {
    async fn publish(&self, routing_key: &str, id: &str, body: &[u8]) -> Result<(), BrokerError> {
        let properties = properties().with_message_id(id.into());
        let sent = publish_confirmed(&self.channel, &self.exchange, routing_key, body, properties, false).await;
        match sent.map_err(name_alarm(&self.connection))? {
            Confirmation::Ack(_) => Ok(()),
            Confirmation::Nack(_) | Confirmation::NotRequested => Err(not_confirmed()),
        }
    }

    async fn close(self: Box<Self>) {
        limits::close(self.connection, "done").await;
    }
}

/// Publishes a message that no queue is bound for, to see whether the broker accepts messages.
pub(super) async fn probe(
    connection: &Connection,
    channel: &Channel,
    config: &BrokerConfig,
) -> Result<(), BrokerError> {
    let sent = publish_confirmed(channel, &config.name("sessions"), "check", b"", properties(), false).await;
    sent.map_err(name_alarm(connection))?;
    // RabbitMQ may confirm such a message although it has blocked the connection.
    if connection.status().blocked() { Err(BrokerError::Blocked) } else { Ok(()) }
}

/// While an alarm lasts, RabbitMQ sends `connection.blocked` to publishers, and confirms nothing.
fn name_alarm(connection: &Connection) -> impl FnOnce(BrokerError) -> BrokerError {
    move |error| match error {
        BrokerError::Timeout { .. } if connection.status().blocked() => BrokerError::Blocked,
        error => error,
    }
}

/// Publishes on a channel with confirms.
pub(super) async fn publish(
    channel: &Channel,
    exchange: &str,
    routing_key: &str,
    body: &[u8],
    headers: &Headers,
) -> Result<(), BrokerError> {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert(name.as_str().into(), AMQPValue::LongString(value.as_str().into()));
    }
    match publish_confirmed(channel, exchange, routing_key, body, properties().with_headers(table), true).await? {
        Confirmation::Ack(None) => Ok(()),
        // Returned: RabbitMQ acks mandatory messages even if no queue takes them.
        Confirmation::Ack(Some(_)) => Err(BrokerError::Unroutable { routing_key: routing_key.to_owned() }),
        Confirmation::Nack(_) | Confirmation::NotRequested => Err(not_confirmed()),
    }
}

fn not_confirmed() -> BrokerError {
    BrokerError::Refused { doing: DOING, reply: "the queue did not accept the message".to_owned() }
}

/// Properties of every message: a CloudEvent, persistent.
fn properties() -> BasicProperties {
    BasicProperties::default().with_content_type("application/cloudevents+json".into()).with_delivery_mode(2)
}

async fn publish_confirmed(
    channel: &Channel,
    exchange: &str,
    routing_key: &str,
    body: &[u8],
    properties: BasicProperties,
    mandatory: bool,
) -> Result<Confirmation, BrokerError> {
    let options = BasicPublishOptions { mandatory, ..BasicPublishOptions::default() };
    let whole = async {
        let sent = channel.basic_publish(exchange.into(), routing_key.into(), options, body, properties).await;
        sent.map_err(failed(DOING))?.await.map_err(failed(DOING))
    };
    timeout(Duration::from_secs(CONFIRM_SECONDS), whole)
        .await
        .map_err(|_| BrokerError::Timeout { doing: DOING, seconds: CONFIRM_SECONDS })?
}
