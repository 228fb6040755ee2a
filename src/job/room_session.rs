//! One session while it is captured: which streams are there, what is subscribed to, and when it ends.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::task::TaskTracker;

use super::desired;
use super::link::{Attempts, Ended, Link, Live, RESUBSCRIBE};
use super::presence::{MAX_DURATION_EXCEEDED, Presence};
use super::rollover::roll_over;
use super::stage::{CaptureOutcome, ControlReceivers, Transition};
use super::subscribe::{Made, NotSubscribed, subscribe, wanted_tracks};
use super::track_health::TrackHealth;
use super::{Job, JobFailure};
use crate::catalog::ArchiveRow;
use crate::model::archive_options::OutputMode;
use crate::model::desired::{Desired, Selection};
use crate::model::fault::{Backoff, FaultKind, chain};
use crate::model::ids::{StreamId, TrackId, TrackKind};
use crate::model::media::GapCause;
use crate::model::time::{MediaTime, Wallclock};
use crate::recording::history::{Announced, EventKind, History};
use crate::recording::upload::UploadBacklog;
use crate::router::{Offer, Room, RoomControl, RoomEvent, StreamInfo, SubscriptionId, TrackInfo};
use crate::runtime::metrics::metrics;
use crate::webrtc::{CaptureEvent, CaptureKey, PeerError, PeerKey, UnsupportedTrack};

/// How often the session's end is looked at.
const TICK: Duration = Duration::from_millis(200);
/// Between two tries to subscribe to a stream that the router or the negotiation refuses.
const REFUSED: Backoff = Backoff { first: RESUBSCRIBE, max: Duration::from_secs(60) };
/// An archive that is as long as one may be goes on for so long beside its successor, which joins meanwhile.
const OVERLAP: Duration = Duration::from_secs(5);

/// A stream that is in the room.
struct Stream {
    info: StreamInfo,
    id: StreamId,
    link: Link,
    /// The session has as many streams as are captured: this one waits for a place since then.
    over_limit: Option<Instant>,
    /// Tracks whose formats the negotiation refused.
    unsupported: Vec<TrackKind>,
    /// Subscriptions that failed for good, one after the other.
    refusals: u32,
    /// Why the stream is not captured, as the history has it.
    noted: Missing,
    /// The failure that the log has; told again when the stream was captured meanwhile, or fails for another cause.
    told: Option<GapCause>,
}

/// Why a stream is not captured, if it is not.
#[derive(Default, PartialEq, Eq)]
struct Missing {
    cause: Option<GapCause>,
    detail: Option<String>,
}

/// What a subscription task brings back.
struct Subscribed {
    router_id: String,
    result: Result<Made, NotSubscribed>,
}

/// A session that is captured, with all that its events change.
pub(super) struct Session<'a> {
    job: &'a Job,
    capture: CaptureKey,
    control: Arc<dyn RoomControl>,
    history: History,
    /// What of the desired changes is in the history.
    noted: Desired,
    presence: Presence,
    streams: BTreeMap<String, Stream>,
    peers: HashMap<PeerKey, String>,
    /// Peers that are connected, also those whose subscription is still being made.
    connected: HashSet<PeerKey>,
    health: TrackHealth,
    attempts: Attempts,
    subscribing: JoinSet<Subscribed>,
    /// Requests to the router whose answer nobody waits for.
    chores: TaskTracker,
    first_media_told: bool,
}

/// How far a job is that gives its session to a successor.
enum RollingOver<'a> {
    No,
    /// The catalog is told.
    Begun(BoxFuture<'a, Result<Transition, JobFailure>>),
    /// The successor joins; ours ends then.
    Until(Instant),
}

impl<'a> Session<'a> {
    /// A session in a room that was entered.
    pub(super) fn new(
        job: &'a Job,
        capture: CaptureKey,
        control: Arc<dyn RoomControl>,
        history: History,
        noted: Desired,
        presence: Presence,
    ) -> Self {
        Self {
            job,
            capture,
            control,
            history,
            noted,
            presence,
            streams: BTreeMap::new(),
            peers: HashMap::new(),
            connected: HashSet::new(),
            health: TrackHealth::default(),
            attempts: Attempts::default(),
            subscribing: JoinSet::new(),
            chores: TaskTracker::new(),
            first_media_told: false,
        }
    }

