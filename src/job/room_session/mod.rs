//! One session while it is captured: which streams are there, what is subscribed to, and when it ends.

mod streams;
mod subscriptions;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::task::TaskTracker;

use crate::catalog::ArchiveRow;
use crate::job::desired;
use crate::job::hand_over::WantedTrack;
use crate::job::link::{Attempts, Link, LinkKey, Live, RESUBSCRIBE, Slot};
use crate::job::presence::{MAX_DURATION_EXCEEDED, Presence};
use crate::job::rollover::roll_over;
use crate::job::stage::{CaptureOutcome, ControlReceivers, Transition};
use crate::job::stream_ids::StreamIds;
use crate::job::subscribe::{Made, NotSubscribed};
use crate::job::track_health::TrackHealth;
use crate::job::{Job, JobFailure, hand_over};
use crate::model::archive_options::OutputMode;
use crate::model::desired::{Desired, Selection};
use crate::model::fault::{Backoff, chain};
use crate::model::ids::{Epoch, StreamId, TrackId, TrackKind};
use crate::model::media::GapCause;
use crate::model::time::{MediaClock, MediaTime, Wallclock};
use crate::recording::history::{EventKind, History};
use crate::recording::upload::UploadBacklog;
use crate::router::{Room, RoomControl, RoomEvent, StreamInfo, TrackInfo};
use crate::runtime::metrics::metrics;
use crate::webrtc::{CaptureEvent, CaptureKey, PeerKey};

/// How often the session's end is looked at.
const TICK: Duration = Duration::from_millis(200);
/// If the session's task does not run for so long, the process stood still.
const STILL_MIN: Duration = Duration::from_secs(2);
/// Between two tries to subscribe to a stream that the router or the negotiation refuses.
const REFUSED: Backoff = Backoff { first: RESUBSCRIBE, max: Duration::from_secs(60) };
/// An archive that is as long as one may be goes on for so long beside its successor, which joins meanwhile.
pub(super) const OVERLAP: Duration = Duration::from_secs(5);
/// A disk that takes no media for so long, and no other file either, ends the capture here: another machine goes on.
const STORAGE_FAILS_MAX: Duration = Duration::from_secs(3);

/// A stream that is in the room.
struct Stream {
    info: StreamInfo,
    id: StreamId,
    first: StreamLink,
    /// The subscription to a track that was added later, such as a camera that was switched on.
    added: StreamLink,
    /// The session has as many streams as are captured: this one waits for a place since then.
    over_limit: Option<Instant>,
    /// Tracks whose formats the negotiation refused.
    unsupported: Vec<TrackKind>,
    /// Why the stream is not captured, as the history has it.
    noted: Missing,
    /// The router said that its media is encrypted end to end.
    encrypted: bool,
}

/// One of a stream's subscriptions, and how the attempts at it ended.
struct StreamLink {
    link: Link,
    /// Attempts that failed for good, one after the other.
    refusals: u32,
    /// The failure that the log has; told again when the tracks were captured meanwhile, or fail for another cause.
    told: Option<GapCause>,
}

impl StreamLink {
    /// None yet; the first attempt is made at `retry`, if at all.
    const fn new(retry: Option<Instant>) -> Self {
        Self { link: Link::None { retry }, refusals: 0, told: None }
    }

    const fn live(&self) -> Option<&Live> {
        match &self.link {
            Link::Live(live) => Some(live),
            Link::None { .. } | Link::Pending => None,
        }
    }
}

impl Stream {
    const fn slot(&mut self, slot: Slot) -> &mut StreamLink {
        match slot {
            Slot::First => &mut self.first,
            Slot::Added => &mut self.added,
        }
    }

    /// The subscriptions that are live.
    fn lives(&self) -> impl Iterator<Item = &Live> {
        self.first.live().into_iter().chain(self.added.live())
    }
}

/// Why a stream is not captured, if it is not.
#[derive(Default, PartialEq, Eq)]
struct Missing {
    cause: Option<GapCause>,
    detail: Option<String>,
}

/// What a subscription task brings back.
struct Subscribed {
    key: LinkKey,
    result: Result<Made, NotSubscribed>,
}

/// A capture that was opened.
#[derive(Clone, Copy)]
pub(super) struct OpenCapture {
    pub key: CaptureKey,
    /// Events have the times of its media.
    pub clock: MediaClock,
}

