//! The watch over one media router: looks who is in its rooms, and does what the rules say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::hint::Hint;
use super::outbox::Outbox;
use super::rules::{self, Decision, Known, Look, Memory, Newest};
use crate::catalog::{CatalogError, SessionRow, SharedCatalog};
use crate::config::BridgeSection;
use crate::model::fault::{Backoff, chain};
use crate::model::ids::{RoomId, RouterName, SessionId};
use crate::model::session::RouterRoom;
use crate::model::time::Wallclock;
use crate::router::{ListedRoom, MediaRouter, RouterError};

/// A room that is no session's is asked for again after this: rooms are made after their sessions, so it hardly ever changes.
const STRANGE_FOR: Duration = Duration::from_secs(60);
/// Before a start is told again that has made no job yet: workers may be full.
const AGAIN: Backoff = Backoff { first: Duration::from_secs(10), max: Duration::from_secs(300) };
/// Before a start is told again that was not taken.
const NOT_TAKEN: Backoff = Backoff { first: Duration::from_secs(2), max: Duration::from_secs(60) };

/// Why a look was not finished.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Router(#[from] RouterError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// When a start may be told again.
#[derive(Debug, Default)]
struct Throttle {
    conversation: i64,
    told: u32,
    not_before: Option<Instant>,
}

/// What is known of a room.
#[derive(Debug, Default)]
struct Room {
    session: Option<SessionRow>,
    /// When it was found to be no session's.
    strange_since: Option<Instant>,
    memory: Memory,
    throttle: Throttle,
    /// Since when it is listed without anybody in it.
    unused_since: Option<Instant>,
    /// How many were there, archivers included, when it was last listed.
    participants: usize,
}

pub(super) struct Watch {
    catalog: SharedCatalog,
    name: RouterName,
    router: Arc<dyn MediaRouter>,
    outbox: Outbox,
    settings: BridgeSection,
    rooms: BTreeMap<RoomId, Room>,
    /// Everything was looked at since this process began: a room that is new now was empty before.
    looked: bool,
    /// The router, or the catalog, could not be asked; it was said.
    lost: bool,
}

impl Watch {
    pub fn new(
        catalog: SharedCatalog,
        name: RouterName,
        router: Arc<dyn MediaRouter>,
        outbox: Outbox,
        settings: BridgeSection,
    ) -> Self {
        Self { catalog, name, router, outbox, settings, rooms: BTreeMap::new(), looked: false, lost: false }
    }

    /// Begins anew.
    pub fn forget(&mut self) {
        self.rooms.clear();
        self.looked = false;
    }

