//! Jobs, their leases and their history.

use std::collections::BTreeMap;
use std::time::Duration;

use archiver::catalog::{
    Accepted, ArchiveStatus, CatalogError, Claimed, HeldLease, HistoryLine, JobCatalog, JobRow, JobState, LeaseCatalog,
    NewJob, StoredDesired, StoredSpec, Wait, WaitingCatalog,
};
use archiver::model::ids::{ApplicationId, ArchiveId, Epoch, JobId, Region, SessionId, WorkerId};
use archiver::model::time::Wallclock;
use async_trait::async_trait;

use super::{MemoryCatalog, State, conflict, is_lease, page, storable};

/// A job with what only the catalog knows of it.
#[derive(Debug, Clone)]
pub(super) struct StoredJob {
    pub row: JobRow,
    /// When the newest conversation that it records started.
    conversation_at: Wallclock,
    /// The state in which it was parked.
    parked_from: Option<JobState>,
    /// The owners that offered it, and have not sent all yet.
    pub offers: BTreeMap<Epoch, WorkerId>,
    /// The newest owner that has media of every track.
    pub captured_by: Option<Epoch>,
}

impl StoredJob {
    /// A session has at most one such job for each tag.
    pub fn is_active(&self) -> bool {
        self.row.state.is_active()
    }

    fn is_of(&self, application: &ApplicationId, session: &SessionId) -> bool {
        self.row.application == *application && self.row.session == *session
    }

    /// Whether a worker may claim it.
    fn is_free(&self, worker: &WorkerId, now: Wallclock) -> bool {
        let owner = self.row.owner.as_ref();
        let is_offered = self.offers.contains_key(&self.row.epoch) && self.row.state.is_recorded();
        let is_lease = is_lease(self.row.lease_expires_at, now) && !is_offered;
        self.row.state.is_live() && (owner.is_none_or(|owner| owner == worker) || !is_lease)
    }

    fn want_end(&mut self, reason: &str, now: Wallclock) {
        self.row.end_reason.get_or_insert_with(|| storable(reason));
        self.row.updated_at = now;
    }

    /// Whether it waited, and is empty now.
    fn end_waiting(&mut self, reason: &str, now: Wallclock) -> bool {
        let waits = self.row.state == JobState::Waiting;
        if waits {
            self.row.state = JobState::Empty;
            self.row.lease_expires_at = Wallclock(0);
            self.want_end(reason, now);
        }
        waits
    }
}

fn row_of(new: &NewJob, now: Wallclock) -> JobRow {
    JobRow {
        job: new.job,
        archive: ArchiveId::of_job(new.job),
        session: new.session.clone(),
        application: new.application.clone(),
        region: new.region.clone(),
        event: StoredSpec::read(storable(new.event.text())),
        state: JobState::Accepted,
        origin: now,
        owner: None,
        lease_expires_at: Wallclock(0),
        epoch: Epoch(0),
        end_reason: None,
        ended_at: None,
        without_stream_at: None,
        fault: None,
        detail: None,
        created_at: now,
        updated_at: now,
        desired: None,
        tag: storable(&new.tag),
    }
}

impl State {
    pub(super) fn line(&mut self, job: JobId, what: &str, who: &str, now: Wallclock) {
        let line = HistoryLine { at: now, what: storable(what), who: storable(who) };
        self.history.entry(job).or_default().push(line);
    }

    /// Whether a job's archive is made.
    fn is_made(&self, job: &JobRow) -> bool {
        let archive = self.archives.get(&job.archive);
        archive.is_some_and(|stored| matches!(stored.row.status, ArchiveStatus::Available | ArchiveStatus::Uploaded))
    }

    /// The job, if this epoch owns it.
    pub(super) fn owned(&mut self, job: JobId, epoch: Epoch) -> Option<&mut StoredJob> {
        self.jobs.get_mut(&job).filter(|found| found.row.epoch == epoch)
    }

