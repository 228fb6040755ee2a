//! Derived archives that were requested from the API. Requests are durable and run one after the other; another process takes
//! over when the one that makes an archive dies.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::clip::{ClipRange, clip};
use super::recompose::{RecomposeOverrides, recompose};
use super::workspace::{self, Derivation};
use crate::archive::build::Clip;
use crate::catalog::{
    ArchiveRow, ArchiveStatus, Catalog, CatalogError, DerivedArchiveLimits, DerivedArchiveRow, SharedCatalog,
};
use crate::config::Settings;
use crate::model::archive_options::{OutputMode, Resolution};
use crate::model::cancellable::Cancellable;
use crate::model::fault::{Fault, FaultKind, HasFault, Retry, chain};
use crate::model::ids::ArchiveId;
use crate::model::layout::Layout;
use crate::model::time::Wallclock;
use crate::store::SharedStore;

/// The process that makes an archive holds a lease of this length, and renews it.
const LEASE: Duration = Duration::from_secs(30);
/// Interval at which the catalog is polled for requests.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Attempts to make an archive, when an attempt fails for a passing reason or kills its process.
const ATTEMPTS_MAX: i64 = 20;
/// Time between two attempts.
const RETRY_DELAY: Duration = Duration::from_secs(15);
/// Requests that may wait.
pub const WAITING_MAX: u32 = 1000;
/// Requests of one application that may wait: those of others must not wait behind more.
pub const WAITING_OF_ONE_MAX: u32 = 100;

/// How an archive is made of another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DerivedArchive {
    /// A part of its file is copied.
    Clip(ClipRange),
    /// Its kept segments are composed again.
    Recompose {
        /// Another layout.
        layout: Option<Layout>,
        /// Another size.
        resolution: Option<Resolution>,
        /// Only a part: milliseconds from its beginning.
        from_ms: Option<u32>,
        /// Only a part: milliseconds from its beginning.
        to_ms: Option<u32>,
    },
}

/// Why a derived archive is refused.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// It is not finished.
    #[error("archive {archive} is {status}: others are made of what is available")]
    Unfinished {
        /// The source archive.
        archive: ArchiveId,
        /// Its status.
        status: &'static str,
    },
    /// Too many wait.
    #[error(
        "{WAITING_OF_ONE_MAX} archives of this application, or {WAITING_MAX} of all, wait to be made of others: try again later"
    )]
    Busy,
}

impl HasFault for RequestError {
    fn fault(&self) -> Fault {
        match self {
            Self::Catalog(e) => e.fault(),
            Self::Unfinished { .. } => FaultKind::Conflict.fault(),
            Self::Busy => FaultKind::Busy.fault(),
        }
    }
}

/// Requests a derived archive. Returns its entry: `stopped` until it is made.
///
/// # Errors
/// See [`RequestError`].
pub async fn request_derived_archive(
    catalog: &dyn Catalog,
    of: &ArchiveRow,
    derivation: &DerivedArchive,
    now: Wallclock,
) -> Result<ArchiveRow, RequestError> {
    if !matches!(of.status, ArchiveStatus::Available | ArchiveStatus::Uploaded) {
        return Err(RequestError::Unfinished { archive: of.archive, status: of.status.as_str() });
    }
    let mut options = of.options.clone();
    options.output_mode = OutputMode::Composed;
    if let DerivedArchive::Recompose { layout, resolution, .. } = derivation {
        options.layout = layout.clone().or(options.layout);
        options.resolution = resolution.or(options.resolution);
    }
    let new = ArchiveRow::derived(of, ArchiveId::random(), options, now);
    let what = serde_json::to_string(derivation).expect("plain data");
    let limits = DerivedArchiveLimits { all: WAITING_MAX, of_one: WAITING_OF_ONE_MAX };
    if catalog.add_derived_archive(&new, of.archive, &what, limits, now).await? {
        Ok(new)
    } else {
        Err(RequestError::Busy)
    }
}

