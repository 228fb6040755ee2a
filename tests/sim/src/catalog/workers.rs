//! Workers' names, and the shared clock: the simulated one.

use std::time::Duration;

use archiver::catalog::{CatalogError, NameHolder, NameLease, WorkerCatalog, WorkerInstance, WorkerRow};
use archiver::model::ids::{Region, WorkerId};
use archiver::model::time::{SimulatedTime, Wallclock};
use async_trait::async_trait;

use super::{MemoryCatalog, is_lease, storable};

/// A worker's name.
#[derive(Debug, Clone)]
pub(super) struct StoredWorker {
    pub holder: NameHolder,
    /// The region whose jobs it takes.
    pub takes: Option<Region>,
    /// When somebody told it to drain, and who.
    pub drain: Option<(Wallclock, String)>,
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
            let stored = StoredWorker { holder: held, takes: takes.cloned(), drain: None };
            let known = state.workers.entry(who.worker.clone()).or_insert_with(|| stored.clone());
            if known.holder.instance != who.instance && is_lease(known.holder.lease_expires_at, now) {
                return Ok(NameLease::Others { since: known.holder.since });
            }
            *known = StoredWorker { drain: known.drain.take(), ..stored };
            Ok(NameLease::Held { drains: known.drain.is_some() })
        })
        .await
    }

    async fn name_holder(&self, worker: &WorkerId) -> Result<Option<NameHolder>, CatalogError> {
        self.call("name_holder", |state| Ok(state.workers.get(worker).map(|known| known.holder))).await
    }

    async fn workers(&self) -> Result<Vec<WorkerRow>, CatalogError> {
        self.call("workers", |state| {
            let row = |(worker, known): (&WorkerId, &StoredWorker)| WorkerRow {
                worker: worker.clone(),
                since: known.holder.since,
                lease_expires_at: known.holder.lease_expires_at,
                takes: known.takes.as_ref().map(ToString::to_string),
                drain_at: known.drain.as_ref().map(|(at, _)| *at),
                drain_by: known.drain.as_ref().map(|(_, by)| by.clone()),
            };
            Ok(state.workers.iter().map(row).collect())
        })
        .await
    }

    async fn drain_worker(&self, worker: &WorkerId, by: Option<&str>, now: Wallclock) -> Result<bool, CatalogError> {
        self.call("drain_worker", |state| {
            let Some(known) = state.workers.get_mut(worker) else { return Ok(false) };
            known.drain = by.map(|by| (now, storable(by)));
            Ok(true)
        })
        .await
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
