//! The queue that media routers' event handlers publish to. What is in it are hints: nothing is lost with them.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection};
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::topology::{number, table, text};
use super::{BrokerConfig, BrokerError, connect, failed, in_time};
use crate::model::fault::{Backoff, chain};

const RECONNECT: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(15) };
/// A connection that lived this long was a good one.
const GOOD_AFTER: Duration = Duration::from_secs(10);
/// How often the connection is asked whether it lives.
const WATCH: Duration = Duration::from_secs(2);
/// Messages that are under way.
const PREFETCH: u16 = 20;
/// An answer that takes longer means that the connection is dead.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Of more messages than this the oldest are dropped; and what is older, in milliseconds, is of no use.
const LENGTH_MAX: i32 = 10_000;
const OLD_MS: i32 = 60_000;

/// Is handed each message.
type Take<'a> = &'a (dyn Fn(&[u8]) + Send + Sync);

/// Hands what comes through a queue to `take`, until `cancel`. The queue is declared, durable and of bounded length, unless it is
/// there already, however it was declared. Reconnects for ever; `take` must not block.
pub(super) async fn listen(config: &BrokerConfig, queue: &str, take: Take<'_>, cancel: &CancellationToken) {
    let mut attempt = 0;
    loop {
        let begun = Instant::now();
        let ended = tokio::select! {
            () = cancel.cancelled() => return,
            ended = session(config, queue, take) => ended,
        };
        if begun.elapsed() > GOOD_AFTER {
            attempt = 0;
        }
        if let Err(error) = ended {
            // Said aloud once an outage: nothing is lost, and others say so, too.
            let text = chain(&error);
            match attempt {
                0 => tracing::warn!(queue, "no hints of media routers come for now: {text}"),
                _ => tracing::debug!(queue, attempt, "no hints of media routers come for now: {text}"),
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = sleep(RECONNECT.delay(attempt, rand::random())) => attempt += 1,
        }
    }
}

async fn session(config: &BrokerConfig, queue: &str, take: Take<'_>) -> Result<(), BrokerError> {
    const DOING: &str = "consume hints";
    let (connection, channel, mut consumer) = in_time(async {
        let connection = connect(config).await?;
        let channel = declared(&connection, queue).await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.map_err(failed(DOING))?;
        let options = BasicConsumeOptions::default();
        let consuming = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
        let consumer = consuming.await.map_err(failed(DOING))?;
        Ok((connection, channel, consumer))
    })
    .await?;
    tracing::info!(queue, "listening for hints of media routers");
    let lost = || BrokerError::Unavailable { doing: DOING, source: "the connection is lost".into() };
    let mut watchdog = interval(WATCH);
    loop {
        tokio::select! {
            delivery = consumer.next() => {
                let delivery = delivery.ok_or_else(lost)?.map_err(failed(DOING))?;
                take(&delivery.data);
                let acked = timeout(ANSWER_MAX, delivery.acker.ack(BasicAckOptions::default()));
                acked.await.map_err(|_| lost())?.map_err(failed(DOING))?;
            }
            _ = watchdog.tick() => {
                if !connection.status().connected() || !channel.status().connected() {
                    return Err(lost());
                }
            }
        }
    }
}

/// A channel on which the queue is known to be there.
async fn declared(connection: &Connection, queue: &str) -> Result<Channel, BrokerError> {
    const DOING: &str = "declare the queue of hints";
    let open = || async { connection.create_channel().await.map_err(failed("open a channel")) };
    let channel = open().await?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    if channel.queue_declare(queue.into(), passive, FieldTable::default()).await.is_ok() {
        return Ok(channel);
    }
    // The broker closes a channel on which a queue was named that is not there.
    let channel = open().await?;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let arguments = table(vec![
        ("x-queue-type", text("quorum")),
        ("x-max-length", number(LENGTH_MAX)),
        ("x-overflow", text("drop-head")),
        ("x-message-ttl", number(OLD_MS)),
    ]);
    channel.queue_declare(queue.into(), durable, arguments).await.map_err(failed(DOING))?;
    Ok(channel)
}
