//! Consuming, for ever: a loop that rebuilds connection, channel, topology and consumers after anything.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer};
use tokio::sync::watch;
use tokio::time::{Instant, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::publisher::publish;
use super::{BrokerConfig, BrokerError, DeliveryHandler, Headers, failed, open};
use crate::model::fault::{Backoff, chain};
use crate::runtime::metrics::metrics;

const RECONNECT: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(15) };
/// Deliveries that are under way on one channel: what is asked for is durable within milliseconds, and a
/// worker must not hold events that others could take.
const PREFETCH: u16 = 1;
/// How often the connection is asked whether it lives.
const WATCH: Duration = Duration::from_secs(2);
/// An ack or a cancel that takes longer means that the connection is dead.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// A connection that lived this long was a good one: the next back-off begins anew.
const GOOD_AFTER: Duration = Duration::from_secs(10);
/// After an accepted job the worker says how much room is left; it is waited for this long before more is taken.
const ROOM_NEWS_MAX: Duration = Duration::from_secs(3);
/// An event that made the handler panic goes back after this; the delivery limit ends it.
const AFTER_PANIC: Duration = Duration::from_millis(250);
/// Our own count of tries: RabbitMQ's `x-death` cannot be trusted after a republish.
pub const ATTEMPT: &str = "archiver-attempt";

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
    /// What it asks for is durable, and takes no room here.
    Done,
    /// A job is durable that takes one place of this worker's room.
    Accepted,
    /// Not now: it comes again after a while.
    Later,
}

/// Decides which started events a consumer takes. The worker reports its room from time to time; jobs that were accepted since the
/// last report are subtracted from it.
#[derive(Debug)]
pub struct Admission {
    /// Jobs accepted since the last report.
    accepted: usize,
    /// When the last report counts again without a new one.
    until: Instant,
}

impl Admission {
    /// No job was accepted yet.
    #[must_use]
    pub const fn new(now: Instant) -> Self {
        Self { accepted: 0, until: now }
    }

    /// Whether a further started event may be taken, if the worker last reported `room`.
    #[must_use]
    pub const fn has_room(&self, room: usize) -> bool {
        room > self.accepted
    }

    /// A job was accepted.
    pub fn accepted(&mut self, now: Instant) {
        (self.accepted, self.until) = (self.accepted + 1, now + ROOM_NEWS_MAX);
    }

    /// The worker reported its room.
    pub const fn reported(&mut self) {
        self.accepted = 0;
    }

    /// The last report counts again when no new one came in time.
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
    room: watch::Receiver<usize>,
    state: &watch::Sender<BrokerState>,
    cancel: &CancellationToken,
    handler: &dyn DeliveryHandler,
) {
    let dead_state = watch::Sender::new(BrokerState::Disconnected);
    tokio::join!(
        supervise(config, Source::Events, room.clone(), state, cancel, handler),
        supervise(config, Source::DeadLetters, room, &dead_state, cancel, handler),
    );
}

/// What a connection consumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Events,
    DeadLetters,
}

async fn supervise(
    config: &BrokerConfig,
    source: Source,
    room: watch::Receiver<usize>,
    state: &watch::Sender<BrokerState>,
    cancel: &CancellationToken,
    handler: &dyn DeliveryHandler,
) {
    let tell = |now: BrokerState| {
        if source == Source::Events {
            metrics().broker_connected.set(i64::from(now == BrokerState::Connected));
        }
        state.send_replace(now)
    };
    let mut attempt = 0;
    while !cancel.is_cancelled() {
        let begun = Instant::now();
        let connected = || {
            tell(BrokerState::Connected);
        };
        let ended = tokio::select! {
            () = cancel.cancelled() => return,
            ended = session(config, source, room.clone(), cancel, handler, connected) => ended,
        };
        let was_connected = tell(BrokerState::Disconnected) == BrokerState::Connected;
        if was_connected && begun.elapsed() > GOOD_AFTER {
            attempt = 0;
        }
        if let Err(error) = ended {
            tracing::warn!(attempt, ?source, "nothing is delivered for now: {}", chain(&error));
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = sleep(RECONNECT.delay(attempt, rand::random())) => attempt += 1,
        }
    }
}

