//! Wake-ups: empty messages that make all workers look at the catalog now. A lost wake-up costs the second or two until the
//! workers look anyway.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{BrokerConfig, BrokerError, failed, limits};
use crate::model::fault::{Backoff, chain};

const RECONNECT: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(15) };
/// Between two wake-ups.
const PAUSE: Duration = Duration::from_millis(200);
/// Between two checks that a connection without messages is alive.
const LIVENESS_EVERY: Duration = Duration::from_secs(2);

async fn open(config: &BrokerConfig, exchange: &str) -> Result<(Connection, Channel), BrokerError> {
    const DOING: &str = "open a channel for wake-ups";
    limits::connecting(DOING, async {
        let properties = ConnectionProperties::default().with_connection_name("archiver nudges".into());
        let connection = Connection::connect(&config.uri(), properties).await.map_err(failed(DOING))?;
        let channel = connection.create_channel().await.map_err(failed(DOING))?;
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declared = channel.exchange_declare(exchange.into(), ExchangeKind::Fanout, options, FieldTable::default());
        declared.await.map_err(failed(DOING))?;
        Ok((connection, channel))
    })
    .await
}

/// Runs `run_connection` repeatedly, with back-off, until `cancel`.
async fn run_with_reconnect<F: Future<Output = Result<(), BrokerError>>>(
    cancel: &CancellationToken,
    run_connection: impl Fn() -> F,
) {
    let mut attempt = 0;
    while !cancel.is_cancelled() {
        let started_at = tokio::time::Instant::now();
        tokio::select! {
            () = cancel.cancelled() => return,
            ended = run_connection() => if let Err(error) = ended {
                tracing::debug!(attempt, "no wake-ups: {}", chain(&error));
            }
        }
        attempt = if started_at.elapsed() > RECONNECT.max { 0 } else { attempt + 1 };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = sleep(RECONNECT.delay(attempt, rand::random())) => {}
        }
    }
}

/// Wakes all workers each time `requested` is notified, until `cancel`.
pub(super) async fn publish_wakeups(config: &BrokerConfig, requested: &Notify, cancel: &CancellationToken) {
    const DOING: &str = "wake the workers";
    let exchange = config.name("nudges");
    let run_connection = || async {
        let (_connection, channel) = open(config, &exchange).await?;
        loop {
            requested.notified().await;
            let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
            let sent = channel.basic_publish(exchange.as_str().into(), "".into(), options, b"", properties);
            if let Err(error) = limits::request(DOING, sent).await {
                // Sent again on the next connection.
                requested.notify_one();
                return Err(error);
            }
            // Each wake-up makes every running job query the catalog. Requests during the pause share the next one.
            sleep(PAUSE).await;
        }
    };
    run_with_reconnect(cancel, run_connection).await;
}

/// Calls `on_wakeup` for each wake-up, until `cancel`.
pub(super) async fn consume_wakeups(
    config: &BrokerConfig,
    on_wakeup: &(dyn Fn() + Send + Sync),
    cancel: &CancellationToken,
) {
    const DOING: &str = "consume wake-ups";
    let exchange = config.name("nudges");
    let run_connection = || async {
        let (_connection, channel) = open(config, &exchange).await?;
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue =
            limits::request("declare a queue", channel.queue_declare("".into(), options, FieldTable::default()))
                .await?;
        let name = queue.name().clone();
        let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
        let bound = channel.queue_bind(name.clone(), exchange.as_str().into(), "".into(), bind, none);
        limits::request("bind a queue", bound).await?;
        let options = BasicConsumeOptions { no_ack: true, exclusive: true, ..BasicConsumeOptions::default() };
        let consuming = channel.basic_consume(name, "".into(), options, FieldTable::default());
        let mut consumer = limits::request("start a consumer", consuming).await?;
        // For wake-ups that were sent before the queue existed.
        on_wakeup();
        loop {
            match timeout(LIVENESS_EVERY, consumer.next()).await {
                Ok(Some(delivery)) => {
                    delivery.map_err(failed(DOING))?;
                    on_wakeup();
                }
                Ok(None) => return Ok(()),
                Err(_) if channel.status().connected() => {}
                Err(_) => return Ok(()),
            }
        }
    };
    run_with_reconnect(cancel, run_connection).await;
}