    /// Ends what was begun beside it, and notes how it ended once all media is sealed.
    pub(super) async fn end(&mut self) {
        self.subscribing.shutdown().await;
        self.chores.close();
        self.chores.wait().await;
    }

    pub(super) fn now(&self) -> MediaTime {
        MediaTime::from_wallclock(Wallclock::now(), self.job.row.origin)
    }

    fn note(&self, kind: EventKind) {
        self.note_at(self.now(), kind);
    }

    /// The history is for people and layouts; a disk that cannot take it must not end a capture.
    pub(super) fn note_at(&self, at: MediaTime, kind: EventKind) {
        if let Err(error) = self.history.add(at, kind) {
            tracing::warn!("the session's history is incomplete: {}", chain(&error));
        }
    }

    /// Notes what is newly wanted: the composer draws by the history.
    fn apply_desired(&mut self, wanted: &Desired) {
        // One moment for what was asked for together: no picture lies between.
        let at = self.now();
        for change in desired::changes(wanted, &self.noted) {
            tracing::info!(?change, "the archive is changed");
            if let EventKind::Selected { stream, selection } = &change {
                self.begins_file(*stream, *selection);
            }
            self.note_at(at, change);
        }
        self.noted.clone_from(wanted);
    }

    /// A file of a stream's picture begins with a keyframe. A composer looks back for one, and shows nothing of it.
    fn begins_file(&self, stream: StreamId, selection: Selection) {
        if selection.has_video && self.job.spec.archive.output_mode != OutputMode::Composed {
            let track = TrackId { stream, kind: TrackKind::Video };
            self.expect_engine(self.job.context.engine.track_selected(self.capture, track));
        }
    }

    /// Captures until the session ends, is handed over, or is lost to another owner.
    pub(super) async fn run(
        &mut self,
        room: &mut dyn Room,
        events: &mut mpsc::Receiver<CaptureEvent>,
        backlog: &UploadBacklog,
        status: &watch::Sender<Option<ArchiveRow>>,
        control: &mut ControlReceivers,
    ) -> CaptureOutcome {
        let ControlReceivers { end_reason, desired } = control;
        // What was asked for before the job was ours.
        let wanted = desired.borrow_and_update().clone();
        self.apply_desired(&wanted);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut paused = false;
        let mut rolling_over = RollingOver::No;
        loop {
            let begun = async {
                match &mut rolling_over {
                    RollingOver::Begun(rollover) => rollover.await,
                    RollingOver::No | RollingOver::Until(_) => std::future::pending().await,
                }
            };
            tokio::select! {
                transition = begun => match transition {
                    Ok(Transition::Made) => rolling_over = RollingOver::Until(Instant::now() + OVERLAP),
                    Ok(Transition::Fenced) => return CaptureOutcome::Fenced,
                    // The driver does it again, and decides.
                    Err(_) => return CaptureOutcome::Ended(MAX_DURATION_EXCEEDED.to_owned()),
                },
                () = self.job.fenced.cancelled() => return CaptureOutcome::Fenced,
                () = self.job.drain.cancelled() => return CaptureOutcome::Drained,
                event = room.next_event() => match event {
                    Some(event) => self.room_event(event).await,
                    // Only leaving ends the events; that is ours to do.
                    None => return CaptureOutcome::Drained,
                },
                Some(event) = events.recv() => self.capture_event(event, backlog),
                Some(Ok(done)) = self.subscribing.join_next() => self.subscribed(done),
                Ok(()) = end_reason.changed() => {
                    if let (Some(reason), RollingOver::No) = (end_reason.borrow_and_update().clone(), &rolling_over) {
                        return CaptureOutcome::Ended(reason);
                    }
                }
                Ok(()) = desired.changed() => {
                    let wanted = desired.borrow_and_update().clone();
                    self.apply_desired(&wanted);
                }
                _ = tick.tick() => {
                    if let RollingOver::Until(end) = &rolling_over && *end <= Instant::now() {
                        return CaptureOutcome::Ended(MAX_DURATION_EXCEEDED.to_owned());
                    }
                    if let RollingOver::No = &rolling_over {
                        // The end may have been requested before this worker had the job.
                        if let Some(reason) = end_reason.borrow().clone() {
                            return CaptureOutcome::Ended(reason);
                        }
                        match self.presence.ended(Wallclock::now()) {
                            Some(reason) if reason.vonage() == MAX_DURATION_EXCEEDED && self.job.rolls_over() => {
                                rolling_over = RollingOver::Begun(Box::pin(roll_over(self.job, MAX_DURATION_EXCEEDED)));
                            }
                            Some(reason) => return CaptureOutcome::Ended(reason.vonage().to_owned()),
                            None => {}
                        }
                    }
                    self.retry_subscriptions();
                }
            }
            if self.presence.paused() != paused {
                paused = !paused;
                let now = Wallclock::now();
                let row = self.job.archive_row(now);
                status.send_replace(Some(if paused { row.paused(now) } else { row }));
            }
        }
    }

