//! Logs in this spool whose jobs other workers have by now, or nobody any more. A log belongs to its archive: what this disk alone has of
//! it goes to the store, where whoever makes the archive finds it.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::revision::{self, Revision};
use super::stage::bug;
use super::{Context, JobFailure};
use crate::archive::object::ArchiveDescriptor;
use crate::catalog::{ArchiveStatus, JobRow, JobState};
use crate::model::cancellable::Cancellable;
use crate::model::fault::{FaultKind, chain};
use crate::model::ids::{ArchiveId, Epoch, WorkerId};
use crate::model::time::Wallclock;
use crate::recording::LogError;
use crate::recording::history;
use crate::recording::restore::restore;
use crate::recording::spool::ProvedInStore;
use crate::recording::upload;
use crate::store::keys::Keys;

/// How often the spool is looked through.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// What takes longer is tried again at the next look.
const CARE_MAX: Duration = Duration::from_secs(120);
/// The store must answer within this time before anything is sent.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// A copy of what the store has, in an archive's folder.
const COPY: &str = "in-store";
/// Another worker's lease must last so much longer: nobody here takes the job while its log is sealed.
const LEASE_MIN: Duration = Duration::from_secs(1);

/// The archives whose logs are being sealed and shipped: nobody here takes their jobs meanwhile.
#[derive(Debug, Default)]
pub struct Underway(Mutex<BTreeSet<ArchiveId>>);

impl Underway {
    /// Whether an archive's log is being shipped.
    pub(super) fn contains(&self, archive: ArchiveId) -> bool {
        self.lock().contains(&archive)
    }

    fn enter(&self, archive: ArchiveId) -> Entered<'_> {
        self.lock().insert(archive);
        Entered { underway: self, archive }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<ArchiveId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Entered<'a> {
    underway: &'a Underway,
    archive: ArchiveId,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.underway.lock().remove(&self.archive);
    }
}

/// Looks through the spool at once, and from time to time, until `stop`.
pub async fn run_leftovers(context: Arc<Context>, stop: CancellationToken) {
    let mut done = HashMap::new();
    loop {
        look(&context, &mut done, &stop).await;
        if stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
            return;
        }
    }
}

/// What was done with a folder. Until this worker has the job again, there is nothing new in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    /// Its log is in the store, as it was when the job had this epoch.
    Shipped(Epoch),
    /// The same, and it came too late for its archive, which was told.
    Late,
    /// It cannot be cared for, which was told.
    Told,
}

async fn look(context: &Arc<Context>, done: &mut HashMap<ArchiveId, Done>, stop: &CancellationToken) {
    let spool = Arc::clone(&context.spool);
    let archives = match tokio::task::spawn_blocking(move || spool.archives()).await {
        Ok(Ok(archives)) => archives,
        Ok(Err(error)) => return tracing::warn!("the spool cannot be looked through: {}", chain(&error)),
        Err(panic) => return tracing::error!(fault.kind = "bug", "looking through the spool panicked: {panic}"),
    };
    done.retain(|archive, _| archives.contains(archive));
    for archive in archives {
        // A store that is away must not keep the other folders waiting, nor this worker from the job.
        let limit = stop.child_token();
        let looking = look_at(context, archive, done, &limit);
        let Some(looked) = stop.run_until_cancelled(timeout(CARE_MAX, looking)).await else { return };
        let looked = match looked {
            Ok(looked) => looked,
            Err(_) => Err(JobFailure { kind: FaultKind::StoreUnavailable, detail: "the store is too slow".to_owned() }),
        };
        limit.cancel();
        if let Err(failure) = looked {
            tracing::warn!(%archive, "what is left of a log is not cared for now: {}", failure.detail);
        }
    }
}

