//! A catalog in memory, with the contract of the SQL catalogs. Each call is atomic, and waits for nothing but injected faults.

mod applications;
mod archives;
mod derived_archives;
mod hand_over;
mod jobs;
mod notices;
mod parked;
mod revisions;
mod sessions;
mod workers;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use archiver::catalog::{
    ApplicationRow, Catalog, CatalogError, HistoryLine, NoticeRow, NoticeTarget, ParkedRow, SessionRow, SharedCatalog,
};
use archiver::model::ids::{ApplicationId, ArchiveId, JobId, ParkedId, SessionId, WorkerId};
use archiver::model::time::Wallclock;
use async_trait::async_trait;
use secrecy::SecretString;

use crate::faults::{Fault, Faults};
use archives::StoredArchive;
use derived_archives::StoredDerivedArchive;
use jobs::StoredJob;
use workers::StoredWorker;

/// A longer lease is none.
const LEASE_MAX: Duration = Duration::from_secs(180);

/// All rows.
#[derive(Debug, Default)]
struct State {
    applications: BTreeMap<ApplicationId, ApplicationRow>,
    secrets: BTreeMap<String, SecretString>,
    sessions: BTreeMap<SessionId, SessionRow>,
    jobs: BTreeMap<JobId, StoredJob>,
    /// Oldest first: when, what, who.
    history: BTreeMap<JobId, Vec<HistoryLine>>,
    archives: BTreeMap<ArchiveId, StoredArchive>,
    /// How many archives an application has that are not deleted.
    counts: BTreeMap<ApplicationId, i64>,
    notices: BTreeMap<(ArchiveId, NoticeTarget, i64), NoticeRow>,
    parked: BTreeMap<ParkedId, ParkedRow>,
    derived_archives: BTreeMap<ArchiveId, StoredDerivedArchive>,
    workers: BTreeMap<WorkerId, StoredWorker>,
}

/// A catalog in memory, as one process sees it. Clones belong to the same process.
///
/// Faults: [`Fault::Unavailable`], [`Fault::Hang`], [`Fault::Slow`] and [`Fault::LostAnswer`]. Operations are
/// named as the methods; keys are empty.
#[derive(Debug, Clone, Default)]
pub struct MemoryCatalog {
    state: Arc<Mutex<State>>,
    faults: Faults,
}

impl MemoryCatalog {
    /// An empty catalog.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same catalog as another process sees it: with faults of its own.
    #[must_use]
    pub fn for_another_process(&self) -> Self {
        Self { state: Arc::clone(&self.state), faults: Faults::default() }
    }

    /// The faults of this process.
    #[must_use]
    pub const fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The catalog as its users take it.
    #[must_use]
    pub fn shared(&self) -> SharedCatalog {
        Arc::new(self.clone())
    }

    /// Performs one call with its fault.
    async fn call<T>(
        &self,
        operation: &'static str,
        body: impl FnOnce(&mut State) -> Result<T, CatalogError> + Send,
    ) -> Result<T, CatalogError> {
        let unavailable = |reason: &str| CatalogError::Unavailable { doing: operation, source: reason.into() };
        let fault = self.faults.meet(operation, "").await;
        if fault.is_some_and(|fault| fault != Fault::LostAnswer) {
            return Err(unavailable("fault injected by the test"));
        }
        let done = body(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        if fault.is_some() { Err(unavailable("fault injected by the test: the answer is lost")) } else { done }
    }
}

#[async_trait]
impl Catalog for MemoryCatalog {
    async fn probe(&self) -> Result<&'static str, CatalogError> {
        self.call("probe", |_| Ok("memory")).await
    }
}

/// Whether a lease that expires at a moment counts now.
fn is_lease(expires_at: Wallclock, now: Wallclock) -> bool {
    expires_at > now && expires_at <= now + LEASE_MAX
}

/// Text as the SQL catalogs keep it: PostgreSQL refuses NUL.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn conflict(doing: &'static str) -> CatalogError {
    CatalogError::Conflict { doing, source: "a row of this key is there".into() }
}

/// How many, as an SQL `COUNT` has it.
fn count(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

/// A page of rows.
fn page<T>(rows: Vec<T>, offset: u32, count: u32) -> Vec<T> {
    let number = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    rows.into_iter().skip(number(offset)).take(number(count)).collect()
}
