//! Time has several meanings; each is a type, and the conversions are here.
//!
//! - [`Wallclock`]: UTC, microseconds since 1970.
//! - [`MediaTime`]: nanoseconds since the job's origin (a wall-clock instant stored with the job), signed.
//!   It is the time line of parts, segments, gaps and the finished files.
//! - [`NtpTime`]: 32.32 fixed point seconds since 1900 (RFC 3550 section 4), as sender reports carry it.
//! - RTP time: 32 bits, wrapping, in units of the codec's clock rate; unwrapped to `i64` ticks by
//!   [`RtpUnwrapper`].
//!
//! The clocks of the machine are read here and nowhere else; pure code takes time as an argument.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Add, Sub};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// UTC in microseconds since 1970-01-01.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Wallclock(pub i64);

impl Wallclock {
    /// Now, by the machine's clock.
    #[must_use]
    #[allow(clippy::disallowed_methods)]
    pub fn now() -> Self {
        if let Some(clock) = SIMULATED.get() {
            return Self(clock.now().0.saturating_add(clock.skew_us));
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }

    /// Milliseconds since 1970, as Vonage's API writes times.
    #[must_use]
    pub const fn as_millis(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// As libraries want it.
    #[must_use]
    pub fn to_system_time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(u64::try_from(self.0).unwrap_or(0))
    }

    /// RFC 3339 with microseconds, in UTC.
    #[must_use]
    pub fn to_rfc3339(self) -> String {
        chrono::DateTime::from_timestamp_micros(self.0)
            .unwrap_or_default()
            .to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
    }

    /// As `Sun Sep 15 21:56:28 UTC 2024`, to the second.
    #[must_use]
    pub fn to_words(self) -> String {
        chrono::DateTime::from_timestamp_micros(self.0)
            .unwrap_or_default()
            .format("%a %b %d %H:%M:%S UTC %Y")
            .to_string()
    }

    /// Reads RFC 3339.
    #[must_use]
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        chrono::DateTime::parse_from_rfc3339(text).ok().map(|t| Self(t.timestamp_micros()))
    }

    /// The instant so long before.
    #[must_use]
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(span.as_micros()).unwrap_or(i64::MAX)))
    }

    /// The time passed since an earlier instant; zero if that is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl Add<Duration> for Wallclock {
    type Output = Self;
    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
    }
}

impl fmt::Debug for Wallclock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_rfc3339())
    }
}

impl fmt::Display for Wallclock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_rfc3339())
    }
}

/// A wall clock that advances with tokio's clock.
#[derive(Debug, Clone, Copy)]
struct SimulatedClock {
    start: Wallclock,
    since: tokio::time::Instant,
    /// This machine's clock is so much ahead.
    skew_us: i64,
}

impl SimulatedClock {
    /// The simulation's time. Whole milliseconds, as tokio's timers: runtimes that were made at different moments agree on it.
    fn now(&self) -> Wallclock {
        let passed = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.start + Duration::from_millis(passed)
    }
}

thread_local! {
    /// This thread's wall clock, if it is not the machine's.
    static SIMULATED: Cell<Option<SimulatedClock>> = const { Cell::new(None) };
}

/// While this guard lives, [`Wallclock::now`] follows tokio's clock on this thread. For simulations.
#[derive(Debug)]
#[must_use = "time is the machine's again when this is dropped"]
pub struct SimulatedTime {
    /// The guard stays on its thread.
    thread: PhantomData<*const ()>,
}

impl SimulatedTime {
    /// Sets this thread's wall clock to `start`; from then on it advances with tokio's clock.
    pub fn begin(start: Wallclock) -> Self {
        Self::on_machine(start, tokio::time::Instant::now(), 0)
    }

    /// The wall clock of one machine of a simulation, in which it was `start` at the moment `since`. The machine's clock is `skew_us`
    /// microseconds ahead.
    pub fn on_machine(start: Wallclock, since: tokio::time::Instant, skew_us: i64) -> Self {
        SIMULATED.set(Some(SimulatedClock { start, since, skew_us }));
        Self { thread: PhantomData }
    }

    /// The simulation's time, whatever the clock of this machine says. Outside of simulations the machine's time.
    #[must_use]
    pub fn time() -> Wallclock {
        SIMULATED.get().map_or_else(Wallclock::now, |clock| clock.now())
    }
}