/// Cares for what is left of one archive, if nobody here works on it.
async fn look_at(
    context: &Arc<Context>,
    archive: ArchiveId,
    done: &mut HashMap<ArchiveId, Done>,
    stop: &CancellationToken,
) -> Result<(), JobFailure> {
    let dir = context.spool.archive_dir(archive);
    let at = dir.clone();
    let read = tokio::task::spawn_blocking(move || read_descriptor(&at)).await.map_err(|e| bug(&e))?;
    let Some(descriptor) = read else {
        if done.insert(archive, Done::Told).is_none() {
            tracing::warn!(%archive, path = %dir.display(), "the spool has a log that does not say of which job it is: it stays, and takes room");
        }
        return Ok(());
    };
    if context.leases.has(descriptor.job) {
        done.remove(&archive);
        return Ok(());
    }
    let Some((row, care)) = care_for(context, &descriptor).await? else {
        if done.insert(archive, Done::Told).is_none() {
            tracing::warn!(%archive, job = %descriptor.job, path = %dir.display(),
                "the spool has a log whose job the catalog does not know: it stays, and takes room");
        }
        return Ok(());
    };
    let is_cared_for = |row: &JobRow, done: Option<&Done>| match done {
        Some(Done::Shipped(epoch)) => *epoch == row.epoch,
        Some(Done::Late) => true,
        _ => false,
    };
    if care == Care::Leave || (care == Care::Ship && is_cared_for(&row, done.get(&archive))) {
        return Ok(());
    }
    // From now on nobody here takes the job. Somebody may have before: so its row is read again.
    let _guard = context.leftovers.enter(archive);
    let Some((row, care)) = care_for(context, &descriptor).await? else { return Ok(()) };
    let mut is_new = false;
    match care {
        Care::Leave => return Ok(()),
        Care::Ship | Care::ShipThenRemove if !is_cared_for(&row, done.get(&archive)) => {
            is_reachable(context, &row).await?;
            let Cancellable::Done(any) = ship(context, &row, stop).await? else { return Ok(()) };
            is_new = any;
            // Whoever makes the archive waits for this worker, if the job was handed over.
            let cleared = context.catalog.clear_offers(row.job, Some(&context.worker), row.epoch).await;
            cleared.map_err(|e| JobFailure::of(&e))?;
            done.insert(archive, Done::Shipped(row.epoch));
        }
        Care::Ship | Care::ShipThenRemove => {}
        Care::Remove | Care::RemoveIfNothingSeen => {}
    }
    match care {
        Care::ShipThenRemove => match revision::ask(context, &row, &dir, is_new).await? {
            Revision::Asked => Ok(()),
            Revision::TooLate => {
                if done.insert(archive, Done::Late) != Some(Done::Late) {
                    tracing::warn!(%archive, "media came after its archive was made, and is not added: the archive is too old, was made too often or by an \
                        earlier version, or the store no longer has its log");
                }
                remove_proved(context, &row, stop).await
            }
            Revision::NotNeeded => remove_proved(context, &row, stop).await,
        },
        Care::Remove => {
            tracing::info!(%archive, state = row.state.as_str(), "the log of an archive that a person gave up is removed");
            let spool = Arc::clone(&context.spool);
            let removed = tokio::task::spawn_blocking(move || spool.remove_discarded(archive)).await;
            removed.map_err(|e| bug(&e))?.map_err(|e| JobFailure::of(&e))
        }
        Care::RemoveIfNothingSeen => match remove_if_nothing_seen(context, archive).await? {
            true => Ok(()),
            false if descriptor.origin != row.origin => {
                if done.insert(archive, Done::Told) != Some(Done::Told) {
                    tell_of_other_origin(&row, &dir);
                }
                Ok(())
            }
            // Its job waits for a stream, and may be resumed here.
            false if row.state == JobState::Waiting => Ok(()),
            false => reopen_empty(context, &row, stop).await,
        },
        Care::Ship | Care::Leave => Ok(()),
    }
}

