//! A media router without media: a script lets clients enter rooms, publish, change and leave. A room's events, and their order, are those
//! of the Janus adapter.

mod room;
mod sdp;
mod world;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use archiver::model::ids::{RoomId, RouterName, SessionId};
use archiver::model::session::RouterRoom;
use archiver::router::{
    ListedRoom, MediaRouter, Participant, Publication, Room, RoomEvent, Rooms, RouterError, StreamInfo, SubscriptionId,
};
use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::faults::{Fault, Faults};
use world::{Number, World};

pub use world::stream;

/// The time limit of a request; as in the Janus adapter.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// A media router in memory, as one process sees it. Clones belong to the same process.
///
/// Faults, by the names of the methods of [`Rooms`], [`MediaRouter`] and [`archiver::router::RoomControl`] and with the room's name:
/// [`Fault::Unavailable`], [`Fault::Refused`], [`Fault::Hang`] and [`Fault::Slow`].
#[derive(Debug, Clone)]
pub struct FakeRouter {
    name: RouterName,
    world: Arc<Mutex<World>>,
    /// Counts the world's changes, to wake tasks that wait for one.
    changed: watch::Sender<u64>,
    process: Number,
    faults: Faults,
}

impl FakeRouter {
    /// A router without rooms.
    #[must_use]
    pub fn new(name: &RouterName) -> Self {
        Self {
            name: name.clone(),
            world: Arc::default(),
            changed: watch::channel(0).0,
            process: 0,
            faults: Faults::default(),
        }
    }

    /// The same router as another process sees it: with faults and a signalling connection of its own.
    #[must_use]
    pub fn for_another_process(&self) -> Self {
        let process = self.script(World::number);
        Self { process, faults: Faults::default(), ..self.clone() }
    }

    /// The faults of this process.
    #[must_use]
    pub const fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The router as its users take it.
    #[must_use]
    pub fn shared(&self) -> Arc<dyn MediaRouter> {
        Arc::new(self.clone())
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn script<T>(&self, act: impl FnOnce(&mut World) -> T) -> T {
        let done = act(&mut self.world());
        self.changed.send_modify(|changes| *changes += 1);
        done
    }

    /// Makes a room.
    pub fn add_room(&self, room: &RoomId) {
        self.script(|world| world.add(room, ""));
    }

    /// Removes a room with its clients and subscriptions.
    pub fn destroy_room(&self, room: &RoomId) {
        self.script(|world| world.remove(room));
    }

    /// A client enters a room, which is made if it is not there, and publishes nothing.
    pub fn enter(&self, room: &RoomId, client: &str, name: Option<&str>, connection_data: Option<&str>) {
        self.script(|world| world.enter(room, client, name, connection_data));
    }

    /// A client publishes a stream, or another one instead of the present one. It enters the room first if it is not there.
    pub fn publish(&self, room: &RoomId, stream: StreamInfo) {
        self.script(|world| world.publish(room, stream));
    }

    /// A moderator switches a track off or on.
    pub fn mute(&self, room: &RoomId, client: &str, mid: &str, muted: bool) {
        self.script(|world| {
            world.change(room, client, |stream| {
                stream.tracks.iter_mut().filter(|track| track.mid == mid).for_each(|track| track.muted = muted);
            });
        });
    }

    /// A client ends its stream and stays in the room.
    pub fn unpublish(&self, room: &RoomId, client: &str) {
        self.script(|world| world.unpublish(room, client));
    }

    /// A client leaves, or is removed by a moderator.
    pub fn leave(&self, room: &RoomId, client: &str) {
        self.script(|world| world.leave(room, client));
    }

    /// A client begins or ceases to talk.
    pub fn talk(&self, room: &RoomId, client: &str, talking: bool) {
        let event = || RoomEvent::Talking { router_id: client.to_owned(), talking };
        self.script(|world| world.happen(room, |_| vec![event()]));
    }

    /// All subscriptions to a stream lose their PeerConnection.
    pub fn hang_up(&self, room: &RoomId, client: &str) {
        self.script(|world| {
            world.happen(room, |observer| {
                let lost = observer.subscriptions_to(client);
                lost.iter().for_each(|subscription| drop(observer.subscriptions.remove(subscription)));
                lost.into_iter().map(|subscription| RoomEvent::SubscriptionLost { subscription }).collect()
            });
        });
    }

    /// The router switches all subscriptions of a stream to another layer.
    pub fn send_layer(&self, room: &RoomId, client: &str, spatial: Option<u32>, temporal: Option<u32>) {
        let event = |subscription| RoomEvent::LayerChanged { subscription, spatial, temporal };
        self.script(|world| {
            world.happen(room, |observer| observer.subscriptions_to(client).into_iter().map(event).collect());
        });
    }

    /// The room and the stream whose media a subscription brings, while the router sends it.
    #[must_use]
    pub fn feed(&self, subscription: SubscriptionId) -> Option<(RoomId, String)> {
        self.world().feed(subscription)
    }

    /// The signalling connections of this process are lost; it reconnects, and its subscriptions live on.
    pub fn disconnect(&self) {
        self.script(|world| world.lose(Some(self.process)));
    }

    /// The signalling connections of this process are lost, and it cannot connect until [`Self::rejoin`].
    pub fn cut_off(&self) {
        self.script(|world| {
            world.cut_off.insert(self.process);
            world.lose(Some(self.process));
        });
    }

    /// The process can connect again.
    pub fn rejoin(&self) {
        self.script(|world| world.cut_off.remove(&self.process));
    }

    /// The router stops: no process can reach it.
    pub fn stop(&self) {
        self.script(|world| {
            world.stopped = true;
            world.lose(None);
        });
    }

    /// The router starts again: without rooms, clients and subscriptions.
    pub fn restart(&self) {
        self.script(|world| {
            world.restart();
            world.stopped = false;
        });
    }

    fn unavailable(&self, doing: &'static str) -> RouterError {
        RouterError::Unavailable { router: self.name.to_string(), doing, source: "the connection is lost".into() }
    }

    fn not_found(&self, room: &RoomId) -> RouterError {
        RouterError::RoomNotFound { router: self.name.to_string(), room: room.clone() }
    }

    /// Sends a request to the router.
    async fn ask(&self, doing: &'static str, room: &str) -> Result<(), RouterError> {
        let router = self.name.to_string();
        let Ok(fault) = timeout(ANSWER_MAX, self.faults.meet(doing, room)).await else {
            let after_ms = u64::try_from(ANSWER_MAX.as_millis()).unwrap_or(u64::MAX);
            return Err(RouterError::Timeout { router, doing, after_ms });
        };
        match fault {
            None if self.world().is_reachable(self.process) => Ok(()),
            Some(Fault::Refused) => {
                Err(RouterError::Refused { router, doing, code: 433, text: "fault injected by the test".to_owned() })
            }
            _ => Err(self.unavailable(doing)),
        }
    }
}

#[async_trait]
impl Rooms for FakeRouter {
    async fn create_room(&self, place: &RouterRoom, session: &SessionId) -> Result<bool, RouterError> {
        self.ask("create_room", place.room.as_str()).await?;
        Ok(self.script(|world| world.add(&place.room, session.as_str())))
    }

