//! "Was everything recorded?": looks at the rooms of the media routers and at the jobs, and tells which sessions are not recorded as they
//! should be. It changes nothing, so any number of processes may look at any time.
//!
//! ```text
//! rooms ─┐
//!        ├─ findings ─ those that are there at two looks ─► metric, log, `archiver reconcile`
//! jobs ──┘
//! ```

pub mod look;
pub mod recorded;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use self::recorded::{Finding, FindingKind, confirmed};
use crate::catalog::SharedCatalog;
use crate::model::fault::chain;
use crate::router::Routers;
use crate::runtime::metrics::{FindingLabels, metrics};

/// Between two looks of a worker.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Between the two looks of `archiver reconcile`. The bridge tells of a session's start within seconds, and a worker needs some more.
pub const CONFIRM_AFTER: Duration = Duration::from_secs(15);

/// Looks once a minute until `stop`. What is found at two looks is told: a line in the log when it is new and when it is over, and a metric.
pub async fn run_reconciler(catalog: SharedCatalog, routers: Routers, stop: CancellationToken) {
    let (mut before, mut told) = (Vec::new(), BTreeMap::new());
    while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
        let looking = look::look(catalog.as_ref(), &routers);
        let Some(seen) = stop.run_until_cancelled(looking).await else { return };
        let seen = match seen {
            Ok(seen) => seen,
            Err(error) => {
                tracing::debug!("rooms and jobs cannot be held against each other for now: {}", chain(&error));
                continue;
            }
        };
        let found = recorded::findings(&seen);
        let lasting = confirmed(&before, &found);
        before = found;
        tell(&mut told, &lasting);
    }
}

/// Logs what is new and what is over, and sets the metric.
fn tell(told: &mut BTreeMap<String, Finding>, lasting: &[Finding]) {
    let now: BTreeMap<String, Finding> = lasting.iter().map(|finding| (finding.key(), finding.clone())).collect();
    for (_, finding) in now.iter().filter(|(key, _)| !told.contains_key(*key)) {
        tracing::warn!(kind = finding.kind().as_str(), "not recorded as it should be: {finding}");
    }
    for (_, finding) in told.iter().filter(|(key, _)| !now.contains_key(*key)) {
        tracing::info!(kind = finding.kind().as_str(), "over: {finding}");
    }
    for kind in FindingKind::ALL {
        let count = lasting.iter().filter(|finding| finding.kind() == kind).count();
        let gauge = metrics().not_recorded.get_or_create(&FindingLabels { kind: kind.as_str() });
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    *told = now;
}
