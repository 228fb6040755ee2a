//! When a session has ended: a pure rule over who is there and who publishes.
//!
//! The limits are Vonage's (their archiving guide: 60 s without clients, 60 s until the first stream,
//! 60 min without a stream, 4 h recorded, 12 h in all); each is configurable.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::LimitsSection;
use crate::model::time::Wallclock;

/// The first stream is subscribed to within this. Afterwards there is an archive, which tells what it lacks.
const SUBSCRIBED_WITHIN: Duration = Duration::from_secs(1);
/// A job joins its room within this time and learns which streams are in it.
const JOINED_WITHIN: Duration = Duration::from_secs(10);

/// The limits of one archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The session ends when no client was there for so long.
    pub no_clients: Duration,
    /// The session ends when nobody ever published within so long.
    pub never_published: Duration,
    /// The session ends when clients are there, but nobody has published for so long.
    pub nobody_publishing: Duration,
    /// The archive ends when it has recorded so long; a further one follows.
    pub recorded_max: Duration,
    /// The archive ends when it is so old, pauses included.
    pub total_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            no_clients: Duration::from_secs(60),
            never_published: Duration::from_secs(60),
            nobody_publishing: Duration::from_secs(3600),
            recorded_max: Duration::from_secs(4 * 3600),
            total_max: Duration::from_secs(12 * 3600),
        }
    }
}

impl From<&LimitsSection> for Limits {
    fn from(section: &LimitsSection) -> Self {
        Self {
            no_clients: section.no_clients.0,
            never_published: section.never_published.0,
            nobody_publishing: section.nobody_publishing.0,
            recorded_max: section.recorded_max.0,
            total_max: section.total_max.0,
        }
    }
}

/// Vonage's reason of an archive that is as long as one may be. The session goes on in a further archive.
pub const MAX_DURATION_EXCEEDED: &str = "maximum duration exceeded";

/// Why an archive ended. The texts of [`EndReason::vonage`] are Vonage's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// The platform said so (`session.ended`).
    SessionEnded,
    /// No client was left.
    NoClients,
    /// Nobody ever published.
    NeverPublished,
    /// Nobody published any more.
    NobodyPublishing,
    /// Recorded as long as one archive may.
    RecordedMax,
    /// As old as one archive may become; a further one follows.
    TotalMax,
    /// A person or program stopped it.
    UserInitiated,
}

impl EndReason {
    /// The `reason` of Vonage's archive object.
    #[must_use]
    pub const fn vonage(self) -> &'static str {
        match self {
            Self::SessionEnded | Self::NoClients => "session ended",
            Self::NeverPublished | Self::NobodyPublishing => "maximum idle time exceeded",
            Self::RecordedMax | Self::TotalMax => MAX_DURATION_EXCEEDED,
            Self::UserInitiated => "user initiated",
        }
    }
}

/// Who is there, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presence {
    limits: Limits,
    began: Wallclock,
    clients: usize,
    clients_changed: Wallclock,
    publishing: usize,
    publishing_changed: Wallclock,
    ever_published: bool,
    /// Until when streams may have been published long before they are seen: the job was claimed late.
    catching_up: Option<Wallclock>,
    /// Since when there is an archive; `None` while it would be one of nothing.
    archive_since: Option<Wallclock>,
    recorded_before: Duration,
    router_lost: Option<Wallclock>,
    router_was_lost: bool,
    end_requested: Option<EndReason>,
}

impl Presence {
    /// A job that began at `began`; `recorded_before` is what earlier epochs recorded, and
    /// `ever_published` whether any stream was captured in them.
    #[must_use]
    pub fn new(
        limits: Limits,
        began: Wallclock,
        now: Wallclock,
        recorded_before: Duration,
        ever_published: bool,
    ) -> Self {
        Self {
            limits,
            began,
            clients: 0,
            clients_changed: now,
            publishing: 0,
            publishing_changed: now,
            ever_published,
            catching_up: (now.since(began) > SUBSCRIBED_WITHIN).then(|| now + JOINED_WITHIN),
            archive_since: ever_published.then_some(now),
            recorded_before,
            router_lost: None,
            router_was_lost: false,
            end_requested: None,
        }
    }

    /// The router tells how many clients are in the room.
    pub fn clients(&mut self, count: usize, now: Wallclock) {
        if (count == 0) != (self.clients == 0) {
            self.clients_changed = now;
        }
        self.clients = count;
    }

