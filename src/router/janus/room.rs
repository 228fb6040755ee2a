//! A joined room: one task owns the WebSocket; commands and events go through bounded queues.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::link::{PLUGIN, Socket, data_id, late};
use super::{JanusConfig, wire};
use crate::fault::Backoff;
use crate::ids::{RoomId, TrackKind};
use crate::router::{Offer, Room, RoomControl, RoomEvent, RouterError, StreamInfo, SubscriptionId};

/// Events that may wait for the driver; then Janus has to wait.
const EVENTS_MAX: usize = 4096;
/// Requests under way.
const REQUESTS_MAX: usize = 256;
/// Janus drops a session that is silent for a minute.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Between two tries to reconnect.
const RECONNECT: Backoff = Backoff { first: Duration::from_millis(200), max: Duration::from_secs(5) };
/// A lower simulcast layer is sent when the wanted one paused for so long, in microseconds: Janus's
/// 250 ms flap with a shared screen that changes seldom.
const FALLBACK_US: u64 = 2_000_000;

/// Who waits for an answer, for what, and until when.
type Pending = (oneshot::Sender<Result<Value, RouterError>>, &'static str, Instant);

struct Request {
    body: Value,
    answer: oneshot::Sender<Result<Value, RouterError>>,
    doing: &'static str,
}

#[derive(Debug, Clone)]
struct Subscription {
    handle: u64,
    mids: Vec<(String, TrackKind)>,
}

/// What the task and the commands share. The lock is held for look-ups only.
#[derive(Default)]
struct Shared {
    session: Option<u64>,
    streams: BTreeMap<String, StreamInfo>,
    subscriptions: BTreeMap<SubscriptionId, Subscription>,
    next_subscription: u64,
}

struct Control {
    config: JanusConfig,
    room: RoomId,
    requests: mpsc::Sender<Request>,
    shared: Arc<Mutex<Shared>>,
}

/// A joined room.
pub(super) struct JanusRoom {
    events: mpsc::Receiver<RoomEvent>,
    control: Arc<Control>,
    cancel: CancellationToken,
    task: Option<JoinHandle<()>>,
}

fn room_value(config: &JanusConfig, room: &str) -> Value {
    match room.parse::<u64>() {
        Ok(number) if !config.string_ids => json!(number),
        _ => json!(room),
    }
}

fn with_pin(config: &JanusConfig, mut body: Value) -> Value {
    if let Some(pin) = &config.pin {
        body["pin"] = json!(pin.expose_secret());
    }
    body
}

fn data(message: &Value) -> Option<&Value> {
    message.get("plugindata")?.get("data")
}

impl JanusRoom {
    /// Connects, joins, and starts the task. Fails at once if the room cannot be entered now.
    pub async fn join(config: JanusConfig, room: RoomId, display: String) -> Result<Self, RouterError> {
        let (events, event_queue) = mpsc::channel(EVENTS_MAX);
        let (requests, request_queue) = mpsc::channel(REQUESTS_MAX);
        let shared = Arc::new(Mutex::new(Shared::default()));
        let cancel = CancellationToken::new();
        let mut task = Task {
            config: config.clone(),
            room: room.clone(),
            display,
            events,
            requests: request_queue,
            shared: Arc::clone(&shared),
            cancel: cancel.clone(),
            observer: 0,
            pending: HashMap::new(),
            next: 0,
            present: BTreeMap::new(),
            clients: None,
            destroyed_told: false,
        };
        let (socket, joined) = task.enter().await?;
        // Who is there can be subscribed to at once, before the first event is read.
        let there = joined.publishers.iter().map(|p| (p.router_id.clone(), p.clone()));
        task.shared().streams.extend(there);
        let control = Arc::new(Control { config, room, requests, shared });
        // Owned by the room: `leave` awaits it, and dropping the room cancels it.
        #[allow(clippy::disallowed_methods)]
        let task = tokio::spawn(task.run(socket, joined));
        Ok(Self { events: event_queue, control, cancel, task: Some(task) })
    }
}

impl Drop for JanusRoom {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

#[async_trait]
impl Room for JanusRoom {
    async fn next_event(&mut self) -> Option<RoomEvent> {
        self.events.recv().await
    }

    fn control(&self) -> Arc<dyn RoomControl> {
        Arc::clone(&self.control) as Arc<dyn RoomControl>
    }

    async fn leave(mut self: Box<Self>) {
        self.cancel.cancel();
        self.events.close();
        if let Some(task) = self.task.take()
            && task.await.is_err()
        {
            tracing::error!(fault.kind = "bug", "the room's task panicked");
        }
    }
}

/// What came with entering the room.
struct Joined {
    publishers: Vec<StreamInfo>,
    subscriptions_live: bool,
}

struct Task {
    config: JanusConfig,
    room: RoomId,
    display: String,
    events: mpsc::Sender<RoomEvent>,
    requests: mpsc::Receiver<Request>,
    shared: Arc<Mutex<Shared>>,
    cancel: CancellationToken,
    observer: u64,
    pending: HashMap<String, Pending>,
    next: u64,
    present: BTreeMap<String, StreamInfo>,
    clients: Option<usize>,
    destroyed_told: bool,
}

impl Task {
    fn shared(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects, takes the old session back or makes one, and joins the room as the observer.
    async fn enter(&mut self) -> Result<(Socket, Joined), RouterError> {
        let mut socket = Socket::connect(&self.config).await?;
        let old = self.shared().session;
        if let Some(session) = old
            && socket.claim(session).await.is_ok()
        {
            // The observer is still in the room; what changed meanwhile is in the list of participants, and
            // publishers that came meanwhile are only told to who joins: so join anew on a second handle.
            let publishers = self.join_observer(&mut socket, session).await?;
            return Ok((socket, Joined { publishers, subscriptions_live: true }));
        }
        let session = socket.create_session().await?;
        {
            let mut shared = self.shared();
            shared.session = Some(session);
            shared.subscriptions.clear();
        }
        let publishers = self.join_observer(&mut socket, session).await?;
        Ok((socket, Joined { publishers, subscriptions_live: false }))
    }

    async fn join_observer(&mut self, socket: &mut Socket, session: u64) -> Result<Vec<StreamInfo>, RouterError> {
        const DOING: &str = "let us into the room";
        let before = std::mem::replace(&mut self.observer, socket.attach(session).await?);
        if before != 0 && before != self.observer {
            let detach = json!({ "janus": "detach", "session_id": session, "handle_id": before });
            let detach = socket.complete(detach);
            socket.send(&detach).await?;
        }
        let body = json!({
            "request": "join", "ptype": "publisher",
            "room": room_value(&self.config, self.room.as_str()), "display": self.display,
        });
        let body = with_pin(&self.config, body);
        let request = json!({ "janus": "message", "session_id": session, "handle_id": self.observer, "body": body });
        let answer = socket.ask(request, DOING).await?;
        if let Some(error) = wire::error(&self.config.name, Some(&self.room), DOING, &answer) {
            return Err(error);
        }
        Ok(data(&answer).map(wire::publishers).unwrap_or_default())
    }

    async fn run(mut self, mut socket: Socket, mut joined: Joined) {
        let mut first = true;
        loop {
            if !first {
                self.tell(RoomEvent::Reconnected { subscriptions_live: joined.subscriptions_live }).await;
            }
            first = false;
            self.destroyed_told = false;
            self.announce(joined.publishers).await;
            let ended = self.serve(&mut socket).await;
            self.pending.clear();
            if self.cancel.is_cancelled() {
                return self.say_goodbye(socket).await;
            }
            if let Err(error) = ended {
                tracing::warn!(router = self.config.name, room = %self.room, "{}", crate::fault::chain(&error));
            }
            self.tell(RoomEvent::Disconnected).await;
            match self.reconnect().await {
                Some(again) => (socket, joined) = again,
                None => return,
            }
        }
    }

    async fn reconnect(&mut self) -> Option<(Socket, Joined)> {
        for attempt in 0.. {
            tokio::select! {
                () = self.cancel.cancelled() => return None,
                () = sleep(RECONNECT.delay(attempt, rand::random())) => {}
            }
            match self.enter().await {
                Ok(entered) => return Some(entered),
                Err(RouterError::RoomNotFound { .. }) => self.tell_destroyed().await,
                Err(error) => {
                    tracing::debug!(router = self.config.name, room = %self.room, "{}", crate::fault::chain(&error));
                }
            }
        }
        None
    }

    async fn say_goodbye(&self, mut socket: Socket) {
        let session = self.shared().session;
        if let Some(session) = session {
            let destroy = json!({ "janus": "destroy", "session_id": session });
            if let Err(error) = socket.ask(destroy, "end the session").await {
                tracing::debug!(router = self.config.name, "{error}");
            }
        }
        socket.close().await;
    }

    async fn tell(&self, event: RoomEvent) {
        // A driver that is gone cancels us; nothing is lost by not telling it.
        self.events.send(event).await.unwrap_or_default();
    }

    async fn tell_destroyed(&mut self) {
        if !std::mem::replace(&mut self.destroyed_told, true) {
            self.tell(RoomEvent::RoomDestroyed).await;
        }
    }

    /// The room's whole list of publishers: who is not in it is gone.
    async fn announce(&mut self, publishers: Vec<StreamInfo>) {
        let listed: HashSet<&str> = publishers.iter().map(|p| p.router_id.as_str()).collect();
        let gone: Vec<String> = self.present.keys().filter(|id| !listed.contains(id.as_str())).cloned().collect();
        for router_id in gone {
            self.stream_gone(router_id).await;
        }
        self.present.clear();
        for publisher in publishers {
            self.stream_present(publisher).await;
        }
    }

    async fn stream_present(&mut self, stream: StreamInfo) {
        if self.present.get(&stream.router_id) == Some(&stream) {
            return;
        }
        self.present.insert(stream.router_id.clone(), stream.clone());
        self.shared().streams.insert(stream.router_id.clone(), stream.clone());
        self.tell(RoomEvent::StreamPresent(stream)).await;
    }

    async fn stream_gone(&mut self, router_id: String) {
        self.shared().streams.remove(&router_id);
        if self.present.remove(&router_id).is_some() {
            self.tell(RoomEvent::StreamGone { router_id }).await;
        }
    }

    async fn serve(&mut self, socket: &mut Socket) -> Result<(), RouterError> {
        let mut keepalive = interval(KEEPALIVE);
        let mut poll = interval(self.config.poll);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let session = self.shared().session.unwrap_or(0);
        let mut unanswered_polls = 0;
        while let Some(message) = socket.early.pop_front() {
            self.message(message, &mut unanswered_polls).await?;
        }
        loop {
            tokio::select! {
                () = self.cancel.cancelled() => return Ok(()),
                message = socket.next() => self.message(message?, &mut unanswered_polls).await?,
                Some(request) = self.requests.recv() => self.request(socket, session, request).await?,
                _ = keepalive.tick() => {
                    let body = json!({ "janus": "keepalive", "session_id": session, "transaction": "keepalive" });
                    let body = socket.complete(body);
                    socket.send(&body).await?;
                }
                _ = poll.tick() => {
                    self.expire();
                    // A connection that swallows everything is noticed here, long before TCP does.
                    if unanswered_polls >= 3 {
                        return Err(late(&self.config, "list the participants"));
                    }
                    unanswered_polls += 1;
                    let body = json!({ "request": "listparticipants", "room": room_value(&self.config, self.room.as_str()) });
                    let body = socket.complete(json!({
                        "janus": "message", "session_id": session, "handle_id": self.observer,
                        "transaction": "participants", "body": body,
                    }));
                    socket.send(&body).await?;
                }
            }
        }
    }

    async fn request(&mut self, socket: &mut Socket, session: u64, request: Request) -> Result<(), RouterError> {
        self.next += 1;
        let transaction = format!("t{}", self.next);
        let mut body = request.body;
        body["session_id"] = json!(session);
        body["transaction"] = json!(transaction);
        let body = socket.complete(body);
        let deadline = Instant::now() + self.config.timeout;
        self.pending.insert(transaction, (request.answer, request.doing, deadline));
        socket.send(&body).await
    }

    /// Requests that Janus never answers.
    fn expire(&mut self) {
        let now = Instant::now();
        let expired: Vec<String> =
            self.pending.iter().filter(|(_, (.., deadline))| *deadline <= now).map(|(t, _)| t.clone()).collect();
        for transaction in expired {
            if let Some((answer, doing, _)) = self.pending.remove(&transaction) {
                answer.send(Err(late(&self.config, doing))).unwrap_or_default();
            }
        }
    }

    async fn message(&mut self, message: Value, unanswered_polls: &mut u32) -> Result<(), RouterError> {
        let kind = message.get("janus").and_then(Value::as_str).unwrap_or_default();
        let transaction = message.get("transaction").and_then(Value::as_str).unwrap_or_default();
        if kind == "ack" {
            return Ok(());
        }
        if transaction == "participants" {
            *unanswered_polls = 0;
            self.participants(&message).await;
            return Ok(());
        }
        if let Some((answer, doing, _)) = self.pending.remove(transaction) {
            let error = wire::error(&self.config.name, Some(&self.room), doing, &message);
            answer.send(error.map_or(Ok(message), Err)).unwrap_or_default();
            return Ok(());
        }
        let sender = message.get("sender").and_then(Value::as_u64).unwrap_or(0);
        match kind {
            "event" if sender == self.observer => self.observed(&message).await,
            "event" => self.subscriber_event(sender, &message).await,
            "hangup" | "detached" => self.subscription_lost(sender).await,
            "timeout" => {
                let what = "the session timed out".to_owned();
                return Err(RouterError::Protocol {
                    router: self.config.name.clone(),
                    doing: "keep the session",
                    what,
                });
            }
            _ => {}
        }
        Ok(())
    }

    async fn participants(&mut self, message: &Value) {
        if let Some(RouterError::RoomNotFound { .. }) =
            wire::error(&self.config.name, Some(&self.room), "list the participants", message)
        {
            let all: Vec<String> = self.present.keys().cloned().collect();
            for router_id in all {
                self.stream_gone(router_id).await;
            }
            return self.tell_destroyed().await;
        }
        let Some((clients, publishing)) = data(message).and_then(wire::participants) else { return };
        if self.clients != Some(clients) {
            self.clients = Some(clients);
            self.tell(RoomEvent::Clients { count: clients }).await;
        }
        let gone: Vec<String> = self.present.keys().filter(|id| !publishing.contains(id)).cloned().collect();
        for router_id in gone {
            self.stream_gone(router_id).await;
        }
    }

    async fn observed(&mut self, message: &Value) {
        let Some(data) = data(message) else { return };
        for stream in wire::publishers(data) {
            self.stream_present(stream).await;
        }
        for key in ["unpublished", "leaving", "kicked"] {
            if let Some(router_id) = data.get(key).and_then(wire::id) {
                self.stream_gone(router_id).await;
            }
        }
        match data.get("videoroom").and_then(Value::as_str) {
            Some("destroyed") => self.tell_destroyed().await,
            Some(what @ ("talking" | "stopped-talking")) => {
                if let Some(router_id) = data.get("id").and_then(wire::id) {
                    self.tell(RoomEvent::Talking { router_id, talking: what == "talking" }).await;
                }
            }
            _ => {}
        }
    }

    fn by_handle(&self, handle: u64) -> Option<SubscriptionId> {
        self.shared().subscriptions.iter().find(|(_, s)| s.handle == handle).map(|(id, _)| *id)
    }

    async fn subscriber_event(&mut self, handle: u64, message: &Value) {
        let (Some(subscription), Some(data)) = (self.by_handle(handle), data(message)) else { return };
        let offer = message.get("jsep").filter(|j| j.get("type").and_then(Value::as_str) == Some("offer"));
        if let Some(sdp) = offer.and_then(|j| j.get("sdp")).and_then(Value::as_str) {
            let mids = wire::offer_mids(data);
            if let Some(known) = self.shared().subscriptions.get_mut(&subscription) {
                known.mids.clone_from(&mids);
            }
            let offer = Offer { subscription, sdp: sdp.to_owned(), mids };
            self.tell(RoomEvent::Renegotiate(offer)).await;
        }
        let number = |name: &str| data.get(name).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        let (spatial, temporal) =
            (number("substream").or(number("spatial_layer")), number("temporal").or(number("temporal_layer")));
        if spatial.is_some() || temporal.is_some() {
            self.tell(RoomEvent::LayerChanged { subscription, spatial, temporal }).await;
        }
    }

    async fn subscription_lost(&mut self, handle: u64) {
        if let Some(subscription) = self.by_handle(handle) {
            self.shared().subscriptions.remove(&subscription);
            self.tell(RoomEvent::SubscriptionLost { subscription }).await;
        }
    }
}

impl Control {
    fn shared(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, body: Value, doing: &'static str) -> Result<Value, RouterError> {
        let (answer, answered) = oneshot::channel();
        let request = Request { body, answer, doing };
        let whole = async {
            self.requests.send(request).await.map_err(|_| late(&self.config, doing))?;
            // Dropped when the WebSocket is lost.
            answered.await.map_err(|_| late(&self.config, doing))?
        };
        timeout(self.config.timeout * 2, whole).await.map_err(|_| late(&self.config, doing))?
    }

    async fn message(
        &self,
        handle: u64,
        body: Value,
        jsep: Option<Value>,
        doing: &'static str,
    ) -> Result<Value, RouterError> {
        let mut request = json!({ "janus": "message", "handle_id": handle, "body": body });
        if let Some(jsep) = jsep {
            request["jsep"] = jsep;
        }
        self.ask(request, doing).await
    }

    fn subscription(&self, subscription: SubscriptionId) -> Result<Subscription, RouterError> {
        let found = self.shared().subscriptions.get(&subscription).cloned();
        found.ok_or_else(|| RouterError::StreamNotFound { stream: format!("subscription {}", subscription.0) })
    }

    async fn detach(&self, handle: u64) {
        if let Err(error) = self.ask(json!({ "janus": "detach", "handle_id": handle }), "end a subscription").await {
            tracing::debug!(router = self.config.name, "{error}");
        }
    }
}

#[async_trait]
impl RoomControl for Control {
    async fn subscribe(&self, router_id: &str) -> Result<Offer, RouterError> {
        const DOING: &str = "subscribe to a stream";
        let missing = || RouterError::StreamNotFound { stream: router_id.to_owned() };
        let stream = self.shared().streams.get(router_id).cloned().ok_or_else(missing)?;
        let feed = room_value(&self.config, router_id);
        let wanted: Vec<Value> = [TrackKind::Audio, TrackKind::Video]
            .iter()
            .filter_map(|kind| stream.tracks.iter().find(|t| t.kind == *kind))
            .map(|track| json!({ "feed": feed, "mid": track.mid }))
            .collect();
        if wanted.is_empty() {
            return Err(missing());
        }
        let attach = self.ask(json!({ "janus": "attach", "plugin": PLUGIN }), DOING).await?;
        let unexpected = |what: &str| RouterError::Protocol {
            router: self.config.name.clone(),
            doing: DOING,
            what: what.to_owned(),
        };
        let handle = data_id(&attach).ok_or_else(|| unexpected("attach gave no id"))?;
        let body = json!({
            "request": "join", "ptype": "subscriber",
            "room": room_value(&self.config, self.room.as_str()), "streams": wanted,
        });
        let answer = match self.message(handle, with_pin(&self.config, body), None, DOING).await {
            Ok(answer) => answer,
            Err(error) => {
                self.detach(handle).await;
                return Err(error);
            }
        };
        let sdp = answer.get("jsep").and_then(|j| j.get("sdp")).and_then(Value::as_str);
        let sdp = sdp.ok_or_else(|| unexpected("there is no offer"))?.to_owned();
        let mids = data(&answer).map(wire::offer_mids).unwrap_or_default();
        let mut shared = self.shared();
        shared.next_subscription += 1;
        let subscription = SubscriptionId(shared.next_subscription);
        shared.subscriptions.insert(subscription, Subscription { handle, mids: mids.clone() });
        Ok(Offer { subscription, sdp, mids })
    }

    async fn answer(&self, subscription: SubscriptionId, sdp: String) -> Result<(), RouterError> {
        let handle = self.subscription(subscription)?.handle;
        let jsep = json!({ "type": "answer", "sdp": sdp });
        self.message(handle, json!({ "request": "start" }), Some(jsep), "start a subscription").await.map(drop)
    }

    async fn prefer_highest_layer(&self, subscription: SubscriptionId) -> Result<(), RouterError> {
        let known = self.subscription(subscription)?;
        let streams: Vec<Value> = known
            .mids
            .iter()
            .filter(|(_, kind)| *kind == TrackKind::Video)
            .map(|(mid, _)| {
                json!({ "mid": mid, "substream": 2, "temporal": 2, "spatial_layer": 2, "temporal_layer": 2, "fallback": FALLBACK_US })
            })
            .collect();
        if streams.is_empty() {
            return Ok(());
        }
        let body = json!({ "request": "configure", "streams": streams });
        self.message(known.handle, body, None, "choose a layer").await.map(drop)
    }

    async fn unsubscribe(&self, subscription: SubscriptionId) {
        let known = self.shared().subscriptions.remove(&subscription);
        if let Some(known) = known {
            self.detach(known.handle).await;
        }
    }
}
