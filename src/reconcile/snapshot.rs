//! What routers and catalog say at one moment.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::bridge::rules::is_automatic;
use crate::catalog::{Catalog, CatalogError, JobRow, JobState, ParkedFilter, ParkedRow, ParkedState};
use crate::model::fault::{FaultKind, HasFault, chain};
use crate::model::ids::{RoomId, RouterName, SessionId};
use crate::model::time::Wallclock;
use crate::router::{ListedRoom, MediaRouter, RouterError, Routers};

/// Jobs and parked events that are read, at most: far more than a fleet has at once.
const ROWS_MAX: u32 = 10_000;
/// Time limit for a router. What was seen until then counts.
const ROUTER_MAX: Duration = Duration::from_secs(30);

/// A room in which somebody publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishingRoom {
    /// Its router.
    pub router: RouterName,
    /// Its id there.
    pub room: RoomId,
    /// How many clients publish.
    pub publishing: usize,
    /// Its session.
    pub session: RoomSession,
}

/// The session of a room that may have to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoomSession {
    /// A session that is archived by itself.
    Automatic(SessionId),
    /// No session in the catalog has this room: the platform created it, and publishes an event if it is to be archived.
    None,
}

/// What routers and catalog say at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The jobs that somebody may still wait for.
    pub jobs: Vec<JobRow>,
    /// The events that are parked.
    pub parked: Vec<ParkedRow>,
    /// The rooms in which somebody publishes and that no job records.
    pub rooms: Vec<PublishingRoom>,
    /// Routers of which something could not be seen: the first thing, and why.
    pub unseen: BTreeMap<RouterName, String>,
    /// When, by the catalog's clock.
    pub now: Wallclock,
}

impl Snapshot {
    fn miss(&mut self, router: &RouterName, what: String) {
        self.unseen.entry(router.clone()).or_insert(what);
    }

    /// Whether something of a router could not be seen.
    #[must_use]
    pub fn lacks(&self, router: &RouterName) -> bool {
        self.unseen.contains_key(router)
    }
}

/// Takes a snapshot: the jobs that somebody may still wait for, the parked events, and the rooms in which somebody publishes and that no job
/// records. The rooms are listed first: a job that ends meanwhile leaves an empty room. A router is asked for its rooms, and for the clients of
/// those alone that may have to be recorded.
///
/// # Errors
/// When the catalog is away. What could not be seen is named in the result.
pub async fn take_snapshot(catalog: &dyn Catalog, routers: &Routers) -> Result<Snapshot, CatalogError> {
    let (mut listed, mut unseen) = (Vec::new(), BTreeMap::new());
    for (name, router) in routers {
        let deadline = Instant::now() + ROUTER_MAX;
        match timeout_at(deadline, router.list_rooms()).await {
            Ok(Ok(rooms)) => listed.push((name, router, rooms)),
            Ok(Err(error)) => drop(unseen.insert(name.clone(), chain(&error))),
            Err(_) => drop(unseen.insert(name.clone(), format!("no list of rooms within {} s", ROUTER_MAX.as_secs()))),
        }
    }
    let jobs = catalog.jobs(&JobState::OPEN, ROWS_MAX).await?;
    let waits_for_person = ParkedFilter { state: Some(ParkedState::Parked), ..ParkedFilter::default() };
    let parked = catalog.parked(&waits_for_person, ROWS_MAX).await?;
    let mut snapshot = Snapshot { jobs, parked, rooms: Vec::new(), unseen, now: catalog.clock().await? };
    for (name, router, rooms) in listed {
        add_rooms(catalog, name, router.as_ref(), rooms, &mut snapshot).await?;
    }
    Ok(snapshot)
}

/// Adds the rooms of a router in which somebody publishes and that no job records.
async fn add_rooms(
    catalog: &dyn Catalog,
    name: &RouterName,
    router: &dyn MediaRouter,
    listed: Vec<ListedRoom>,
    snapshot: &mut Snapshot,
) -> Result<(), CatalogError> {
    let recorded = recorded_rooms(name, &snapshot.jobs);
    let deadline = Instant::now() + ROUTER_MAX;
    for ListedRoom { room, .. } in
        listed.into_iter().filter(|one| one.participants > 0 && !recorded.contains(&one.room))
    {
        let session = match catalog.session_of_room(name, &room).await {
            Ok(Some(session)) if is_automatic(&session) => RoomSession::Automatic(session.session),
            // Nobody has to record it.
            Ok(Some(_)) => continue,
            Ok(None) => RoomSession::None,
            Err(error) if error.fault().kind == FaultKind::CatalogUnavailable => return Err(error),
            // Its session may be one that is to be recorded.
            Err(error) => {
                snapshot.miss(name, format!("the session of room {room}: {}", chain(&error)));
                continue;
            }
        };
        let clients = match timeout_at(deadline, router.participants(&room)).await {
            Ok(Ok(clients)) => clients,
            Ok(Err(RouterError::RoomNotFound { .. })) => continue,
            Ok(Err(error)) => {
                snapshot.miss(name, format!("the clients of room {room}: {}", chain(&error)));
                continue;
            }
            Err(_) => {
                snapshot.miss(name, format!("not all rooms were seen within {} s", ROUTER_MAX.as_secs()));
                break;
            }
        };
        let publishing = clients.iter().filter(|client| client.publishing).count();
        if publishing > 0 {
            snapshot.rooms.push(PublishingRoom { router: name.clone(), room, publishing, session });
        }
    }
    Ok(())
}

/// The rooms of a router that the jobs of automatic archives record. A further archive of a session has a tag, and may leave out streams.
fn recorded_rooms(name: &RouterName, jobs: &[JobRow]) -> BTreeSet<RoomId> {
    jobs.iter()
        .filter(|job| job.state.is_recorded() && job.tag.is_empty())
        .filter_map(|job| job.spec().ok()?.router.as_ref())
        .filter(|place| place.name == *name)
        .map(|place| place.room.clone())
        .collect()
}