/// The job, and what is to be done with its log here. Nothing if the catalog does not know it.
async fn care_for(context: &Context, descriptor: &ArchiveDescriptor) -> Result<Option<(JobRow, Care)>, JobFailure> {
    let failed = |e| JobFailure::of(&e);
    let Some(row) = context.catalog.job(descriptor.job).await.map_err(failed)? else { return Ok(None) };
    let made = context.catalog.archive(row.archive).await.map_err(failed)?;
    let now = context.clock.read(context.catalog.as_ref()).await.map_err(failed)?.now;
    let status = made.as_ref().map(|made| made.status);
    let care = match care(row.state, status, row.owner.as_ref(), row.lease_expires_at.since(now), &context.worker) {
        // The job has waited since, and its media time began again: this log is of a time in which nobody seemed to publish.
        Care::Ship | Care::ShipThenRemove if descriptor.origin != row.origin => Care::RemoveIfNothingSeen,
        care => care,
    };
    Ok(Some((row, care)))
}

/// Whether the store answers: one that is away must not keep this worker from the job.
async fn is_reachable(context: &Context, row: &JobRow) -> Result<(), JobFailure> {
    let prefix = Keys::new(row.application.clone(), row.archive).segments();
    let away = |detail: String| JobFailure { kind: FaultKind::StoreUnavailable, detail };
    match timeout(ANSWER_MAX, context.store.list(&prefix)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(JobFailure::of(&error)),
        Err(_) => Err(away(format!("the store has not answered within {} s", ANSWER_MAX.as_secs()))),
    }
}

/// Ships what this disk alone has, under the epoch in which it was captured. Returns whether there was any.
async fn ship(context: &Arc<Context>, row: &JobRow, stop: &CancellationToken) -> Result<Cancellable<bool>, JobFailure> {
    let (archive, dir) = (row.archive, context.spool.archive_dir(row.archive));
    let (at, spool) = (dir.clone(), Arc::clone(&context.spool));
    let seal = move || upload::seal_open(&at, &spool).and_then(|()| upload::unshipped_epoch(&at));
    let sealed = tokio::task::spawn_blocking(seal).await.map_err(|e| bug(&e))?;
    // What was not captured here came from the store.
    let Some(epoch) = sealed.map_err(|e| JobFailure::of(&e))? else { return Ok(Cancellable::Done(false)) };
    let keys = Keys::new(row.application.clone(), archive);
    let shipping = upload::ship_rest(context.store.as_ref(), &keys, &dir, epoch, stop).await;
    let Cancellable::Done(()) = shipping.map_err(|e| JobFailure::of(&e))? else { return Ok(Cancellable::Cancelled) };
    tracing::info!(%archive, epoch = epoch.0, "the end of a log that another worker goes on with is in the store now");
    Ok(Cancellable::Done(true))
}

/// Removes the log of an archive that is made, once the store is seen to have all of it.
async fn remove_proved(context: &Arc<Context>, row: &JobRow, stop: &CancellationToken) -> Result<(), JobFailure> {
    let (archive, dir) = (row.archive, context.spool.archive_dir(row.archive));
    let keys = Keys::new(row.application.clone(), archive);
    let seen = upload::is_in_store(context.store.as_ref(), &keys, &dir, stop).await;
    let Cancellable::Done(is_in_store) = seen.map_err(|e| JobFailure::of(&e))? else { return Ok(()) };
    // Everything was shipped. What the store does not have any more was there for as long as it keeps logs of archives that are made.
    let is_old = Wallclock::now().since(row.updated_at) > context.settings.store.keep_segments.0;
    if !is_in_store && !is_old {
        return Ok(());
    }
    let spool = Arc::clone(&context.spool);
    let removed = tokio::task::spawn_blocking(move || spool.remove(archive, ProvedInStore::after_proof())).await;
    removed.map_err(|e| bug(&e))?.map_err(|e| JobFailure::of(&e))?;
    tracing::info!(%archive, "the local log of an archive that is made is removed: the store has it, or had it as long as it keeps logs");
    Ok(())
}

