//! Declares exchanges and queues. Declaring them again has no effect; with other arguments RabbitMQ refuses.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};

use super::{BrokerConfig, BrokerError, ENDED_KEY, STARTED_KEY, failed};

/// A message that is delivered more often becomes a dead letter: each delivery may have crashed its consumer.
const DELIVERIES_MAX: i32 = 20;

pub(super) fn table(entries: Vec<(&str, AMQPValue)>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert(name.into(), value);
    }
    table
}

pub(super) fn text(value: impl Into<String>) -> AMQPValue {
    AMQPValue::LongString(value.into().into())
}

/// Declares the exchange of archive events. Consumers bind their own queues to it.
pub(super) async fn declare_archives(channel: &Channel, config: &BrokerConfig) -> Result<(), BrokerError> {
    exchange(channel, &config.name("archives")).await
}

async fn exchange(channel: &Channel, name: &str) -> Result<(), BrokerError> {
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel
        .exchange_declare(name.into(), ExchangeKind::Topic, options, FieldTable::default())
        .await
        .map_err(failed("declare exchanges and queues"))
}

pub(super) const fn number(value: i32) -> AMQPValue {
    AMQPValue::LongInt(value)
}

/// Declares all exchanges and the region's queues.
pub(super) async fn declare(channel: &Channel, config: &BrokerConfig) -> Result<(), BrokerError> {
    let (sessions, retry, dead) = (config.name("sessions"), config.name("retry"), config.name("dead"));
    for name in [&sessions, &retry, &dead] {
        exchange(channel, name).await?;
    }
    declare_archives(channel, config).await?;
    let quorum_arguments = |to: &str| {
        vec![
            ("x-queue-type", text("quorum")),
            ("x-dead-letter-exchange", text(to)),
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-overflow", text("reject-publish")),
        ]
    };
    let region = &config.region;
    for (queue, key) in [("started", STARTED_KEY), ("ended", ENDED_KEY)] {
        let mut arguments = quorum_arguments(&dead);
        arguments.push(("x-delivery-limit", number(DELIVERIES_MAX)));
        declare_and_bind(channel, &config.regional(queue), arguments, &sessions, &format!("{key}.{region}")).await?;
    }
    let mut arguments = quorum_arguments(&sessions);
    let wait = i32::try_from(config.retry_after.as_millis()).unwrap_or(i32::MAX);
    arguments.push(("x-message-ttl", number(wait)));
    declare_and_bind(channel, &config.regional("retry"), arguments, &retry, &format!("*.*.{region}")).await?;
    declare_and_bind(channel, &dead, vec![("x-queue-type", text("quorum"))], &dead, "#").await
}

async fn declare_and_bind(
    channel: &Channel,
    queue: &str,
    arguments: Vec<(&str, AMQPValue)>,
    exchange: &str,
    key: &str,
) -> Result<(), BrokerError> {
    const DOING: &str = "declare exchanges and queues";
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), options, table(arguments)).await.map_err(failed(DOING))?;
    channel
        .queue_bind(queue.into(), exchange.into(), key.into(), QueueBindOptions::default(), FieldTable::default())
        .await
        .map_err(failed(DOING))
}
