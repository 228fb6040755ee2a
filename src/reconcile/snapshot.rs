//! Looks at rooms and jobs.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::timeout;

use super::recorded::{RoomOwner, Seen, SeenRoom};
use crate::bridge::rules::is_automatic;
use crate::catalog::{Catalog, CatalogError, JobRow, JobState};
use crate::model::fault::chain;
use crate::model::ids::{RoomId, RouterName};
use crate::router::{ListedRoom, MediaRouter, RouterError, Routers};

/// Jobs that are looked at, at most: far more than a fleet has at once.
const JOBS_MAX: u32 = 10_000;
/// A router that takes longer is not looked at: the others are.
const ROUTER_MAX: Duration = Duration::from_secs(30);

/// Why a router's rooms could not be looked at.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Router(#[from] RouterError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// Looks at all jobs that somebody may still wait for, and at the rooms in which somebody publishes and no job records. The rooms are listed first: a
/// job that ends meanwhile leaves an empty room. Of a room that is recorded nothing is asked, so a look costs a router a list.
///
/// # Errors
/// When the catalog is away. A router that is away is named in the result.
pub async fn look(catalog: &dyn Catalog, routers: &Routers) -> Result<Seen, CatalogError> {
    let (mut listed, mut rooms, mut unseen) = (Vec::new(), Vec::new(), Vec::new());
    for (name, router) in routers {
        match timeout(ROUTER_MAX, router.list_rooms()).await {
            Ok(Ok(list)) => listed.push((name, router, list)),
            Ok(Err(error)) => unseen.push((name.clone(), chain(&error))),
            Err(_) => unseen.push((name.clone(), too_late())),
        }
    }
    let jobs = catalog.jobs(&JobState::OPEN, JOBS_MAX).await?;
    for (name, router, list) in listed {
        match timeout(ROUTER_MAX, rooms_without_job(catalog, name, router.as_ref(), list, &jobs)).await {
            Ok(Ok(found)) => rooms.extend(found),
            Ok(Err(LookError::Catalog(error))) => return Err(error),
            Ok(Err(LookError::Router(error))) => unseen.push((name.clone(), chain(&error))),
            Err(_) => unseen.push((name.clone(), too_late())),
        }
    }
    Ok(Seen { jobs, rooms, unseen, now: catalog.clock().await? })
}

fn too_late() -> String {
    format!("its rooms could not be looked at within {} s", ROUTER_MAX.as_secs())
}

/// The rooms of a router in which somebody publishes and that no job records.
async fn rooms_without_job(
    catalog: &dyn Catalog,
    name: &RouterName,
    router: &dyn MediaRouter,
    listed: Vec<ListedRoom>,
    jobs: &[JobRow],
) -> Result<Vec<SeenRoom>, LookError> {
    let recorded: BTreeSet<&RoomId> = jobs
        .iter()
        .filter(|job| job.state.is_recorded())
        .filter_map(|job| job.spec().ok()?.router.as_ref())
        .filter_map(|place| (place.name == *name).then_some(&place.room))
        .collect();
    let mut rooms = Vec::new();
    for ListedRoom { room, .. } in
        listed.into_iter().filter(|one| one.participants > 0 && !recorded.contains(&one.room))
    {
        let clients = match router.participants(&room).await {
            Err(RouterError::RoomNotFound { .. }) => continue,
            clients => clients?,
        };
        let publishing = clients.iter().filter(|client| client.publishing).count();
        if publishing == 0 {
            continue;
        }
        let owner = match catalog.session_of_room(name, &room).await? {
            Some(session) if is_automatic(&session) => RoomOwner::Automatic(session.session),
            Some(session) => RoomOwner::Manual(session.session),
            None => RoomOwner::Unknown,
        };
        rooms.push(SeenRoom { router: name.clone(), room, publishing, owner });
    }
    Ok(rooms)
}