/// Removes a folder that says nothing of a session: it has no media, and no streams. Returns whether it is gone.
async fn remove_if_nothing_seen(context: &Arc<Context>, archive: ArchiveId) -> Result<bool, JobFailure> {
    let spool = Arc::clone(&context.spool);
    let removed = tokio::task::spawn_blocking(move || spool.remove_if_nothing_seen(archive)).await;
    removed.map_err(|e| bug(&e))?.map_err(|e| JobFailure::of(&e))
}

/// The log of an earlier owner names streams that later owners did not see. Ships that log, and has an archive of the empty job made.
async fn reopen_empty(context: &Arc<Context>, row: &JobRow, stop: &CancellationToken) -> Result<(), JobFailure> {
    let (archive, failed) = (row.archive, |e| JobFailure::of(&e));
    is_reachable(context, row).await?;
    let Cancellable::Done(any) = ship(context, row, stop).await? else { return Ok(()) };
    if !any && matches!(ship_history(context, row, stop).await?, Cancellable::Cancelled) {
        return Ok(());
    }
    let now = context.clock.read(context.catalog.as_ref()).await.map_err(failed)?.now;
    // Another machine that has some of it, too, may have been first.
    if context.catalog.reopen_empty_job(row.job, row.origin, context.worker.as_str(), now).await.map_err(failed)? {
        tracing::warn!(%archive, job = %row.job, session = %row.session,
            "a log of streams came, of a session in which nobody seemed to have published: its archive is made");
    }
    Ok(())
}

/// Ships the history alone, unless the store has it: of a stream that was announced, nothing was captured.
async fn ship_history(
    context: &Arc<Context>,
    row: &JobRow,
    stop: &CancellationToken,
) -> Result<Cancellable<()>, JobFailure> {
    let (dir, keys) = (context.spool.archive_dir(row.archive), Keys::new(row.application.clone(), row.archive));
    let events = read_history(dir.clone()).await?;
    let Some(epoch) = history::epoch_of_local_history(&events, &context.worker) else {
        let detail = format!("the history in {} names streams, but no epoch begins in it", dir.display());
        return Err(JobFailure { kind: FaultKind::Bug, detail });
    };
    let Cancellable::Done(in_store) = history_in_store(context, &keys, &dir, stop).await? else {
        return Ok(Cancellable::Cancelled);
    };
    if events.iter().all(|event| in_store.contains(event)) {
        return Ok(Cancellable::Done(()));
    }
    upload::ship_rest(context.store.as_ref(), &keys, &dir, epoch, stop).await.map_err(|e| JobFailure::of(&e))
}

async fn read_history(dir: PathBuf) -> Result<Vec<history::Event>, JobFailure> {
    let read = tokio::task::spawn_blocking(move || history::read(&dir)).await.map_err(|e| bug(&e))?;
    read.map_err(|e| JobFailure::of(&e))
}

/// The history of an archive that the store has, from all owners' bundles.
async fn history_in_store(
    context: &Context,
    keys: &Keys,
    dir: &Path,
    stop: &CancellationToken,
) -> Result<Cancellable<Vec<history::Event>>, JobFailure> {
    let copy = dir.join(COPY);
    let at = copy.clone();
    let made = tokio::task::spawn_blocking(move || std::fs::create_dir_all(&at)).await.map_err(|e| bug(&e))?;
    made.map_err(|error| JobFailure::of(&LogError::io("create", &copy)(error)))?;
    let restored = restore(context.store.as_ref(), keys, &copy, None, stop).await;
    let read = match restored {
        Ok(Cancellable::Done(_)) => read_history(copy.clone()).await.map(Cancellable::Done),
        Ok(Cancellable::Cancelled) => Ok(Cancellable::Cancelled),
        Err(error) => Err(JobFailure::of(&error)),
    };
    // What stays goes with the archive's folder.
    tokio::task::spawn_blocking(move || std::fs::remove_dir_all(copy)).await.map(drop).map_err(|e| bug(&e))?;
    read
}

