//! What routers and catalog say at one moment.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::findings::{PublishingRoom, RoomSession, Snapshot};
use crate::bridge::rules::is_automatic;
use crate::catalog::{Catalog, CatalogError, JobRow, JobState, ParkedFilter, ParkedRow, ParkedState};
use crate::model::fault::{FaultKind, HasFault, chain};
use crate::model::ids::{RoomId, RouterName};
use crate::router::{ListedRoom, MediaRouter, RouterError, Routers};

/// Jobs and parked events that are read, at most: far more than a fleet has at once.
const ROWS_MAX: u32 = 10_000;
/// Time limit for a router. What was seen until then counts.
const ROUTER_MAX: Duration = Duration::from_secs(30);

/// Takes a snapshot: the jobs that somebody may still wait for, the parked events, and the rooms in which somebody publishes and that no job
/// records. The rooms are listed first: a job that ends meanwhile leaves an empty room. A router is asked for its rooms, and for the clients of
/// those alone that may have to be recorded.
///
/// # Errors
/// When the catalog is away. What could not be seen is named in the result.
pub async fn take_snapshot(catalog: &dyn Catalog, routers: &Routers) -> Result<Snapshot, CatalogError> {
    let (mut listed, mut unseen) = (Vec::new(), Vec::new());
    for (name, router) in routers {
        let deadline = Instant::now() + ROUTER_MAX;
        match timeout_at(deadline, router.list_rooms()).await {
            Ok(Ok(rooms)) => listed.push((name, router, rooms)),
            Ok(Err(error)) => unseen.push((name.clone(), chain(&error))),
            Err(_) => unseen.push((name.clone(), "its rooms were not listed in time".to_owned())),
        }
    }
    let jobs = catalog.jobs(&JobState::OPEN, ROWS_MAX).await?;
    let parked = parked_events(catalog).await?;
    let mut snapshot = Snapshot { jobs, parked, rooms: Vec::new(), unseen, now: catalog.clock().await? };
    for (name, router, rooms) in listed {
        add_rooms(catalog, name, router.as_ref(), rooms, &mut snapshot).await?;
    }
    Ok(snapshot)
}

/// The parked events that name no job that was accepted: those of other parked jobs are found as jobs.
async fn parked_events(catalog: &dyn Catalog) -> Result<Vec<ParkedRow>, CatalogError> {
    let filter = ParkedFilter { state: Some(ParkedState::Parked), ..ParkedFilter::default() };
    catalog.parked(&filter, ROWS_MAX).await
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
                snapshot.unseen.push((name.clone(), format!("the session of room {room}: {}", chain(&error))));
                continue;
            }
        };
        let clients = match timeout_at(deadline, router.participants(&room)).await {
            Ok(Ok(clients)) => clients,
            Ok(Err(RouterError::RoomNotFound { .. })) => continue,
            Ok(Err(error)) => {
                snapshot.unseen.push((name.clone(), format!("the clients of room {room}: {}", chain(&error))));
                continue;
            }
            Err(_) => {
                let text = format!("not all its rooms were seen within {} s", ROUTER_MAX.as_secs());
                snapshot.unseen.push((name.clone(), text));
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

/// The rooms of a router that jobs record by themselves. A further archive of a session, which has a tag, may leave out streams.
fn recorded_rooms(name: &RouterName, jobs: &[JobRow]) -> BTreeSet<RoomId> {
    jobs.iter()
        .filter(|job| job.state.is_recorded() && job.tag.is_empty())
        .filter_map(|job| job.spec().ok()?.router.as_ref())
        .filter(|place| place.name == *name)
        .map(|place| place.room.clone())
        .collect()
}