async fn session(
    config: &BrokerConfig,
    source: Source,
    mut room: watch::Receiver<usize>,
    cancel: &CancellationToken,
    handler: &dyn DeliveryHandler,
    connected: impl Fn() + Send,
) -> Result<(), BrokerError> {
    let (connection, channel) = open(config).await?;
    answered("limit deliveries", channel.basic_qos(PREFETCH, BasicQosOptions::default())).await?;
    let is_dead = source == Source::DeadLetters;
    let always = if is_dead { config.name("dead") } else { config.regional("ended") };
    let mut always = begin(&channel, &always).await?;
    let mut started: Option<Consumer> = None;
    let mut watchdog = interval(WATCH);
    let mut admission = Admission::new(Instant::now());
    connected();
    tracing::info!(region = %config.region, ?source, "consuming");
    loop {
        admission.expire(Instant::now());
        let has_room = !is_dead && admission.has_room(*room.borrow());
        match (has_room, started.take()) {
            (true, None) => started = Some(begin(&channel, &config.regional("started")).await?),
            (false, Some(consumer)) => leave(&channel, consumer).await?,
            (_, as_it_is) => started = as_it_is,
        }
        let delivery = tokio::select! {
            () = cancel.cancelled() => {
                return answered("close", connection.close(200, "stopping".into())).await;
            }
            delivery = always.next() => delivery,
            delivery = next(started.as_mut()) => delivery,
            changed = room.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                admission.reported();
                continue;
            }
            () = sleep_until(admission.until()), if admission.is_waiting() => continue,
            _ = watchdog.tick() => {
                if !connection.status().connected() || !channel.status().connected() {
                    return Err(lost());
                }
                continue;
            }
        };
        // A consumer that ends was cancelled: its queue was deleted, or the connection is gone.
        let delivery = delivery.ok_or_else(lost)?.map_err(failed("deliver an event"))?;
        let has_room = admission.has_room(*room.borrow());
        let taken = Taken { channel: &channel, config, delivery, is_dead };
        if !has_room && taken.is_started() {
            // The last place was taken while this one was on its way: it is for another worker.
            taken.give_back().await?;
        } else if let Some(outcome) = taken.handle(handler).await? {
            if outcome == Outcome::Accepted {
                admission.accepted(Instant::now());
                if !admission.has_room(*room.borrow())
                    && let Some(consumer) = started.take()
                {
                    // Before the ack: nothing more is under way then that would have to go back, and each way
                    // back counts against the event's delivery limit.
                    leave(&channel, consumer).await?;
                }
            }
            taken.ack().await?;
        }
    }
}

/// Stops a consumer. What was under way to it goes back to the queue at once: an event that nobody answers
/// would stay with this worker until the connection ends.
async fn leave(channel: &Channel, mut consumer: Consumer) -> Result<(), BrokerError> {
    let stop = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
    answered("stop a consumer", stop).await?;
    let rest = async {
        while let Some(delivery) = consumer.next().await {
            requeue(&delivery?).await?;
        }
        Ok(())
    };
    answered("take events back", rest).await
}

async fn requeue(delivery: &lapin::message::Delivery) -> lapin::Result<()> {
    delivery.acker.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() }).await.map(drop)
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

/// A delivery that waits for its answer.
struct Taken<'a> {
    channel: &'a Channel,
    config: &'a BrokerConfig,
    delivery: lapin::message::Delivery,
    is_dead: bool,
}

impl Taken<'_> {
    fn is_started(&self) -> bool {
        !self.is_dead && self.delivery.routing_key.as_str().starts_with(super::STARTED_KEY)
    }

    /// Hands it to the handler. `None` when it is answered already: it went back, to come again.
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
        // The first call is inside too: a handler may panic before its first await.
        let handled = AssertUnwindSafe(async { handler.handle(event).await }).catch_unwind().await;
        match handled {
            Ok(Outcome::Later) if self.is_dead => {
                sleep(self.config.retry_after).await;
                self.give_back().await?;
                Ok(None)
            }
            Ok(Outcome::Later) => {
                headers.insert(ATTEMPT.to_owned(), attempt.saturating_add(1).to_string());
                let exchange = self.config.name("retry");
                publish(self.channel, &exchange, &routing_key, &self.delivery.data, &headers).await?;
                Ok(Some(Outcome::Later))
            }
            Ok(outcome) => Ok(Some(outcome)),
            Err(_panic) => {
                tracing::error!(fault.kind = "bug", routing_key, "the handler panicked at an event");
                sleep(if self.is_dead { self.config.retry_after } else { AFTER_PANIC }).await;
                self.give_back().await?;
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

    async fn give_back(&self) -> Result<(), BrokerError> {
        answered("take an event back", requeue(&self.delivery)).await
    }

    async fn ack(&self) -> Result<(), BrokerError> {
        answered("take an ack", self.delivery.acker.ack(BasicAckOptions::default())).await.map(drop)
    }
}