    /// The stream that a subscription brings, with its id at the router.
    fn subscribed_by(&self, subscription: SubscriptionId) -> Option<(&String, &Stream, &Live)> {
        self.streams.iter().find_map(|(router_id, stream)| match &stream.link {
            Link::Live(live) if live.subscription == subscription => Some((router_id, stream, live)),
            _ => None,
        })
    }

    fn count_publishing(&mut self) {
        let publishing = self.streams.values().filter(|s| !s.info.tracks.is_empty()).count();
        self.presence.publishing(publishing, Wallclock::now());
    }

    async fn room_event(&mut self, event: RoomEvent) {
        match event {
            RoomEvent::StreamPresent(info) => self.present(info),
            RoomEvent::StreamGone { router_id } => self.gone(&router_id),
            RoomEvent::Clients { count } => self.presence.clients(count, Wallclock::now()),
            RoomEvent::Talking { .. } => {}
            RoomEvent::Renegotiate(offer) => self.renegotiate(offer).await,
            RoomEvent::SubscriptionLost { subscription } => {
                match self.subscribed_by(subscription).map(|(router_id, ..)| router_id.clone()) {
                    Some(router_id) => self.unlink(&router_id, GapCause::Router, true),
                    None => self.attempts.subscription_lost(subscription),
                }
            }
            RoomEvent::LayerChanged { subscription, spatial, temporal } => {
                if let Some((_, stream, _)) = self.subscribed_by(subscription) {
                    self.note(EventKind::Layer { stream: stream.id, spatial, temporal });
                }
            }
            RoomEvent::Disconnected => {
                self.presence.router_lost(Wallclock::now());
                self.note(EventKind::RouterLost);
            }
            RoomEvent::Reconnected => {
                self.presence.router_back(Wallclock::now());
                self.note(EventKind::RouterBack);
                self.retry_now();
            }
            RoomEvent::RoomDestroyed => {
                self.presence.router_back(Wallclock::now());
                let all: Vec<String> = self.streams.keys().cloned().collect();
                for router_id in all {
                    self.gone(&router_id);
                }
                self.presence.clients(0, Wallclock::now());
            }
        }
        self.count_publishing();
    }

