//! Consumes the queue that media routers' event handlers publish to. Its messages are hints, and may be lost.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection};
use tokio::time::{Instant, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::topology::{number, table, text};
use super::{BrokerConfig, BrokerError, CONNECT, connect, failed, limits};
use crate::model::fault::{Backoff, chain};

const RECONNECT: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(15) };
/// After a connection that lasted this long, the back-off starts at its first step again.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// Between two checks that the connection is alive.
const LIVENESS_EVERY: Duration = Duration::from_secs(2);
/// Unacked messages.
const PREFETCH: u16 = 20;
/// Length of the queue; the oldest messages are dropped.
const MESSAGES_MAX: i32 = 10_000;
/// Older hints are of no use.
const MESSAGE_TTL_MS: i32 = 60_000;

/// Called for each message's body.
type HintHandler<'a> = &'a (dyn Fn(&[u8]) + Send + Sync);

/// Calls `handle` for each message of a queue, until `cancel`; reconnects without a limit. Declares the queue, durable and of bounded
/// length, unless it exists, with whatever arguments. `handle` must not block.
pub(super) async fn consume_hints(
    config: &BrokerConfig,
    queue: &str,
    handle: HintHandler<'_>,
    cancel: &CancellationToken,
) {
    let mut attempt = 0;
    loop {
        let started_at = Instant::now();
        let ended = tokio::select! {
            () = cancel.cancelled() => return,
            ended = run_connection(config, queue, handle) => ended,
        };
        if started_at.elapsed() > STABLE_AFTER {
            attempt = 0;
        }
        if let Err(error) = ended {
            // One warning for each outage: hints may be lost, and the consumer of events warns, too.
            let text = chain(&error);
            match attempt {
                0 => tracing::warn!(queue, "cannot consume hints of media routers: {text}"),
                _ => tracing::debug!(queue, attempt, "cannot consume hints of media routers: {text}"),
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = sleep(RECONNECT.delay(attempt, rand::random())) => attempt += 1,
        }
    }
}

async fn run_connection(config: &BrokerConfig, queue: &str, handle: HintHandler<'_>) -> Result<(), BrokerError> {
    const DOING: &str = "consume hints";
    let (connection, channel, mut consumer) = limits::connecting(CONNECT, async {
        let connection = connect(config).await?;
        let channel = open_channel_with_queue(&connection, queue).await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.map_err(failed(DOING))?;
        let options = BasicConsumeOptions::default();
        let consuming = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
        let consumer = consuming.await.map_err(failed(DOING))?;
        Ok((connection, channel, consumer))
    })
    .await?;
    tracing::info!(queue, "consuming hints of media routers");
    let connection_lost = || BrokerError::Unavailable { doing: DOING, source: "the connection is lost".into() };
    let mut watchdog = interval(LIVENESS_EVERY);
    loop {
        tokio::select! {
            delivery = consumer.next() => {
                let delivery = delivery.ok_or_else(connection_lost)?.map_err(failed(DOING))?;
                handle(&delivery.data);
                limits::request("take an ack", delivery.acker.ack(BasicAckOptions::default())).await?;
            }
            _ = watchdog.tick() => {
                if !connection.status().connected() || !channel.status().connected() {
                    return Err(connection_lost());
                }
            }
        }
    }
}

/// Opens a channel, and declares the queue unless it exists.
async fn open_channel_with_queue(connection: &Connection, queue: &str) -> Result<Channel, BrokerError> {
    const DOING: &str = "declare the queue of hints";
    let open = || async { connection.create_channel().await.map_err(failed("open a channel")) };
    let channel = open().await?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    if channel.queue_declare(queue.into(), passive, FieldTable::default()).await.is_ok() {
        return Ok(channel);
    }
    // RabbitMQ closes the channel after a passive declaration of a queue that does not exist.
    let channel = open().await?;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let arguments = table(vec![
        ("x-queue-type", text("quorum")),
        ("x-max-length", number(MESSAGES_MAX)),
        ("x-overflow", text("drop-head")),
        ("x-message-ttl", number(MESSAGE_TTL_MS)),
    ]);
    channel.queue_declare(queue.into(), durable, arguments).await.map_err(failed(DOING))?;
    Ok(channel)
}
