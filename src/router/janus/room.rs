//! A joined room. One task owns the WebSocket; commands and events pass through bounded queues.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::control::{JanusRoomControl, Request, RoomShared, data, room_value, with_access};
use super::feeds::Feeds;
use super::roster::Roster;
use super::socket::{Socket, timed_out};
use super::trickle::Trickle;
use super::{JanusConfig, encryption, feeds, wire};
use crate::model::fault::Backoff;
use crate::model::ids::RoomId;
use crate::model::session::{RoomAccess, RouterRoom};
use crate::router::{Offer, Room, RoomControl, RoomEvent, RouterError, StreamInfo, SubscriptionId};

/// Events that may wait for the driver. When the queue is full, the task reads no more from Janus.
const EVENTS_MAX: usize = 4096;
/// Requests that may wait for their answers.
const REQUESTS_MAX: usize = 256;
/// Janus destroys a session after 60 s without a message.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Between two attempts to reconnect.
const RECONNECT: Backoff = Backoff { first: Duration::from_millis(200), max: Duration::from_secs(5) };

/// Begin of the transactions that ask for the state of a subscription; its handle follows.
const PROBE: &str = "probe-";

/// A request that waits for its answer.
struct PendingRequest {
    answer: oneshot::Sender<Result<Value, RouterError>>,
    doing: &'static str,
    deadline: Instant,
}