    /// Looks until it is dropped, or nobody gives hints any more.
    pub async fn run(&mut self, hints: &mut mpsc::Receiver<Hint>) {
        let mut poll = interval(self.settings.poll.0);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut wanted = BTreeSet::new();
            tokio::select! {
                _ = poll.tick() => drop(wanted.insert(Hint::Everything)),
                hint = hints.recv() => match hint {
                    Some(hint) => drop(wanted.insert(hint)),
                    None => return,
                },
            }
            while let Ok(hint) = hints.try_recv() {
                wanted.insert(hint);
            }
            let looked = if wanted.contains(&Hint::Everything) {
                self.look_at_everything().await
            } else {
                self.look_at(wanted).await
            };
            self.told(looked);
        }
    }

    fn told(&mut self, looked: Result<(), LookError>) {
        match looked {
            Ok(()) if std::mem::take(&mut self.lost) => {
                tracing::info!(router = %self.name, "its rooms can be watched again");
            }
            Ok(()) => {}
            Err(error) => {
                let text = chain(&error);
                if !std::mem::replace(&mut self.lost, true) {
                    tracing::warn!(router = %self.name, "its rooms cannot be watched for now: {text}");
                } else {
                    tracing::debug!(router = %self.name, "its rooms cannot be watched for now: {text}");
                }
            }
        }
    }

    async fn look_at(&mut self, hints: BTreeSet<Hint>) -> Result<(), LookError> {
        let mut first = Ok(());
        for hint in hints {
            if let Hint::Room(room) = hint {
                let looked = self.look(&room).await;
                keep_first(&mut first, looked)?;
            }
        }
        first
    }

    async fn look_at_everything(&mut self) -> Result<(), LookError> {
        let listed = self.router.list_rooms().await?;
        let recorded = self.catalog.recorded_sessions(&self.name).await?;
        let there: BTreeSet<&RoomId> = listed.iter().map(|room| &room.room).collect();
        self.make_again(&recorded, &there).await;
        self.rooms.retain(|room, _| there.contains(room));
        let busy: BTreeSet<&SessionId> = recorded.iter().map(|session| &session.session).collect();
        let mut first = Ok(());
        for room in &listed {
            let looked = self.looked;
            let known = self.rooms.entry(room.room.clone()).or_insert_with(|| new_room(looked));
            known.participants = room.participants;
            let looked = if room.participants > 0 {
                known.unused_since = None;
                self.look(&room.room).await
            } else {
                known.memory.empty();
                self.tidy(room, &busy).await
            };
            keep_first(&mut first, looked)?;
        }
        self.looked = true;
        first
    }

    /// Rooms that are gone although they are needed, as after a restart of the router: those of archives that are being
    /// recorded, and those that somebody was in.
    async fn make_again(&self, recorded: &[SessionRow], there: &BTreeSet<&RoomId>) {
        let used = self.rooms.values().filter(|room| room.participants > 0);
        let needed = recorded.iter().chain(used.filter_map(|room| room.session.as_ref()));
        for (session, place) in needed.filter_map(|session| Some((session, session.router.as_ref()?))) {
            if there.contains(&place.room) {
                continue;
            }
            match self.router.create_room(place, &session.session).await {
                Ok(true) => tracing::info!(router = %self.name, session = %session.session, "its room is made again"),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(router = %self.name, session = %session.session, "its room is not made again: {}", chain(&error));
                }
            }
        }
    }

    /// Removes a room of ours that nobody has used for long.
    async fn tidy(&mut self, listed: &ListedRoom, busy: &BTreeSet<&SessionId>) -> Result<(), LookError> {
        let Ok(about) = listed.about.parse::<SessionId>() else { return Ok(()) };
        let Some(room) = self.rooms.get_mut(&listed.room) else { return Ok(()) };
        let since = *room.unused_since.get_or_insert_with(Instant::now);
        if busy.contains(&about) || since.elapsed() < self.settings.remove_rooms_after.0 {
            return Ok(());
        }
        self.recall(&listed.room).await?;
        let session = self.rooms.get(&listed.room).and_then(|room| room.session.as_ref());
        // A room that merely looks like one of ours is the platform's.
        let Some(place) = session.filter(|s| s.session == about).and_then(|s| s.router.as_ref()) else { return Ok(()) };
        if self.router.remove_room(place).await? {
            tracing::info!(router = %self.name, session = %about, "its room is removed, nobody uses it");
        }
        Ok(())
    }

    /// Makes sure that the room's session is known, if it is one's.
    async fn recall(&mut self, room: &RoomId) -> Result<(), LookError> {
        let looked = self.looked;
        let known = self.rooms.entry(room.clone()).or_insert_with(|| new_room(looked));
        if known.session.is_some() || known.strange_since.is_some_and(|since| since.elapsed() < STRANGE_FOR) {
            return Ok(());
        }
        known.session = self.catalog.session_of_room(&self.name, room).await?;
        known.strange_since = known.session.is_none().then(Instant::now);
        Ok(())
    }

    /// Looks who is in a room, and decides.
    async fn look(&mut self, room: &RoomId) -> Result<(), LookError> {
        self.recall(room).await?;
        let Some(known) = self.rooms.get_mut(room) else { return Ok(()) };
        let Some(session) = known.session.clone().filter(rules::is_automatic) else { return Ok(()) };
        let look = match self.router.participants(room).await {
            Ok(list) => Look::of(&list),
            Err(RouterError::RoomNotFound { .. }) => Look::default(),
            Err(error) => return Err(error.into()),
        };
        if look.clients.is_empty() {
            known.memory.empty();
            return Ok(());
        }
        // In this order: what is read later is never older than what was read before it.
        let conversation = self.conversation(&session).await?;
        let job = rules::job_of(&session.session, conversation);
        let has_job = conversation > 0 && self.catalog.job(job).await?.is_some();
        let newest = self.catalog.newest_job(&session.application, &session.session, "").await?;
        let (newest, now) = (Newest::of(newest.as_ref()), Wallclock::now());
        let Some(known) = self.rooms.get_mut(room) else { return Ok(()) };
        known.memory.saw(&look, newest, now);
        let since = known.memory.since().unwrap_or(now);
        match rules::decide(Known { conversation, has_job, newest }, &known.memory, &look, now) {
            Decision::Nothing => {}
            Decision::Publish => {
                self.tell(&session, conversation, since, &look).await;
            }
            Decision::Begin => {
                // If another process was faster, its conversation is found by the next look.
                if self.catalog.begin_conversation(&session.session, conversation).await? {
                    self.tell(&session, conversation + 1, since, &look).await;
                }
            }
        }
        Ok(())
    }

    async fn conversation(&self, session: &SessionRow) -> Result<i64, LookError> {
        let row = self.catalog.session(&session.application, &session.session).await?;
        Ok(row.map_or(session.conversation, |row| row.conversation))
    }

    /// Tells workers of a conversation, unless that was done a moment ago.
    async fn tell(&mut self, session: &SessionRow, conversation: i64, since: Wallclock, look: &Look) {
        let Some(RouterRoom { room, .. }) = &session.router else { return };
        let Some(known) = self.rooms.get_mut(room) else { return };
        let throttle = &mut known.throttle;
        if throttle.conversation != conversation {
            *throttle = Throttle { conversation, ..Throttle::default() };
        }
        if throttle.not_before.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let told = self.outbox.publish(rules::started(session, conversation, since)).await;
        let wait = if told.is_ok() { AGAIN } else { NOT_TAKEN };
        throttle.not_before = Some(Instant::now() + wait.delay(throttle.told, rand::random()));
        let is_first = throttle.told == 0;
        throttle.told = throttle.told.saturating_add(1);
        let (router, session, region) = (&self.name, &session.session, &session.region);
        match told {
            Ok(()) => {
                known.memory.began(look);
                tracing::info!(%router, %session, %region, conversation, "a conversation begins");
            }
            Err(error) if is_first => {
                let text = chain(&error);
                tracing::warn!(%router, %session, %region, conversation, "workers cannot be told of a conversation, trying again: {text}");
            }
            Err(error) => {
                tracing::debug!(%router, %session, %region, conversation, "not told again: {}", chain(&error));
            }
        }
    }
}

/// One room that cannot be looked at keeps nobody from looking at the others, but a router or catalog that is away does.
fn keep_first(first: &mut Result<(), LookError>, looked: Result<(), LookError>) -> Result<(), LookError> {
    use {CatalogError as C, LookError as L, RouterError as R};
    match looked {
        Err(away @ (L::Router(R::Unavailable { .. } | R::Timeout { .. }) | L::Catalog(C::Unavailable { .. }))) => {
            Err(away)
        }
        Err(error) if first.is_ok() => {
            *first = Err(error);
            Ok(())
        }
        _ => Ok(()),
    }
}

fn new_room(looked: bool) -> Room {
    Room { memory: if looked { Memory::of_empty() } else { Memory::default() }, ..Room::default() }
}
