//! Hand-over: an owner that stops captures on until another worker has media of every track, so that nothing is lost in between.
//!
//! ```text
//! earlier owner   captures ──► offers ───────────────────────────────► lets go ──► ships ──► clears its offer
//! next owner                     claims ──► joins ──► has every track ───┘         finalizes ──┘
//! ```
//!
//! Both write their own part of the log, under their own epochs. Whoever reads the log goes from one to the other where the next owner
//! begins ([`crate::recording::frames`]).

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::Job;
use crate::catalog::{CatalogError, HandOver};
use crate::model::fault::chain;
use crate::model::ids::Epoch;
use crate::runtime::retry::{CATALOG, retry_until_cancelled};

/// How often the catalog is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A claim that has begun is over within this.
const TAKEN_WITHIN: Duration = Duration::from_secs(1);
/// A drained worker that knows no other one looks for one again.
const OFFER_EVERY: Duration = Duration::from_secs(2);
/// The catalog answers within this, or is taken to be away.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// A next owner has media of every track within this, or the earlier one lets go.
const JOIN_MAX: Duration = Duration::from_secs(10);
/// A next owner learns within this which tracks there are.
const ANNOUNCED_WITHIN: Duration = Duration::from_millis(500);
/// A room in which no stream is announced for so long has none.
const EMPTY_AFTER: Duration = Duration::from_secs(2);
/// A track that sends nothing for so long over a connection is silent: nobody waits for its media.
const SILENT_AFTER: Duration = Duration::from_secs(5);
/// An earlier owner has sent all that it captured within this.
const SENT_WITHIN: Duration = Duration::from_secs(20);

/// How far another worker is with a job that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Nobody has taken the job.
    None,
    /// The owner of this epoch does not have every track yet.
    Joins(Epoch),
    /// It has media of every track.
    Captures,
    /// The session ends, or the job is parked: the next owner decides.
    Ends,
}

/// What the catalog says of the owner after the one with epoch `own`.
fn progress(own: Epoch, seen: HandOver) -> Progress {
    match seen {
        HandOver { epoch, .. } if epoch <= own => Progress::None,
        HandOver { ends: true, .. } => Progress::Ends,
        HandOver { epoch, captured_by, .. } if captured_by == Some(epoch) => Progress::Captures,
        HandOver { epoch, .. } => Progress::Joins(epoch),
    }
}

/// A track that a next owner is to capture.
#[derive(Debug, Clone, Copy)]
pub(super) struct WantedTrack {
    /// Its first media is on disk.
    pub has_media: bool,
    /// For how long its subscription has been connected; `None` if it is not.
    pub connected: Option<Duration>,
}

/// Whether a next owner has media of every track, as far as they send any. `joined`: for how long it has been in the room.
pub(super) fn has_every_track(tracks: &[WantedTrack], joined: Duration) -> bool {
    let is_silent = |track: &WantedTrack| track.connected.is_some_and(|connected| connected >= SILENT_AFTER);
    let announced = if tracks.is_empty() { EMPTY_AFTER } else { ANNOUNCED_WITHIN };
    joined >= announced && tracks.iter().all(|track| track.has_media || is_silent(track))
}

/// What an owner does with its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OwnerState {
    /// It keeps the session.
    Keeps,
    /// Its worker is drained: it hands the session over as soon as another worker takes it.
    Drains,
    /// Its worker stops: it hands the session over, and lets it go if no worker takes it in time.
    Stops,
}

fn owner_state(job: &Job) -> OwnerState {
    match (job.drain.is_cancelled(), *job.context.drains.borrow()) {
        (true, _) => OwnerState::Stops,
        (false, true) => OwnerState::Drains,
        (false, false) => OwnerState::Keeps,
    }
}

/// Returns when the session is another owner's, or this worker stops and nobody takes it. A worker that is drained, and does not stop, captures on
/// until somebody does.
pub(super) async fn hand_over(job: &Job) {
    loop {
        until_drained(job).await;
        if offered(job).await && wait_for_taker(job).await == Taker::Has {
            return;
        }
        if job.drain.is_cancelled() {
            return;
        }
    }
}

/// Waits until the owner is to hand the session over.
async fn until_drained(job: &Job) {
    let mut drains = job.context.drains.subscribe();
    while owner_state(job) == OwnerState::Keeps {
        tokio::select! {
            () = job.drain.cancelled() => {}
            // The sender is in the context, which lives.
            Ok(()) = drains.changed() => {}
        }
    }
}

/// Returns when an owner that is not in the room is to give the job back: its worker stops, or is drained and another one takes sessions.
pub(super) async fn is_to_leave(job: &Job) {
    loop {
        until_drained(job).await;
        if owner_state(job) == OwnerState::Stops || matches!(timeout(ANSWER_MAX, has_taker(job)).await, Ok(Ok(true))) {
            return;
        }
        job.drain.run_until_cancelled(sleep(OFFER_EVERY)).await.unwrap_or_default();
    }
}

