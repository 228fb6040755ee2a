//! Archives made of others because somebody asked the API: durable, one after the other, taken over when the process that makes
//! one dies.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::clip::{Part, clip};
use super::recompose::{Otherwise, recompose};
use crate::archive::build::Clip;
use crate::catalog::{ArchiveRow, ArchiveStatus, Catalog, CatalogError, RemakeRow};
use crate::config::Settings;
use crate::event::{Layout, OutputMode, Resolution};
use crate::fault::{Fault, FaultKind, HasFault, Retry, chain};
use crate::ids::ArchiveId;
use crate::store::SharedStore;
use crate::time::Wallclock;

/// Whoever makes one keeps it for so long at a time.
const LEASE: Duration = Duration::from_secs(30);
/// How often it is looked for one.
const POLL: Duration = Duration::from_secs(1);
/// One that fails for a passing reason is tried so often.
const TRIES_MAX: i64 = 20;
/// Between these.
const PAUSE: Duration = Duration::from_secs(15);
/// So many may wait.
pub const WAITING_MAX: u32 = 1000;

/// How an archive is made of another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Remake {
    /// A part of its file, copied.
    Clip(Part),
    /// Composed anew of its kept segments.
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

/// Why it is not done.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// It is not finished.
    #[error("archive {archive} is {status}: others are made of what is available")]
    Unfinished {
        /// Which.
        archive: ArchiveId,
        /// Its status.
        status: &'static str,
    },
    /// Too many wait.
    #[error("{WAITING_MAX} archives wait to be made of others: try again later")]
    Busy,
}

impl HasFault for AskError {
    fn fault(&self) -> Fault {
        match self {
            Self::Catalog(e) => e.fault(),
            Self::Unfinished { .. } | Self::Busy => FaultKind::Conflict.fault(),
        }
    }
}

/// Asks for an archive to be made of another one. Returns its entry: `stopped` until it is made.
///
/// # Errors
/// See [`AskError`].
pub async fn ask(catalog: &Catalog, of: &ArchiveRow, remake: &Remake, now: Wallclock) -> Result<ArchiveRow, AskError> {
    if !matches!(of.status, ArchiveStatus::Available | ArchiveStatus::Uploaded) {
        return Err(AskError::Unfinished { archive: of.archive, status: of.status.as_str() });
    }
    let mut options = of.options.clone();
    options.output_mode = OutputMode::Composed;
    if let Remake::Recompose { layout, resolution, .. } = remake {
        options.layout = layout.clone().or(options.layout);
        options.resolution = resolution.or(options.resolution);
    }
    let new = ArchiveRow {
        archive: ArchiveId::random(),
        status: ArchiveStatus::Stopped,
        output_mode: OutputMode::Composed.as_str().to_owned(),
        created_at: now,
        updated_at: now,
        duration_s: 0,
        size: 0,
        sha256: String::new(),
        object_key: None,
        options,
        ..of.clone()
    };
    let what = serde_json::to_string(remake).expect("plain data");
    // Its entry first: whoever makes it, or gives it up, finds it.
    catalog.add_archive(&new).await?;
    let added = catalog.add_remake(new.archive, of.archive, &what, WAITING_MAX, now).await;
    if !matches!(added, Ok(true)) {
        give_up(catalog, new.archive).await?;
    }
    if added? { Ok(new) } else { Err(AskError::Busy) }
}