    fn present(&mut self, info: StreamInfo) {
        let at_router = info.stream_id.as_deref().unwrap_or(&info.router_id);
        let id = StreamId::of_router(&self.job.row.session, at_router);
        let router_id = info.router_id.clone();
        let known = self.streams.get(&router_id).map(|s| s.info.clone());
        let same_words = known.as_ref().is_some_and(|k| {
            (&k.name, &k.connection_data, k.video_type) == (&info.name, &info.connection_data, info.video_type)
        });
        if !same_words {
            self.note(EventKind::Stream {
                stream: id,
                router_id: router_id.clone(),
                name: info.name.clone(),
                connection_data: info.connection_data.clone(),
                video_type: info.video_type,
            });
        }
        self.note_tracks(id, known.as_ref(), &info);
        for track in &info.tracks {
            let before = known.as_ref().and_then(|k| k.tracks.iter().find(|t| t.mid == track.mid)).map(|t| t.muted);
            if before.unwrap_or(false) != track.muted {
                self.note(EventKind::Muted { stream: id, kind: track.kind, muted: track.muted });
            }
            // The engine may know a new track from an earlier publication, in which it was muted.
            if before != Some(track.muted) {
                let track_id = TrackId { stream: id, kind: track.kind };
                self.expect_engine(self.job.context.engine.set_muted(self.capture, track_id, track.muted));
            }
        }
        match self.streams.get_mut(&router_id) {
            Some(stream) => {
                stream.info = info;
                self.unlink_if_changed(&router_id);
            }
            None => self.add_stream(router_id, id, info),
        }
        self.retry_subscriptions();
    }

    /// Notes what a stream announces, if that is news.
    fn note_tracks(&self, stream: StreamId, known: Option<&StreamInfo>, info: &StreamInfo) {
        let announced = |info: &StreamInfo| -> Vec<Announced> {
            let track = |t: &TrackInfo| Announced { mid: t.mid.clone(), kind: t.kind, codec: t.codec.clone() };
            info.tracks.iter().map(track).collect()
        };
        let tracks = announced(info);
        if known.map(announced).unwrap_or_default() != tracks {
            self.note(EventKind::Tracks { stream, tracks });
        }
        let is_new =
            |kind: &TrackKind| !known.is_some_and(|known| known.tracks.iter().any(|track| track.kind == *kind));
        // A disk that failed before may still fail.
        for kind in info.tracks.iter().map(|track| track.kind).filter(is_new) {
            let track = TrackId { stream, kind };
            if let Some(cause) = self.health.cause(track) {
                self.note_track(track, Some(cause), None);
            }
        }
    }

    fn add_stream(&mut self, router_id: String, id: StreamId, info: StreamInfo) {
        let limit = self.job.context.settings.capture.streams_max;
        let captured = self.streams.values().filter(|stream| stream.over_limit.is_none()).count();
        let over_limit = (captured >= limit).then(Instant::now);
        if over_limit.is_some() {
            let detail = format!("capture.streams_max = {limit} streams are captured already");
            tracing::warn!(stream = %id, limit, "a stream is not captured until another one leaves: raise capture.streams_max");
            self.note(EventKind::Capture {
                stream: id,
                kind: None,
                missing: Some(GapCause::Limit),
                detail: Some(detail),
            });
        }
        let cause = Some(if over_limit.is_some() { GapCause::Limit } else { GapCause::Worker });
        let link = Link::None { retry: Some(Instant::now()) };
        let noted = Missing { cause, detail: None };
        let stream = Stream { info, id, link, over_limit, unsupported: Vec::new(), refusals: 0, noted, told: None };
        self.streams.insert(router_id, stream);
    }

    /// Gives a place that became free to the stream that has waited longest.
    fn take_waiting(&mut self) {
        let limit = self.job.context.settings.capture.streams_max;
        while self.streams.values().filter(|stream| stream.over_limit.is_none()).count() < limit {
            let waiting = self.streams.iter_mut().filter_map(|(router_id, s)| Some((s.over_limit?, router_id, s)));
            let Some((_, router_id, stream)) = waiting.min_by_key(|(since, ..)| *since) else { return };
            stream.over_limit = None;
            tracing::info!(stream = %stream.id, "there is a place now for a stream that was beyond capture.streams_max");
            let router_id = router_id.clone();
            self.note_capture(&router_id, Some(GapCause::Worker), None);
        }
    }