/// Makes the requested archives, until `cancel`.
pub async fn run_derivations(
    settings: Arc<Settings>,
    catalog: SharedCatalog,
    store: SharedStore,
    cancel: CancellationToken,
) {
    let data_dir = settings.worker.data_dir.clone();
    tokio::task::spawn_blocking(move || workspace::remove_abandoned(&data_dir)).await.unwrap_or_default();
    loop {
        let now = Wallclock::now();
        match catalog.claim_derived_archive(now, now + LEASE).await {
            // Each attempt ended with its process.
            Ok(Some(claimed)) if claimed.tries > ATTEMPTS_MAX => {
                let DerivedArchiveRow { archive, source, .. } = claimed;
                tracing::error!(%archive, %source, "each of {ATTEMPTS_MAX} tries to make the archive broke off: it is given up");
                if let Err(error) = give_up(catalog.as_ref(), archive).await {
                    tracing::warn!(%archive, "it is not given up: {}", chain(&error));
                }
            }
            Ok(Some(claimed)) => {
                let archive = claimed.archive;
                let making =
                    AssertUnwindSafe(derive(&settings, catalog.as_ref(), &store, claimed, &cancel)).catch_unwind();
                if making.await.is_err() {
                    tracing::error!(fault.kind = "bug", %archive, "making an archive of another one panicked");
                    if let Err(error) = give_up(catalog.as_ref(), archive).await {
                        tracing::warn!(%archive, "it is not given up: {}", chain(&error));
                    }
                }
            }
            Ok(None) => {
                if cancel.run_until_cancelled(sleep(POLL_INTERVAL)).await.is_none() {
                    return;
                }
            }
            Err(error) => {
                tracing::debug!("nothing can be made of other archives for now: {}", chain(&error));
                if cancel.run_until_cancelled(sleep(LEASE)).await.is_none() {
                    return;
                }
            }
        }
        if cancel.is_cancelled() {
            return;
        }
    }
}

/// The result of an attempt.
enum AttemptOutcome {
    Done,
    Cancelled,
    /// Never, or not any more.
    Failed(String),
    Retry(String),
}

impl AttemptOutcome {
    fn of(result: Result<Cancellable<ArchiveRow>, impl HasFault>, tries: i64) -> Self {
        match result {
            Ok(Cancellable::Done(_)) => Self::Done,
            Ok(Cancellable::Cancelled) => Self::Cancelled,
            Err(error) if error.fault().retry == Retry::Never || tries >= ATTEMPTS_MAX => Self::Failed(chain(&error)),
            Err(error) => Self::Retry(chain(&error)),
        }
    }
}

async fn derive(
    settings: &Settings,
    catalog: &dyn Catalog,
    store: &SharedStore,
    mut claimed: DerivedArchiveRow,
    cancel: &CancellationToken,
) {
    let (archive, attempt_cancel) = (claimed.archive, cancel.child_token());
    let running = attempt(settings, catalog, store, claimed.clone(), &attempt_cancel);
    tokio::pin!(running);
    let outcome = loop {
        tokio::select! {
            outcome = &mut running => break outcome,
            () = sleep(LEASE / 3) => {
                // An error does not lose the lease: the next renewal may be in time.
                if let Ok(false) = catalog.extend_derived_archive(&mut claimed, Wallclock::now() + LEASE).await {
                    tracing::warn!(%archive, "somebody else makes this archive now");
                    attempt_cancel.cancel();
                    running.await;
                    return;
                }
            }
        }
    };
    let outcome = match outcome {
        // The cancellation may have caused the failure.
        AttemptOutcome::Failed(_) | AttemptOutcome::Retry(_) if cancel.is_cancelled() => AttemptOutcome::Cancelled,
        outcome => outcome,
    };
    let ended = match outcome {
        AttemptOutcome::Done => catalog.finish_derived_archive(archive).await,
        AttemptOutcome::Cancelled => {
            // Another process can take it at once.
            catalog.release_derived_archive(&claimed, Wallclock::now()).await.unwrap_or_default();
            return;
        }
        AttemptOutcome::Failed(why) => {
            tracing::warn!(%archive, source = %claimed.source, "the archive cannot be made: {why}");
            give_up(catalog, archive).await
        }
        AttemptOutcome::Retry(why) => {
            tracing::info!(%archive, tries = claimed.tries, "the archive cannot be made for now: {why}");
            catalog.extend_derived_archive(&mut claimed, Wallclock::now() + RETRY_DELAY).await.map(drop)
        }
    };
    if let Err(error) = ended {
        tracing::warn!(%archive, "it is not noted what became of the archive: {}", chain(&error));
    }
}

async fn give_up(catalog: &dyn Catalog, archive: ArchiveId) -> Result<(), CatalogError> {
    if let Some(row) = catalog.archive(archive).await? {
        catalog.put_archive(&row.failed(Wallclock::now())).await?;
    }
    catalog.finish_derived_archive(archive).await
}