/// Whether another worker lives that takes sessions of the job's region.
async fn has_taker(job: &Job) -> Result<bool, CatalogError> {
    let (context, row) = (&job.context, &job.row);
    let now = context.clock.read(context.catalog.as_ref()).await?.now;
    context.catalog.has_taker(&row.region, &context.worker, now).await
}

/// Offers the job. Returns whether it is offered: not if nobody may take it, or if the catalog does not answer in time.
async fn offered(job: &Job) -> bool {
    let (offer_max, mut stops) = (job.context.settings.worker.offer.0, None);
    loop {
        let state = owner_state(job);
        if state == OwnerState::Keeps {
            return false;
        }
        let stops_since = (state == OwnerState::Stops).then(|| *stops.get_or_insert_with(Instant::now));
        let (has_taker, problem) = match offer(job).await {
            Ok(Offer::Made) => return true,
            Ok(Offer::NoTaker) => (false, "no other worker takes sessions of this region".to_owned()),
            Err(error) => (true, error),
        };
        match stops_since {
            // The end of a process is not put off for nothing.
            Some(since) if since.elapsed() >= offer_max || !has_taker => {
                tracing::warn!("capture ends here until another worker has the session: {problem}");
                return false;
            }
            Some(_) => sleep(LOOK_EVERY).await,
            None => {
                tracing::debug!("the session is not offered for now: {problem}");
                job.drain.run_until_cancelled(sleep(OFFER_EVERY)).await.unwrap_or_default();
            }
        }
    }
}

/// What came of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taker {
    /// This owner may let go.
    Has,
    /// The offer was taken back.
    TakenBack,
}

/// Waits until another worker has the session that was offered. One that stops waits for a limited time.
async fn wait_for_taker(job: &Job) -> Taker {
    let (own, offer_max) = (job.row.epoch, job.context.settings.worker.offer.0);
    let (mut next, mut since, mut stops) = (Progress::None, Instant::now(), None);
    let mut offered_at = Instant::now();
    loop {
        sleep(LOOK_EVERY).await;
        if let Some(seen) = look(job).await {
            let now = progress(own, seen);
            if now != next {
                (next, since) = (now, Instant::now());
            }
        }
        if next != Progress::None {
            job.taken.store(true, Ordering::Relaxed);
        }
        let state = owner_state(job);
        let waited = (state == OwnerState::Stops).then(|| since.max(*stops.get_or_insert_with(Instant::now)).elapsed());
        // An offer whose answer was lost may not be there.
        if next == Progress::None && state != OwnerState::Keeps && offered_at.elapsed() >= OFFER_EVERY {
            offered_at = Instant::now();
            if let Err(error) = offer(job).await {
                tracing::debug!("the session is not offered again for now: {error}");
            }
        }
        match next {
            Progress::None if state == OwnerState::Keeps && take_back(job).await => return Taker::TakenBack,
            Progress::None if waited.is_none_or(|waited| waited < offer_max) => {}
            Progress::Joins(_) if since.elapsed() < JOIN_MAX => {}
            Progress::None => {
                tracing::warn!("no other worker has taken the session: it is not captured until one does");
                return Taker::Has;
            }
            Progress::Joins(_) => {
                tracing::warn!("the next owner does not capture every track yet: this one stops");
                return Taker::Has;
            }
            Progress::Captures => {
                tracing::info!("another worker captures the session: nothing is lost in between");
                return Taker::Has;
            }
            Progress::Ends => {
                tracing::info!("the next owner has ended the session's capture");
                return Taker::Has;
            }
        }
    }
}

/// How far the hand-over is. While the catalog is away, nothing is known to have changed.
async fn look(job: &Job) -> Option<HandOver> {
    timeout(ANSWER_MAX, job.context.catalog.hand_over(job.row.job)).await.ok()?.ok()?
}

/// Takes an offer back. Returns whether nobody has taken it before.
async fn take_back(job: &Job) -> bool {
    let (context, row) = (&job.context, &job.row);
    let cleared = timeout(ANSWER_MAX, context.catalog.clear_offers(row.job, Some(&context.worker), row.epoch)).await;
    if !matches!(cleared, Ok(Ok(()))) {
        return false;
    }
    // From now on no worker can claim it. A claim that had begun is over soon.
    sleep(TAKEN_WITHIN).await;
    let is_taken = look(job).await.is_none_or(|seen| progress(row.epoch, seen) != Progress::None);
    if !is_taken {
        job.offered.store(false, Ordering::Relaxed);
        context.leases.take_back(row.job);
        tracing::info!("the session is not offered any more: this worker is to go on");
    }
    !is_taken
}

/// What came of a try to offer a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Offer {
    /// Other workers may claim it.
    Made,
    /// No other worker lives that takes sessions of its region.
    NoTaker,
}