    /// Notes why a stream is not captured, or that it is, if the history does not have it yet.
    fn note_capture(&mut self, router_id: &str, missing: Option<GapCause>, detail: Option<String>) {
        let Some(stream) = self.streams.get_mut(router_id) else { return };
        let news = Missing { cause: missing, detail: detail.clone() };
        // The same cause without a detail says nothing new.
        if stream.noted == news || (stream.noted.cause == missing && news.detail.is_none()) {
            return;
        }
        stream.noted = news;
        let stream = stream.id;
        self.note(EventKind::Capture { stream, kind: None, missing, detail });
    }

    fn note_unsupported(&mut self, router_id: &str, unsupported: &[UnsupportedTrack]) {
        let Some(known) = self.streams.get_mut(router_id) else { return };
        let stream = known.id;
        let now: Vec<TrackKind> = unsupported.iter().map(|track| track.kind).collect();
        let before = std::mem::replace(&mut known.unsupported, now.clone());
        for kind in before.into_iter().filter(|kind| !now.contains(kind)) {
            let track = TrackId { stream, kind };
            self.note_track(track, self.health.cause(track), None);
        }
        for UnsupportedTrack { kind, formats } in unsupported {
            tracing::warn!(%stream, kind = kind.as_str(), formats, "a track is not captured: none of its formats is supported");
            let (missing, detail) = (Some(GapCause::Unsupported), Some(formats.clone()));
            self.note(EventKind::Capture { stream, kind: Some(*kind), missing, detail });
        }
    }

    fn expect_engine(&self, result: Result<(), crate::webrtc::EngineGone>) {
        if let Err(error) = result {
            tracing::error!(fault.kind = "bug", "{error}");
        }
    }

    fn gone(&mut self, router_id: &str) {
        self.unlink(router_id, GapCause::NotSent, false);
        if let Some(stream) = self.streams.remove(router_id) {
            self.note(EventKind::StreamGone { stream: stream.id });
        }
        self.take_waiting();
    }

    /// A subscription to other tracks than those that are archived is made anew.
    fn unlink_if_changed(&mut self, router_id: &str) {
        let Some(Stream { info, link: Link::Live(live), .. }) = self.streams.get(router_id) else { return };
        if live.tracks != wanted_tracks(&self.job.spec.archive, info) {
            self.unlink(router_id, GapCause::Worker, true);
        }
    }

    /// Ends a stream's subscription and peer. `again` makes another one soon.
    fn unlink(&mut self, router_id: &str, cause: GapCause, again: bool) {
        let Some(stream) = self.streams.get_mut(router_id) else { return };
        let retry = again.then(|| Instant::now() + RESUBSCRIBE);
        let link = std::mem::replace(&mut stream.link, Link::None { retry });
        if let Link::Live(live) = link {
            self.peers.remove(&live.peer);
            self.hang_up(&live, cause);
        }
        if again {
            self.note_capture(router_id, Some(cause), None);
        }
    }

    fn hang_up(&mut self, live: &Live, cause: GapCause) {
        self.connected.remove(&live.peer);
        self.expect_engine(self.job.context.engine.remove_peer(live.peer, cause));
        let (control, subscription) = (Arc::clone(&self.control), live.subscription);
        self.chores.spawn(async move { control.unsubscribe(subscription).await });
    }

    /// What could not be subscribed to need not wait any longer: the next event, or tick, tries it.
    fn retry_now(&mut self) {
        for stream in self.streams.values_mut() {
            if let Link::None { retry } = &mut stream.link {
                *retry = Some(Instant::now());
            }
        }
    }