    fn accept(&mut self, new: &NewJob, now: Wallclock) -> Result<Accepted, CatalogError> {
        if let Some(known) = self.jobs.get(&new.job) {
            return Ok(Accepted::Duplicate(known.row.clone()));
        }
        let tag = storable(&new.tag);
        let busy =
            |job: &&mut StoredJob| job.is_active() && job.is_of(&new.application, &new.session) && job.row.tag == tag;
        let Some(busy) = self.jobs.values_mut().find(busy) else {
            let row = row_of(new, now);
            let stored = StoredJob {
                row: row.clone(),
                conversation_at: new.started_at,
                parked_from: None,
                offers: BTreeMap::new(),
                captured_by: None,
            };
            self.jobs.insert(new.job, stored);
            self.line(new.job, "accepted", "broker", now);
            return Ok(Accepted::New(row));
        };
        if busy.row.end_reason.is_some() {
            return Err(CatalogError::Ending { job: busy.row.job });
        }
        if new.is_conversation {
            busy.conversation_at = busy.conversation_at.max(new.started_at);
        }
        Ok(Accepted::SessionBusy(busy.row.clone()))
    }

    fn claim(&mut self, job: JobId, worker: &WorkerId, now: Wallclock, ttl: Duration) -> Option<Claimed> {
        let found = self.jobs.get_mut(&job).filter(|found| found.is_free(worker, now))?;
        let (before, row) = (found.row.clone(), &mut found.row);
        row.owner = Some(worker.clone());
        row.lease_expires_at = now + ttl;
        row.epoch = Epoch(row.epoch.0 + 1);
        row.updated_at = now;
        let row = row.clone();
        self.line(job, &format!("claimed, epoch {}", row.epoch.0), worker.as_str(), now);
        Some(Claimed::new(row, &before, now, ttl))
    }

    fn advance(
        &mut self,
        job: JobId,
        epoch: Epoch,
        next: JobState,
        reason: Option<&str>,
        now: Wallclock,
    ) -> Result<(), CatalogError> {
        let found = self.owned(job, epoch).ok_or(CatalogError::Fenced { job })?;
        if !(found.row.state.is_live() && found.row.state.may_become(next)) {
            // An earlier try may have been heard although its answer was lost.
            return if found.row.state == next { Ok(()) } else { Err(CatalogError::Fenced { job }) };
        }
        found.row.state = next;
        found.row.updated_at = now;
        if let Some(reason) = reason {
            found.row.end_reason = Some(storable(reason));
        }
        if next == JobState::Finalizing {
            found.row.ended_at.get_or_insert(now);
        }
        self.line(job, next.as_str(), "worker", now);
        Ok(())
    }

    fn park_job(
        &mut self,
        job: JobId,
        epoch: Epoch,
        fault: &str,
        detail: &str,
        now: Wallclock,
    ) -> Result<(), CatalogError> {
        let found = self.owned(job, epoch).ok_or(CatalogError::Fenced { job })?;
        if !found.row.state.is_live() {
            return if found.row.state == JobState::Parked { Ok(()) } else { Err(CatalogError::Fenced { job }) };
        }
        found.parked_from = Some(found.row.state);
        let row = &mut found.row;
        row.state = JobState::Parked;
        row.fault = Some(storable(fault));
        row.detail = Some(storable(detail));
        row.owner = None;
        row.lease_expires_at = Wallclock(0);
        row.updated_at = now;
        self.line(job, &format!("parked: {fault}"), "worker", now);
        Ok(())
    }