/// Offers the job, if a worker lives that may take it. The error says why that is not known.
async fn offer(job: &Job) -> Result<Offer, String> {
    let (context, row) = (&job.context, &job.row);
    let offering = async {
        if !has_taker(job).await? {
            return Ok(Offer::NoTaker);
        }
        let now = context.clock.read(context.catalog.as_ref()).await?.now;
        // From now on another owner is no reason to stop at once.
        job.offered.store(true, Ordering::Relaxed);
        context.leases.offer(row.job);
        if context.catalog.offer_job(row.job, row.epoch, &context.worker, now).await? {
            tracing::info!("the session is offered to other workers, and captured until one has it");
        }
        Ok::<_, CatalogError>(Offer::Made)
    };
    match timeout(ANSWER_MAX, offering).await {
        Ok(offered) => offered.map_err(|error| chain(&error)),
        Err(_) => Err("the catalog does not answer".to_owned()),
    }
}

/// Reports that this owner has media of every track: the one before may let go.
pub(super) fn report_captured(job: &Job) -> impl Future<Output = ()> + Send + use<> {
    let (catalog, fenced) = (job.context.catalog.clone(), job.fenced.clone());
    let (id, epoch) = (job.row.job, job.row.epoch);
    async move {
        let report = || catalog.report_captured(id, epoch);
        let reporting = retry_until_cancelled("report that a job is captured", CATALOG, &fenced, report);
        match timeout(ANSWER_MAX, reporting).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!("the owner before does not hear that it may let go: {}", chain(&error)),
            Err(_) => tracing::warn!("the owner before does not hear that it may let go: the catalog does not answer"),
        }
    }
}

/// All that this worker captured up to an epoch is in the store, or on this disk: nobody waits for it any more.
pub(super) async fn clear_offers(job: &Job, last: Epoch) {
    let (catalog, worker) = (&job.context.catalog, &job.context.worker);
    match timeout(ANSWER_MAX, catalog.clear_offers(job.row.job, Some(worker), last)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!("the next owner does not hear that all is sent: {}", chain(&error)),
        Err(_) => tracing::warn!("the next owner does not hear that all is sent: the catalog does not answer"),
    }
}

/// Waits until the owners that handed the job over have sent what they captured: the archive is to be made of that, too. Returns whether they
/// have; not if they take too long, or the job is given up meanwhile.
pub(super) async fn wait_for_prior_owners(job: &Job) -> bool {
    if job.row.epoch <= Epoch(1) {
        return true;
    }
    let begun = Instant::now();
    let mut waited = false;
    loop {
        let seen = timeout(ANSWER_MAX, job.context.catalog.hand_over(job.row.job)).await;
        if let Ok(Ok(seen)) = seen {
            if seen.and_then(|seen| seen.offered_by).is_none_or(|by| by >= job.row.epoch) {
                return true;
            }
            if !std::mem::replace(&mut waited, true) {
                // What an earlier run of this worker captured is on this disk.
                clear_offers(job, Epoch(job.row.epoch.0 - 1)).await;
                continue;
            }
        }
        if begun.elapsed() >= SENT_WITHIN || job.given_up.run_until_cancelled(sleep(LOOK_EVERY)).await.is_none() {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_lets_go_when_the_newest_one_captures_or_the_session_ends() {
        let cases = [
            ("nobody has it", 3, Some(3), false, Progress::None),
            ("its own end is heard with the lease", 3, Some(3), true, Progress::None),
            ("somebody took it", 4, Some(3), false, Progress::Joins(Epoch(4))),
            ("and captures", 4, Some(4), false, Progress::Captures),
            ("and died, and another one took it", 5, Some(4), false, Progress::Joins(Epoch(5))),
            ("which captures", 5, Some(5), false, Progress::Captures),
            ("it ends meanwhile", 4, Some(3), true, Progress::Ends),
        ];
        for (name, epoch, captured_by, ends, expected) in cases {
            let captured_by = captured_by.map(Epoch);
            let seen = HandOver { epoch: Epoch(epoch), captured_by, offered_by: Some(Epoch(3)), ends };
            assert_eq!(progress(Epoch(3), seen), expected, "{name}");
        }
    }

    #[test]
    fn an_owner_has_every_track_when_each_has_media_or_sends_none() {
        let track = |has_media, connected: Option<u64>| WantedTrack {
            has_media,
            connected: connected.map(Duration::from_millis),
        };
        let (has, sends_none, connects) = (track(true, Some(300)), track(false, Some(5_000)), track(false, None));
        let cases: [(_, &[WantedTrack], u64, bool); 7] = [
            ("nobody has said yet which tracks there are", &[], 1_999, false),
            ("there are none", &[], 2_000, true),
            ("it has just joined", &[has], 400, false),
            ("one is not there yet", &[has, track(false, Some(400))], 4_000, false),
            ("one is not connected", &[has, connects], 60_000, false),
            ("both have media", &[has, has], 500, true),
            ("one sends nothing", &[has, sends_none], 5_500, true),
        ];
        for (name, tracks, joined, expected) in cases {
            assert_eq!(has_every_track(tracks, Duration::from_millis(joined)), expected, "{name}");
        }
    }
}