/// Makes what was asked for, until `cancel`.
pub async fn keep_making(settings: Arc<Settings>, catalog: Catalog, store: SharedStore, cancel: CancellationToken) {
    loop {
        let now = Wallclock::now();
        match catalog.claim_remake(now, now + LEASE).await {
            Ok(Some(remake)) => {
                let archive = remake.archive;
                let making = AssertUnwindSafe(make(&settings, &catalog, &store, remake, &cancel)).catch_unwind();
                if making.await.is_err() {
                    tracing::error!(fault.kind = "bug", %archive, "making an archive of another one panicked");
                    if let Err(error) = give_up(&catalog, archive).await {
                        tracing::warn!(%archive, "it is not given up: {}", chain(&error));
                    }
                }
            }
            Ok(None) => {
                if cancel.run_until_cancelled(sleep(POLL)).await.is_none() {
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

/// What a try came to.
enum Made {
    Done,
    /// Never, or not any more.
    Failed(String),
    Later(String),
}

impl Made {
    fn of(result: Result<ArchiveRow, impl HasFault>, tries: i64) -> Self {
        match result {
            Ok(_) => Self::Done,
            Err(error) if error.fault().retry == Retry::Never || tries >= TRIES_MAX => Self::Failed(chain(&error)),
            Err(error) => Self::Later(chain(&error)),
        }
    }
}

async fn make(
    settings: &Settings,
    catalog: &Catalog,
    store: &SharedStore,
    mut remake: RemakeRow,
    cancel: &CancellationToken,
) {
    let (archive, ours) = (remake.archive, cancel.child_token());
    let work = try_once(settings, catalog, store, remake.clone(), &ours);
    tokio::pin!(work);
    let made = loop {
        tokio::select! {
            made = &mut work => break made,
            () = sleep(LEASE / 3) => {
                // An error is no loss of it: the next time may be in time.
                if let Ok(false) = catalog.keep_remake(&mut remake, Wallclock::now() + LEASE).await {
                    tracing::warn!(%archive, "somebody else makes this archive now");
                    ours.cancel();
                    work.await;
                    return;
                }
            }
        }
    };
    if cancel.is_cancelled() && !matches!(made, Made::Done) {
        // Whoever is there takes it at once.
        catalog.keep_remake(&mut remake, Wallclock::now()).await.unwrap_or_default();
        return;
    }
    let ended = match made {
        Made::Done => catalog.end_remake(archive).await,
        Made::Failed(why) => {
            tracing::warn!(%archive, source = %remake.source, "the archive cannot be made: {why}");
            give_up(catalog, archive).await
        }
        Made::Later(why) => {
            tracing::info!(%archive, tries = remake.tries, "the archive cannot be made for now: {why}");
            catalog.keep_remake(&mut remake, Wallclock::now() + PAUSE).await.map(drop)
        }
    };
    if let Err(error) = ended {
        tracing::warn!(%archive, "it is not noted what became of the archive: {}", chain(&error));
    }
}

async fn give_up(catalog: &Catalog, archive: ArchiveId) -> Result<(), CatalogError> {
    if let Some(row) = catalog.archive(archive).await? {
        let (status, reason) = (ArchiveStatus::Failed, "failure".to_owned());
        catalog.put_archive(&ArchiveRow { status, reason, updated_at: Wallclock::now(), ..row }).await?;
    }
    catalog.end_remake(archive).await
}

async fn try_once(
    settings: &Settings,
    catalog: &Catalog,
    store: &SharedStore,
    remake: RemakeRow,
    cancel: &CancellationToken,
) -> Made {
    // It was made, and only that was not noted.
    if let Ok(Some(row)) = catalog.archive(remake.archive).await
        && row.status != ArchiveStatus::Stopped
    {
        return Made::Done;
    }
    let RemakeRow { archive, source, tries, .. } = remake;
    match serde_json::from_str(&remake.what) {
        Ok(Remake::Clip(part)) => {
            Made::of(clip(settings, catalog, store.as_ref(), (source, archive), part, cancel).await, tries)
        }
        Ok(Remake::Recompose { layout, resolution, from_ms, to_ms }) => {
            let part = from_ms.is_some() || to_ms.is_some();
            let clip = part.then(|| Clip { from_ms: from_ms.unwrap_or(0), to_ms });
            let otherwise = Otherwise { layout, resolution, clip };
            Made::of(recompose(settings, catalog, store.as_ref(), (source, archive), &otherwise, cancel).await, tries)
        }
        Err(error) => Made::Failed(format!("what is to be made cannot be read: {error}")),
    }
}
