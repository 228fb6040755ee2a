//! Workers' names, and the shared clock: the simulated one.

use std::time::Duration;

use archiver::catalog::{CatalogError, NameHolder, NameLease, WorkerCatalog, WorkerInstance};
use archiver::model::ids::{Region, WorkerId};
use archiver::model::time::{SimulatedTime, Wallclock};
use async_trait::async_trait;

use super::{MemoryCatalog, is_lease};

/// A worker's name.
#[derive(Debug, Clone)]
pub(super) struct StoredWorker {
    pub holder: NameHolder,
    /// The region whose jobs it takes.
    pub takes: Option<Region>,
}

#[async_trait]
impl WorkerCatalog for MemoryCatalog {
    async fn clock(&self) -> Result<Wallclock, CatalogError> {
        self.call("clock", |_| Ok(SimulatedTime::time())).await
    }

    async fn hold_name(
        &self,
        who: &WorkerInstance,
        takes: Option<&Region>,
        now: Wallclock,
        ttl: Duration,
    ) -> Result<NameLease, CatalogError> {
        self.call("hold_name", |state| {
            let held = NameHolder { instance: who.instance, since: who.since, lease_expires_at: now + ttl };
            let stored = StoredWorker { holder: held, takes: takes.cloned() };
            let known = state.workers.entry(who.worker.clone()).or_insert_with(|| stored.clone());
            if known.holder.instance != who.instance && is_lease(known.holder.lease_expires_at, now) {
                return Ok(NameLease::Others { since: known.holder.since });
            }
            *known = stored;
            Ok(NameLease::Held)
        })
        .await
    }

    async fn name_holder(&self, worker: &WorkerId) -> Result<Option<NameHolder>, CatalogError> {
        self.call("name_holder", |state| Ok(state.workers.get(worker).map(|known| known.holder))).await
    }

    async fn release_name(&self, who: &WorkerInstance) -> Result<(), CatalogError> {
        self.call("release_name", |state| {
            let known = state.workers.get_mut(&who.worker).filter(|known| known.holder.instance == who.instance);
            if let Some(known) = known {
                known.holder.lease_expires_at = Wallclock(0);
            }
            Ok(())
        })
        .await
    }
}