/// A session that is captured, with all that its events change.
pub(super) struct Session<'a> {
    job: &'a Job,
    capture: CaptureKey,
    clock: MediaClock,
    control: Arc<dyn RoomControl>,
    history: History,
    /// What of the desired changes is in the history.
    noted: Desired,
    presence: Presence,
    streams: BTreeMap<String, Stream>,
    ids: StreamIds,
    peers: HashMap<PeerKey, LinkKey>,
    /// Peers that are connected, and since when; also those whose subscription is still being made.
    connected: HashMap<PeerKey, Instant>,
    health: TrackHealth,
    attempts: Attempts,
    subscribing: JoinSet<Subscribed>,
    /// Requests to the router whose answer nobody waits for.
    chores: TaskTracker,
    first_media_told: bool,
    /// When this task ran last.
    ran_at: MediaTime,
    /// Tracks that have media.
    captured: HashSet<TrackId>,
    /// When a next owner entered the room; `None` for a first owner, and once it has reported that it captures every track.
    reports_since: Option<Instant>,
    /// Since when media of some track cannot be written.
    storage_fails_since: Option<Instant>,
}

/// What developers see of the archive.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// Nothing has been recorded yet: there is no archive.
    Nothing,
    Started,
    Paused,
}

/// How far a job is that gives its session to a successor.
enum RollingOver<'a> {
    No,
    /// The catalog is told.
    Begun(BoxFuture<'a, Result<Transition, JobFailure>>),
    /// The successor joins; ours ends then.
    Until(Instant),
    /// Another worker has taken the job, and gives the session to the successor.
    NextOwner,
}

impl<'a> Session<'a> {
    /// A session in a room that was entered.
    pub(super) fn new(
        job: &'a Job,
        capture: OpenCapture,
        control: Arc<dyn RoomControl>,
        history: History,
        noted: Desired,
        ids: StreamIds,
        presence: Presence,
    ) -> Self {
        Self {
            job,
            capture: capture.key,
            clock: capture.clock,
            control,
            history,
            noted,
            presence,
            streams: BTreeMap::new(),
            ids,
            peers: HashMap::new(),
            connected: HashMap::new(),
            health: TrackHealth::default(),
            attempts: Attempts::default(),
            subscribing: JoinSet::new(),
            chores: TaskTracker::new(),
            first_media_told: false,
            ran_at: capture.clock.now(),
            captured: HashSet::new(),
            reports_since: (job.row.epoch > Epoch(1)).then(Instant::now),
            storage_fails_since: None,
        }
    }

    /// Ends what was begun beside it, and notes how it ended once all media is sealed.
    pub(super) async fn end(&mut self) {
        self.subscribing.shutdown().await;
        self.chores.close();
        self.chores.wait().await;
    }

    /// Whether an archive that ended with `reason` would be one of nothing.
    pub(super) fn is_empty(&self, reason: &str, ended: Wallclock) -> bool {
        self.presence.is_empty(reason, ended)
    }

    pub(super) fn now(&self) -> MediaTime {
        self.clock.now()
    }

    fn note(&self, kind: EventKind) {
        self.note_at(self.now(), kind);
    }