impl Drop for SimulatedTime {
    fn drop(&mut self) {
        SIMULATED.set(None);
    }
}

/// Nanoseconds since the job's origin; may be negative.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct MediaTime(pub i64);

impl MediaTime {
    /// The origin.
    pub const ZERO: Self = Self(0);

    /// From milliseconds.
    #[must_use]
    pub const fn from_millis(ms: i64) -> Self {
        Self(ms * 1_000_000)
    }

    /// Whole milliseconds, rounded down.
    #[must_use]
    pub const fn as_millis(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// Seconds, for people.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// Where a wall-clock instant lies on the time line that begins at `origin`.
    #[must_use]
    pub const fn from_wallclock(at: Wallclock, origin: Wallclock) -> Self {
        Self((at.0 - origin.0).saturating_mul(1000))
    }

    /// The wall-clock instant of this media time.
    #[must_use]
    pub const fn to_wallclock(self, origin: Wallclock) -> Wallclock {
        Wallclock(origin.0 + self.0.div_euclid(1000))
    }

    /// The distance to a later time; zero if `later` is not later.
    #[must_use]
    pub fn until(self, later: Self) -> Duration {
        Duration::from_nanos(u64::try_from(later.0.saturating_sub(self.0)).unwrap_or(0))
    }
}

/// A signed span of media time, in nanoseconds.
pub type MediaSpan = i64;

impl Add<MediaSpan> for MediaTime {
    type Output = Self;
    fn add(self, span: MediaSpan) -> Self {
        Self(self.0.saturating_add(span))
    }
}

impl Sub for MediaTime {
    type Output = MediaSpan;
    fn sub(self, other: Self) -> MediaSpan {
        self.0.saturating_sub(other.0)
    }
}

impl fmt::Debug for MediaTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.4}s", self.as_secs_f64())
    }
}

/// Seconds since 1900 as 32.32 fixed point (RFC 3550 section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NtpTime(pub u64);

impl NtpTime {
    /// Seconds between 1900 and 1970.
    const UNIX_OFFSET_S: i64 = 2_208_988_800;

    /// As UTC.
    #[must_use]
    #[allow(clippy::cast_possible_wrap, clippy::cast_possible_truncation)]
    pub const fn to_wallclock(self) -> Wallclock {
        let seconds = (self.0 >> 32) as i64 - Self::UNIX_OFFSET_S;
        let micros = ((self.0 & 0xffff_ffff) * 1_000_000) >> 32;
        Wallclock(seconds * 1_000_000 + micros as i64)
    }

    /// From UTC.
    #[must_use]
    #[allow(clippy::cast_sign_loss)]
    pub const fn from_wallclock(at: Wallclock) -> Self {
        let seconds = (at.0.div_euclid(1_000_000) + Self::UNIX_OFFSET_S) as u64;
        let micros = at.0.rem_euclid(1_000_000) as u64;
        Self((seconds << 32) | ((micros << 32) / 1_000_000))
    }
}

/// Makes 32-bit RTP timestamps into ticks that do not wrap (RFC 3550 section 5.1).
#[derive(Debug, Clone, Default)]
pub struct RtpUnwrapper {
    last: Option<i64>,
}

impl RtpUnwrapper {
    /// Nothing seen yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { last: None }
    }

    /// The tick count nearest to the last one whose low 32 bits are `rtp`.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn unwrap(&mut self, rtp: u32) -> i64 {
        let ticks = match self.last {
            None => i64::from(rtp),
            Some(last) => last + i64::from(rtp.wrapping_sub(last as u32).cast_signed()),
        };
        self.last = Some(ticks);
        ticks
    }
}

/// A span of RTP ticks in nanoseconds.
#[must_use]
#[allow(clippy::cast_possible_truncation)]
pub fn ticks_to_span(ticks: i64, clock_rate: u32) -> MediaSpan {
    (i128::from(ticks) * 1_000_000_000 / i128::from(clock_rate.max(1))) as i64
}