    /// The number of streams that are published.
    pub fn publishing(&mut self, count: usize, now: Wallclock) {
        if (count == 0) != (self.publishing == 0) {
            if count == 0 {
                self.recorded_before += now.since(self.publishing_changed);
            }
            self.publishing_changed = now;
        }
        if count > 0 {
            self.ever_published = true;
            let is_old = self.catching_up.is_some_and(|until| now < until);
            self.archive_since.get_or_insert(if is_old { now } else { now + SUBSCRIBED_WITHIN });
        }
        self.publishing = count;
    }

    /// Media is on disk.
    pub fn captured(&mut self, now: Wallclock) {
        self.archive_since = Some(self.archive_since.map_or(now, |since| since.min(now)));
    }

    /// Whether there is an archive: media is on disk, or a stream was published long enough ago for the archive to tell what it lacks.
    #[must_use]
    pub fn has_begun(&self, now: Wallclock) -> bool {
        self.archive_since.is_some_and(|since| since <= now)
    }

    /// The router cannot be asked: nobody can be seen, which does not mean that nobody is there.
    pub fn router_lost(&mut self, now: Wallclock) {
        self.router_lost.get_or_insert(now);
        self.router_was_lost = true;
    }

    /// The router can be asked again. The time it was away counts for none of the waits.
    pub fn router_back(&mut self, now: Wallclock) {
        if self.router_lost.take().is_some() {
            self.clients_changed = now;
            self.publishing_changed = now;
        }
    }

    /// The platform, or a person, wants the archive to end.
    pub fn request_end(&mut self, reason: EndReason) {
        self.end_requested.get_or_insert(reason);
    }

    /// Time in which at least one stream was published.
    #[must_use]
    pub fn recorded(&self, now: Wallclock) -> Duration {
        let running = if self.publishing > 0 { now.since(self.publishing_changed) } else { Duration::ZERO };
        self.recorded_before + running
    }

    /// Whether any stream was ever published.
    #[must_use]
    pub const fn ever_published(&self) -> bool {
        self.ever_published
    }

    /// Whether an archive that ends with `reason` would be one of nothing: nobody ever published, or the session ended before the first
    /// stream could be subscribed to; and nobody can have published unseen.
    #[must_use]
    pub fn is_empty(&self, reason: &str, now: Wallclock) -> bool {
        // A wait for the first stream ends only a minute after the router could be asked.
        let unseen = self.router_was_lost && reason != EndReason::NeverPublished.vonage();
        !self.has_begun(now) && !unseen && reason != MAX_DURATION_EXCEEDED
    }

    /// Whether nobody publishes, so that Vonage's status is `paused`.
    #[must_use]
    pub const fn paused(&self) -> bool {
        self.publishing == 0 && self.ever_published
    }

    /// Whether the archive ends now, and why.
    #[must_use]
    pub fn ended(&self, now: Wallclock) -> Option<EndReason> {
        if let Some(reason) = self.end_requested {
            return Some(reason);
        }
        if now.since(self.began) >= self.limits.total_max {
            return Some(EndReason::TotalMax);
        }
        if self.recorded(now) >= self.limits.recorded_max {
            return Some(EndReason::RecordedMax);
        }
        if self.router_lost.is_some() {
            return None;
        }
        let idle = now.since(self.publishing_changed);
        if self.publishing == 0 {
            if self.clients == 0 && now.since(self.clients_changed) >= self.limits.no_clients && self.ever_published {
                return Some(EndReason::NoClients);
            }
            if !self.ever_published && idle >= self.limits.never_published {
                return Some(EndReason::NeverPublished);
            }
            if self.ever_published && idle >= self.limits.nobody_publishing {
                return Some(EndReason::NobodyPublishing);
            }
        }
        None
    }
}