    fn retry_subscriptions(&mut self) {
        let now = Instant::now();
        for (router_id, stream) in &mut self.streams {
            let due = matches!(stream.link, Link::None { retry: Some(at) } if at <= now);
            let tracks = wanted_tracks(&self.job.spec.archive, &stream.info);
            if !due
                || tracks.is_empty()
                || stream.over_limit.is_some()
                || !self.attempts.begin(router_id, &mut stream.link)
            {
                continue;
            }
            let (control, context) = (Arc::clone(&self.control), Arc::clone(&self.job.context));
            let (router_id, id, capture) = (router_id.clone(), stream.id, self.capture);
            let options = self.job.spec.archive.clone();
            self.subscribing.spawn(async move {
                let work = subscribe(control.as_ref(), &context, capture, &router_id, id, &options, tracks);
                // A panic is a failure as any other: the stream is tried again.
                let result = AssertUnwindSafe(work).catch_unwind().await;
                let panicked = || JobFailure { kind: FaultKind::Bug, detail: "panic, see the log".to_owned() };
                let result = result.unwrap_or_else(|_| Err(panicked().into()));
                Subscribed { router_id, result }
            });
        }
    }

    fn subscribed(&mut self, done: Subscribed) {
        let Subscribed { router_id, result } = done;
        let (made, failed) = match result {
            Ok(made) => (Some(made), None),
            Err(failed) => (None, Some(failed)),
        };
        let (live, unsupported) = made.map_or((None, Vec::new()), |made| (Some(made.live), made.unsupported));
        let peer = live.as_ref().map(|live| live.peer);
        let link = self.streams.get_mut(&router_id).map(|stream| &mut stream.link);
        match self.attempts.end(&router_id, live, link, Instant::now()) {
            Ended::Live => self.is_live(&router_id, peer, &unsupported),
            Ended::Failed { unused: Some(live) } => {
                tracing::warn!(router_id, "a subscription was lost before it was complete, making another");
                self.note_capture(&router_id, Some(GapCause::Router), None);
                self.hang_up(&live, GapCause::Router);
            }
            Ended::Failed { unused: None } => {
                failed.into_iter().for_each(|failed| self.not_subscribed(&router_id, failed));
            }
            // The stream left meanwhile.
            Ended::Stale { unused } => unused.into_iter().for_each(|live| self.hang_up(&live, GapCause::NotSent)),
        }
    }

    fn is_live(&mut self, router_id: &str, peer: Option<PeerKey>, unsupported: &[UnsupportedTrack]) {
        self.peers.extend(peer.map(|peer| (peer, router_id.to_owned())));
        if let Some(stream) = self.streams.get_mut(router_id) {
            stream.refusals = 0;
            stream.told = None;
        }
        self.note_unsupported(router_id, unsupported);
        if peer.is_some_and(|peer| self.connected.contains(&peer)) {
            self.note_capture(router_id, None, None);
        }
        // The publisher may have changed its tracks meanwhile.
        self.unlink_if_changed(router_id);
    }

    /// A subscription failed. What is refused for good is tried ever more rarely, and told once.
    fn not_subscribed(&mut self, router_id: &str, failed: NotSubscribed) {
        let Some(stream) = self.streams.get_mut(router_id) else { return };
        let (id, kind, detail) = (stream.id, failed.failure.kind, failed.failure.detail);
        if matches!(failed.cause, GapCause::Refused | GapCause::Unsupported) {
            let pause = REFUSED.delay(stream.refusals, 0.0);
            stream.link = Link::None { retry: Some(Instant::now() + pause) };
            stream.refusals = stream.refusals.saturating_add(1);
        }
        if stream.told.replace(failed.cause) == Some(failed.cause) {
            tracing::debug!(fault.kind = %kind, stream = %id, "still not subscribed: {detail}");
            return;
        }
        tracing::warn!(fault.kind = %kind, stream = %id, cause = failed.cause.as_str(), "not subscribed, trying again: {detail}");
        self.note_unsupported(router_id, &failed.unsupported);
        self.note_capture(router_id, Some(failed.cause), Some(detail));
    }

