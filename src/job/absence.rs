//! The time before a job's owner joins its room, in which none was there. A session may run for long before its first owner joins: its event may
//! have waited at a broker that was away, its job for a place, and its owner for the router. Between two owners, a machine may be missing. What
//! was published meanwhile is not recorded, and nobody saw it.

use std::time::Duration;

use super::room_session::OVERLAP;
use super::{Job, rollover};
use crate::catalog::JobState;
use crate::model::ids::Epoch;
use crate::model::media::GapCause;
use crate::model::time::{MediaSpan, MediaTime, Wallclock};
use crate::recording::history::EventKind;

/// An owner that joins within this lacks nothing: so long a publisher takes to join.
const PROMPT: MediaSpan = 2_000_000_000;
/// Between a look that shows nobody and the resumption of a waiting job, so much is not counted as a delay.
const LOOK: MediaSpan = 3_000_000_000;
/// In an absence of so long, somebody may have come and gone.
const LONG: MediaSpan = 10_000_000_000;
/// An event may be this much older than its job: the clocks of senders differ.
const EVENT_AGE_MIN: Duration = Duration::from_secs(10);
/// No event waits longer at a broker. One that seems to is of a clock that is wrong.
const EVENT_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// When a job begins.
#[derive(Debug, Clone, Copy)]
struct Begin {
    origin: Wallclock,
    /// When its event was sent, if that may have waited.
    started_at: Option<Wallclock>,
    /// When its room was last seen without a stream, if it has waited for its first one.
    without_stream_at: Option<Wallclock>,
    /// It goes on where another archive ends.
    is_successor: bool,
}

/// The time in which no owner is in the room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Absence {
    since: MediaTime,
    /// When its event was sent, not later than the job's origin. Where an owner joins late, what is missing began there.
    event_at: MediaTime,
    cause: GapCause,
    /// When the catalog heard from the owner before for the last time.
    owner_seen: Option<MediaTime>,
    /// No owner was in the room before.
    is_first: bool,
    /// What is not longer is not told.
    told_from: MediaSpan,
}

impl Absence {
    /// Until the job's present owner joins. Whether an owner before was in the room says its history.
    pub fn of(job: &Job) -> Self {
        let row = &job.row;
        // A job that waited for its first stream begins anew when that is there. Somebody who starts an archive waits for the answer.
        let waited_at_a_broker = job.is_automatic() && row.origin <= row.created_at;
        let begin = Begin {
            origin: row.origin,
            started_at: job.spec.started_at.filter(|_| waited_at_a_broker),
            without_stream_at: row.without_stream_at,
            is_successor: rollover::is_successor(&job.spec.event),
        };
        let is_resumed = row.without_stream_at.is_some() && row.state == JobState::Accepted;
        Self {
            owner_seen: job.owner_seen.map(|seen| MediaTime::from_wallclock(seen, row.origin)),
            is_first: row.epoch <= Epoch(1) || (is_resumed && job.owner_seen.is_none()),
            ..Self::since_begin(begin)
        }
    }

    /// That of a first owner.
    fn since_begin(begin: Begin) -> Self {
        let Begin { origin, started_at, without_stream_at, is_successor } = begin;
        let media_time = |at: Wallclock| MediaTime::from_wallclock(at, origin).min(MediaTime::ZERO);
        let age = started_at.map(|at| origin.since(at)).filter(|age| *age < EVENT_AGE_MAX);
        let event_at = started_at.filter(|_| age.is_some()).map_or(MediaTime::ZERO, media_time);
        let since = match (without_stream_at, age) {
            (Some(seen), _) => media_time(seen),
            // The archive before has the beginning, too.
            (None, _) if is_successor => MediaTime(i64::try_from(OVERLAP.as_nanos()).expect("some seconds")),
            (None, Some(age)) if age >= EVENT_AGE_MIN => event_at,
            (None, _) => MediaTime::ZERO,
        };
        let told_from = if without_stream_at.is_some() { PROMPT + LOOK } else { PROMPT };
        Self { since, event_at, cause: GapCause::Worker, owner_seen: None, is_first: true, told_from }
    }

    /// Whether no owner was in the room before.
    pub const fn is_first(&self) -> bool {
        self.is_first
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
        let Self { since, event_at, cause, owner_seen, .. } = self;
        let is_noted = now - since >= self.told_from || owner_seen.is_some();
        // Beside a long absence, the difference of two clocks does not matter.
        let since = if since == MediaTime::ZERO && self.is_long(now) { event_at } else { since };
        is_noted.then_some(EventKind::Unseen { since, cause, owner_seen })
    }
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
            ("the event came a little late, and no place was free", ago(3), None, None, 30, Some((s(-3), worker))),
            ("a sender's clock is behind", ago(9), None, None, 1, None),
            ("a sender's clock is behind, and the owner a little late", ago(9), None, None, 3, Some((s(0), worker))),
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
            let mut absence =
                Absence::since_begin(Begin { origin, started_at, without_stream_at: None, is_successor: false });
            missing_at.into_iter().for_each(|at| absence.room_is_missing(s(at)));
            fails_at.into_iter().for_each(|at| absence.router_fails(s(at)));
            let wanted = noted.map(|(since, cause)| EventKind::Unseen { since, cause, owner_seen: None });
            assert_eq!(absence.to_note(s(joined)), wanted, "{name}");
        }
    }
    #[test]
    fn the_owner_of_a_job_that_waited_notes_since_when_nobody_looked() {
        let origin = Wallclock(1_800_000_000_000_000);
        let ago = |seconds: i64| Some(Wallclock(origin.0 - seconds * 1_000_000));
        for (name, without_stream_at, is_successor, joined, since) in [
            ("the bridge has just seen that nobody publishes", ago(0), false, 1, None),
            ("a worker's last look, soon after the job began to wait", ago(2), false, 1, None),
            ("a worker's last look, long after that", ago(7), false, 1, Some(s(-7))),
            ("nobody looked for long", ago(300), false, 1, Some(s(-300))),
            ("a look by a clock that is ahead", ago(-3), false, 1, None),
            ("a successor", None, true, 1, None),
            ("a successor in whose first minute nobody published", ago(300), true, 1, Some(s(-300))),
        ] {
            let absence = Absence::since_begin(Begin { origin, started_at: None, without_stream_at, is_successor });
            let wanted = since.map(|since| EventKind::Unseen { since, cause: GapCause::Worker, owner_seen: None });
            assert_eq!(absence.to_note(s(joined)), wanted, "{name}");
        }
    }
}
