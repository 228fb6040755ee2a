//! The time before a job's owner joins its room, in which none was there. A session may run for long before its first owner joins: its event may
//! have waited at a broker that was away, its job for a place, and its owner for the router. Between two owners, a machine may be missing. What
//! was published meanwhile is not recorded, and nobody saw it.

use std::time::Duration;

use super::room_session::OVERLAP;
use super::{Job, rollover};
use crate::model::media::GapCause;
use crate::model::time::{MediaSpan, MediaTime, Wallclock};
use crate::recording::history::EventKind;

/// An owner that joins within this lacks nothing: so long a publisher takes to join.
const PROMPT: MediaSpan = 2_000_000_000;
/// In an absence of so long, somebody may have come and gone.
const LONG: MediaSpan = 10_000_000_000;
/// An event may be this much older than its job: the clocks of senders differ.
const EVENT_AGE_MIN: Duration = Duration::from_secs(10);
/// No event waits longer at a broker. One that seems to is of a clock that is wrong.
const EVENT_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// The time in which no owner is in the room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Absence {
    since: MediaTime,
    cause: GapCause,
    /// When the catalog heard from the owner before for the last time.
    owner_seen: Option<MediaTime>,
}

impl Absence {
    /// Until the job's present owner joins. Whether an owner before was in the room says its history.
    pub fn of(job: &Job) -> Self {
        let origin = job.row.origin;
        let owner_seen = job.owner_seen.map(|seen| MediaTime::from_wallclock(seen, origin));
        // A job that waited for its first stream begins anew when that is there. Somebody who starts an archive waits for the answer.
        let waited_at_a_broker = job.is_automatic() && origin <= job.row.created_at;
        let since = match rollover::is_successor(&job.spec.event) {
            // The archive before has the beginning, too.
            true => MediaTime(i64::try_from(OVERLAP.as_nanos()).expect("some seconds")),
            false => begin(job.spec.started_at.filter(|_| waited_at_a_broker), origin),
        };
        Self { since, cause: GapCause::Worker, owner_seen }
    }

    /// The router says that there is no room: nobody is in it. If the absence is long, there may have been one, which a restarted router has
    /// forgotten.
    pub fn room_is_missing(&mut self, now: MediaTime) {
        if now - self.since < LONG {
            (self.since, self.cause) = (now, GapCause::Worker);
        }
    }

    /// The router cannot be asked, which was tried at a time. What is missing is put down to it, unless the owner came late itself.
    pub fn router_fails(&mut self, tried_at: MediaTime) {
        let since = self.owner_seen.map_or(self.since, |seen| seen.max(self.since));
        if tried_at - since < PROMPT {
            self.cause = GapCause::Router;
        }
    }

    /// How long it has lasted.
    pub fn lasted(&self, now: MediaTime) -> Duration {
        self.since.until(now)
    }

    /// Whether somebody may have come and gone meanwhile.
    pub fn is_long(&self, now: MediaTime) -> bool {
        now - self.since >= LONG
    }

    /// What the history has to note of it: that it was not short, and when the owner before was seen.
    pub fn to_note(self, now: MediaTime) -> Option<EventKind> {
        let Self { since, cause, owner_seen } = self;
        (now - since >= PROMPT || owner_seen.is_some()).then_some(EventKind::Unseen { since, cause, owner_seen })
    }
}

/// When a job should have begun: with its event, if that is much older than the job; else with the job.
fn begin(started_at: Option<Wallclock>, origin: Wallclock) -> MediaTime {
    let is_late = |at: &Wallclock| (EVENT_AGE_MIN..EVENT_AGE_MAX).contains(&origin.since(*at));
    started_at.filter(is_late).map_or(MediaTime::ZERO, |at| MediaTime::from_wallclock(at, origin))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: i64) -> MediaTime {
        MediaTime(seconds * 1_000_000_000)
    }

    #[test]
    fn an_owner_that_joins_late_notes_since_when_nobody_was_in_the_room() {
        let origin = Wallclock(1_800_000_000_000_000);
        let ago = |seconds: i64| Some(Wallclock(origin.0 - seconds * 1_000_000));
        let (worker, router) = (GapCause::Worker, GapCause::Router);
        for (name, started_at, fails_at, missing_at, joined, noted) in [
            ("in time", ago(0), None, None, 1, None),
            ("no place was free", ago(0), None, None, 30, Some((s(0), worker))),
            ("a sender's clock is behind", ago(9), None, None, 1, None),
            ("a sender's clock is ahead", ago(-60), None, None, 1, None),
            ("the event waited", ago(600), None, None, 1, Some((s(-600), worker))),
            ("the sender does not say when", None, None, None, 3, Some((s(0), worker))),
            ("a clock that is wrong", ago(1_800_000_000), None, None, 1, None),
            ("the router is away", ago(0), Some(1), None, 30, Some((s(0), router))),
            ("the router is away, too", ago(0), Some(20), None, 30, Some((s(0), worker))),
            ("the room is made late", ago(0), None, Some(9), 10, None),
            ("the event waited, and the room is gone", ago(600), None, Some(29), 30, Some((s(-600), worker))),
            ("the room is made, and cannot be joined", ago(0), Some(10), Some(9), 60, Some((s(9), router))),
        ] {
            let mut absence = Absence { since: begin(started_at, origin), cause: worker, owner_seen: None };
            missing_at.into_iter().for_each(|at| absence.room_is_missing(s(at)));
            fails_at.into_iter().for_each(|at| absence.router_fails(s(at)));
            let wanted = noted.map(|(since, cause)| EventKind::Unseen { since, cause, owner_seen: None });
            assert_eq!(absence.to_note(s(joined)), wanted, "{name}");
        }
    }
}
