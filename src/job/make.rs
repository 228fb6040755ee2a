//! Makes an archive's files of all of its log that is in the store, and delivers them. Safe to begin again at any point.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::stage::bug;
use super::{Job, JobFailure};
use crate::archive::ArchiveError;
use crate::archive::build::{build_with, captured_ms};
use crate::archive::deliver::Delivery;
use crate::archive::documents::{Manifest, Report};
use crate::archive::object::{Built, Object};
use crate::catalog::ArchiveRow;
use crate::compose::composer::Composed;
use crate::media::Pipelines;
use crate::model::cancellable::Cancellable;
use crate::model::fault::{Backoff, FaultKind, HasFault, Retry, chain};
use crate::model::ids::Epoch;
use crate::model::log_read::LogRead;
use crate::recording::HISTORY;
use crate::recording::restore::restore;
use crate::recording::spool;
use crate::runtime::retry::{STORE, retry_until_cancelled};
use crate::store::keys::Keys;

/// Making the files is tried so often; then a person must look.
const BUILD_TRIES: u32 = 5;
const BUILD_RETRY: Backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(30) };

/// The archive is made so often, when segments come from other machines meanwhile.
const ROUNDS_MAX: u32 = 3;

/// Where it is, in the archive's folder.
const BUILT: &str = "out/built.json";

/// What a build left for a later try: the files are beside it.
#[derive(Serialize, Deserialize)]
struct BuiltFile {
    objects: Vec<Object>,
    manifest: Manifest,
    report: Report,
    /// The log that it was made of. Those of earlier versions do not say.
    #[serde(default)]
    log: Option<LogSize>,
}

/// How much there is of a log on this disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct LogSize {
    captured_ms: i64,
    history_bytes: u64,
}

impl LogSize {
    /// Blocking.
    fn of(dir: &Path) -> Result<Self, ArchiveError> {
        let history_bytes = std::fs::metadata(dir.join(HISTORY)).map_or(0, |found| found.len());
        Ok(Self { captured_ms: captured_ms(dir)?, history_bytes })
    }
}

/// An archive that is delivered.
pub(super) struct Delivered {
    pub built: Built,
    pub manifest: Manifest,
    pub log: LogRead,
}

/// What was made.
pub(super) enum Made {
    /// An archive.
    Archive(Box<Delivered>),
    /// Nothing: the archive that was made before is as good. Its row says now how far the log was read.
    NothingMore(Box<ArchiveRow>),
    /// Nothing: the job is given up.
    GivenUp,
}

/// Makes the archive. If it was made `before`, it is made again only if its log has more media now.
pub(super) async fn make(
    job: &Job,
    reason: &str,
    mut live_output: Option<Composed>,
    before: Option<&ArchiveRow>,
) -> Result<Made, JobFailure> {
    let Cancellable::Done(mut fetched) = fetch_missing(job).await? else { return Ok(Made::GivenUp) };
    if fetched.new > 0 {
        // Neither the composer nor an earlier try saw all of the log.
        live_output = None;
        forget_build(&job.dir)?;
    }
    for round in 1.. {
        if job.given_up.is_cancelled() {
            break;
        }
        let at = job.dir.clone();
        let captured = tokio::task::spawn_blocking(move || captured_ms(&at)).await.map_err(|e| bug(&e))?;
        let captured_ms = captured.map_err(|e| JobFailure::of(&e))?;
        let log = LogRead::new(job.row.epoch, fetched.bundles.into_iter(), captured_ms);
        if let Some(before) = before.filter(|_| round == 1) {
            // An archive that an earlier version made does not say what was read: whether there is more is not known.
            let improves = before.log_read.as_ref().is_some_and(|earlier| log.improves(earlier));
            if !improves {
                return Ok(Made::NothingMore(Box::new(unchanged(before, log))));
            }
        }
        let Cancellable::Done(mut built) = build_or_reuse(job, reason, live_output.take()).await? else { break };
        built.manifest.revision = before.map_or(1, |before| before.revision + 1);
        let (out, part_bytes) = (job.dir.join(spool::BUILT), job.context.settings.store.part_size.0);
        let store = job.context.store.as_ref();
        let delivery = Delivery { store, keys: &job.keys, out: &out, part_bytes, progress: &|_| {} };
        let sent = delivery.send(&built, &job.given_up).await.map_err(|e| JobFailure::of(&e))?;
        let Cancellable::Done(manifest) = sent else { break };
        // Another machine may have come back while the archive was made. What is not read now is added when the archive is made again.
        let Cancellable::Done(more) = fetch_missing(job).await? else { break };
        if more.new == 0 || round >= ROUNDS_MAX {
            return Ok(Made::Archive(Box::new(Delivered { built, manifest, log })));
        }
        fetched = more;
        forget_build(&job.dir)?;
    }
    Ok(Made::GivenUp)
}

/// The row of an archive that stays as it is though its log was read up to `log`.
fn unchanged(before: &ArchiveRow, log: LogRead) -> ArchiveRow {
    let log = match &before.log_read {
        Some(earlier) => {
            if !log.reaches(earlier) {
                tracing::warn!(
                    "the store has less of the log than the archive was made of: the archive stays as it is"
                );
            }
            log.behind(earlier)
        }
        None => log,
    };
    ArchiveRow { log_read: Some(log), ..before.clone() }
}

