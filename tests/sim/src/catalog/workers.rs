//! Workers' names, and the shared clock: the simulated one.

use std::time::Duration;

use archiver::catalog::{CatalogError, NameHolder, NameLease, WorkerCatalog, WorkerInstance};
use archiver::model::ids::WorkerId;
use archiver::model::time::{SimulatedTime, Wallclock};
use async_trait::async_trait;

use super::{LEASE_MAX, MemoryCatalog};

#[async_trait]
impl WorkerCatalog for MemoryCatalog {
    async fn clock(&self) -> Result<Wallclock, CatalogError> {
        self.call("clock", |_| Ok(SimulatedTime::time())).await
    }

    async fn hold_name(&self, who: &WorkerInstance, now: Wallclock, ttl: Duration) -> Result<NameLease, CatalogError> {
        self.call("hold_name", |state| {
            let held = NameHolder { instance: who.instance, since: who.since, lease_expires_at: now + ttl };
            let known = state.workers.entry(who.worker.clone()).or_insert(held);
            let is_lease = known.lease_expires_at > now && known.lease_expires_at <= now + LEASE_MAX;
            if known.instance != who.instance && is_lease {
                return Ok(NameLease::Others { since: known.since });
            }
            *known = held;
            Ok(NameLease::Held)
        })
        .await
    }

    async fn name_holder(&self, worker: &WorkerId) -> Result<Option<NameHolder>, CatalogError> {
        self.call("name_holder", |state| Ok(state.workers.get(worker).copied())).await
    }

    async fn release_name(&self, who: &WorkerInstance) -> Result<(), CatalogError> {
        self.call("release_name", |state| {
            let known = state.workers.get_mut(&who.worker).filter(|known| known.instance == who.instance);
            if let Some(known) = known {
                known.lease_expires_at = Wallclock(0);
            }
            Ok(())
        })
        .await
    }
}