    /// The history is for people and layouts; a disk that cannot take it must not end a capture.
    pub(super) fn note_at(&self, at: MediaTime, kind: EventKind) {
        // The next owner says what happens in the room from now on. What this one notes late would contradict it.
        if self.job.is_taken() {
            return;
        }
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
        let mut shown = self.shown();
        let mut rolling_over = RollingOver::No;
        let mut handed_over = pin!(hand_over::hand_over(self.job));
        loop {
            // A successor joins within seconds: this archive ends then.
            let may_let_go = !matches!(rolling_over, RollingOver::Until(_));
            let begun = async {
                match &mut rolling_over {
                    RollingOver::Begun(rollover) => rollover.await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                transition = begun => match transition {
                    Ok(Transition::Made) => rolling_over = RollingOver::Until(Instant::now() + OVERLAP),
                    Ok(Transition::Fenced) if self.job.is_offered() => rolling_over = RollingOver::NextOwner,
                    Ok(Transition::Fenced) => return CaptureOutcome::Fenced,
                    // The driver does it again, and decides.
                    Err(_) => return CaptureOutcome::Ended(MAX_DURATION_EXCEEDED.to_owned()),
                },
                () = self.job.fenced.cancelled() => return CaptureOutcome::Fenced,
                () = &mut handed_over, if may_let_go => return CaptureOutcome::Drained,
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
                    self.note_stood_still();
                    if let Some(trouble) = self.trouble() {
                        return CaptureOutcome::Failing(trouble);
                    }
                    if let RollingOver::Until(end) = &rolling_over && *end <= Instant::now() {
                        return CaptureOutcome::Ended(MAX_DURATION_EXCEEDED.to_owned());
                    }
                    if let RollingOver::No = &rolling_over {
                        // The end may have been requested before this worker had the job.
                        if let Some(reason) = end_reason.borrow().clone() {
                            return CaptureOutcome::Ended(reason);
                        }
                        match self.presence.ended(self.clock.wallclock()) {
                            Some(reason) if reason.vonage() == MAX_DURATION_EXCEEDED && self.job.is_automatic() => {
                                rolling_over = RollingOver::Begun(Box::pin(roll_over(self.job, MAX_DURATION_EXCEEDED)));
                            }
                            Some(reason) => return CaptureOutcome::Ended(reason.vonage().to_owned()),
                            None => {}
                        }
                    }
                    self.retry_subscriptions();
                    self.report_captured();
                }
            }
            if std::mem::replace(&mut shown, self.shown()) != shown {
                let now = self.clock.wallclock();
                let row = self.job.archive_row(now);
                status.send_replace(Some(if shown == Shown::Paused { row.paused(now) } else { row }));
            }
        }
    }

    /// Notes a time in which this task did not run, because the process or its machine stood still (SIGSTOP, a paused virtual machine) or was
    /// overloaded. Media that is missing from that time is put down to the worker, not to the publishers.
    pub(super) fn note_stood_still(&mut self) {
        let now = self.now();
        let before = std::mem::replace(&mut self.ran_at, now);
        let still = before.until(now);
        if still < STILL_MIN {
            return;
        }
        tracing::warn!(
            still_ms = still.as_millis(),
            "the process stood still or was overloaded: media that is missing from this time is put down to this worker"
        );
        for stream in self.streams.values().filter(|stream| stream.noted.cause.is_none()) {
            let note = |missing| EventKind::Capture { stream: stream.id, kind: None, missing, detail: None };
            self.note_at(before, note(Some(GapCause::Worker)));
            self.note_at(now, note(None));
        }
    }

    /// What is wrong with this machine, if it has lost media for long, so that another machine should go on.
    fn trouble(&self) -> Option<String> {
        let since = self.storage_fails_since?;
        (since.elapsed() >= STORAGE_FAILS_MAX).then(|| self.job.context.health.trouble()).flatten()
    }

    /// Reports once when a next owner has media of every track: the owner before may still capture, and let go then.
    fn report_captured(&mut self) {
        let Some(since) = self.reports_since else { return };
        let captures = |stream: &&Stream| stream.over_limit.is_none();
        let tracks: Vec<WantedTrack> =
            self.streams.values().filter(captures).flat_map(|stream| self.wanted_tracks(stream)).collect();
        if hand_over::has_every_track(&tracks, since.elapsed()) {
            self.reports_since = None;
            self.chores.spawn(hand_over::report_captured(self.job));
        }
    }

    /// The tracks of a stream that can be captured.
    fn wanted_tracks(&self, stream: &Stream) -> Vec<WantedTrack> {
        let connected = |mid: &String| {
            let live = stream.lives().find(|live| live.tracks.contains(mid))?;
            self.connected.get(&live.peer).map(Instant::elapsed)
        };
        let is_wanted = |kind: TrackKind| self.job.spec.archive.has(kind) && !stream.unsupported.contains(&kind);
        let wanted = stream.info.tracks.iter().filter(|track| is_wanted(track.kind));
        let state = |track: &TrackInfo| WantedTrack {
            has_media: self.captured.contains(&TrackId { stream: stream.id, kind: track.kind }),
            connected: connected(&track.mid),
        };
        wanted.map(state).collect()
    }

