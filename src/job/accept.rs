//! Accepting jobs: what events and requests that start an archive have in common.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::catalog::{Accepted, Catalog, CatalogError, Classes, JobRow, NewJob, StoredDesired};
use crate::model::desired::Desired;
use crate::model::time::Wallclock;

/// How often it is looked whether the session's last job has ended.
const POLL: Duration = Duration::from_millis(50);

/// Accepts a job. A session that is used again at once waits `within` so long for its last job, which is about to end.
///
/// # Errors
/// [`CatalogError::Ending`] when that does not end in time; else when the catalog is away.
pub async fn accept(catalog: &dyn Catalog, new: &NewJob, within: Duration) -> Result<Accepted, CatalogError> {
    let deadline = Instant::now() + within;
    loop {
        // Media time zero: other machines go by it, too.
        match catalog.accept(new, catalog.clock().await?).await {
            Err(CatalogError::Ending { .. }) if Instant::now() < deadline => sleep(POLL).await,
            accepted => return accepted,
        }
    }
}

/// The archive of a new job begins with the layout classes that its session's streams have.
///
/// # Errors
/// When the catalog is away.
pub async fn give_classes(catalog: &dyn Catalog, job: &JobRow, classes: &Classes) -> Result<(), CatalogError> {
    if classes.is_empty() {
        return Ok(());
    }
    let desired = StoredDesired::of(Desired { classes: classes.clone(), ..Desired::default() });
    catalog.desire(job, &desired, Wallclock::now()).await.map(drop)
}
