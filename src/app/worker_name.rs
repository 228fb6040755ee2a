//! A worker's name: one process of a fleet has it at a time. Jobs belong to names, so two processes with one name would take each other's.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::catalog::{Catalog, CatalogError, NameHolder, NameLease, WorkerInstance};
use crate::job::lease::beat;
use crate::model::cancellable::Cancellable;
use crate::model::fault::chain;
use crate::model::ids::WorkerId;
use crate::model::time::Wallclock;
use crate::runtime::retry::{CATALOG, retry_until_cancelled};

/// Between two looks at a name that another process has.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A process that is seen to keep its name so often lives.
const RENEWALS_MIN: u32 = 3;
/// A longer time between two answers of the catalog is a break.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// Why a worker cannot have its name.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// Another process has it.
    #[error(
        "another worker, which started at {since}, has the name {worker}: give each worker a name of its own (worker.id), or stop the other first"
    )]
    Taken {
        /// The name.
        worker: WorkerId,
        /// When the other one started.
        since: Wallclock,
    },
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// Takes a worker's name. One that another process had last is taken when that process does not keep it for a lease and a beat, in which
/// the catalog answers without a break: after an outage of the catalog every process has its turn first. Returns whether the worker is drained.
///
/// # Errors
/// When another process keeps the name.
pub async fn take_name(
    catalog: &dyn Catalog,
    who: &WorkerInstance,
    lease: Duration,
    stop: &CancellationToken,
) -> Result<Cancellable<bool>, NameError> {
    let mut watched: Option<Watched> = None;
    loop {
        let look = || look(catalog, who, lease);
        let looked = retry_until_cancelled("take a worker's name", CATALOG, stop, look).await?;
        let holder = match looked {
            Cancellable::Done(Look::Held { drains }) => return Ok(Cancellable::Done(drains)),
            Cancellable::Done(Look::Others(holder)) => holder,
            Cancellable::Cancelled => return Ok(Cancellable::Cancelled),
        };
        let now = Instant::now();
        let known = watched.get_or_insert_with(|| {
            tracing::info!(worker = %who.worker, since = %holder.since, "another worker had this name last: it has its turn to keep it");
            Watched { holder, unchanged_since: now, last: now, renewals: 0 }
        });
        // The catalog was away: nobody could keep the name.
        if now - known.last > SILENCE_MAX {
            *known = Watched { holder, unchanged_since: now, last: now, renewals: 0 };
        }
        known.last = now;
        if known.holder != holder {
            *known = Watched { holder, unchanged_since: now, last: now, renewals: known.renewals + 1 };
        }
        if known.renewals >= RENEWALS_MIN {
            return Err(NameError::Taken { worker: who.worker.clone(), since: holder.since });
        }
        if now - known.unchanged_since >= lease + beat(lease) {
            let hold = async || catalog.hold_name(who, None, catalog.clock().await?, lease).await;
            match retry_until_cancelled("take a worker's name", CATALOG, stop, hold).await? {
                Cancellable::Done(NameLease::Held { drains }) => return Ok(Cancellable::Done(drains)),
                // A lease by a clock that was wrong is waited for.
                Cancellable::Done(NameLease::Others { .. }) => {}
                Cancellable::Cancelled => return Ok(Cancellable::Cancelled),
            }
        }
        if stop.run_until_cancelled(sleep(LOOK_EVERY)).await.is_none() {
            return Ok(Cancellable::Cancelled);
        }
    }
}

/// A name that another process had last.
struct Watched {
    holder: NameHolder,
    unchanged_since: Instant,
    /// When the catalog answered last.
    last: Instant,
    /// How often the other process was seen to keep it.
    renewals: u32,
}

enum Look {
    Held { drains: bool },
    Others(NameHolder),
}

/// Takes a name that nobody has, or that this data folder had last.
async fn look(catalog: &dyn Catalog, who: &WorkerInstance, lease: Duration) -> Result<Look, CatalogError> {
    match catalog.name_holder(&who.worker).await? {
        Some(holder) if holder.instance != who.instance && holder.lease_expires_at != Wallclock(0) => {
            Ok(Look::Others(holder))
        }
        _ => match catalog.hold_name(who, None, catalog.clock().await?, lease).await? {
            NameLease::Held { drains } => Ok(Look::Held { drains }),
            // Somebody was faster.
            NameLease::Others { since } => {
                let now = catalog.clock().await?;
                Ok(Look::Others(NameHolder { instance: who.instance, since, lease_expires_at: now }))
            }
        },
    }
}

/// Gives the name back, so that a worker with another data folder can have it at once.
pub async fn give_name_back(catalog: &dyn Catalog, who: &WorkerInstance) {
    if let Err(error) = catalog.release_name(who).await {
        tracing::warn!("the worker's name is not given back, its lease will expire: {}", chain(&error));
    }
}
