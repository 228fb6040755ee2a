//! From a finished log to an available archive: build, upload, prove, publish the manifest last, and only then
//! let go of the local copy. Safe to begin again at any point.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::live_composer::Composing;
use super::stage::{Transition, advance};
use super::{Ended, Job, JobFailure, hand_over};
use crate::archive::ArchiveError;
use crate::archive::build::build_with;
use crate::archive::deliver::Delivery;
use crate::archive::documents::{Manifest, Report};
use crate::archive::object::{Built, Object};
use crate::catalog::{ArchiveFile, JobState};
use crate::compose::composer::Composed;
use crate::media::Pipelines;
use crate::model::cancellable::Cancellable;
use crate::model::fault::{Backoff, FaultKind, HasFault, Retry, chain};
use crate::model::ids::Epoch;
use crate::model::media::MissingMedia;
use crate::model::time::Wallclock;
use crate::recording::restore::restore;
use crate::recording::spool::{self, ProvedInStore};
use crate::recording::upload;
use crate::runtime::metrics::metrics;
use crate::runtime::retry::CATALOG;
use crate::runtime::retry::retry_until_cancelled;

/// Making the files is tried so often; then a person must look.
const BUILD_TRIES: u32 = 5;
const BUILD_RETRY: Backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(30) };

/// The archive is made so often, when segments come from other machines meanwhile. What comes later is told by whoever sends it.
const ROUNDS_MAX: u32 = 3;

/// Where it is, in the archive's folder.
const BUILT: &str = "out/built.json";

/// What a build left for a later try: the files are beside it.
#[derive(Serialize, Deserialize)]
struct BuiltFile {
    objects: Vec<Object>,
    manifest: Manifest,
    report: Report,
}

/// How the job ends when the archive is not made here.
fn given_up(job: &Job) -> Ended {
    if job.fenced.is_cancelled() { Ended::Fenced } else { Ended::HandedOver { captured: true } }
}

/// Makes the archive available, unless the job is given up before.
pub(super) async fn finalize(job: &Job, reason: &str, composing: Option<Composing>) -> Result<Ended, JobFailure> {
    let began = Wallclock::now();
    let mut live_output = match composing {
        Some(composing) => composing.end().await,
        None => None,
    };
    if !hand_over::wait_for_prior_owners(job).await && !job.given_up.is_cancelled() {
        tracing::warn!("an earlier owner does not say that it has sent all: what it has comes later, or is missing");
        // Once is enough.
        if let Err(error) = job.context.catalog.clear_offers(job.row.job, None, job.row.epoch).await {
            tracing::debug!("the offers of the job are not cleared: {}", chain(&error));
        }
    }
    if fetch_missing(job).await? == Fetched::More {
        // Neither the composer nor an earlier try saw all of the log.
        live_output = None;
        forget_build(&job.dir)?;
    }
    let store = job.context.store.as_ref();
    let mut rounds = 0;
    let (built, manifest) = loop {
        if job.given_up.is_cancelled() {
            return Ok(given_up(job));
        }
        let Cancellable::Done(built) = build_or_reuse(job, reason, live_output.take()).await? else {
            return Ok(given_up(job));
        };
        let (out, part_bytes) = (job.dir.join(spool::BUILT), job.context.settings.store.part_size.0);
        let delivery = Delivery { store, keys: &job.keys, out: &out, part_bytes, progress: &|_| {} };
        let manifest = match delivery.send(&built, &job.given_up).await {
            Ok(Cancellable::Done(manifest)) => manifest,
            Ok(Cancellable::Cancelled) => return Ok(given_up(job)),
            Err(error) => return Err(JobFailure::of(&error)),
        };
        rounds += 1;
        // Another machine may have come back while the archive was made.
        match fetch_missing(job).await? {
            Fetched::More if rounds < ROUNDS_MAX => forget_build(&job.dir)?,
            Fetched::More | Fetched::Nothing => break (built, manifest),
            Fetched::Cancelled => return Ok(given_up(job)),
        }
    };
    // The store is there: what is left of the log goes to it too, and the archive can be made again from there.
    match upload::ship_rest(store, &job.keys, &job.dir, job.row.epoch, &job.given_up).await {
        Ok(Cancellable::Done(())) => {}
        Ok(Cancellable::Cancelled) if job.fenced.is_cancelled() => return Ok(Ended::Fenced),
        // The archive is delivered. Another owner would only make it again.
        Ok(Cancellable::Cancelled) => tracing::warn!("the end of the log is not kept in the store: the worker stops"),
        Err(error) => tracing::warn!("the end of the log is not kept in the store: {}", chain(&error)),
    }
    // An archive is at least one object.
    let main = built
        .objects
        .first()
        .ok_or_else(|| JobFailure { kind: FaultKind::Bug, detail: "no file was made".to_owned() })?;
    let file = ArchiveFile {
        duration_s: manifest.duration_s.round() as i64,
        size: i64::try_from(main.size).unwrap_or(i64::MAX),
        sha256: main.sha256.clone(),
        object_key: Some(job.keys.key(main.kind)),
        missing: manifest.missing.clone(),
    };
    let now = Wallclock::now();
    let row = job.archive_row(now).stopped(reason, now).available(file, now);
    let publish = || async {
        job.context.catalog.put_own_archive(&row, job.row.epoch).await?;
        job.context.catalog.resolve_parked(job.row.job).await
    };
    match retry_until_cancelled("publish an archive", CATALOG, &job.fenced, publish).await {
        Ok(Cancellable::Done(())) => {}
        Ok(Cancellable::Cancelled) => return Ok(Ended::Fenced),
        Err(error) => return Err(JobFailure::of(&error)),
    }
    if advance(job, JobState::Available, None).await? == Transition::Fenced {
        return Ok(Ended::Fenced);
    }
    let delay = Wallclock::now().since(began);
    metrics().available(&manifest.missing);
    for lack in &manifest.missing {
        let MissingMedia { stream_id, kind, cause, duration_ms, details } = lack;
        let (kind, cause) = (kind.as_str(), cause.as_str());
        tracing::warn!(%stream_id, kind, cause, duration_ms, "the archive lacks media: {}", details.join("; "));
    }
    metrics().archive_delay.observe(delay.as_secs_f64());
    tracing::info!(
        size_bytes = row.size,
        duration_s = row.duration_s,
        delay_ms = delay.as_millis(),
        "archive is available"
    );
    let (spool, archive) = (Arc::clone(&job.context.spool), job.row.archive);
    // `upload` has read size and checksum of every object back from the store.
    let removed = tokio::task::spawn_blocking(move || spool.remove(archive, ProvedInStore::after_proof())).await;
    if let Ok(Err(error)) = removed {
        tracing::warn!("the local copy stays: {}", chain(&error));
    }
    Ok(Ended::Available)
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
            if let Some(built) = load_build(&dir) {
                return Ok(Cancellable::Done(built));
            }
            let built =
                build_with(&dir, &descriptor, &reason, live_output, &pipelines, stream_files.as_ref(), &cancel)?;
            let Cancellable::Done(built) = built else { return Ok(Cancellable::Cancelled) };
            save_build(&dir, &built)?;
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

/// Whether the store had segments that were not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fetched {
    Nothing,
    More,
    /// The job is given up.
    Cancelled,
}

