//! A joined room of the fake router. Its events are the differences between the room's state and the events so far.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use archiver::model::fault::Backoff;
use archiver::model::ids::RoomId;
use archiver::router::{Offer, Room, RoomControl, RoomEvent, RouterError, StreamInfo, SubscriptionId};
use async_trait::async_trait;
use tokio::time::{Instant, sleep_until};

use super::FakeRouter;
use super::sdp::offer;
use super::world::{Number, Observer, World};

/// Between two attempts to reconnect; as in the Janus adapter, but without jitter.
const RECONNECT: Backoff = Backoff { first: Duration::from_millis(200), max: Duration::from_secs(5) };

/// The signalling connection, as the events so far describe it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signalling {
    Connected,
    /// When the next attempt is made, and how many were made.
    Lost {
        next: Instant,
        attempt: u32,
    },
}

/// A joined room.
pub(super) struct FakeRoom {
    control: Arc<FakeRoomControl>,
    signalling: Signalling,
    streams: BTreeMap<String, (Number, StreamInfo)>,
    clients: Option<usize>,
    destroyed_sent: bool,
    /// Events that come next.
    events: VecDeque<RoomEvent>,
}

impl FakeRoom {
    pub fn new(router: &FakeRouter, room: &RoomId) -> Self {
        let observer = router.script(|world| {
            let number = world.number();
            let observer = Observer {
                process: router.process,
                room: room.clone(),
                pending: VecDeque::new(),
                subscriptions: BTreeMap::new(),
                lost_subscriptions: Vec::new(),
                lost: false,
            };
            world.observers.insert(number, observer);
            number
        });
        let control = Arc::new(FakeRoomControl { router: router.clone(), room: room.clone(), observer });
        Self {
            control,
            signalling: Signalling::Connected,
            streams: BTreeMap::new(),
            clients: None,
            destroyed_sent: false,
            events: VecDeque::new(),
        }
    }

    /// Collects the events of all changes since the last call.
    fn collect_events(&mut self) {
        let control = Arc::clone(&self.control);
        let mut world = control.router.world();
        let Some(observer) = world.observers.get_mut(&control.observer) else { return };
        if observer.lost && self.signalling == Signalling::Connected {
            observer.pending.clear();
            self.events.push_back(RoomEvent::Disconnected);
            self.signalling = Signalling::Lost { next: Instant::now() + RECONNECT.delay(0, 0.5), attempt: 0 };
        }
        match self.signalling {
            Signalling::Lost { next, .. } if Instant::now() < next => return,
            Signalling::Lost { attempt, .. } => {
                let is_there = world.is_reachable(control.router.process);
                if is_there {
                    // Sent before the events about streams: media is missing because of the lost subscription.
                    let observer = world.observers.get_mut(&control.observer);
                    let lost =
                        observer.map(|observer| std::mem::take(&mut observer.lost_subscriptions)).unwrap_or_default();
                    let lost = lost.into_iter().map(|subscription| RoomEvent::SubscriptionLost { subscription });
                    self.events.extend(lost);
                }
                if !is_there || !world.rooms.contains_key(&control.room) {
                    if is_there {
                        self.push_destroyed();
                    }
                    let next = Instant::now() + RECONNECT.delay(attempt + 1, 0.5);
                    self.signalling = Signalling::Lost { next, attempt: attempt + 1 };
                    return;
                }
                self.push_reconnected(&mut world);
            }
            Signalling::Connected => {}
        }
        self.push_differences(&mut world);
    }

    fn push_reconnected(&mut self, world: &mut World) {
        self.signalling = Signalling::Connected;
        if let Some(observer) = world.observers.get_mut(&self.control.observer) {
            observer.lost = false;
        }
        self.events.push_back(RoomEvent::Reconnected);
        self.destroyed_sent = false;
        self.clients = None;
        // Streams that are still present are announced again.
        let there = world.rooms.get(&self.control.room).map(super::world::Room::streams).unwrap_or_default();
        self.streams.retain(|id, _| !there.contains_key(id));
    }

    fn push_destroyed(&mut self) {
        let gone = std::mem::take(&mut self.streams);
        self.events.extend(gone.into_keys().map(|router_id| RoomEvent::StreamGone { router_id }));
        self.clients = None;
        if !std::mem::replace(&mut self.destroyed_sent, true) {
            self.events.push_back(RoomEvent::RoomDestroyed);
        }
    }

