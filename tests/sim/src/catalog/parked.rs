//! Parked jobs.

use archiver::catalog::{CatalogError, NewParked, ParkedCatalog, ParkedFilter, ParkedMark, ParkedRow, ParkedState};
use archiver::model::ids::{JobId, ParkedId};
use archiver::model::time::Wallclock;
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{MemoryCatalog, page, storable};

fn row_of(id: ParkedId, new: &NewParked<'_>, now: Wallclock) -> ParkedRow {
    ParkedRow {
        parked: id,
        job: new.job,
        fault: new.fault.as_str().to_owned(),
        detail: storable(new.detail),
        routing_key: storable(new.routing_key),
        body: STANDARD.encode(new.body),
        state: ParkedState::Parked,
        times: 1,
        first_at: now,
        last_at: now,
        history: Vec::new(),
    }
}

#[async_trait]
impl ParkedCatalog for MemoryCatalog {
    async fn park(&self, new: &NewParked<'_>, now: Wallclock) -> Result<ParkedId, CatalogError> {
        self.call("park", |state| {
            let id = ParkedId::of_content(new.fault.as_str(), new.body);
            let Some(known) = state.parked.get_mut(&id) else {
                state.parked.insert(id, row_of(id, new, now));
                return Ok(id);
            };
            known.times += 1;
            known.last_at = now;
            known.detail = storable(new.detail);
            if known.state != ParkedState::Discarded {
                known.state = ParkedState::Parked;
            }
            Ok(id)
        })
        .await
    }

    async fn parked(&self, filter: &ParkedFilter, limit: u32) -> Result<Vec<ParkedRow>, CatalogError> {
        let ParkedFilter { state, fault, job, since, before, behind } = *filter;
        self.call("parked", |all| {
            let is_listed = |row: &&ParkedRow| {
                state.is_none_or(|wanted| row.state == wanted)
                    && fault.is_none_or(|wanted| row.fault == wanted.as_str())
                    && (job.is_none() || row.job == job)
                    && since.is_none_or(|since| row.last_at >= since)
                    && before.is_none_or(|before| row.last_at < before)
                    && behind.is_none_or(|behind| row.place() < behind)
            };
            let mut rows: Vec<ParkedRow> = all.parked.values().filter(is_listed).cloned().collect();
            rows.sort_by_key(|row| std::cmp::Reverse(row.place()));
            Ok(page(rows, 0, limit))
        })
        .await
    }

    async fn parked_entry(&self, id: ParkedId) -> Result<Option<ParkedRow>, CatalogError> {
        self.call("parked_entry", |state| Ok(state.parked.get(&id).cloned())).await
    }

    async fn mark_parked(&self, id: ParkedId, mark: &ParkedMark<'_>, now: Wallclock) -> Result<(), CatalogError> {
        self.call("mark_parked", |all| {
            if let Some(row) = all.parked.get_mut(&id) {
                row.state = mark.state;
                row.history.push(mark.line(now));
            }
            Ok(())
        })
        .await
    }

    async fn resolve_parked(&self, job: JobId) -> Result<(), CatalogError> {
        self.call("resolve_parked", |state| {
            let is_open = |row: &&mut ParkedRow| {
                row.job == Some(job) && matches!(row.state, ParkedState::Parked | ParkedState::Replayed)
            };
            for row in state.parked.values_mut().filter(is_open) {
                row.state = ParkedState::Resolved;
            }
            Ok(())
        })
        .await
    }
}