    async fn renegotiate(&mut self, mut offer: Offer) {
        offer.mids.retain(|(_, kind)| self.job.spec.archive.has(*kind));
        let Some(peer) = self.subscribed_by(offer.subscription).map(|(.., live)| live.peer) else { return };
        // Nothing active is left: the publisher is about to be gone, and its last packets still come.
        if offer.mids.is_empty() {
            return;
        }
        match self.job.context.engine.renegotiate(peer, offer.sdp, offer.mids).await {
            // A connection made anew may take what this one cannot.
            Ok(answer) if !answer.unsupported.is_empty() => {
                if let Some(router_id) = self.peers.get(&peer).cloned() {
                    self.unlink(&router_id, GapCause::Worker, true);
                }
            }
            Ok(answer) => {
                if let Some(router_id) = self.peers.get(&peer).cloned() {
                    self.note_unsupported(&router_id, &[]);
                }
                let (control, subscription, answer) = (Arc::clone(&self.control), offer.subscription, answer.sdp);
                self.chores.spawn(async move {
                    if let Err(error) = control.answer(subscription, answer).await {
                        tracing::warn!("a renegotiation was not answered: {}", chain(&error));
                    }
                });
            }
            Err(PeerError::EngineGone(error)) => tracing::error!(fault.kind = "bug", "{error}"),
            Err(error) => {
                tracing::warn!("a renegotiation failed: {}", chain(&error));
                if let Some(router_id) = self.peers.get(&peer).cloned() {
                    self.unlink(&router_id, GapCause::Router, true);
                }
            }
        }
    }

    fn starved(&mut self, track: TrackId, cause: Option<GapCause>) {
        let changed = self.health.set_starved(track, cause);
        // Packets of a track that was refused say nothing new.
        if self.is_unsupported(track) {
            return;
        }
        if let Some(cause) = cause {
            tracing::warn!(%track, cause = cause.as_str(), "media of a track is missing");
        }
        if changed {
            self.note_track(track, self.health.cause(track), None);
        }
    }

    fn is_unsupported(&self, track: TrackId) -> bool {
        self.streams.values().any(|known| known.id == track.stream && known.unsupported.contains(&track.kind))
    }

    fn note_track(&self, track: TrackId, missing: Option<GapCause>, detail: Option<String>) {
        let TrackId { stream, kind } = track;
        self.note(EventKind::Capture { stream, kind: Some(kind), missing, detail });
    }

    fn capture_event(&mut self, event: CaptureEvent, backlog: &UploadBacklog) {
        match event {
            CaptureEvent::Connected { peer } => {
                self.connected.insert(peer);
                if let Some(router_id) = self.peers.get(&peer).cloned() {
                    self.note_capture(&router_id, None, None);
                }
            }
            CaptureEvent::TrackStarved { track, cause } => self.starved(track, cause),
            CaptureEvent::PeerLost { peer, reason } => match self.peers.get(&peer).cloned() {
                Some(router_id) => {
                    tracing::warn!(reason, "a connection to the media router is lost, making another");
                    self.unlink(&router_id, GapCause::Router, true);
                }
                None => {
                    self.connected.remove(&peer);
                    self.attempts.peer_lost(peer);
                }
            },
            CaptureEvent::FirstMedia { track } => {
                if !std::mem::replace(&mut self.first_media_told, true) && self.job.row.epoch.0 == 1 {
                    let delay = Wallclock::now().since(self.job.row.created_at);
                    metrics().start_delay.observe(delay.as_secs_f64());
                    tracing::info!(%track, delay_ms = delay.as_millis(), "first media is on disk");
                }
            }
            CaptureEvent::Sealed { segments } => {
                if !segments.is_empty() {
                    backlog.sealed(&segments);
                }
            }
            CaptureEvent::StorageFailed { track, reason } => {
                tracing::error!(fault.kind = "spool_io", %track, "media is lost until the disk takes it again: {reason}");
                self.health.set_failing(track, true);
                if !self.is_unsupported(track) {
                    self.note_track(track, Some(GapCause::Storage), Some(reason));
                }
            }
            CaptureEvent::StorageRecovered { track } => {
                tracing::info!(%track, "the disk takes media again");
                if self.health.set_failing(track, false) && !self.is_unsupported(track) {
                    self.note_track(track, self.health.cause(track), None);
                }
            }
        }
    }
}