    fn push_differences(&mut self, world: &mut World) {
        let Some(room) = world.rooms.get(&self.control.room) else { return self.push_destroyed() };
        self.destroyed_sent = false;
        let (there, clients) = (room.streams(), room.clients());
        let is_gone =
            |(id, (stay, _)): &(&String, &(Number, StreamInfo))| there.get(*id).is_none_or(|(now, _)| now != stay);
        let gone: Vec<String> = self.streams.iter().filter(is_gone).map(|(id, _)| id.clone()).collect();
        for router_id in gone {
            self.streams.remove(&router_id);
            self.events.push_back(RoomEvent::StreamGone { router_id });
        }
        for (id, stream) in there {
            if self.streams.get(&id) != Some(&stream) {
                self.events.push_back(RoomEvent::StreamPresent(stream.1.clone()));
                self.streams.insert(id, stream);
            }
        }
        if self.clients.replace(clients) != Some(clients) {
            self.events.push_back(RoomEvent::Clients { count: clients });
        }
        if let Some(observer) = world.observers.get_mut(&self.control.observer) {
            self.events.append(&mut observer.pending);
        }
    }
}

impl Drop for FakeRoom {
    fn drop(&mut self) {
        self.control.router.script(|world| world.observers.remove(&self.control.observer));
    }
}

#[async_trait]
impl Room for FakeRoom {
    async fn next_event(&mut self) -> Option<RoomEvent> {
        let mut changes = self.control.router.changed.subscribe();
        loop {
            changes.mark_unchanged();
            if self.events.is_empty() {
                self.collect_events();
            }
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            let next = match self.signalling {
                Signalling::Lost { next, .. } => Some(next),
                Signalling::Connected => None,
            };
            tokio::select! {
                biased;
                // The sender lives in the router, which this room has.
                _ = changes.changed() => {}
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
        }
    }

    fn control(&self) -> Arc<dyn RoomControl> {
        Arc::clone(&self.control) as Arc<dyn RoomControl>
    }

    async fn leave(self: Box<Self>) {}
}

/// Commands to a joined room.
struct FakeRoomControl {
    router: FakeRouter,
    room: RoomId,
    observer: Number,
}

impl FakeRoomControl {
    /// Sends a request to the router, then changes the world as this observer.
    async fn act<T>(
        &self,
        doing: &'static str,
        act: impl FnOnce(&mut World, Number) -> Result<T, RouterError> + Send,
    ) -> Result<T, RouterError> {
        self.router.ask(doing, self.room.as_str()).await?;
        self.router.script(|world| match world.observers.get(&self.observer) {
            Some(observer) if !observer.lost => act(world, self.observer),
            _ => Err(self.router.unavailable(doing)),
        })
    }

    /// Sends a request about an existing subscription.
    async fn with_subscription(&self, doing: &'static str, subscription: SubscriptionId) -> Result<(), RouterError> {
        let missing = move || RouterError::StreamNotFound { stream: format!("subscription {}", subscription.0) };
        self.act(doing, move |world, observer| {
            let observer = world.observers.get(&observer);
            let is_there = observer.is_some_and(|observer| observer.subscriptions.contains_key(&subscription));
            is_there.then_some(()).ok_or_else(missing)
        })
        .await
    }
}

#[async_trait]
impl RoomControl for FakeRoomControl {
    async fn subscribe(&self, router_id: &str, mids: &[String]) -> Result<Offer, RouterError> {
        let missing = || RouterError::StreamNotFound { stream: router_id.to_owned() };
        self.act("subscribe", |world, observer| {
            let streams = world.rooms.get(&self.room).map(super::world::Room::streams).unwrap_or_default();
            let (_, stream) = streams.get(router_id).ok_or_else(missing)?;
            let wanted = stream.tracks.iter().filter(|track| mids.contains(&track.mid)).cloned().collect();
            let stream = StreamInfo { tracks: wanted, ..stream.clone() };
            if stream.tracks.is_empty() {
                return Err(missing());
            }
            let subscription = SubscriptionId(world.number());
            let observer = world.observers.get_mut(&observer).ok_or_else(missing)?;
            observer.subscriptions.insert(subscription, router_id.to_owned());
            Ok(offer(subscription, &stream))
        })
        .await
    }

    async fn answer(&self, subscription: SubscriptionId, sdp: String) -> Result<(), RouterError> {
        self.with_subscription("answer", subscription).await?;
        if sdp.starts_with("v=0") {
            return Ok(());
        }
        let (router, problem) = (self.router.name.to_string(), "an answer that is no SDP".to_owned());
        Err(RouterError::Protocol { router, doing: "answer", problem })
    }

    async fn prefer_highest_layer(&self, subscription: SubscriptionId) -> Result<(), RouterError> {
        self.with_subscription("prefer_highest_layer", subscription).await
    }

    async fn unsubscribe(&self, subscription: SubscriptionId) {
        let ended = self.act("unsubscribe", |world, observer| {
            Ok(world.observers.get_mut(&observer).map(|observer| observer.subscriptions.remove(&subscription)))
        });
        // An error is harmless: the subscription is gone, or ends with the connection.
        drop(ended.await);
    }
}
