//! Commands to a joined room. They go to the room's task, which owns the WebSocket.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::socket::{PLUGIN, data_id, timed_out};
use super::trickle::Trickle;
use super::{JanusConfig, feeds, wire};
use crate::model::ids::{RoomId, TrackKind};
use crate::router::{CandidateSink, Offer, RoomControl, RouterError, StreamInfo, SubscriptionId};

/// Janus falls back to a lower simulcast layer when the selected one pauses for this long, in microseconds. With Janus's default of
/// 250 ms, the layer of a rarely changing screen flaps.
const FALLBACK_US: u64 = 2_000_000;

/// A request, and the channel of its answer.
pub(super) struct Request {
    pub body: Value,
    pub answer: oneshot::Sender<Result<Value, RouterError>>,
    pub doing: &'static str,
}

/// A subscriber handle.
#[derive(Debug, Clone)]
pub(super) struct Subscription {
    pub handle: u64,
    pub mids: Vec<(String, TrackKind)>,
}

/// State shared by the room's task and its commands. The lock is held for look-ups only.
#[derive(Default)]
pub(super) struct RoomShared {
    pub session: Option<u64>,
    /// The observer's, which rooms with `require_pvtid` want of its subscriptions. A further one with each join.
    pub private_id: Option<u64>,
    /// Whether the room's publishers must encrypt end to end; `None` before Janus was asked.
    pub requires_encryption: Option<bool>,
    pub streams: BTreeMap<String, StreamInfo>,
    pub subscriptions: BTreeMap<SubscriptionId, Subscription>,
    pub trickle: Trickle,
    pub next_subscription: u64,
}

/// [`RoomControl`] for Janus.
pub(super) struct JanusRoomControl {
    pub config: JanusConfig,
    pub room: RoomId,
    pub requests: mpsc::Sender<Request>,
    pub shared: Arc<Mutex<RoomShared>>,
}

/// The id of a room or feed, as a number if Janus uses numeric ids.
pub(super) fn room_value(config: &JanusConfig, room: &str) -> Value {
    match room.parse::<u64>() {
        Ok(number) if !config.string_ids => json!(number),
        _ => json!(room),
    }
}

/// Adds the pin, if the room has one.
pub(super) fn with_pin(config: &JanusConfig, mut body: Value) -> Value {
    if let Some(pin) = &config.pin {
        body["pin"] = json!(pin.expose_secret());
    }
    body
}

/// Adds the key that creates rooms, and lists private ones.
pub(super) fn with_admin_key(config: &JanusConfig, mut body: Value) -> Value {
    if let Some(key) = &config.admin_key {
        body["admin_key"] = json!(key.expose_secret());
    }
    body
}

/// Adds what a join of this room needs: pin and token.
pub(super) fn with_access(config: &JanusConfig, room: &RoomId, mut body: Value) -> Value {
    if let Some(token) = config.room_tokens.get(room).or(config.token.as_ref()) {
        body["token"] = json!(token.expose_secret());
    }
    with_pin(config, body)
}

/// The plugin's data in a message.
pub(super) fn data(message: &Value) -> Option<&Value> {
    message.get("plugindata")?.get("data")
}

impl JanusRoomControl {
    fn shared(&self) -> std::sync::MutexGuard<'_, RoomShared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn request(&self, body: Value, doing: &'static str) -> Result<Value, RouterError> {
        let (answer, answered) = oneshot::channel();
        let request = Request { body, answer, doing };
        let whole = async {
            self.requests.send(request).await.map_err(|_| timed_out(&self.config, doing))?;
            // The room's task drops the channel when the WebSocket is lost.
            answered.await.map_err(|_| timed_out(&self.config, doing))?
        };
        timeout(self.config.timeout * 2, whole).await.map_err(|_| timed_out(&self.config, doing))?
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
        self.request(request, doing).await
    }

    fn subscription(&self, subscription: SubscriptionId) -> Result<Subscription, RouterError> {
        let found = self.shared().subscriptions.get(&subscription).cloned();
        found.ok_or_else(|| RouterError::StreamNotFound { stream: format!("subscription {}", subscription.0) })
    }

    async fn detach(&self, handle: u64) {
        self.shared().trickle.close(handle);
        if let Err(error) = self.request(json!({ "janus": "detach", "handle_id": handle }), "end a subscription").await
        {
            tracing::debug!(router = self.config.name, "{error}");
        }
    }
}

#[async_trait]
impl RoomControl for JanusRoomControl {
    async fn subscribe(&self, router_id: &str, mids: &[String]) -> Result<Offer, RouterError> {
        const DOING: &str = "subscribe to a stream";
        let missing = || RouterError::StreamNotFound { stream: router_id.to_owned() };
        let stream = self.shared().streams.get(router_id).cloned().ok_or_else(missing)?;
        let feed = room_value(&self.config, feeds::feed_of(router_id));
        let wanted: Vec<Value> = mids
            .iter()
            .filter(|mid| stream.tracks.iter().any(|track| track.mid == **mid))
            .map(|mid| json!({ "feed": feed, "mid": mid }))
            .collect();
        if wanted.is_empty() {
            return Err(missing());
        }
        let attach = self.request(json!({ "janus": "attach", "plugin": PLUGIN }), DOING).await?;
        let unexpected = |problem: &str| RouterError::Protocol {
            router: self.config.name.clone(),
            doing: DOING,
            problem: problem.to_owned(),
        };
        let handle = data_id(&attach).ok_or_else(|| unexpected("attach gave no id"))?;
        let private_id = {
            let mut shared = self.shared();
            // Candidates may come before the offer.
            shared.trickle.open(handle);
            shared.private_id
        };
        let mut body = json!({
            "request": "join", "ptype": "subscriber",
            "room": room_value(&self.config, self.room.as_str()), "streams": wanted,
        });
        if let Some(private_id) = private_id {
            body["private_id"] = json!(private_id);
        }
        let answer = match self.message(handle, with_access(&self.config, &self.room, body), None, DOING).await {
            Ok(answer) => answer,
            Err(error) => {
                self.detach(handle).await;
                return Err(error);
            }
        };
        let (sdp, encrypted) = wire::offer(&answer).ok_or_else(|| unexpected("there is no offer"))?;
        let sdp = sdp.to_owned();
        let mids = data(&answer).map(wire::offer_mids).unwrap_or_default();
        let mut shared = self.shared();
        shared.next_subscription += 1;
        let subscription = SubscriptionId(shared.next_subscription);
        shared.subscriptions.insert(subscription, Subscription { handle, mids: mids.clone() });
        let encrypted = encrypted || shared.requires_encryption == Some(true);
        Ok(Offer { subscription, sdp, mids, encrypted })
    }

    fn on_candidate(&self, subscription: SubscriptionId, sink: CandidateSink) {
        let waiting = {
            let mut shared = self.shared();
            let handle = shared.subscriptions.get(&subscription).map(|known| known.handle);
            handle.map(|handle| shared.trickle.take(handle, &sink)).unwrap_or_default()
        };
        waiting.into_iter().for_each(|candidate| sink(candidate));
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