/// The reason that ends a session when the platform says so.
#[must_use]
pub fn session_ended() -> &'static str {
    EndReason::SessionEnded.vonage()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: i64) -> Wallclock {
        Wallclock(seconds * 1_000_000)
    }

    fn presence() -> Presence {
        Presence::new(Limits::default(), at(0), at(0), Duration::ZERO, false)
    }

    #[test]
    fn a_session_in_which_nobody_publishes_ends_after_a_minute() {
        let mut p = presence();
        p.clients(2, at(1));
        assert_eq!(p.ended(at(59)), None);
        assert_eq!(p.ended(at(60)), Some(EndReason::NeverPublished));
    }

    #[test]
    fn a_session_that_everybody_left_ends_after_a_minute() {
        let mut p = presence();
        p.clients(1, at(1));
        p.publishing(1, at(2));
        p.publishing(0, at(100));
        p.clients(0, at(101));
        assert!(p.paused());
        assert_eq!(p.ended(at(160)), None);
        assert_eq!(p.ended(at(161)), Some(EndReason::NoClients));
    }

    #[test]
    fn somebody_who_comes_back_within_the_minute_keeps_the_session() {
        let mut p = presence();
        p.clients(1, at(1));
        p.publishing(1, at(2));
        p.publishing(0, at(100));
        p.clients(0, at(100));
        p.clients(1, at(150));
        assert_eq!(p.ended(at(170)), None);
        p.clients(0, at(171));
        assert_eq!(p.ended(at(230)), None);
        assert_eq!(p.ended(at(231)), Some(EndReason::NoClients));
    }

    #[test]
    fn clients_without_streams_keep_the_session_for_an_hour() {
        let mut p = presence();
        p.clients(1, at(1));
        p.publishing(1, at(2));
        p.publishing(0, at(100));
        assert_eq!(p.ended(at(3699)), None);
        assert_eq!(p.ended(at(3700)), Some(EndReason::NobodyPublishing));
    }

    #[test]
    fn the_recorded_limit_counts_only_time_with_a_stream() {
        let mut p = presence();
        p.clients(1, at(0));
        p.publishing(1, at(0));
        p.publishing(0, at(7200));
        p.publishing(1, at(9000));
        assert_eq!(p.recorded(at(9000)), Duration::from_secs(7200));
        assert_eq!(p.ended(at(9000 + 7199)), None);
        assert_eq!(p.ended(at(9000 + 7200)), Some(EndReason::RecordedMax));
    }

    #[test]
    fn the_total_limit_counts_from_the_first_epoch() {
        let mut p = Presence::new(Limits::default(), at(0), at(40_000), Duration::ZERO, true);
        p.clients(1, at(40_000));
        p.publishing(1, at(40_000));
        assert_eq!(p.ended(at(43_199)), None);
        assert_eq!(p.ended(at(43_200)), Some(EndReason::TotalMax));
    }

    #[test]
    fn a_router_that_is_away_ends_nothing() {
        let mut p = presence();
        p.clients(1, at(1));
        p.publishing(1, at(2));
        p.router_lost(at(10));
        p.publishing(0, at(10));
        p.clients(0, at(10));
        assert_eq!(p.ended(at(500)), None);
        p.router_back(at(500));
        assert_eq!(p.ended(at(559)), None);
        assert_eq!(p.ended(at(560)), Some(EndReason::NoClients));
    }

    #[test]
    fn an_asked_for_end_is_at_once_and_the_first_reason_stays() {
        let mut p = presence();
        p.publishing(3, at(2));
        p.request_end(EndReason::SessionEnded);
        p.request_end(EndReason::UserInitiated);
        assert_eq!(p.ended(at(3)), Some(EndReason::SessionEnded));
    }

    #[test]
    fn an_archive_of_nothing_is_one_in_which_nobody_can_have_published() {
        let (ended, idle) = (EndReason::SessionEnded.vonage(), EndReason::NeverPublished.vonage());
        for (name, published, lost, reason, empty) in [
            ("the session ends before anybody publishes", None, false, ended, true),
            ("a minute without a stream", None, false, idle, true),
            ("a stream was there for a while", Some(31), false, ended, false),
            ("a stream came when the session ended", Some(40), false, ended, true),
            ("somebody may have published while the router was away", None, true, ended, false),
            ("a minute without a stream, once the router is back", None, true, idle, true),
            ("as old as an archive may become: a successor follows", None, false, MAX_DURATION_EXCEEDED, false),
        ] {
            let mut p = presence();
            if lost {
                p.router_lost(at(1));
                p.router_back(at(30));
            }
            if let Some(from) = published {
                p.publishing(1, at(from));
                p.publishing(0, at(40));
            }
            assert_eq!(p.is_empty(reason, at(40)), empty, "{name}");
        }
    }

    #[test]
    fn an_archive_begins_with_its_first_media_or_a_second_after_its_first_stream() {
        let mut p = presence();
        assert!(!p.has_begun(at(5)));
        p.publishing(1, at(6));
        assert!(!p.has_begun(at(6)) && p.has_begun(at(7)), "it tells that nothing came");
        let mut p = presence();
        p.publishing(1, at(6));
        p.captured(at(6));
        assert!(p.has_begun(at(6)));
        let mut late = Presence::new(Limits::default(), at(0), at(30), Duration::ZERO, false);
        late.publishing(1, at(31));
        assert!(late.has_begun(at(31)), "the stream may have been there for half a minute");
        let mut late = Presence::new(Limits::default(), at(0), at(30), Duration::ZERO, false);
        late.publishing(1, at(50));
        assert!(!late.has_begun(at(50)));
        let earlier = Presence::new(Limits::default(), at(0), at(3), Duration::from_secs(2), true);
        assert!(earlier.has_begun(at(3)), "another worker began it");
    }
}
