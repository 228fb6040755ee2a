//! Consumes events until cancelled. After any failure, connection, channel, topology and consumers are created again.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer};
use tokio::sync::watch;
use tokio::time::{Instant, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::publisher::publish;
use super::{BrokerConfig, BrokerError, DeliveryHandler, Headers, failed, limits, open};
use crate::model::fault::{Backoff, chain};
use crate::runtime::metrics::metrics;

const RECONNECT: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(15) };
/// Unacked deliveries on one channel. One is enough, because an event is durable within milliseconds, and a worker must not hold
/// events that others could take.
const PREFETCH: u16 = 1;
/// Between two checks that the connection is alive.
const LIVENESS_EVERY: Duration = Duration::from_secs(2);
/// After a connection that lasted this long, the back-off starts at its first step again.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// After each accepted job the worker reports its free capacity. No further started event is taken before, for this time at most.
const CAPACITY_REPORT_MAX: Duration = Duration::from_secs(3);
/// Delay before an event is requeued that made the handler panic. The queue's delivery limit ends the repetition.
const REQUEUE_AFTER_PANIC: Duration = Duration::from_millis(250);
/// Header with the number of earlier attempts. RabbitMQ's `x-death` does not survive a republish.
pub const ATTEMPT: &str = "archiver-attempt";

/// Whether the consumer of events is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerState {
    /// Connected and consuming.
    Connected,
    /// Trying to connect.
    Disconnected,
}

/// A delivered event.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The message's body.
    pub body: Vec<u8>,
    /// The routing key that it was published with.
    pub routing_key: String,
    /// Its headers that are strings.
    pub headers: Headers,
    /// Earlier attempts to handle it.
    pub attempt: u32,
    /// From the queue of dead letters: RabbitMQ has given it up.
    pub dead: bool,
}

/// What a delivery gets from its handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Ack: its effect is durable, and takes no capacity of this worker.
    Ack,
    /// Ack: a job was accepted, which takes capacity of this worker.
    Accepted,
    /// Deliver it again after `retry_after`.
    Retry,
}

/// Decides whether a consumer takes started events. The worker reports its free capacity from time to time; jobs that were accepted
/// since the last report are subtracted from it.
#[derive(Debug)]
pub struct Admission {
    /// Jobs accepted since the last report.
    accepted: usize,
    /// When the last report applies again although no new one came.
    until: Instant,
}

impl Admission {
    /// No job was accepted yet.
    #[must_use]
    pub const fn new(now: Instant) -> Self {
        Self { accepted: 0, until: now }
    }

    /// Whether a further started event may be taken, if the worker last reported `capacity`.
    #[must_use]
    pub const fn admits(&self, capacity: usize) -> bool {
        capacity > self.accepted
    }

    /// A job was accepted.
    pub fn accepted(&mut self, now: Instant) {
        (self.accepted, self.until) = (self.accepted + 1, now + CAPACITY_REPORT_MAX);
    }

    /// The worker reported its free capacity.
    pub const fn reported(&mut self) {
        self.accepted = 0;
    }

    /// Lets the last report apply again if no new one came in time.
    pub fn expire(&mut self, now: Instant) {
        if now >= self.until {
            self.accepted = 0;
        }
    }

    /// Whether a report is waited for.
    #[must_use]
    pub const fn is_waiting(&self) -> bool {
        self.accepted > 0
    }

    /// Until when a report is waited for.
    #[must_use]
    pub const fn until(&self) -> Instant {
        self.until
    }
}

/// Consumes until `cancel`; see [`super::Broker::consume`].
pub(super) async fn consume(
    config: &BrokerConfig,
    capacity: watch::Receiver<usize>,
    state: &watch::Sender<BrokerState>,
    cancel: &CancellationToken,
    handler: &dyn DeliveryHandler,
) {
    let dead_state = watch::Sender::new(BrokerState::Disconnected);
    tokio::join!(
        run_with_reconnect(config, Source::Events, capacity.clone(), state, cancel, handler),
        run_with_reconnect(config, Source::DeadLetters, capacity, &dead_state, cancel, handler),
    );
}