/// What was captured before its job waited and was resumed is in no archive.
pub(super) fn tell_of_other_origin(row: &JobRow, path: &Path) {
    tracing::error!(archive = %row.archive, job = %row.job, session = %row.session, path = %path.display(),
        "a log of the time before its job waited is in no archive; it stays on this disk, takes room, and a person may remove it");
}

/// What is to be done with a log in this spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Care {
    /// It is being worked on here, or will be.
    Leave,
    /// It must reach the store.
    Ship,
    /// The same, and nobody needs it here any more.
    ShipThenRemove,
    /// A person gave it up.
    Remove,
    /// It is removed if it has neither media nor streams. Else the empty job is finalized after all.
    RemoveIfNothingSeen,
}

/// What is to be done with a log whose job is in a state, and whose archive has a status. `lease`: how long the job's owner still has it.
fn care(
    state: JobState,
    archive: Option<ArchiveStatus>,
    owner: Option<&WorkerId>,
    lease: Duration,
    me: &WorkerId,
) -> Care {
    match (state, archive) {
        (_, Some(ArchiveStatus::Deleted | ArchiveStatus::Expired)) if !state.is_live() => Care::Remove,
        // Whoever makes it again removes what is left of it.
        (JobState::Finalizing, Some(ArchiveStatus::Deleted | ArchiveStatus::Expired)) => Care::Leave,
        (JobState::Accepted | JobState::Capturing | JobState::Finalizing, _) => {
            let is_others = owner.is_some_and(|owner| owner != me) && lease >= LEASE_MIN;
            if is_others { Care::Ship } else { Care::Leave }
        }
        // A person may replay it elsewhere.
        (JobState::Parked, _) => Care::Ship,
        (JobState::Available, _) => Care::ShipThenRemove,
        (JobState::Discarded, _) => Care::Remove,
        (JobState::Empty | JobState::Waiting, _) => Care::RemoveIfNothingSeen,
    }
}

/// What a folder's archive is to be; `None` if the folder is none of ours.
pub(super) fn read_descriptor(dir: &Path) -> Option<ArchiveDescriptor> {
    let bytes = std::fs::read(dir.join(upload::JOB)).ok()?;
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_cared_for_when_another_worker_has_its_job_or_nobody_any_more() {
        use JobState::{Available, Capturing, Discarded, Empty, Finalizing, Parked, Waiting};
        let (me, other) = ("here".parse::<WorkerId>().expect("id"), "there".parse::<WorkerId>().expect("id"));
        let is = Some(ArchiveStatus::Available);
        let cases = [
            ("mine", Capturing, None, Some(&me), 8_000, Care::Leave),
            ("another's", Capturing, None, Some(&other), 8_000, Care::Ship),
            ("another's, of which the archive is made", Finalizing, None, Some(&other), 8_000, Care::Ship),
            ("another's for a moment", Capturing, None, Some(&other), 900, Care::Leave),
            ("another's that was lost", Capturing, None, Some(&other), 0, Care::Leave),
            ("nobody's yet", Capturing, None, None, 0, Care::Leave),
            ("waits for a stream", Waiting, None, None, 0, Care::RemoveIfNothingSeen),
            ("available", Available, is, None, 0, Care::ShipThenRemove),
            ("deleted since", Available, Some(ArchiveStatus::Deleted), None, 0, Care::Remove),
            ("deleted while it is recorded", Capturing, Some(ArchiveStatus::Deleted), Some(&me), 8_000, Care::Leave),
            (
                "deleted while it is made again",
                Finalizing,
                Some(ArchiveStatus::Deleted),
                Some(&other),
                8_000,
                Care::Leave,
            ),
            ("parked", Parked, Some(ArchiveStatus::Failed), None, 0, Care::Ship),
            ("empty", Empty, None, None, 0, Care::RemoveIfNothingSeen),
            ("discarded", Discarded, Some(ArchiveStatus::Failed), None, 0, Care::Remove),
        ];
        for (name, state, archive, owner, lease, expected) in cases {
            assert_eq!(care(state, archive, owner, Duration::from_millis(lease), &me), expected, "{name}");
        }
    }
}