    async fn list_rooms(&self) -> Result<Vec<ListedRoom>, RouterError> {
        self.ask("list_rooms", "").await?;
        let world = self.world();
        let observers = |room: &RoomId| world.observers.values().filter(|observer| observer.room == *room).count();
        let listed = |(id, room): (&RoomId, &world::Room)| ListedRoom {
            room: id.clone(),
            about: room.about.clone(),
            participants: room.clients() + observers(id),
        };
        Ok(world.rooms.iter().map(listed).collect())
    }

    async fn participants(&self, room: &RoomId) -> Result<Vec<Participant>, RouterError> {
        self.ask("participants", room.as_str()).await?;
        let found = self.world().rooms.get(room).map(world::Room::participants);
        found.ok_or_else(|| self.not_found(room))
    }

    async fn streams(&self, place: &RouterRoom) -> Result<Vec<StreamInfo>, RouterError> {
        self.ask("streams", place.room.as_str()).await?;
        let found = self.world().rooms.get(&place.room).map(world::Room::streams);
        let found = found.ok_or_else(|| self.not_found(&place.room))?;
        Ok(found.into_values().map(|(_, stream)| stream).collect())
    }

    async fn remove_room(&self, place: &RouterRoom) -> Result<bool, RouterError> {
        self.ask("remove_room", place.room.as_str()).await?;
        Ok(self.script(|world| world.remove(&place.room)))
    }
}

#[async_trait]
impl MediaRouter for FakeRouter {
    fn name(&self) -> &str {
        self.name.as_str()
    }

    async fn probe(&self) -> Result<String, RouterError> {
        self.ask("probe", "").await?;
        Ok("a router in memory".to_owned())
    }

    async fn publish(&self, place: &RouterRoom, _: String) -> Result<Publication, RouterError> {
        self.ask("publish", place.room.as_str()).await?;
        let problem = "a router in memory has no media".to_owned();
        Err(RouterError::Protocol { router: self.name().to_owned(), doing: "publish a stream", problem })
    }

    async fn join(&self, place: &RouterRoom) -> Result<Box<dyn Room>, RouterError> {
        self.ask("join", place.room.as_str()).await?;
        if !self.world().rooms.contains_key(&place.room) {
            return Err(self.not_found(&place.room));
        }
        Ok(Box::new(room::FakeRoom::new(self, &place.room)))
    }
}