/// What a connection consumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Events,
    DeadLetters,
}

async fn run_with_reconnect(
    config: &BrokerConfig,
    source: Source,
    capacity: watch::Receiver<usize>,
    state: &watch::Sender<BrokerState>,
    cancel: &CancellationToken,
    handler: &dyn DeliveryHandler,
) {
    let set_state = |now: BrokerState| {
        if source == Source::Events {
            metrics().broker_connected.set(i64::from(now == BrokerState::Connected));
        }
        state.send_replace(now)
    };
    let mut attempt = 0;
    while !cancel.is_cancelled() {
        let started_at = Instant::now();
        let connected = || {
            set_state(BrokerState::Connected);
        };
        let result = tokio::select! {
            () = cancel.cancelled() => return,
            result = run_connection(config, source, capacity.clone(), cancel, handler, connected) => result,
        };
        let was_connected = set_state(BrokerState::Disconnected) == BrokerState::Connected;
        if was_connected && started_at.elapsed() > STABLE_AFTER {
            attempt = 0;
        }
        if let Err(error) = result {
            tracing::warn!(attempt, ?source, "cannot consume events: {}", chain(&error));
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = sleep(RECONNECT.delay(attempt, rand::random())) => attempt += 1,
        }
    }
}

async fn run_connection(
    config: &BrokerConfig,
    source: Source,
    mut capacity: watch::Receiver<usize>,
    cancel: &CancellationToken,
    handler: &dyn DeliveryHandler,
    connected: impl Fn() + Send,
) -> Result<(), BrokerError> {
    let (connection, channel) = open(config).await?;
    limits::request("limit deliveries", channel.basic_qos(PREFETCH, BasicQosOptions::default())).await?;
    let is_dead = source == Source::DeadLetters;
    let unconditional = if is_dead { config.name("dead") } else { config.regional("ended") };
    let mut unconditional = start_consumer(&channel, &unconditional).await?;
    let mut started: Option<Consumer> = None;
    let mut watchdog = interval(LIVENESS_EVERY);
    let mut admission = Admission::new(Instant::now());
    connected();
    tracing::info!(region = %config.region, ?source, "consuming");
    loop {
        admission.expire(Instant::now());
        let admits = !is_dead && admission.admits(*capacity.borrow());
        match (admits, started.take()) {
            (true, None) => started = Some(start_consumer(&channel, &config.regional("started")).await?),
            (false, Some(consumer)) => cancel_consumer(&channel, consumer).await?,
            (_, unchanged) => started = unchanged,
        }
        let delivery = tokio::select! {
            () = cancel.cancelled() => {
                limits::close(connection, "stopping").await;
                return Ok(());
            }
            delivery = unconditional.next() => delivery,
            delivery = next_delivery(started.as_mut()) => delivery,
            changed = capacity.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                admission.reported();
                continue;
            }
            () = sleep_until(admission.until()), if admission.is_waiting() => continue,
            _ = watchdog.tick() => {
                if !connection.status().connected() || !channel.status().connected() {
                    return Err(connection_lost());
                }
                continue;
            }
        };
        // A consumer ends when its queue is deleted or the connection is lost.
        let delivery = delivery.ok_or_else(connection_lost)?.map_err(failed("deliver an event"))?;
        let admits = admission.admits(*capacity.borrow());
        let pending = PendingDelivery { channel: &channel, config, delivery, is_dead };
        if !admits && pending.is_started() {
            // The capacity was used up while this delivery was on its way. Another worker takes it.
            pending.requeue().await?;
        } else if let Some(outcome) = pending.handle(handler).await? {
            if outcome == Outcome::Accepted {
                admission.accepted(Instant::now());
                if !admission.admits(*capacity.borrow())
                    && let Some(consumer) = started.take()
                {
                    // Cancelled before the ack, so that RabbitMQ sends no further delivery. It would have to be requeued, which
                    // counts against its delivery limit.
                    cancel_consumer(&channel, consumer).await?;
                }
            }
            pending.ack().await?;
        }
    }
}