/// Maps the monotonic clock to UTC by one reading of both, so that a step of the system clock in
/// mid-session moves nothing.
#[derive(Debug, Clone, Copy)]
pub struct ClockAnchor {
    instant: Instant,
    wallclock: Wallclock,
}

impl ClockAnchor {
    /// Reads both clocks.
    #[must_use]
    #[allow(clippy::disallowed_methods)]
    pub fn now() -> Self {
        Self { instant: tokio::time::Instant::now().into_std(), wallclock: Wallclock::now() }
    }

    /// A reading of another clock.
    #[must_use]
    pub const fn new(instant: Instant, wallclock: Wallclock) -> Self {
        Self { instant, wallclock }
    }

    /// UTC of a monotonic instant.
    #[must_use]
    pub fn wallclock(&self, at: Instant) -> Wallclock {
        match at.checked_duration_since(self.instant) {
            Some(after) => self.wallclock + after,
            None => Wallclock(
                self.wallclock.0 - i64::try_from(self.instant.duration_since(at).as_micros()).unwrap_or(i64::MAX),
            ),
        }
    }
}

/// The clock of a capture: media time on the monotonic clock, from one reading of a wall clock.
#[derive(Debug, Clone, Copy)]
pub struct MediaClock {
    anchor: ClockAnchor,
    origin: Wallclock,
}

impl MediaClock {
    /// By a reading of a wall clock; `origin` is media time zero.
    #[must_use]
    pub const fn new(anchor: ClockAnchor, origin: Wallclock) -> Self {
        Self { anchor, origin }
    }

    /// The same clock, so much ahead.
    #[must_use]
    pub fn ahead_by(self, span: Duration) -> Self {
        Self { anchor: ClockAnchor { wallclock: self.anchor.wallclock + span, ..self.anchor }, ..self }
    }

    /// The media time of a monotonic instant.
    #[must_use]
    pub fn at(&self, instant: Instant) -> MediaTime {
        MediaTime::from_wallclock(self.anchor.wallclock(instant), self.origin)
    }

    /// The media time now.
    #[must_use]
    pub fn now(&self) -> MediaTime {
        self.at(tokio::time::Instant::now().into_std())
    }

    /// The wall clock's time now, as it goes on from that reading.
    #[must_use]
    pub fn wallclock(&self) -> Wallclock {
        self.anchor.wallclock(tokio::time::Instant::now().into_std())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rtp_time_goes_on_over_the_wrap_in_both_directions() {
        let mut unwrap = RtpUnwrapper::default();
        assert_eq!(unwrap.unwrap(0xffff_fff0), 0xffff_fff0);
        assert_eq!(unwrap.unwrap(0x10), 0x1_0000_0010);
        assert_eq!(unwrap.unwrap(0xffff_fff8), 0xffff_fff8);
        assert_eq!(unwrap.unwrap(0x20), 0x1_0000_0020);
    }

    #[test]
    fn a_simulated_clock_begins_where_it_is_set_and_ends_with_its_guard() {
        let start = Wallclock(1_000_000);
        let time = SimulatedTime::begin(start);
        let read = Wallclock::now();
        assert!(read.since(start) < Duration::from_secs(60), "wanted about {start:?}, got {read:?}");
        drop(time);
        let read = Wallclock::now();
        assert!(read.since(start) > Duration::from_secs(60), "wanted the machine's clock, got {read:?}");
    }

    #[test]
    fn ntp_and_utc_are_the_same_instant() {
        let at = Wallclock(1_795_191_027_065_041);
        let back = NtpTime::from_wallclock(at).to_wallclock();
        assert!((back.0 - at.0).abs() <= 1, "{back:?} {at:?}");
    }

    #[test]
    fn media_time_counts_from_the_origin() {
        let origin = Wallclock(1_000_000);
        let at = MediaTime::from_wallclock(Wallclock(3_500_000), origin);
        assert_eq!(at.as_millis(), 2500);
        assert_eq!(at.to_wallclock(origin), Wallclock(3_500_000));
        assert_eq!(MediaTime::from_millis(-1).as_millis(), -1);
    }

    #[test]
    fn ticks_do_not_overflow_over_a_long_session() {
        assert_eq!(ticks_to_span(90_000 * 3600 * 24 * 365, 90_000), 3600 * 24 * 365 * 1_000_000_000);
    }
}