    fn unpark_job(&mut self, job: JobId, now: Wallclock) -> Result<bool, CatalogError> {
        let Some(found) = self.jobs.get(&job).filter(|found| found.row.state == JobState::Parked) else {
            return Ok(false);
        };
        let captured = found.parked_from == Some(JobState::Finalizing);
        let row = &found.row;
        let is_other = |other: &StoredJob| {
            other.is_active() && other.is_of(&row.application, &row.session) && other.row.tag == row.tag
        };
        if !captured && self.jobs.values().any(is_other) {
            return Err(conflict("replay a job"));
        }
        let found = self.jobs.get_mut(&job).expect("it was found above");
        found.parked_from = None;
        let row = &mut found.row;
        (row.fault, row.detail, row.updated_at) = (None, None, now);
        row.state = if captured { JobState::Finalizing } else { JobState::Accepted };
        if !captured {
            row.end_reason = None;
        }
        self.line(job, "replayed", "broker", now);
        Ok(true)
    }

    /// Jobs in the order of their creation, newest first.
    fn newest_first(&self, wanted: impl Fn(&StoredJob) -> bool) -> Vec<JobRow> {
        let mut rows: Vec<JobRow> = self.jobs.values().filter(|job| wanted(job)).map(|job| job.row.clone()).collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.created_at));
        rows
    }
}

#[async_trait]
impl JobCatalog for MemoryCatalog {
    async fn accept(&self, new: &NewJob, now: Wallclock) -> Result<Accepted, CatalogError> {
        self.call("accept", |state| state.accept(new, now)).await
    }

    async fn job(&self, job: JobId) -> Result<Option<JobRow>, CatalogError> {
        self.call("job", |state| Ok(state.jobs.get(&job).map(|found| found.row.clone()))).await
    }

    async fn jobs(&self, states: &[JobState], limit: u32) -> Result<Vec<JobRow>, CatalogError> {
        self.call("jobs", |state| {
            let rows = state.newest_first(|job| states.is_empty() || states.contains(&job.row.state));
            Ok(page(rows, 0, limit))
        })
        .await
    }

    async fn request_end(
        &self,
        application: &ApplicationId,
        session: &SessionId,
        reason: &str,
        ended_at: Wallclock,
        now: Wallclock,
    ) -> Result<bool, CatalogError> {
        self.call("request_end", |state| {
            let mut ends = false;
            let mut empty = Vec::new();
            for job in state.jobs.values_mut().filter(|job| job.is_active() && job.is_of(application, session)) {
                if job.conversation_at <= ended_at {
                    if job.end_waiting(reason, now) {
                        empty.push(job.row.job);
                    } else {
                        job.want_end(reason, now);
                    }
                    ends = true;
                }
            }
            for job in empty {
                state.line(job, &format!("empty: {reason}"), "broker", now);
            }
            Ok(ends)
        })
        .await
    }

    async fn request_stop(&self, job: JobId, reason: &str, now: Wallclock) -> Result<bool, CatalogError> {
        self.call("request_stop", |state| {
            let Some(found) = state.jobs.get_mut(&job).filter(|found| found.is_active()) else { return Ok(false) };
            if found.end_waiting(reason, now) {
                state.line(job, &format!("empty: {reason}"), "request", now);
            } else {
                found.want_end(reason, now);
            }
            Ok(true)
        })
        .await
    }

    async fn active_jobs(&self, application: &ApplicationId, session: &SessionId) -> Result<Vec<JobRow>, CatalogError> {
        self.call("active_jobs", |state| {
            Ok(state.newest_first(|job| job.is_active() && job.is_of(application, session)))
        })
        .await
    }

    async fn newest_job(
        &self,
        application: &ApplicationId,
        session: &SessionId,
        tag: &str,
    ) -> Result<Option<JobRow>, CatalogError> {
        self.call("newest_job", |state| {
            let tag = storable(tag);
            let is_wanted = |job: &StoredJob| job.is_of(application, session) && job.row.tag == tag;
            let mut rows = state.newest_first(is_wanted);
            rows.sort_by_key(|row| !row.state.is_active());
            Ok(rows.into_iter().next())
        })
        .await
    }