/// Fetches what other machines have sent of the log since this one looked into the store.
async fn fetch_missing(job: &Job) -> Result<Fetched, JobFailure> {
    if job.row.epoch <= Epoch(1) {
        return Ok(Fetched::Nothing);
    }
    match restore(job.context.store.as_ref(), &job.keys, &job.dir, &job.given_up).await {
        Ok(Cancellable::Done(0)) => Ok(Fetched::Nothing),
        Ok(Cancellable::Cancelled) => Ok(Fetched::Cancelled),
        Ok(Cancellable::Done(bundles)) => {
            tracing::info!(bundles, "further segments were fetched from the store");
            job.context.spool.mark_stale();
            Ok(Fetched::More)
        }
        Err(error) => Err(JobFailure::of(&error)),
    }
}

/// Takes back what an earlier try built.
fn forget_build(dir: &std::path::Path) -> Result<(), JobFailure> {
    let path = dir.join(BUILT);
    match std::fs::remove_file(&path) {
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Err(JobFailure::of(&ArchiveError::Io { doing: "removed", path: path.display().to_string(), source: error }))
        }
        _ => Ok(()),
    }
}

fn load_build(dir: &std::path::Path) -> Option<Built> {
    let saved: BuiltFile = serde_json::from_slice(&std::fs::read(dir.join(BUILT)).ok()?).ok()?;
    let is_whole = |object: &Object| std::fs::metadata(&object.path).is_ok_and(|found| found.len() == object.size);
    let whole = !saved.objects.is_empty() && saved.objects.iter().all(is_whole);
    whole.then_some(Built { objects: saved.objects, manifest: saved.manifest, report: saved.report })
}

fn save_build(dir: &std::path::Path, built: &Built) -> Result<(), ArchiveError> {
    let saved =
        BuiltFile { objects: built.objects.clone(), manifest: built.manifest.clone(), report: built.report.clone() };
    let path = dir.join(BUILT);
    let (json, temp) = (serde_json::to_vec(&saved).expect("plain data"), dir.join("out/built.json.tmp"));
    let io = |source| ArchiveError::Io { doing: "written", path: path.display().to_string(), source };
    std::fs::write(&temp, json).map_err(io)?;
    std::fs::rename(&temp, &path).map_err(io)
}
