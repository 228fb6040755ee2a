//! The way of a job's owner into its room.

use std::time::Duration;

use tokio::sync::watch;

use super::absence::Absence;
use super::hand_over;
use super::presence::Presence;
use super::stage::CaptureOutcome;
use super::{Job, JobFailure};
use crate::model::fault::{Backoff, FaultKind, chain};
use crate::model::time::{MediaClock, MediaTime};
use crate::recording::history::{EventKind, History};
use crate::router::{Room, RouterError};
use crate::runtime::metrics::metrics;

/// The router may be away for long.
const JOIN: Backoff = Backoff { first: Duration::from_millis(250), max: Duration::from_secs(5) };
/// The room may be made later than the event. Whoever publishes in it at once is recorded from soon after.
const ROOM_IS_MADE: Backoff = Backoff { first: Duration::from_millis(250), max: Duration::from_secs(1) };

/// What came of it.
pub(super) enum Entered {
    /// The owner is in the room.
    Room(Box<dyn Room>),
    /// The capture has ended before.
    Ended(CaptureOutcome),
}

/// An owner on its way into the room.
pub(super) struct Entry<'a> {
    pub job: &'a Job,
    pub clock: &'a MediaClock,
    pub history: &'a History,
    pub presence: &'a mut Presence,
    /// No owner is in the room.
    pub absence: Absence,
}

impl Entry<'_> {
    /// Joins the room. A router that is away is waited for until the session ends or has become too old; a room that is not there is waited
    /// for as long as a session without streams would last. Notes since when nobody was in the room.
    ///
    /// # Errors
    /// When the router refuses, or the session ends, and nothing was recorded before.
    pub async fn enter(mut self, end_reason: &mut watch::Receiver<Option<String>>) -> Result<Entered, JobFailure> {
        let job = self.job;
        let Some(place) = &job.spec.router else {
            return Err(JobFailure { kind: FaultKind::EventInvalid, detail: "the event names no router".to_owned() });
        };
        let Some(router) = job.context.routers.get(&place.name) else {
            let detail = format!("the configuration of this worker has no media router called {}", place.name);
            return Err(JobFailure { kind: FaultKind::RouterUnknown, detail });
        };
        let mut told = false;
        for attempt in 0.. {
            let tried_at = self.clock.now();
            let error = tokio::select! {
                () = job.fenced.cancelled() => return Ok(Entered::Ended(CaptureOutcome::Fenced)),
                () = hand_over::is_to_leave(job) => return Ok(Entered::Ended(CaptureOutcome::Drained)),
                joined = router.join(place) => match joined {
                    Ok(room) => return self.joined(room),
                    Err(error) => error,
                },
            };
            let asked = end_reason.borrow().clone();
            if let Some(reason) = self.waits_no_longer(&error, tried_at, asked)? {
                return self.ended(reason, &error);
            }
            if !std::mem::replace(&mut told, true) {
                tracing::warn!("the room cannot be entered, trying again: {}", chain(&error));
            }
            let backoff = if matches!(error, RouterError::RoomNotFound { .. }) { ROOM_IS_MADE } else { JOIN };
            tokio::select! {
                () = job.fenced.cancelled() => return Ok(Entered::Ended(CaptureOutcome::Fenced)),
                () = hand_over::is_to_leave(job) => return Ok(Entered::Ended(CaptureOutcome::Drained)),
                Ok(()) = end_reason.changed() => {}
                () = tokio::time::sleep(backoff.delay(attempt, rand::random())) => {}
            }
        }
        Ok(Entered::Ended(CaptureOutcome::Fenced))
    }

    fn joined(self, room: Box<dyn Room>) -> Result<Entered, JobFailure> {
        self.presence.router_back(self.clock.wallclock());
        self.note_absence()?;
        Ok(Entered::Room(room))
    }

    /// Why the room is not waited for any longer, if it is not: somebody `asked` for an end, or the rules of the session end it.
    fn waits_no_longer(
        &mut self,
        error: &RouterError,
        tried_at: MediaTime,
        asked: Option<String>,
    ) -> Result<Option<String>, JobFailure> {
        let (now, wallclock) = (self.clock.now(), self.clock.wallclock());
        match error {
            RouterError::Refused { .. } => return Err(JobFailure::of(error)),
            // Nobody can be there, so the session's own rules say how long to wait.
            RouterError::RoomNotFound { .. } => {
                self.presence.router_back(wallclock);
                self.absence.room_is_missing(now);
            }
            // Somebody may be there.
            _ => {
                self.presence.router_lost(wallclock);
                self.absence.router_fails(tried_at);
            }
        }
        Ok(asked.or_else(|| self.presence.ended(wallclock).map(|reason| reason.vonage().to_owned())))
    }

    fn ended(self, reason: String, error: &RouterError) -> Result<Entered, JobFailure> {
        if self.presence.recorded(self.clock.wallclock()).is_zero() {
            return Err(JobFailure::of(error));
        }
        self.note_absence()?;
        self.note(EventKind::Ended { reason: reason.clone() })?;
        Ok(Entered::Ended(CaptureOutcome::Ended(reason)))
    }

    fn note_absence(&self) -> Result<(), JobFailure> {
        let (now, is_first) = (self.clock.now(), self.absence.is_first());
        let lasted = self.absence.lasted(now);
        if is_first {
            metrics().join_delay.observe(lasted.as_secs_f64());
        }
        let Some(noted) = self.absence.to_note(now) else { return Ok(()) };
        if is_first && self.absence.is_long(now) {
            // A session that is over by now leaves no archive, which says nothing: so the log and a metric do.
            metrics().late_joins.inc();
            let late_ms = lasted.as_millis();
            tracing::warn!(
                late_ms,
                "no worker was in the room until now: what is published there is missing for that time"
            );
        }
        self.note(noted)
    }

    fn note(&self, what: EventKind) -> Result<(), JobFailure> {
        self.history.add(self.clock.now(), what).map_err(|e| JobFailure::of(&e))
    }
}
