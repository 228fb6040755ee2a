//! Looks at rooms and jobs.

use std::time::Duration;

use tokio::time::timeout;

use super::recorded::{RoomOwner, Seen, SeenRoom};
use crate::bridge::rules::is_automatic;
use crate::catalog::{Catalog, CatalogError, JobState};
use crate::model::fault::chain;
use crate::model::ids::RouterName;
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

/// Looks at all rooms in which somebody publishes, and at all jobs that somebody may still wait for. The rooms come first: a job that ends
/// meanwhile leaves an empty room.
///
/// # Errors
/// When the catalog is away. A router that is away is named in the result.
pub async fn look(catalog: &dyn Catalog, routers: &Routers) -> Result<Seen, CatalogError> {
    let (mut seen_rooms, mut unseen) = (Vec::new(), Vec::new());
    for (name, router) in routers {
        match timeout(ROUTER_MAX, rooms(catalog, name, router.as_ref())).await {
            Ok(Ok(rooms)) => seen_rooms.extend(rooms),
            Ok(Err(LookError::Catalog(error))) => return Err(error),
            Ok(Err(LookError::Router(error))) => unseen.push((name.clone(), chain(&error))),
            Err(_) => {
                let text = format!("its rooms could not be looked at within {} s", ROUTER_MAX.as_secs());
                unseen.push((name.clone(), text));
            }
        }
    }
    let jobs = catalog.jobs(&JobState::OPEN, JOBS_MAX).await?;
    Ok(Seen { jobs, rooms: seen_rooms, unseen, now: catalog.clock().await? })
}

/// The rooms of a router in which somebody publishes.
async fn rooms(catalog: &dyn Catalog, name: &RouterName, router: &dyn MediaRouter) -> Result<Vec<SeenRoom>, LookError> {
    let mut rooms = Vec::new();
    for ListedRoom { room, .. } in router.list_rooms().await?.into_iter().filter(|room| room.participants > 0) {
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
