//! The rooms of the fake router, and the steps of a script.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use archiver::model::ids::{RoomId, TrackKind};
use archiver::model::media::VideoType;
use archiver::router::{Participant, RoomEvent, Signature, StreamInfo, SubscriptionId, TrackInfo};

/// Numbers a process, an observer, a subscription, or one presence of a stream.
pub(super) type Number = u64;

/// A client in a room.
#[derive(Debug, Clone, Default)]
struct Client {
    name: Option<String>,
    connection_data: Option<String>,
    /// Its stream, with the number of this presence: a stream that ends and starts again has another number.
    stream: Option<(Number, StreamInfo)>,
}

#[derive(Debug, Default)]
pub(super) struct Room {
    /// Its session's id, of a room that archiver made.
    pub about: String,
    clients: BTreeMap<String, Client>,
}

impl Room {
    /// Its clients, without archivers.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Its streams.
    pub fn streams(&self) -> BTreeMap<String, (Number, StreamInfo)> {
        let published = |(id, client): (&String, &Client)| client.stream.clone().map(|stream| (id.clone(), stream));
        self.clients.iter().filter_map(published).collect()
    }

    pub fn participants(&self) -> Vec<Participant> {
        let participant = |(id, client): (&String, &Client)| Participant {
            router_id: id.clone(),
            name: client.name.clone(),
            connection_data: client.connection_data.clone(),
            publishing: client.stream.is_some(),
        };
        self.clients.iter().map(participant).collect()
    }
}

/// An archiver in a room.
#[derive(Debug)]
pub(super) struct Observer {
    pub process: Number,
    pub room: RoomId,
    /// Events that the room's state does not show.
    pub pending: VecDeque<RoomEvent>,
    /// Its subscriptions, with their streams.
    pub subscriptions: BTreeMap<SubscriptionId, String>,
    /// Subscriptions that a restart of the router ended, until the room reports them.
    pub lost_subscriptions: Vec<SubscriptionId>,
    /// Its signalling is lost, and it has not connected again yet.
    pub lost: bool,
}

#[derive(Debug, Default)]
pub(super) struct World {
    pub rooms: BTreeMap<RoomId, Room>,
    pub observers: BTreeMap<Number, Observer>,
    /// The router is stopped.
    pub stopped: bool,
    /// Processes that cannot reach it.
    pub cut_off: BTreeSet<Number>,
    last: Number,
}

impl World {
    /// A unique number.
    pub fn number(&mut self) -> Number {
        self.last += 1;
        self.last
    }

    pub fn is_reachable(&self, process: Number) -> bool {
        !self.stopped && !self.cut_off.contains(&process)
    }

    /// The room and the stream of a subscription, while the router sends it.
    pub fn feed(&self, subscription: SubscriptionId) -> Option<(RoomId, String)> {
        let mut found = self.observers.values().filter(|_| !self.stopped);
        found.find_map(|observer| Some((observer.room.clone(), observer.subscriptions.get(&subscription)?.clone())))
    }

    /// Closes the signalling connections of a process, or of all.
    pub fn lose(&mut self, process: Option<Number>) {
        let of = |observer: &&mut Observer| process.is_none_or(|process| process == observer.process);
        self.observers.values_mut().filter(of).for_each(|observer| observer.lost = true);
    }

    /// Removes all rooms, clients and subscriptions, and closes all connections.
    pub fn restart(&mut self) {
        self.rooms.clear();
        for observer in self.observers.values_mut() {
            let lost = std::mem::take(&mut observer.subscriptions);
            observer.lost_subscriptions.extend(lost.into_keys());
        }
        self.lose(None);
    }

    /// Adds a room. Returns whether it did not exist.
    pub fn add(&mut self, room: &RoomId, about: &str) -> bool {
        let is_new = !self.rooms.contains_key(room);
        if is_new {
            self.rooms.insert(room.clone(), Room { about: about.to_owned(), clients: BTreeMap::new() });
        }
        is_new
    }

    /// Removes a room with its clients and subscriptions. Returns whether it existed.
    pub fn remove(&mut self, room: &RoomId) -> bool {
        let in_it = self.observers.values_mut().filter(|observer| observer.room == *room);
        in_it.for_each(|observer| observer.subscriptions.clear());
        self.rooms.remove(room).is_some()
    }

    fn client(&mut self, room: &RoomId, id: &str) -> &mut Client {
        self.rooms.entry(room.clone()).or_default().clients.entry(id.to_owned()).or_default()
    }

    pub fn enter(&mut self, room: &RoomId, id: &str, name: Option<&str>, connection_data: Option<&str>) {
        let client = self.client(room, id);
        client.name = name.map(str::to_owned);
        client.connection_data = connection_data.map(str::to_owned);
    }

    /// A client publishes a stream, or changes its stream.
    pub fn publish(&mut self, room: &RoomId, stream: StreamInfo) {
        let next = self.number();
        let client = self.client(room, &stream.router_id);
        client.name.clone_from(&stream.name);
        client.connection_data.clone_from(&stream.connection_data);
        let stay = client.stream.as_ref().map_or(next, |(stay, _)| *stay);
        client.stream = Some((stay, stream));
    }

    /// Changes a client's stream, if it publishes one.
    pub fn change(&mut self, room: &RoomId, id: &str, change: impl FnOnce(&mut StreamInfo)) {
        if let Some((_, stream)) = self.client(room, id).stream.as_mut() {
            change(stream);
        }
    }

    pub fn unpublish(&mut self, room: &RoomId, id: &str) {
        self.client(room, id).stream = None;
    }

    pub fn leave(&mut self, room: &RoomId, id: &str) {
        if let Some(room) = self.rooms.get_mut(room) {
            room.clients.remove(id);
        }
    }

    /// Adds the events that `event` returns to each observer of the room.
    pub fn happen(&mut self, room: &RoomId, event: impl Fn(&mut Observer) -> Vec<RoomEvent>) {
        for observer in self.observers.values_mut().filter(|observer| observer.room == *room && !observer.lost) {
            let events = event(observer);
            observer.pending.extend(events);
        }
    }
}

impl Observer {
    /// Its subscriptions to a stream.
    pub fn subscriptions_to(&self, id: &str) -> Vec<SubscriptionId> {
        self.subscriptions.iter().filter(|(_, stream)| *stream == id).map(|(subscription, _)| *subscription).collect()
    }
}

/// A stream with Opus and VP8, as a browser publishes it.
#[must_use]
pub fn stream(id: &str) -> StreamInfo {
    let track = |mid: &str, kind, codec: &str| TrackInfo {
        mid: mid.to_owned(),
        kind,
        codec: codec.to_owned(),
        description: None,
        muted: false,
    };
    StreamInfo {
        router_id: id.to_owned(),
        stream_id: None,
        name: None,
        connection_data: None,
        signature: Signature::Absent,
        video_type: VideoType::Camera,
        tracks: vec![track("0", TrackKind::Audio, "opus"), track("1", TrackKind::Video, "vp8")],
    }
}
