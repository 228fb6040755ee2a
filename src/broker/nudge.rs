//! Nudges: a message without content that tells all workers to look into the catalog at once. What is asked for is there; a
//! nudge that is lost costs the second or two until a worker looks by itself.

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

use super::{BrokerConfig, BrokerError, failed};
use crate::model::fault::{Backoff, chain};

const RECONNECT: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(15) };
/// Connecting, and each message, take at most this long.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Between two nudges.
const PAUSE: Duration = Duration::from_millis(200);
/// How often a connection without messages is asked whether it lives.
const WATCH: Duration = Duration::from_secs(2);

async fn open(config: &BrokerConfig, exchange: &str) -> Result<(Connection, Channel), BrokerError> {
    const DOING: &str = "open a channel for nudges";
    let opening = async {
        let properties = ConnectionProperties::default().with_connection_name("archiver nudges".into());
        let connection = Connection::connect(&config.uri(), properties).await.map_err(failed(DOING))?;
        let channel = connection.create_channel().await.map_err(failed(DOING))?;
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declared = channel.exchange_declare(exchange.into(), ExchangeKind::Fanout, options, FieldTable::default());
        declared.await.map_err(failed(DOING))?;
        Ok((connection, channel))
    };
    let late = |_| BrokerError::Timeout { doing: DOING, seconds: ANSWER_MAX.as_secs() };
    timeout(ANSWER_MAX, opening).await.map_err(late)?
}

/// Runs `session` again and again, with back-off, until `cancel`.
async fn again<F: Future<Output = Result<(), BrokerError>>>(cancel: &CancellationToken, session: impl Fn() -> F) {
    let mut attempt = 0;
    while !cancel.is_cancelled() {
        let begun = tokio::time::Instant::now();
        tokio::select! {
            () = cancel.cancelled() => return,
            ended = session() => if let Err(error) = ended {
                tracing::debug!(attempt, "no nudges for now: {}", chain(&error));
            }
        }
        attempt = if begun.elapsed() > RECONNECT.max { 0 } else { attempt + 1 };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = sleep(RECONNECT.delay(attempt, rand::random())) => {}
        }
    }
}

/// Nudges all workers each time `wanted` is notified, until `cancel`.
pub(super) async fn keep_nudging(config: &BrokerConfig, wanted: &Notify, cancel: &CancellationToken) {
    const DOING: &str = "nudge the workers";
    let exchange = config.name("nudges");
    let session = || async {
        let (_connection, channel) = open(config, &exchange).await?;
        loop {
            wanted.notified().await;
            let late = |_| BrokerError::Timeout { doing: DOING, seconds: ANSWER_MAX.as_secs() };
            let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
            let sent = channel.basic_publish(exchange.as_str().into(), "".into(), options, b"", properties);
            if let Err(error) =
                timeout(ANSWER_MAX, sent).await.map_err(late).and_then(|sent| sent.map_err(failed(DOING)))
            {
                // Sent again as soon as there is another connection.
                wanted.notify_one();
                return Err(error);
            }
            // Each makes every running job look: what comes meanwhile goes with the next one.
            sleep(PAUSE).await;
        }
    };
    again(cancel, session).await;
}

/// Calls `nudged` for each nudge, until `cancel`.
pub(super) async fn hear_nudges(config: &BrokerConfig, nudged: &(dyn Fn() + Send + Sync), cancel: &CancellationToken) {
    const DOING: &str = "hear nudges";
    let exchange = config.name("nudges");
    let session = || async {
        let (_connection, channel) = open(config, &exchange).await?;
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare("".into(), options, FieldTable::default()).await.map_err(failed(DOING))?;
        let name = queue.name().clone();
        let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
        channel
            .queue_bind(name.clone(), exchange.as_str().into(), "".into(), bind, none)
            .await
            .map_err(failed(DOING))?;
        let options = BasicConsumeOptions { no_ack: true, exclusive: true, ..BasicConsumeOptions::default() };
        let consuming = channel.basic_consume(name, "".into(), options, FieldTable::default());
        let mut consumer = consuming.await.map_err(failed(DOING))?;
        // What was asked for while nobody heard.
        nudged();
        loop {
            match timeout(WATCH, consumer.next()).await {
                Ok(Some(delivery)) => {
                    delivery.map_err(failed(DOING))?;
                    nudged();
                }
                Ok(None) => return Ok(()),
                Err(_) if channel.status().connected() => {}
                Err(_) => return Ok(()),
            }
        }
    };
    again(cancel, session).await;
}
