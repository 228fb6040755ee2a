//! Watches the rooms of one media router: lists their clients, and applies the rules.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::hint::Hint;
use super::outbox::Outbox;
use super::rules::{self, Action, NewestJob, RoomSnapshot, RoomState, SessionState};
use crate::catalog::{CatalogError, SessionRow, SharedCatalog};
use crate::config::BridgeSection;
use crate::model::fault::{Backoff, chain};
use crate::model::ids::{RoomId, RouterName, SessionId};
use crate::model::session::RouterRoom;
use crate::model::time::Wallclock;
use crate::router::{ListedRoom, MediaRouter, RouterError};

/// How long a room without a session is not looked up again. A session's row is written before its room is created, so a room
/// hardly ever gets a session later.
const UNKNOWN_ROOM_FOR: Duration = Duration::from_secs(60);
/// Before a start is published again that has no job yet: all workers may be full.
const REPUBLISH: Backoff = Backoff { first: Duration::from_secs(10), max: Duration::from_secs(300) };
/// Before a start is published again after the broker failed.
const REPUBLISH_AFTER_FAILURE: Backoff = Backoff { first: Duration::from_secs(2), max: Duration::from_secs(60) };

/// A hint comes within this after what it tells of.
const HINTED_WITHIN: Duration = Duration::from_secs(1);

/// Why a room is scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trigger {
    /// It is time.
    Poll,
    /// The router says that something has changed there.
    Hint,
}

