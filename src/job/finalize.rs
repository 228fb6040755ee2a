//! From a finished log to an available archive: build, upload, prove, publish the manifest last, and only then
//! let go of the local copy. Safe to begin again at any point.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::live_composer::Composing;
use super::stage::{Transition, advance};
use super::{Ended, Job, JobFailure};
use crate::archive::ArchiveError;
use crate::archive::build::build;
use crate::archive::deliver::Delivery;
use crate::archive::documents::{Manifest, Report};
use crate::archive::object::{Built, Object};
use crate::catalog::{ArchiveFile, JobState};
use crate::compose::composer::Composed;
use crate::media::Pipelines;
use crate::model::cancellable::Cancellable;
use crate::model::fault::{Backoff, FaultKind, HasFault, Retry, chain};
use crate::model::media::MissingMedia;
use crate::model::time::Wallclock;
use crate::recording::restore::restore;
use crate::recording::spool::ProvedInStore;
use crate::recording::upload;
use crate::runtime::metrics::metrics;
use crate::runtime::retry::CATALOG;
use crate::runtime::retry::retry_until_cancelled;

/// Making the files is tried so often; then a person must look.
const BUILD_TRIES: u32 = 5;
const BUILD_RETRY: Backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(30) };

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
pub(super) async fn finalize(job: &Job, reason: &str, mut composing: Option<Composing>) -> Result<Ended, JobFailure> {
    let began = Wallclock::now();
    if !job.has_all_before().await? {
        // It did not see all of the log.
        if let Some(composing) = composing.take() {
            composing.call_off().await;
        }
        match restore(job.context.store.as_ref(), &job.keys, &job.dir, &job.given_up).await {
            Ok(Cancellable::Done(_)) => {}
            Ok(Cancellable::Cancelled) => return Ok(given_up(job)),
            Err(error) => return Err(JobFailure::of(&error)),
        }
    }
    let live_output = match composing {
        Some(composing) => composing.end().await,
        None => None,
    };
    let Cancellable::Done(built) = build_or_reuse(job, reason, live_output).await? else { return Ok(given_up(job)) };
    let (out, part_bytes) = (job.dir.join("out"), job.context.settings.store.part_size.0);
    let store = job.context.store.as_ref();
    let delivery = Delivery { store, keys: &job.keys, out: &out, part_bytes, progress: &|_| {} };
    let manifest = match delivery.send(&built, &job.given_up).await {
        Ok(Cancellable::Done(manifest)) => manifest,
        Ok(Cancellable::Cancelled) => return Ok(given_up(job)),
        Err(error) => return Err(JobFailure::of(&error)),
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
    let (spool, archive) = (std::sync::Arc::clone(&job.context.spool), job.row.archive);
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
        let (cancel, live_output) = (job.given_up.clone(), live_output.clone());
        let work = move || -> Result<Cancellable<Built>, ArchiveError> {
            if let Some(built) = load_build(&dir) {
                return Ok(Cancellable::Done(built));
            }
            let built = build(&dir, &descriptor, &reason, live_output, &pipelines, &cancel)?;
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

fn load_build(dir: &std::path::Path) -> Option<Built> {
    let saved: BuiltFile = serde_json::from_slice(&std::fs::read(dir.join("out/built.json")).ok()?).ok()?;
    let is_whole = |object: &Object| std::fs::metadata(&object.path).is_ok_and(|found| found.len() == object.size);
    let whole = !saved.objects.is_empty() && saved.objects.iter().all(is_whole);
    whole.then_some(Built { objects: saved.objects, manifest: saved.manifest, report: saved.report })
}

fn save_build(dir: &std::path::Path, built: &Built) -> Result<(), ArchiveError> {
    let saved =
        BuiltFile { objects: built.objects.clone(), manifest: built.manifest.clone(), report: built.report.clone() };
    let path = dir.join("out/built.json");
    let (json, temp) = (serde_json::to_vec(&saved).expect("plain data"), dir.join("out/built.json.tmp"));
    let io = |source| ArchiveError::Io { doing: "written", path: path.display().to_string(), source };
    std::fs::write(&temp, json).map_err(io)?;
    std::fs::rename(&temp, &path).map_err(io)
}