    fn shown(&self) -> Shown {
        let has_begun = !self.job.is_automatic() || self.presence.has_begun(self.clock.wallclock());
        match (has_begun, self.presence.paused()) {
            (false, _) => Shown::Nothing,
            (true, true) => Shown::Paused,
            (true, false) => Shown::Started,
        }
    }

    async fn room_event(&mut self, event: RoomEvent) {
        self.note_stood_still();
        match event {
            RoomEvent::StreamPresent(info) => self.present(info),
            RoomEvent::StreamGone { router_id } => self.gone(&router_id),
            RoomEvent::Clients { count } => self.presence.clients(count, self.clock.wallclock()),
            RoomEvent::Talking { .. } => {}
            RoomEvent::Renegotiate(offer) => self.renegotiate(offer).await,
            RoomEvent::SubscriptionLost { subscription } => {
                match self.subscribed_by(subscription).and_then(|(.., live)| self.peers.get(&live.peer)).cloned() {
                    Some(key) => self.unlink_one(&key, GapCause::Router),
                    None => self.attempts.subscription_lost(subscription),
                }
            }
            RoomEvent::LayerChanged { subscription, spatial, temporal } => {
                if let Some((_, stream, _)) = self.subscribed_by(subscription) {
                    self.note(EventKind::Layer { stream: stream.id, spatial, temporal });
                }
            }
            RoomEvent::EncryptionRequired => {
                for router_id in self.streams.keys().cloned().collect::<Vec<_>>() {
                    self.is_encrypted(&router_id);
                }
            }
            RoomEvent::Disconnected => {
                self.presence.router_lost(self.clock.wallclock());
                self.note(EventKind::RouterLost);
            }
            RoomEvent::Reconnected => {
                self.presence.router_back(self.clock.wallclock());
                self.note(EventKind::RouterBack);
                self.retry_now();
            }
            RoomEvent::RoomDestroyed => {
                self.presence.router_back(self.clock.wallclock());
                let all: Vec<String> = self.streams.keys().cloned().collect();
                for router_id in all {
                    self.gone(&router_id);
                }
                self.presence.clients(0, self.clock.wallclock());
            }
        }
        self.count_publishing();
    }

    fn expect_engine(&self, result: Result<(), crate::webrtc::EngineGone>) {
        if let Err(error) = result {
            tracing::error!(fault.kind = "bug", "{error}");
        }
    }

    fn starved(&mut self, track: TrackId, cause: Option<GapCause>) {
        let changed = self.health.set_starved(track, cause);
        self.note_storage();
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

    /// Notes since when the disk loses media.
    fn note_storage(&mut self) {
        if !self.health.is_failing() {
            self.storage_fails_since = None;
        } else if self.storage_fails_since.is_none() {
            self.storage_fails_since = Some(Instant::now());
            self.job.context.health.suspect();
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
        self.note_stood_still();
        match event {
            CaptureEvent::Connected { peer } => {
                self.connected.entry(peer).or_insert_with(Instant::now);
                if let Some(key) = self.peers.get(&peer).cloned() {
                    self.note_link(&key, None, None);
                }
            }
            CaptureEvent::TrackStarved { track, cause } => self.starved(track, cause),
            CaptureEvent::PeerLost { peer, reason } => match self.peers.get(&peer).cloned() {
                Some(key) => {
                    tracing::warn!(reason, "a connection to the media router is lost, making another");
                    self.unlink_one(&key, GapCause::Router);
                }
                None => {
                    self.connected.remove(&peer);
                    self.attempts.peer_lost(peer);
                }
            },
            CaptureEvent::FirstMedia { track } => {
                self.captured.insert(track);
                self.presence.captured(self.clock.wallclock());
                if !std::mem::replace(&mut self.first_media_told, true) && self.job.row.epoch.0 == 1 {
                    let delay = self.clock.wallclock().since(self.job.row.created_at);
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
                self.note_storage();
                if !self.is_unsupported(track) {
                    self.note_track(track, Some(GapCause::Storage), Some(reason));
                }
            }
            CaptureEvent::StorageRecovered { track } => {
                tracing::info!(%track, "the disk takes media again");
                let changed = self.health.set_failing(track, false);
                self.note_storage();
                if changed && !self.is_unsupported(track) {
                    self.note_track(track, self.health.cause(track), None);
                }
            }
        }
    }
}