/// A joined room.
pub(super) struct JanusRoom {
    events: mpsc::Receiver<RoomEvent>,
    control: Arc<JanusRoomControl>,
    cancel: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl JanusRoom {
    /// Connects, joins, and starts the task. Fails at once if the room cannot be entered now.
    pub async fn join(config: JanusConfig, place: &RouterRoom) -> Result<Self, RouterError> {
        let room = place.room.clone();
        let (events, event_queue) = mpsc::channel(EVENTS_MAX);
        let (requests, request_queue) = mpsc::channel(REQUESTS_MAX);
        // Rooms that this program creates have a pin of their own, and never require it.
        let requires_encryption = (place.access == RoomAccess::Derived).then_some(false);
        let shared = Arc::new(Mutex::new(RoomShared { requires_encryption, ..RoomShared::default() }));
        let cancel = CancellationToken::new();
        let mut task = RoomTask {
            config: config.clone(),
            room: room.clone(),
            events,
            requests: request_queue,
            shared: Arc::clone(&shared),
            cancel: cancel.clone(),
            observer: 0,
            unwanted: Vec::new(),
            pending: HashMap::new(),
            next: 0,
            roster: Roster::default(),
            feeds: Feeds::default(),
            clients: None,
            destroyed_sent: false,
            unanswered_polls: 0,
            encryption: encryption::Question::default(),
        };
        let (socket, publishers) = task.enter().await?;
        // Present streams can be subscribed to at once, before the first event is read.
        let present: Vec<StreamInfo> = publishers.iter().flat_map(|feed| task.feeds.streams(feed)).collect();
        task.shared().streams.extend(present.into_iter().map(|stream| (stream.router_id.clone(), stream)));
        let control = Arc::new(JanusRoomControl { config, room, requests, shared });
        // Owned by the room: `leave` awaits it, and dropping the room cancels it.
        #[allow(clippy::disallowed_methods)]
        let task = tokio::spawn(task.run(socket, publishers));
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

/// Why serving a connection ended.
enum ServeEnd {
    /// The room was left.
    Cancelled,
    /// The observer is not in the room any more, or missed a stream: join the room again on the same connection.
    Rejoin,
}

struct RoomTask {
    config: JanusConfig,
    room: RoomId,
    events: mpsc::Sender<RoomEvent>,
    requests: mpsc::Receiver<Request>,
    shared: Arc<Mutex<RoomShared>>,
    cancel: CancellationToken,
    observer: u64,
    /// Handles of lost subscriptions that are to be detached.
    unwanted: Vec<u64>,
    pending: HashMap<String, PendingRequest>,
    next: u64,
    roster: Roster,
    feeds: Feeds,
    clients: Option<usize>,
    destroyed_sent: bool,
    unanswered_polls: u32,
    encryption: encryption::Question,
}

impl RoomTask {
    fn shared(&self) -> std::sync::MutexGuard<'_, RoomShared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn view(&self) -> wire::RoomView<'_> {
        self.config.view(&self.room)
    }

    /// Connects, reclaims the old session or creates one, and joins the room as the observer.
    async fn enter(&mut self) -> Result<(Socket, Vec<StreamInfo>), RouterError> {
        let mut socket = Socket::connect(&self.config).await?;
        let old = self.shared().session;
        if let Some(session) = old
            && socket.claim(session).await.is_ok()
        {
            // The observer is still in the room, but Janus names publishers that came meanwhile only to a handle that joins. So a
            // second handle joins.
            let publishers = self.join_observer(&mut socket, session).await?;
            self.probe_subscriptions(&mut socket, session).await?;
            return Ok((socket, publishers));
        }
        let session = socket.create_session().await?;
        let lost = {
            let mut shared = self.shared();
            shared.session = Some(session);
            shared.trickle = Trickle::default();
            std::mem::take(&mut shared.subscriptions)
        };
        self.observer = 0;
        // Sent before the events about streams: media is missing because of the lost session, also of streams that are gone.
        for subscription in lost.into_keys() {
            self.send_event(RoomEvent::SubscriptionLost { subscription }).await;
        }
        let publishers = self.join_observer(&mut socket, session).await?;
        Ok((socket, publishers))
    }

    async fn join_observer(&mut self, socket: &mut Socket, session: u64) -> Result<Vec<StreamInfo>, RouterError> {
        const DOING: &str = "let us into the room";
        let before = std::mem::replace(&mut self.observer, socket.attach(session).await?);
        if before != 0 && before != self.observer {
            let detach = json!({ "janus": "detach", "session_id": session, "handle_id": before });
            let detach = socket.with_credentials(detach);
            socket.send(&detach).await?;
        }
        let body = json!({
            "request": "join", "ptype": "publisher",
            "room": room_value(&self.config, self.room.as_str()), "display": self.config.observer_name,
        });
        let body = with_access(&self.config, &self.room, body);
        let request = json!({ "janus": "message", "session_id": session, "handle_id": self.observer, "body": body });
        // `wire::error` needs the room to report that it does not exist.
        let answer = socket.request(request, DOING).await?;
        if let Some(error) = wire::error(&self.config.name, Some(&self.room), DOING, &answer) {
            return Err(error);
        }
        let joined = data(&answer);
        self.shared().private_id = joined.and_then(wire::private_id);
        self.roster.joined_as(joined.and_then(|d| d.get("id")).and_then(wire::id));
        Ok(joined.map(|joined| wire::publishers(joined, &self.view())).unwrap_or_default())
    }

    async fn run(mut self, mut socket: Socket, mut publishers: Vec<StreamInfo>) {
        loop {
            self.destroyed_sent = false;
            self.clients = None;
            self.set_publishers(publishers).await;
            let rejoined = match self.serve(&mut socket).await {
                Ok(ServeEnd::Rejoin) => self.rejoin(&mut socket).await,
                Ok(ServeEnd::Cancelled) => return self.destroy_session(socket).await,
                Err(error) => Err(error),
            };
            let reconnected = match rejoined {
                Ok(present) => {
                    publishers = present;
                    continue;
                }
                Err(RouterError::RoomNotFound { .. }) => {
                    self.set_destroyed().await;
                    self.reconnect().await
                }
                Err(error) => {
                    tracing::warn!(router = self.config.name, room = %self.room, "{}", crate::model::fault::chain(&error));
                    self.reconnect().await
                }
            };
            let Some(reconnected) = reconnected else { return };
            (socket, publishers) = reconnected;
            self.send_event(RoomEvent::Reconnected).await;
        }
    }

    async fn rejoin(&mut self, socket: &mut Socket) -> Result<Vec<StreamInfo>, RouterError> {
        tracing::info!(router = self.config.name, room = %self.room, "joining the room again");
        let session = self.shared().session.unwrap_or(0);
        let publishers = self.join_observer(socket, session).await?;
        self.probe_subscriptions(socket, session).await?;
        Ok(publishers)
    }

    /// Asks for the state of each subscription. In a room with `require_pvtid`, Janus sends no more media to those of an observer that was
    /// removed, but keeps their connections and says nothing.
    async fn probe_subscriptions(&mut self, socket: &mut Socket, session: u64) -> Result<(), RouterError> {
        let handles: Vec<u64> = self.shared().subscriptions.values().map(|known| known.handle).collect();
        for handle in handles {
            let probe = socket.with_credentials(json!({
                "janus": "message", "session_id": session, "handle_id": handle,
                "transaction": format!("{PROBE}{handle}"), "body": { "request": "configure", "streams": [] },
            }));
            socket.send(&probe).await?;
        }
        Ok(())
    }

    async fn reconnect(&mut self) -> Option<(Socket, Vec<StreamInfo>)> {
        // Dropping the channels ends the commands that wait for an answer.
        self.pending.clear();
        self.send_event(RoomEvent::Disconnected).await;
        let cancel = self.cancel.clone();
        for attempt in 0.. {
            let entered = async {
                sleep(RECONNECT.delay(attempt, rand::random())).await;
                self.enter().await
            };
            let entered = tokio::select! {
                () = cancel.cancelled() => return None,
                entered = entered => entered,
            };
            match entered {
                Ok(entered) => return Some(entered),
                Err(RouterError::RoomNotFound { .. }) => self.set_destroyed().await,
                Err(error) => {
                    tracing::debug!(router = self.config.name, room = %self.room, "{}", crate::model::fault::chain(&error));
                }
            }
        }
        None
    }

    async fn destroy_session(&self, mut socket: Socket) {
        let session = self.shared().session;
        if let Some(session) = session {
            let destroy = json!({ "janus": "destroy", "session_id": session });
            if let Err(error) = socket.request_ok(destroy, "end the session").await {
                tracing::debug!(router = self.config.name, "{error}");
            }
        }
        socket.close().await;
    }

    async fn send_event(&self, event: RoomEvent) {
        // The receiver is gone only if the room was dropped.
        self.events.send(event).await.unwrap_or_default();
    }

    /// Sends an event that may be dropped when the driver is far behind.
    fn send_event_lossy(&self, event: RoomEvent) {
        if self.events.capacity() > EVENTS_MAX / 2 {
            self.events.try_send(event).unwrap_or_default();
        }
    }

    async fn set_destroyed(&mut self) {
        self.set_publishers(Vec::new()).await;
        self.clients = None;
        if !std::mem::replace(&mut self.destroyed_sent, true) {
            self.send_event(RoomEvent::RoomDestroyed).await;
        }
    }

    /// Compares the room's complete list of publishers with the known streams, and sends the differences.
    async fn set_publishers(&mut self, publishers: Vec<StreamInfo>) {
        for router_id in self.roster.not_in(&publishers) {
            self.stream_gone(router_id).await;
        }
        self.roster.clear();
        for publisher in publishers {
            self.stream_present(publisher).await;
        }
    }

    async fn stream_present(&mut self, feed: StreamInfo) {
        if !self.roster.present(&feed) {
            return;
        }
        let present = self.feeds.streams(&feed);
        for router_id in self.streams_of(&feed.router_id) {
            if present.iter().all(|stream| stream.router_id != router_id) {
                self.shared().streams.remove(&router_id);
                self.send_event(RoomEvent::StreamGone { router_id }).await;
            }
        }
        for stream in present {
            self.shared().streams.insert(stream.router_id.clone(), stream.clone());
            self.send_event(RoomEvent::StreamPresent(stream)).await;
        }
    }

    async fn stream_gone(&mut self, feed: String) {
        let streams = self.streams_of(&feed);
        self.shared().streams.retain(|router_id, _| !streams.contains(router_id));
        self.feeds.gone(&feed);
        if self.roster.gone(&feed) {
            for router_id in streams {
                self.send_event(RoomEvent::StreamGone { router_id }).await;
            }
        }
    }

    /// The ids of a feed's streams.
    fn streams_of(&self, feed: &str) -> Vec<String> {
        let is_of = |router_id: &&String| *router_id == feed || feeds::feed_of(router_id) == feed;
        self.shared().streams.keys().filter(is_of).cloned().collect()
    }

    async fn serve(&mut self, socket: &mut Socket) -> Result<ServeEnd, RouterError> {
        let mut keepalive = interval(KEEPALIVE);
        let mut poll = interval(self.config.poll);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let session = self.shared().session.unwrap_or(0);
        self.unanswered_polls = 0;
        while let Some(message) = socket.unsolicited.pop_front() {
            self.message(message).await?;
        }
        if self.shared().requires_encryption.is_none()
            && let Some(question) = self.encryption.ask(&self.config, &self.room, session, self.observer)
        {
            let question = socket.with_credentials(question);
            socket.send(&question).await?;
        }
        loop {
            tokio::select! {
                () = self.cancel.cancelled() => return Ok(ServeEnd::Cancelled),
                message = socket.next() => {
                    let rejoin = self.message(message?).await?;
                    for handle in std::mem::take(&mut self.unwanted) {
                        let detach = json!({ "janus": "detach", "session_id": session, "handle_id": handle });
                        let detach = socket.with_credentials(detach);
                        socket.send(&detach).await?;
                    }
                    if rejoin {
                        return Ok(ServeEnd::Rejoin);
                    }
                }
                Some(request) = self.requests.recv(), if self.pending.len() < REQUESTS_MAX => self.send_request(socket, session, request).await?,
                _ = keepalive.tick() => {
                    let body = json!({ "janus": "keepalive", "session_id": session, "transaction": "keepalive" });
                    let body = socket.with_credentials(body);
                    socket.send(&body).await?;
                }
                _ = poll.tick() => {
                    self.expire_pending();
                    // A connection that swallows everything is noticed here, long before TCP does.
                    if self.unanswered_polls >= 3 {
                        return Err(timed_out(&self.config, "list the participants"));
                    }
                    self.unanswered_polls += 1;
                    let body = json!({ "request": "listparticipants", "room": room_value(&self.config, self.room.as_str()) });
                    let body = socket.with_credentials(json!({
                        "janus": "message", "session_id": session, "handle_id": self.observer,
                        "transaction": "participants", "body": body,
                    }));
                    socket.send(&body).await?;
                }
            }
        }
    }

    async fn send_request(&mut self, socket: &mut Socket, session: u64, request: Request) -> Result<(), RouterError> {
        if request.answer.is_closed() {
            // The command was given up while the router was unavailable. A handle that it attached now would have no owner.
            return Ok(());
        }
        self.next += 1;
        let transaction = format!("t{}", self.next);
        let mut body = request.body;
        body["session_id"] = json!(session);
        body["transaction"] = json!(transaction);
        let body = socket.with_credentials(body);
        let deadline = Instant::now() + self.config.timeout;
        let pending = PendingRequest { answer: request.answer, doing: request.doing, deadline };
        self.pending.insert(transaction, pending);
        socket.send(&body).await
    }

    /// Fails requests whose deadline has passed.
    fn expire_pending(&mut self) {
        let now = Instant::now();
        let expired: Vec<String> =
            self.pending.iter().filter(|(_, pending)| pending.deadline <= now).map(|(t, _)| t.clone()).collect();
        for transaction in expired {
            if let Some(PendingRequest { answer, doing, .. }) = self.pending.remove(&transaction) {
                answer.send(Err(timed_out(&self.config, doing))).unwrap_or_default();
            }
        }
    }

    /// Handles one message. Returns whether the room must be joined again.
    async fn message(&mut self, message: Value) -> Result<bool, RouterError> {
        let kind = message.get("janus").and_then(Value::as_str).unwrap_or_default();
        let transaction = message.get("transaction").and_then(Value::as_str).unwrap_or_default();
        if kind == "ack" {
            return Ok(false);
        }
        if transaction == "participants" {
            self.unanswered_polls = 0;
            return self.participants(&message).await;
        }
        if transaction == encryption::TRANSACTION {
            let required = encryption::answer(&self.config, &self.room, &message);
            self.shared().requires_encryption = required;
            if required == Some(true) {
                self.send_event(RoomEvent::EncryptionRequired).await;
            }
            return Ok(false);
        }
        if let Some(handle) = transaction.strip_prefix(PROBE).and_then(|handle| handle.parse().ok()) {
            let error = wire::error(&self.config.name, Some(&self.room), "keep a subscription", &message);
            if let Some(error @ RouterError::Refused { .. }) = error {
                tracing::warn!(router = self.config.name, room = %self.room, "{error}");
                self.subscription_lost(handle).await;
                self.unwanted.push(handle);
            }
            return Ok(false);
        }
        if let Some(PendingRequest { answer, doing, .. }) = self.pending.remove(transaction) {
            let error = wire::error(&self.config.name, Some(&self.room), doing, &message);
            answer.send(error.map_or(Ok(message), Err)).unwrap_or_default();
            return Ok(false);
        }
        let sender = message.get("sender").and_then(Value::as_u64).unwrap_or(0);
        match kind {
            "event" if sender == self.observer => self.observed(&message).await,
            "event" => self.subscriber_event(sender, &message).await,
            "trickle" => self.trickled(sender, &message),
            "hangup" | "detached" => self.subscription_lost(sender).await,
            "timeout" => {
                return Err(RouterError::Protocol {
                    router: self.config.name.clone(),
                    doing: "keep the session",
                    problem: "the session timed out".to_owned(),
                });
            }
            _ => {}
        }
        Ok(false)
    }

    async fn participants(&mut self, message: &Value) -> Result<bool, RouterError> {
        match wire::error(&self.config.name, Some(&self.room), "list the participants", message) {
            Some(RouterError::RoomNotFound { .. }) => {
                // The connection still works: the poll finds the room when it exists again.
                self.set_destroyed().await;
                return Ok(false);
            }
            // The session or the observer's handle is gone.
            Some(error) => return Err(error),
            None => {}
        }
        let Some(listed) = data(message).and_then(|list| wire::participants(list, &self.config.observer_name)) else {
            return Ok(false);
        };
        let found = self.roster.listed(&listed);
        for router_id in found.gone {
            self.stream_gone(router_id).await;
        }
        if found.rejoin {
            return Ok(true);
        }
        if self.clients != Some(listed.clients) {
            self.clients = Some(listed.clients);
            self.send_event(RoomEvent::Clients { count: listed.clients }).await;
        }
        Ok(false)
    }

    async fn observed(&mut self, message: &Value) {
        let Some(data) = data(message) else { return };
        for stream in wire::publishers(data, &self.view()) {
            self.stream_present(stream).await;
        }
        for key in ["unpublished", "leaving", "kicked"] {
            if let Some(router_id) = data.get(key).and_then(wire::id) {
                self.stream_gone(router_id).await;
            }
        }
        if let Some(stream) = wire::moderation(data).and_then(|m| self.roster.moderated(&m)) {
            self.stream_present(stream).await;
        }
        match data.get("videoroom").and_then(Value::as_str) {
            Some("destroyed") => self.set_destroyed().await,
            Some(event @ ("talking" | "stopped-talking")) => {
                if let Some(router_id) = data.get("id").and_then(wire::id) {
                    self.send_event_lossy(RoomEvent::Talking { router_id, talking: event == "talking" });
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
        if let Some((sdp, encrypted)) = wire::offer(message) {
            let mids = wire::offer_mids(data);
            let encrypted = encrypted || self.shared().requires_encryption == Some(true);
            if let Some(known) = self.shared().subscriptions.get_mut(&subscription) {
                known.mids.clone_from(&mids);
            }
            let offer = Offer { subscription, sdp: sdp.to_owned(), mids, encrypted };
            self.send_event(RoomEvent::Renegotiate(offer)).await;
        }
        let number = |name: &str| data.get(name).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        let (spatial, temporal) =
            (number("substream").or(number("spatial_layer")), number("temporal").or(number("temporal_layer")));
        if spatial.is_some() || temporal.is_some() {
            self.send_event(RoomEvent::LayerChanged { subscription, spatial, temporal }).await;
        }
    }

    /// Passes on a candidate of a subscription. Janus also says when it has no more, which needs nobody: a connection that does not come
    /// up ends by time.
    fn trickled(&self, handle: u64, message: &Value) {
        let Some(candidate) = wire::trickled(message) else { return };
        let sink = self.shared().trickle.came(handle, candidate);
        if let Some(sink) = sink {
            sink(candidate.to_owned());
        }
    }

    async fn subscription_lost(&mut self, handle: u64) {
        if let Some(subscription) = self.by_handle(handle) {
            self.shared().subscriptions.remove(&subscription);
            self.shared().trickle.close(handle);
            self.send_event(RoomEvent::SubscriptionLost { subscription }).await;
        }
    }
}
