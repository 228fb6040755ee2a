//! Consuming, for ever: a loop that rebuilds connection, channel, topology and consumers after anything.

use std::future::Future;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, ConfirmSelectOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer};
use tokio::sync::watch;
use tokio::time::{interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::publisher::{Headers, publish};
use super::{BrokerConfig, BrokerError, connect, failed, topology};
use crate::fault::{Backoff, chain};
use crate::metrics::metrics;

const RECONNECT: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(15) };
/// Deliveries that are under way on one channel: what is asked for is durable within milliseconds, and a
/// worker must not hold events that others could take.
const PREFETCH: u16 = 1;
/// How often the connection is asked whether it lives.
const WATCH: Duration = Duration::from_secs(2);
/// An ack or a cancel that takes longer means that the connection is dead.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Our own count of tries: RabbitMQ's `x-death` cannot be trusted after a republish.
const ATTEMPT: &str = "archiver-attempt";

/// Whether events come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerState {
    /// Connected and consuming.
    Connected,
    /// Trying to connect.
    Disconnected,
}

/// An event as it came.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Its bytes.
    pub body: Vec<u8>,
    /// Where it was published to.
    pub routing_key: String,
    /// Texts among its headers.
    pub headers: Headers,
    /// How often it was tried before.
    pub attempt: u32,
    /// It comes from the dead letters: RabbitMQ gave it up.
    pub dead: bool,
}

/// What a handler made of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// What it asks for is durable.
    Done,
    /// Not now: it comes again after a while.
    Later,
}

/// Consumes until `cancel` says so. `room` is the number of jobs that may still be accepted: started events
/// are only taken while it is not zero.
pub async fn consume<F: Future<Output = Outcome>>(
    config: &BrokerConfig,
    room: watch::Receiver<usize>,
    state: &watch::Sender<BrokerState>,
    cancel: &CancellationToken,
    handle: impl Fn(Delivery) -> F,
) {
    let mut attempt = 0;
    while !cancel.is_cancelled() {
        let connected = || {
            state.send_replace(BrokerState::Connected);
            metrics().broker_connected.set(1);
        };
        let ended = tokio::select! {
            () = cancel.cancelled() => return,
            ended = session(config, room.clone(), cancel, &handle, connected) => ended,
        };
        let was_connected = state.send_replace(BrokerState::Disconnected) == BrokerState::Connected;
        metrics().broker_connected.set(0);
        if was_connected {
            attempt = 0;
        }
        if let Err(error) = ended {
            tracing::warn!(attempt, "no events for now: {}", chain(&error));
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = sleep(RECONNECT.delay(attempt, rand::random())) => attempt += 1,
        }
    }
}

async fn session<F: Future<Output = Outcome>>(
    config: &BrokerConfig,
    mut room: watch::Receiver<usize>,
    cancel: &CancellationToken,
    handle: &impl Fn(Delivery) -> F,
    connected: impl Fn(),
) -> Result<(), BrokerError> {
    let connection = connect(config).await?;
    let channel = connection.create_channel().await.map_err(failed("open a channel"))?;
    topology::declare(&channel, config).await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(failed("confirm messages"))?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.map_err(failed("limit deliveries"))?;
    let mut ended = begin(&channel, &config.regional("ended")).await?;
    let mut dead = begin(&channel, &config.name("dead")).await?;
    let mut started: Option<Consumer> = None;
    let mut watchdog = interval(WATCH);
    connected();
    tracing::info!(region = %config.region, "events are consumed");
    loop {
        let has_room = *room.borrow_and_update() > 0;
        match (has_room, started.is_some()) {
            (true, false) => started = Some(begin(&channel, &config.regional("started")).await?),
            (false, true) => {
                if let Some(consumer) = started.take() {
                    let stop = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
                    answered("stop a consumer", stop).await?;
                }
            }
            _ => {}
        }
        let (delivery, is_dead) = tokio::select! {
            () = cancel.cancelled() => {
                return answered("close", connection.close(200, "stopping".into())).await;
            }
            delivery = ended.next() => (delivery, false),
            delivery = dead.next() => (delivery, true),
            delivery = next(started.as_mut()) => (delivery, false),
            changed = room.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                continue;
            }
            _ = watchdog.tick() => {
                if !connection.status().connected() || !channel.status().connected() {
                    return Err(lost());
                }
                continue;
            }
        };
        // A consumer that ends was cancelled: its queue was deleted, or the connection is gone.
        let delivery = delivery.ok_or_else(lost)?.map_err(failed("deliver an event"))?;
        let has_room = *room.borrow() > 0;
        take(&channel, config, delivery, is_dead, has_room, handle).await?;
    }
}

fn lost() -> BrokerError {
    BrokerError::Unavailable { doing: "deliver events", source: "the connection or a queue is gone".into() }
}

async fn next(consumer: Option<&mut Consumer>) -> Option<lapin::Result<lapin::message::Delivery>> {
    match consumer {
        Some(consumer) => consumer.next().await,
        None => std::future::pending().await,
    }
}

async fn begin(channel: &Channel, queue: &str) -> Result<Consumer, BrokerError> {
    let consuming =
        channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default());
    answered("start a consumer", consuming).await
}

async fn answered<T>(doing: &'static str, asked: impl Future<Output = lapin::Result<T>>) -> Result<T, BrokerError> {
    timeout(ANSWER_MAX, asked)
        .await
        .map_err(|_| BrokerError::Timeout { doing, seconds: ANSWER_MAX.as_secs() })?
        .map_err(failed(doing))
}

async fn take<F: Future<Output = Outcome>>(
    channel: &Channel,
    config: &BrokerConfig,
    delivery: lapin::message::Delivery,
    is_dead: bool,
    has_room: bool,
    handle: &impl Fn(Delivery) -> F,
) -> Result<(), BrokerError> {
    let mut headers = Headers::new();
    for (name, value) in delivery.properties.headers().iter().flat_map(FieldTable::inner) {
        if let AMQPValue::LongString(text) = value {
            headers.insert(name.to_string(), String::from_utf8_lossy(text.as_bytes()).into_owned());
        }
    }
    let routing_key = delivery.routing_key.to_string();
    if !has_room && !is_dead && routing_key.starts_with(super::STARTED_KEY) {
        // The last place was taken while this one was on its way: it is for another worker.
        let back = delivery.acker.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() });
        return answered("take an event back", back).await.map(drop);
    }
    let attempt = headers.get(ATTEMPT).and_then(|a| a.parse().ok()).unwrap_or(0);
    let event = Delivery {
        body: delivery.data,
        routing_key: routing_key.clone(),
        headers: headers.clone(),
        attempt,
        dead: is_dead,
    };
    let body = event.body.clone();
    if handle(event).await == Outcome::Later {
        headers.insert(ATTEMPT.to_owned(), (attempt + 1).to_string());
        if is_dead {
            sleep(config.retry_after).await;
            let back = delivery.acker.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() });
            return answered("take an event back", back).await.map(drop);
        }
        publish(channel, &config.name("retry"), &routing_key, &body, &headers).await?;
    }
    answered("take an ack", delivery.acker.ack(BasicAckOptions::default())).await.map(drop)
}