    async fn desire(&self, job: &JobRow, desired: &StoredDesired, now: Wallclock) -> Result<bool, CatalogError> {
        self.call("desire", |state| {
            let text =
                |row: &JobRow| row.desired.as_ref().map_or_else(String::new, |desired| desired.text().to_owned());
            let before = |found: &&mut StoredJob| found.is_active() && text(&found.row) == text(job);
            let Some(found) = state.jobs.get_mut(&job.job).filter(before) else { return Ok(false) };
            found.row.desired = Some(StoredDesired::read(storable(desired.text())));
            found.row.updated_at = now;
            Ok(true)
        })
        .await
    }

    async fn note(&self, job: JobId, what: &str, who: &str, now: Wallclock) -> Result<(), CatalogError> {
        self.call("note", |state| {
            state.line(job, what, who, now);
            Ok(())
        })
        .await
    }

    async fn job_history(&self, job: JobId) -> Result<Vec<HistoryLine>, CatalogError> {
        self.call("job_history", |state| {
            let mut lines = state.history.get(&job).cloned().unwrap_or_default();
            lines.sort_by_key(|line| line.at);
            Ok(lines)
        })
        .await
    }
}

#[async_trait]
impl LeaseCatalog for MemoryCatalog {
    async fn claim(
        &self,
        job: JobId,
        worker: &WorkerId,
        now: Wallclock,
        ttl: Duration,
    ) -> Result<Option<Claimed>, CatalogError> {
        self.call("claim", |state| Ok(state.claim(job, worker, now, ttl))).await
    }

    async fn claimable(
        &self,
        worker: &WorkerId,
        region: &Region,
        now: Wallclock,
        limit: u32,
    ) -> Result<Vec<JobRow>, CatalogError> {
        self.call("claimable", |state| {
            let mut rows = state.newest_first(|job| job.row.region == *region && job.is_free(worker, now));
            rows.sort_by_key(|row| (row.state == JobState::Finalizing, state.is_made(row), row.created_at));
            Ok(page(rows, 0, limit))
        })
        .await
    }

    async fn heartbeat(
        &self,
        leases: &[HeldLease],
        now: Wallclock,
        ttl: Duration,
    ) -> Result<BTreeMap<JobId, Option<JobRow>>, CatalogError> {
        self.call("heartbeat", |state| {
            let mut kept = BTreeMap::new();
            for lease in leases {
                if let Some(found) = state.owned(lease.job, lease.epoch).filter(|found| found.row.owner.is_some()) {
                    found.row.lease_expires_at = now + ttl;
                    kept.insert(lease.job, Some(found.row.clone()));
                }
            }
            Ok(kept)
        })
        .await
    }

    async fn release(&self, job: JobId, epoch: Epoch, now: Wallclock) -> Result<(), CatalogError> {
        self.call("release", |state| {
            let Some(found) = state.owned(job, epoch).filter(|found| found.row.owner.is_some()) else { return Ok(()) };
            found.row.owner = None;
            found.row.lease_expires_at = Wallclock(0);
            found.row.updated_at = now;
            state.line(job, "released", "worker", now);
            Ok(())
        })
        .await
    }

    async fn advance(
        &self,
        job: JobId,
        epoch: Epoch,
        next: JobState,
        reason: Option<&str>,
        now: Wallclock,
    ) -> Result<(), CatalogError> {
        self.call("advance", |state| state.advance(job, epoch, next, reason, now)).await
    }

    async fn park_job(
        &self,
        job: JobId,
        epoch: Epoch,
        fault: &str,
        detail: &str,
        now: Wallclock,
    ) -> Result<(), CatalogError> {
        self.call("park_job", |state| state.park_job(job, epoch, fault, detail, now)).await
    }

    async fn unpark_job(&self, job: JobId, now: Wallclock) -> Result<bool, CatalogError> {
        self.call("unpark_job", |state| state.unpark_job(job, now)).await
    }