async fn attempt(
    settings: &Settings,
    catalog: &dyn Catalog,
    store: &SharedStore,
    claimed: DerivedArchiveRow,
    cancel: &CancellationToken,
) -> AttemptOutcome {
    // An earlier attempt made it, and did not note that.
    if let Ok(Some(row)) = catalog.archive(claimed.archive).await
        && row.status != ArchiveStatus::Stopped
    {
        return AttemptOutcome::Done;
    }
    let DerivedArchiveRow { archive, source, tries, .. } = claimed;
    match serde_json::from_str(&claimed.what) {
        Ok(DerivedArchive::Clip(part)) => AttemptOutcome::of(
            clip(settings, catalog, store.as_ref(), Derivation { source, new: archive }, part, cancel).await,
            tries,
        ),
        Ok(DerivedArchive::Recompose { layout, resolution, from_ms, to_ms }) => {
            let part = from_ms.is_some() || to_ms.is_some();
            let clip = part.then(|| Clip { from_ms: from_ms.unwrap_or(0), to_ms });
            let overrides = RecomposeOverrides { layout, resolution, clip };
            AttemptOutcome::of(
                recompose(settings, catalog, store.as_ref(), Derivation { source, new: archive }, &overrides, cancel)
                    .await,
                tries,
            )
        }
        Err(error) => AttemptOutcome::Failed(format!("what is to be made cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::model::archive_options::ArchiveOptions;
    use crate::model::ids::{JobId, SessionId};
    use crate::store::dir::DirStore;

    fn source(application: &str) -> ArchiveRow {
        let session: SessionId = "s".parse().expect("id");
        let job = JobId::of_event(&session, &application.parse().expect("id"));
        ArchiveRow {
            archive: ArchiveId::of_job(job),
            job,
            session,
            application: application.parse().expect("id"),
            name: None,
            status: ArchiveStatus::Available,
            reason: String::new(),
            output_mode: "composed".to_owned(),
            created_at: Wallclock(1),
            updated_at: Wallclock(1),
            duration_s: 60,
            size: 1,
            sha256: String::new(),
            object_key: None,
            revision: 1,
            log_read: None,
            missing: None,
            options: ArchiveOptions::default(),
        }
    }

    fn derivation() -> DerivedArchive {
        DerivedArchive::Recompose { layout: None, resolution: None, from_ms: None, to_ms: None }
    }

    async fn catalog(dir: &tempfile::TempDir) -> SharedCatalog {
        let url = format!("sqlite:{}", dir.path().join("catalog.sqlite").display());
        crate::catalog::open(&url).await.expect("catalog")
    }

    #[tokio::test]
    async fn an_application_that_asks_for_too_much_is_told_so_and_keeps_nobody_else_waiting() {
        let dir = tempfile::tempdir().expect("folder");
        let catalog = catalog(&dir).await;
        let asked =
            async |of: &str| request_derived_archive(catalog.as_ref(), &source(of), &derivation(), Wallclock(2)).await;
        for _ in 0..WAITING_OF_ONE_MAX {
            asked("busy").await.expect("there is room");
        }
        let error = asked("busy").await.expect_err("too many");
        assert_eq!(error.fault(), FaultKind::Busy.fault());
        asked("quiet").await.expect("its own room");
    }

    #[tokio::test]
    async fn what_takes_its_process_with_it_each_time_is_given_up() {
        let dir = tempfile::tempdir().expect("folder");
        let catalog = catalog(&dir).await;
        let new = request_derived_archive(catalog.as_ref(), &source("app"), &derivation(), Wallclock(2))
            .await
            .expect("asked");
        for tries in 1..=ATTEMPTS_MAX {
            // Nobody says how it ended.
            let claimed =
                catalog.claim_derived_archive(Wallclock(3), Wallclock(3)).await.expect("catalog").expect("it waits");
            assert_eq!(claimed.tries, tries);
        }
        let file = dir.path().join("archiver.toml");
        std::fs::write(&file, format!("[worker]\ndata_dir = {:?}\n", dir.path())).expect("written");
        let settings = Settings::load(Some(&file), &std::collections::BTreeMap::new()).expect("settings");
        let store: SharedStore = Arc::new(DirStore::open(&dir.path().join("store")).expect("store"));
        let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(run_derivations(Arc::new(settings), catalog.clone(), store, cancel.clone()));
        for _ in 0..100 {
            if catalog.archive(new.archive).await.expect("catalog").is_some_and(|a| a.status == ArchiveStatus::Failed) {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
        cancel.cancel();
        tasks.close();
        tasks.wait().await;
        let row = catalog.archive(new.archive).await.expect("catalog").expect("its entry");
        assert_eq!((row.status, row.reason.as_str()), (ArchiveStatus::Failed, "failure"));
        let left = catalog.claim_derived_archive(Wallclock::now(), Wallclock::now()).await.expect("catalog");
        assert_eq!(left, None);
    }
}
