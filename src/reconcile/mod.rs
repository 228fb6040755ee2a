//! "Is everything recorded?": compares the rooms of the media routers with the jobs, and reports which sessions are not recorded as they
//! should be. Nothing is changed, so any number of processes may compare at any time.
//!
//! ```text
//! rooms ─┐
//!        ├─ findings ─ those of two comparisons ─► metric, log, `archiver reconcile`
//! jobs ──┘
//! ```

pub mod archives;
pub mod findings;
pub mod snapshot;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use self::findings::{Finding, FindingKind, confirmed, findings};
use self::snapshot::take_snapshot;
use crate::catalog::SharedCatalog;
use crate::model::fault::chain;
use crate::model::time::Wallclock;
use crate::router::Routers;
use crate::runtime::metrics::{FindingLabels, metrics};

/// Between two comparisons of a worker, and up to so much more: workers that were started together do not ask together.
const INTERVAL: Duration = Duration::from_secs(60);
const JITTER: Duration = Duration::from_secs(10);
/// Findings that are logged at a time. The metric counts all.
const LINES_MAX: usize = 20;
/// Between the two comparisons of `archiver reconcile`. The bridge publishes a session's start within seconds, and a worker needs some more.
pub const CONFIRM_AFTER: Duration = Duration::from_secs(15);

/// Compares once a minute until `stop`. Reports findings of two successive comparisons: logs each when it appears and when it is gone, and sets
/// the metric.
pub async fn run_reconciler(catalog: SharedCatalog, routers: Routers, stop: CancellationToken) {
    let (mut before, mut reported, mut has_failed) = (Vec::new(), BTreeMap::new(), false);
    loop {
        let pause = INTERVAL + JITTER.mul_f64(rand::random());
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
        let comparing = take_snapshot(catalog.as_ref(), &routers);
        let Some(snapshot) = stop.run_until_cancelled(comparing).await else { return };
        let snapshot = match snapshot {
            Ok(snapshot) => snapshot,
            Err(error) => {
                if !std::mem::replace(&mut has_failed, true) {
                    tracing::warn!("rooms and jobs are not compared for now: {}", chain(&error));
                }
                continue;
            }
        };
        has_failed = false;
        let mut found = findings(&snapshot);
        // What an unreachable router had before may go on.
        let is_out_of_sight = |finding: &&Finding| finding.router().is_some_and(|router| snapshot.lacks(router));
        found.extend(before.iter().filter(is_out_of_sight).cloned());
        let lasting = confirmed(&before, &found);
        before = found;
        report(&mut reported, lasting);
        metrics().reconciled_at.set(Wallclock::now().0 / 1_000_000);
    }
}

/// Logs what appears and what is gone, and sets the metric.
fn report(reported: &mut BTreeMap<String, Finding>, lasting: Vec<Finding>) {
    for kind in FindingKind::ALL {
        let count = lasting.iter().filter(|finding| finding.kind() == kind).count();
        let gauge = metrics().not_recorded.get_or_create(&FindingLabels { kind: kind.as_str() });
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    let now: BTreeMap<String, Finding> = lasting.into_iter().map(|finding| (finding.key(), finding)).collect();
    let new: Vec<&Finding> = now.iter().filter(|(key, _)| !reported.contains_key(*key)).map(|(_, new)| new).collect();
    for finding in new.iter().take(LINES_MAX) {
        tracing::warn!(kind = finding.kind().as_str(), "not recorded as it should be: {finding}");
    }
    if new.len() > LINES_MAX {
        tracing::warn!("and {} more, which `archiver reconcile` lists", new.len() - LINES_MAX);
    }
    for key in reported.keys().filter(|key| !now.contains_key(*key)).take(LINES_MAX) {
        tracing::info!("resolved: {key}");
    }
    *reported = now;
}
