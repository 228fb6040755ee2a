//! Jobs that are handed over.

use archiver::catalog::{CatalogError, HandOver, HandOverCatalog};
use archiver::model::ids::{Epoch, JobId, Region, WorkerId};
use archiver::model::time::Wallclock;
use async_trait::async_trait;

use super::jobs::StoredJob;
use super::workers::StoredWorker;
use super::{MemoryCatalog, is_lease};

#[async_trait]
impl HandOverCatalog for MemoryCatalog {
    async fn has_taker(&self, region: &Region, worker: &WorkerId, now: Wallclock) -> Result<bool, CatalogError> {
        self.call("has_taker", |state| {
            let takes = |known: &StoredWorker| {
                known.takes.as_ref() == Some(region) && is_lease(known.holder.lease_expires_at, now)
            };
            Ok(state.workers.iter().any(|(name, known)| name != worker && takes(known)))
        })
        .await
    }

    async fn offer_job(
        &self,
        job: JobId,
        epoch: Epoch,
        worker: &WorkerId,
        now: Wallclock,
    ) -> Result<bool, CatalogError> {
        self.call("offer_job", |state| {
            let is_captured = |found: &&mut StoredJob| found.row.owner.is_some() && found.row.state.is_recorded();
            let Some(found) = state.owned(job, epoch).filter(is_captured) else { return Ok(false) };
            found.offers.insert(epoch, worker.clone());
            state.line(job, "offered", worker.as_str(), now);
            Ok(true)
        })
        .await
    }

    async fn clear_offers(&self, job: JobId, worker: Option<&WorkerId>, last: Epoch) -> Result<(), CatalogError> {
        self.call("clear_offers", |state| {
            if let Some(found) = state.jobs.get_mut(&job) {
                found.offers.retain(|epoch, by| *epoch > last || worker.is_some_and(|worker| by != worker));
            }
            Ok(())
        })
        .await
    }

    async fn report_captured(&self, job: JobId, epoch: Epoch) -> Result<(), CatalogError> {
        self.call("report_captured", |state| {
            if let Some(found) = state.owned(job, epoch) {
                found.captured_by = Some(epoch);
            }
            Ok(())
        })
        .await
    }

    async fn hand_over(&self, job: JobId) -> Result<Option<HandOver>, CatalogError> {
        self.call("hand_over", |state| {
            let read = |found: &StoredJob| HandOver {
                epoch: found.row.epoch,
                captured_by: found.captured_by,
                offered_by: found.offers.keys().next().copied(),
                ends: found.row.end_reason.is_some() || !found.row.state.is_recorded(),
            };
            Ok(state.jobs.get(&job).map(read))
        })
        .await
    }
}