/// Cancels a consumer and requeues deliveries that were on their way: unacked ones would stay with this worker until the connection
/// ends.
async fn cancel_consumer(channel: &Channel, mut consumer: Consumer) -> Result<(), BrokerError> {
    let stop = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
    limits::request("stop a consumer", stop).await?;
    let rest = async {
        while let Some(delivery) = consumer.next().await {
            requeue(&delivery?).await?;
        }
        Ok(())
    };
    limits::request("take events back", rest).await
}

async fn requeue(delivery: &lapin::message::Delivery) -> lapin::Result<()> {
    delivery.acker.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() }).await.map(drop)
}

fn connection_lost() -> BrokerError {
    BrokerError::Unavailable { doing: "deliver events", source: "the connection or a queue is gone".into() }
}

async fn next_delivery(consumer: Option<&mut Consumer>) -> Option<lapin::Result<lapin::message::Delivery>> {
    match consumer {
        Some(consumer) => consumer.next().await,
        None => std::future::pending().await,
    }
}

async fn start_consumer(channel: &Channel, queue: &str) -> Result<Consumer, BrokerError> {
    let consuming =
        channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default());
    limits::request("start a consumer", consuming).await
}

/// A delivery that is not acked yet.
struct PendingDelivery<'a> {
    channel: &'a Channel,
    config: &'a BrokerConfig,
    delivery: lapin::message::Delivery,
    is_dead: bool,
}

impl PendingDelivery<'_> {
    fn is_started(&self) -> bool {
        !self.is_dead && self.delivery.routing_key.as_str().starts_with(super::STARTED_KEY)
    }

    /// Passes the delivery to the handler. `None` when it was requeued.
    async fn handle(&self, handler: &dyn DeliveryHandler) -> Result<Option<Outcome>, BrokerError> {
        let mut headers = self.headers();
        let attempt = headers.get(ATTEMPT).and_then(|a| a.parse().ok()).unwrap_or(0_u32);
        let routing_key = self.delivery.routing_key.to_string();
        let event = Delivery {
            body: self.delivery.data.clone(),
            routing_key: routing_key.clone(),
            headers: headers.clone(),
            attempt,
            dead: self.is_dead,
        };
        // The call is inside the future, because a handler may panic before its first await.
        let handled = AssertUnwindSafe(async { handler.handle(event).await }).catch_unwind().await;
        match handled {
            Ok(Outcome::Retry) if self.is_dead => {
                sleep(self.config.retry_after).await;
                self.requeue().await?;
                Ok(None)
            }
            Ok(Outcome::Retry) => {
                headers.insert(ATTEMPT.to_owned(), attempt.saturating_add(1).to_string());
                let exchange = self.config.name("retry");
                publish(self.channel, &exchange, &routing_key, &self.delivery.data, &headers).await?;
                Ok(Some(Outcome::Retry))
            }
            Ok(outcome) => Ok(Some(outcome)),
            Err(_panic) => {
                tracing::error!(fault.kind = "bug", routing_key, "the handler panicked at an event");
                sleep(if self.is_dead { self.config.retry_after } else { REQUEUE_AFTER_PANIC }).await;
                self.requeue().await?;
                Ok(None)
            }
        }
    }

    fn headers(&self) -> Headers {
        let mut headers = Headers::new();
        for (name, value) in self.delivery.properties.headers().iter().flat_map(FieldTable::inner) {
            if let AMQPValue::LongString(text) = value {
                headers.insert(name.to_string(), String::from_utf8_lossy(text.as_bytes()).into_owned());
            }
        }
        headers
    }

    async fn requeue(&self) -> Result<(), BrokerError> {
        limits::request("take an event back", requeue(&self.delivery)).await
    }

    async fn ack(&self) -> Result<(), BrokerError> {
        limits::request("take an ack", self.delivery.acker.ack(BasicAckOptions::default())).await.map(drop)
    }
}