/// Why a scan was not finished.
#[derive(Debug, thiserror::Error)]
enum ScanError {
    #[error(transparent)]
    Router(#[from] RouterError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// Limits how often the start of one conversation is published.
#[derive(Debug, Default)]
struct Throttle {
    conversation: i64,
    /// When the first attempt was made.
    began: Option<Wallclock>,
    attempts: u32,
    not_before: Option<Instant>,
}

/// A room of the router.
#[derive(Debug, Default)]
struct WatchedRoom {
    session: Option<SessionRow>,
    /// Since when the room is known to have no session.
    unknown_since: Option<Instant>,
    state: RoomState,
    throttle: Throttle,
    /// When the room was last seen without a stream.
    without_stream_at: Option<Instant>,
    /// Since when the router lists the room as empty.
    unused_since: Option<Instant>,
    /// Participants when the room was last listed, archivers included.
    participants: usize,
}

pub(super) struct RouterWatcher {
    catalog: SharedCatalog,
    name: RouterName,
    router: Arc<dyn MediaRouter>,
    outbox: Outbox,
    settings: BridgeSection,
    rooms: BTreeMap<RoomId, WatchedRoom>,
    /// When all rooms were last scanned: a room that appears later was empty then.
    scanned_all: Option<Instant>,
    /// Router or catalog are unavailable, and this has been logged.
    unavailable: bool,
}

impl RouterWatcher {
    pub fn new(
        catalog: SharedCatalog,
        name: RouterName,
        router: Arc<dyn MediaRouter>,
        outbox: Outbox,
        settings: BridgeSection,
    ) -> Self {
        Self { catalog, name, router, outbox, settings, rooms: BTreeMap::new(), scanned_all: None, unavailable: false }
    }

    /// Forgets all rooms, as after a restart.
    pub fn reset(&mut self) {
        self.rooms.clear();
        self.scanned_all = None;
    }

    /// Scans rooms until dropped, or until all senders of hints are.
    pub async fn run(&mut self, hints: &mut mpsc::Receiver<Hint>) {
        let mut poll = interval(self.settings.poll.0);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut due = BTreeSet::new();
            tokio::select! {
                _ = poll.tick() => drop(due.insert(Hint::AllRooms)),
                hint = hints.recv() => match hint {
                    Some(hint) => drop(due.insert(hint)),
                    None => return,
                },
            }
            while let Ok(hint) = hints.try_recv() {
                due.insert(hint);
            }
            let scanned = if due.contains(&Hint::AllRooms) {
                self.scan_all_rooms().await
            } else {
                self.scan_hinted_rooms(due).await
            };
            self.log(scanned);
        }
    }

    /// Logs an outage when it begins and when it ends.
    fn log(&mut self, scanned: Result<(), ScanError>) {
        match scanned {
            Ok(()) if std::mem::take(&mut self.unavailable) => {
                tracing::info!(router = %self.name, "rooms can be watched again");
            }
            Ok(()) => {}
            Err(error) => {
                let text = chain(&error);
                if !std::mem::replace(&mut self.unavailable, true) {
                    tracing::warn!(router = %self.name, "rooms cannot be watched: {text}");
                } else {
                    tracing::debug!(router = %self.name, "rooms cannot be watched: {text}");
                }
            }
        }
    }

    async fn scan_hinted_rooms(&mut self, hints: BTreeSet<Hint>) -> Result<(), ScanError> {
        let mut first_error = Ok(());
        for hint in hints {
            if let Hint::Room(room) = hint {
                let scanned = self.scan(&room, Trigger::Hint).await;
                keep_first_error(&mut first_error, scanned)?;
            }
        }
        first_error
    }

    async fn scan_all_rooms(&mut self) -> Result<(), ScanError> {
        let began = Instant::now();
        let listed = self.router.list_rooms().await?;
        let recorded = self.catalog.recorded_sessions(&self.name).await?;
        let listed_ids: BTreeSet<&RoomId> = listed.iter().map(|room| &room.room).collect();
        self.recreate_missing_rooms(&recorded, &listed_ids).await;
        self.rooms.retain(|room, _| listed_ids.contains(room));
        let recorded_ids: BTreeSet<&SessionId> = recorded.iter().map(|session| &session.session).collect();
        let mut first_error = Ok(());
        for room in &listed {
            let watched = self.watched_room(&room.room);
            watched.participants = room.participants;
            let scanned = if room.participants > 0 {
                watched.unused_since = None;
                self.scan(&room.room, Trigger::Poll).await
            } else {
                watched.state.mark_empty();
                watched.without_stream_at = Some(began);
                self.remove_if_unused(room, &recorded_ids).await
            };
            keep_first_error(&mut first_error, scanned)?;
        }
        self.scanned_all = Some(began);
        first_error
    }

    /// Creates rooms again that are missing although they are needed, as after a restart of the router: rooms of sessions that are
    /// being recorded, and rooms that had participants.
    async fn recreate_missing_rooms(&self, recorded: &[SessionRow], listed: &BTreeSet<&RoomId>) {
        let used = self.rooms.values().filter(|room| room.participants > 0);
        let needed = recorded.iter().chain(used.filter_map(|room| room.session.as_ref()));
        for (session, place) in needed.filter_map(|session| Some((session, session.router.as_ref()?))) {
            if listed.contains(&place.room) {
                continue;
            }
            match self.router.create_room(place, &session.session).await {
                Ok(true) => {
                    tracing::info!(router = %self.name, session = %session.session, "missing room created again");
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(router = %self.name, session = %session.session, "missing room cannot be created again: {}", chain(&error));
                }
            }
        }
    }

    /// Removes a room that this program created and nobody has used for a while.
    async fn remove_if_unused(
        &mut self,
        listed: &ListedRoom,
        recorded: &BTreeSet<&SessionId>,
    ) -> Result<(), ScanError> {
        let Ok(owner) = listed.about.parse::<SessionId>() else { return Ok(()) };
        let Some(room) = self.rooms.get_mut(&listed.room) else { return Ok(()) };
        let since = *room.unused_since.get_or_insert_with(Instant::now);
        if recorded.contains(&owner) || since.elapsed() < self.settings.remove_rooms_after.0 {
            return Ok(());
        }
        self.load_session_of_room(&listed.room).await?;
        let session = self.rooms.get(&listed.room).and_then(|room| room.session.as_ref());
        // A room that only has such a description belongs to the platform.
        let Some(place) = session.filter(|s| s.session == owner).and_then(|s| s.router.as_ref()) else { return Ok(()) };
        if self.router.remove_room(place).await? {
            tracing::info!(router = %self.name, session = %owner, "unused room removed");
        }
        Ok(())
    }

    /// The watcher's entry of a room, new if need be.
    fn watched_room(&mut self, room: &RoomId) -> &mut WatchedRoom {
        let was_empty_at = self.scanned_all;
        self.rooms.entry(room.clone()).or_insert_with(|| WatchedRoom {
            state: if was_empty_at.is_some() { RoomState::of_empty_room() } else { RoomState::default() },
            without_stream_at: was_empty_at,
            ..WatchedRoom::default()
        })
    }

    /// Loads the room's session from the catalog, unless it is known already.
    async fn load_session_of_room(&mut self, room: &RoomId) -> Result<(), ScanError> {
        let watched = self.watched_room(room);
        if watched.session.is_some() || watched.unknown_since.is_some_and(|since| since.elapsed() < UNKNOWN_ROOM_FOR) {
            return Ok(());
        }
        let session = self.catalog.session_of_room(&self.name, room).await?;
        let watched = self.watched_room(room);
        watched.unknown_since = session.is_none().then(Instant::now);
        watched.session = session;
        Ok(())
    }

    /// Lists the clients in a room, and does what the rules decide.
    async fn scan(&mut self, room: &RoomId, trigger: Trigger) -> Result<(), ScanError> {
        self.load_session_of_room(room).await?;
        let Some(watched) = self.rooms.get_mut(room) else { return Ok(()) };
        let Some(session) = watched.session.clone().filter(rules::is_automatic) else { return Ok(()) };
        let asked_at = Instant::now();
        let snapshot = match self.router.participants(room).await {
            Ok(list) => RoomSnapshot::of(&list),
            Err(RouterError::RoomNotFound { .. }) => RoomSnapshot::default(),
            Err(error) => return Err(error.into()),
        };
        if snapshot.publishing.is_empty() {
            watched.without_stream_at = Some(asked_at);
        }
        if snapshot.clients.is_empty() {
            watched.state.mark_empty();
            return Ok(());
        }
        // The order matters: the job must not be older than the conversation, nor the conversation older than the snapshot.
        let conversation = self.conversation(&session).await?;
        let job = rules::job_of_conversation(&session.session, conversation);
        let has_job = conversation > 0 && self.catalog.job(job).await?.is_some();
        let newest = self.catalog.newest_job(&session.application, &session.session, "").await?;
        let (newest, now) = (NewestJob::of(newest.as_ref()), Wallclock::now());
        let Some(watched) = self.rooms.get_mut(room) else { return Ok(()) };
        watched.state.observe(&snapshot, newest, now);
        let occupied_since = watched.state.occupied_since().unwrap_or(now);
        // What a hint tells of has just happened, unless scans have failed since.
        let is_prompt = |at: &Instant| trigger == Trigger::Hint && at.elapsed() < self.settings.poll.0 + HINTED_WITHIN;
        let without_stream_at = watched.without_stream_at.map(|at| if is_prompt(&at) { asked_at } else { at });
        match rules::decide(SessionState { conversation, has_job, newest }, &watched.state, &snapshot, now) {
            Action::None => {}
            Action::Resume(job) => {
                let now = self.catalog.clock().await?;
                let without_stream_at = without_stream_at.map(|at| now.before(at.elapsed()));
                if self.catalog.resume_job(job, "bridge", without_stream_at, now).await? {
                    tracing::info!(router = %self.name, session = %session.session, %job, "somebody publishes, the waiting job is resumed");
                }
            }
            Action::PublishStart => {
                self.publish_start(&session, conversation, occupied_since, &snapshot).await;
            }
            Action::BeginConversation => {
                // If another process was faster, the next scan finds its conversation.
                if self.catalog.begin_conversation(&session.session, conversation).await? {
                    self.publish_start(&session, conversation + 1, occupied_since, &snapshot).await;
                }
            }
        }
        Ok(())
    }

    async fn conversation(&self, session: &SessionRow) -> Result<i64, ScanError> {
        let row = self.catalog.session(&session.application, &session.session).await?;
        Ok(row.map_or(session.conversation, |row| row.conversation))
    }

    /// Publishes the start of a conversation, unless the throttle forbids it.
    async fn publish_start(
        &mut self,
        session: &SessionRow,
        conversation: i64,
        occupied_since: Wallclock,
        snapshot: &RoomSnapshot,
    ) {
        let Some(RouterRoom { room, .. }) = &session.router else { return };
        let Some(watched) = self.rooms.get_mut(room) else { return };
        let throttle = &mut watched.throttle;
        if throttle.conversation != conversation {
            *throttle = Throttle { conversation, ..Throttle::default() };
        }
        if throttle.not_before.is_some_and(|at| Instant::now() < at) {
            return;
        }
        // A further conversation begins when it is decided on, however long its room was occupied before. An event says for how long it waited.
        let began = *throttle.began.get_or_insert_with(Wallclock::now);
        let started_at = if conversation > 0 { began } else { occupied_since };
        let published = self.outbox.publish(rules::start_event(session, conversation, started_at)).await;
        let wait = if published.is_ok() { REPUBLISH } else { REPUBLISH_AFTER_FAILURE };
        throttle.not_before = Some(Instant::now() + wait.delay(throttle.attempts, rand::random()));
        let is_first = throttle.attempts == 0;
        throttle.attempts = throttle.attempts.saturating_add(1);
        let (router, session, region) = (&self.name, &session.session, &session.region);
        match published {
            Ok(()) => {
                watched.state.archive_started(snapshot);
                tracing::info!(%router, %session, %region, conversation, "conversation begins, session.started published");
            }
            Err(error) if is_first => {
                let text = chain(&error);
                tracing::warn!(%router, %session, %region, conversation, "session.started cannot be published, will retry: {text}");
            }
            Err(error) => {
                tracing::debug!(%router, %session, %region, conversation, "session.started cannot be published: {}", chain(&error));
            }
        }
    }
}

/// Keeps the first error of a scan, so that one failing room does not stop the scan of the others. Returns an error at once if
/// router or catalog are unavailable.
fn keep_first_error(first: &mut Result<(), ScanError>, scanned: Result<(), ScanError>) -> Result<(), ScanError> {
    use {CatalogError as C, RouterError as R, ScanError as L};
    match scanned {
        Err(
            unavailable @ (L::Router(R::Unavailable { .. } | R::Timeout { .. }) | L::Catalog(C::Unavailable { .. })),
        ) => Err(unavailable),
        Err(error) if first.is_ok() => {
            *first = Err(error);
            Ok(())
        }
        _ => Ok(()),
    }
}