/// Builds an archive's files, or takes those of an earlier attempt. Cancelled when the job is given up.
async fn build_or_reuse(
    job: &Job,
    reason: &str,
    live_output: Option<Composed>,
) -> Result<Cancellable<Built>, JobFailure> {
    for attempt in 0.. {
        let (dir, descriptor, reason) = (job.dir.clone(), job.descriptor(), reason.to_owned());
        let section = &job.context.settings.pipelines;
        let pipelines = Pipelines::new(section.dir.clone(), section.stall.0);
        let (cancel, live_output, stream_files) =
            (job.given_up.clone(), live_output.clone(), Arc::clone(&job.context.stream_files));
        // The semaphore is never closed.
        let Some(Ok(_turn)) = cancel.run_until_cancelled(job.context.builds.acquire()).await else { break };
        let work = move || -> Result<Cancellable<Built>, ArchiveError> {
            let log = LogSize::of(&dir)?;
            if let Some(built) = load_build(&dir, log) {
                return Ok(Cancellable::Done(built));
            }
            let built =
                build_with(&dir, &descriptor, &reason, live_output, &pipelines, stream_files.as_ref(), &cancel)?;
            let Cancellable::Done(built) = built else { return Ok(Cancellable::Cancelled) };
            save_build(&dir, &built, log)?;
            Ok(Cancellable::Done(built))
        };
        let error = match tokio::task::spawn_blocking(work).await {
            Ok(Ok(built)) => return Ok(built),
            Ok(Err(error)) if error.fault().retry == Retry::Never || attempt + 1 >= BUILD_TRIES => {
                return Err(JobFailure::of(&error));
            }
            Ok(Err(error)) => error,
            Err(panic) => {
                return Err(JobFailure { kind: FaultKind::Bug, detail: format!("finalizing panicked: {panic}") });
            }
        };
        tracing::warn!(attempt, "the archive cannot be made, trying again: {}", chain(&error));
        let pause = tokio::time::sleep(BUILD_RETRY.delay(attempt, rand::random()));
        if job.given_up.run_until_cancelled(pause).await.is_none() {
            break;
        }
    }
    Ok(Cancellable::Cancelled)
}

/// What was fetched of a log.
struct Fetched {
    /// Bundles with segments that were not here.
    new: usize,
    /// The bundles that are here now. What came while they were fetched may be here, too.
    bundles: Vec<(Epoch, u32)>,
}

/// Fetches what other machines have sent of the log since this one looked into the store.
async fn fetch_missing(job: &Job) -> Result<Cancellable<Fetched>, JobFailure> {
    if job.row.epoch <= Epoch(1) {
        return Ok(Cancellable::Done(Fetched { new: 0, bundles: Vec::new() }));
    }
    let (store, prefix) = (job.context.store.as_ref(), job.keys.segments());
    let list = || store.list(&prefix);
    let there = retry_until_cancelled("list bundles", STORE, &job.given_up, list).await;
    let Cancellable::Done(there) = there.map_err(|e| JobFailure::of(&e))? else { return Ok(Cancellable::Cancelled) };
    let bundles = there.iter().filter_map(|object| Keys::parse_bundle(&object.key)).collect();
    let origin = Some(job.row.origin);
    let restored = restore(store, &job.keys, &job.dir, origin, &job.given_up).await.map_err(|e| JobFailure::of(&e))?;
    if let Cancellable::Done(new @ 1..) = restored {
        tracing::info!(bundles = new, "further segments were fetched from the store");
        job.context.spool.mark_stale();
    }
    Ok(restored.map(|new| Fetched { new, bundles }))
}

/// Takes back what an earlier try built.
fn forget_build(dir: &Path) -> Result<(), JobFailure> {
    let path = dir.join(BUILT);
    match std::fs::remove_file(&path) {
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Err(JobFailure::of(&ArchiveError::Io { doing: "removed", path: path.display().to_string(), source: error }))
        }
        _ => Ok(()),
    }
}

/// What an earlier try built of the same log.
fn load_build(dir: &Path, log: LogSize) -> Option<Built> {
    let saved: BuiltFile = serde_json::from_slice(&std::fs::read(dir.join(BUILT)).ok()?).ok()?;
    let is_whole = |object: &Object| std::fs::metadata(&object.path).is_ok_and(|found| found.len() == object.size);
    let whole = saved.log == Some(log) && !saved.objects.is_empty() && saved.objects.iter().all(is_whole);
    whole.then_some(Built { objects: saved.objects, manifest: saved.manifest, report: saved.report })
}

fn save_build(dir: &Path, built: &Built, log: LogSize) -> Result<(), ArchiveError> {
    let Built { objects, manifest, report } = built.clone();
    let saved = BuiltFile { objects, manifest, report, log: Some(log) };
    let path = dir.join(BUILT);
    let (json, temp) = (serde_json::to_vec(&saved).expect("plain data"), dir.join("out/built.json.tmp"));
    let io = |source| ArchiveError::Io { doing: "written", path: path.display().to_string(), source };
    std::fs::write(&temp, json).map_err(io)?;
    std::fs::rename(&temp, &path).map_err(io)
}