    async fn discard_job(&self, job: JobId, who: &str, now: Wallclock) -> Result<bool, CatalogError> {
        self.call("discard_job", |state| {
            let found = state.jobs.get_mut(&job).filter(|found| found.row.state == JobState::Parked);
            let Some(found) = found else { return Ok(false) };
            found.row.state = JobState::Discarded;
            found.row.updated_at = now;
            state.line(job, "discarded", who, now);
            Ok(true)
        })
        .await
    }
}

#[async_trait]
impl WaitingCatalog for MemoryCatalog {
    async fn wait_for_stream(&self, job: JobId, epoch: Epoch, wait: Wait, now: Wallclock) -> Result<(), CatalogError> {
        self.call("wait_for_stream", |state| {
            let found = state.owned(job, epoch).ok_or(CatalogError::Fenced { job })?;
            match found.row.state {
                JobState::Waiting | JobState::Empty => return Ok(()),
                JobState::Capturing => {}
                _ => return Err(CatalogError::Fenced { job }),
            }
            let row = &mut found.row;
            row.state = if row.end_reason.is_none() { JobState::Waiting } else { JobState::Empty };
            row.owner = None;
            row.lease_expires_at = wait.look_at;
            row.updated_at = now;
            row.without_stream_at = Some(wait.without_stream_at);
            state.line(job, "waiting: nobody publishes", "worker", now);
            Ok(())
        })
        .await
    }

    async fn due_looks(&self, region: &Region, now: Wallclock, limit: u32) -> Result<Vec<JobRow>, CatalogError> {
        self.call("due_looks", |state| {
            let is_due = |row: &JobRow| row.region == *region && row.lease_expires_at <= now;
            let mut rows = state.newest_first(|job| job.row.state == JobState::Waiting && is_due(&job.row));
            rows.sort_by_key(|row| row.lease_expires_at);
            Ok(page(rows, 0, limit))
        })
        .await
    }

    async fn take_look(&self, job: &JobRow, next: Wallclock) -> Result<bool, CatalogError> {
        self.call("take_look", |state| {
            let is_due = |found: &&mut StoredJob| {
                found.row.state == JobState::Waiting && found.row.lease_expires_at == job.lease_expires_at
            };
            let Some(found) = state.jobs.get_mut(&job.job).filter(is_due) else { return Ok(false) };
            found.row.lease_expires_at = next;
            Ok(true)
        })
        .await
    }

    async fn note_no_stream(&self, job: JobId, at: Wallclock) -> Result<(), CatalogError> {
        self.call("note_no_stream", |state| {
            let waits = |found: &&mut StoredJob| found.row.state == JobState::Waiting;
            if let Some(found) = state.jobs.get_mut(&job).filter(waits) {
                found.row.without_stream_at = found.row.without_stream_at.max(Some(at));
            }
            Ok(())
        })
        .await
    }

    async fn resume_job(
        &self,
        job: JobId,
        who: &str,
        without_stream_at: Option<Wallclock>,
        now: Wallclock,
    ) -> Result<bool, CatalogError> {
        self.call("resume_job", |state| {
            let waits = |found: &&mut StoredJob| found.row.state == JobState::Waiting;
            let Some(found) = state.jobs.get_mut(&job).filter(waits) else { return Ok(false) };
            let row = &mut found.row;
            row.state = JobState::Accepted;
            (row.origin, row.lease_expires_at, row.updated_at) = (now, Wallclock(0), now);
            row.without_stream_at = row.without_stream_at.max(without_stream_at);
            state.line(job, "resumed: somebody publishes", who, now);
            Ok(true)
        })
        .await
    }

    async fn end_waiting(&self, job: JobId, reason: &str, who: &str, now: Wallclock) -> Result<bool, CatalogError> {
        self.call("end_waiting", |state| {
            let ended = state.jobs.get_mut(&job).is_some_and(|found| found.end_waiting(reason, now));
            if ended {
                state.line(job, &format!("empty: {reason}"), who, now);
            }
            Ok(ended)
        })
        .await
    }
}
