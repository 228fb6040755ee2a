//! The catalog's clock, which all workers of a fleet share. Leases, ages and media have its times, whatever a machine's own clock says: a
//! machine whose clock is wrong takes nobody's job, and its media is not beside the others'.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::catalog::{Catalog, CatalogError};
use crate::model::time::{ClockAnchor, Wallclock};
use crate::runtime::metrics::metrics;

/// Two machines' monotonic clocks drift apart by less than this share.
const DRIFT_MAX: f64 = 0.000_5;
/// A machine whose clock is off by more is told of.
pub const SKEW_TOLD: Duration = Duration::from_secs(1);

/// A reading of the catalog's clock.
#[derive(Debug, Clone, Copy)]
struct Reading {
    asked: Instant,
    answered: Instant,
    catalog: Wallclock,
}

impl Reading {
    /// The reading is off by no more: the clock was read at some moment between question and answer.
    fn error_max(&self) -> Duration {
        (self.answered - self.asked) / 2
    }

    fn anchor(&self) -> ClockAnchor {
        ClockAnchor::new(self.asked + self.error_max(), self.catalog)
    }

    /// Whether the catalog's clock differs from what an earlier reading lets expect by more than both can be wrong: it was set, or
    /// another server answers.
    fn differs_from(&self, earlier: &Self) -> bool {
        let expected = earlier.anchor().wallclock(self.asked + self.error_max());
        let off = expected.since(self.catalog).max(self.catalog.since(expected));
        off > self.error_max() + earlier.error_max_at(self.answered) + Duration::from_millis(1)
    }

    /// What the reading's error has grown to.
    fn error_max_at(&self, now: Instant) -> Duration {
        self.error_max() + now.saturating_duration_since(self.answered).mul_f64(DRIFT_MAX)
    }
}

/// The time that the catalog told.
#[derive(Debug, Clone, Copy)]
pub struct CatalogTime {
    /// The time.
    pub now: Wallclock,
    /// The clock was set since the reading before, or another server answered.
    pub was_set: bool,
}

/// What this worker knows of the catalog's clock.
#[derive(Debug, Default)]
pub struct CatalogClock {
    /// The reading that is off by the least.
    best: Mutex<Option<Reading>>,
    /// Whether it was told that this machine's clock is wrong.
    told: Mutex<bool>,
}

impl CatalogClock {
    /// Reads the catalog's clock.
    ///
    /// # Errors
    /// When the catalog is away.
    pub async fn read(&self, catalog: &dyn Catalog) -> Result<CatalogTime, CatalogError> {
        let asked = tokio::time::Instant::now().into_std();
        let now = catalog.clock().await?;
        let reading = Reading { asked, answered: tokio::time::Instant::now().into_std(), catalog: now };
        let was_set = self.take(reading);
        self.tell_skew(Wallclock::now(), &reading);
        Ok(CatalogTime { now, was_set })
    }

    /// The catalog's clock on this machine's monotonic clock. While it was never read, the machine's own.
    #[must_use]
    pub fn anchor(&self) -> ClockAnchor {
        let best = *self.best.lock().unwrap_or_else(PoisonError::into_inner);
        best.map_or_else(ClockAnchor::now, |best| best.anchor())
    }

    /// Keeps a reading that is better than the one before, which gets worse as it ages. Returns whether the clock was set.
    fn take(&self, reading: Reading) -> bool {
        let mut best = self.best.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = *best else {
            *best = Some(reading);
            return false;
        };
        let was_set = reading.differs_from(&known);
        if was_set || reading.error_max() <= known.error_max_at(reading.answered) {
            *best = Some(reading);
        }
        was_set
    }

    /// `machine`: the machine's clock right after the reading.
    fn tell_skew(&self, machine: Wallclock, reading: &Reading) {
        let catalog = reading.anchor().wallclock(reading.answered);
        let (ahead, behind) = (machine.since(catalog), catalog.since(machine));
        let skew = ahead.as_secs_f64() - behind.as_secs_f64();
        metrics().clock_skew_seconds.set(skew);
        let is_wrong = ahead.max(behind) > SKEW_TOLD + reading.error_max();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if is_wrong && !*told {
            tracing::warn!(
                ahead_s = skew,
                "this machine's clock differs from the catalog's, which counts: set it, or the log has wrong times"
            );
        }
        *told = is_wrong;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_reading_counts_and_a_clock_that_was_set_at_once() {
        let begin = tokio::time::Instant::now().into_std();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        // When it was asked and answered, in ms, by how many ms the catalog's clock was ahead, whether that counts from then on, and
        // whether the clock was set.
        let cases: [(u64, u64, i64, bool, bool); 7] = [
            (0, 10, 500, true, false),
            // Worse.
            (1_000, 1_100, 530, false, false),
            // Better.
            (2_000, 2_004, 501, true, false),
            // As good as one that has aged.
            (12_000, 12_010, 503, true, false),
            (13_000, 13_200, 560, false, false),
            (14_000, 14_200, 5_000, true, true),
            (15_000, 15_010, 5_040, true, false),
        ];
        let clock = CatalogClock::default();
        for (asked, answered, ahead, counts, was_set) in cases {
            let middle = i64::try_from(u64::midpoint(asked, answered)).expect("small");
            let catalog = Wallclock(1_800_000_000_000_000 + (middle + ahead) * 1000);
            let reading = Reading { asked: at(asked), answered: at(answered), catalog };
            assert_eq!(clock.take(reading), was_set, "at {asked} ms");
            let known = clock.anchor().wallclock(at(u64::midpoint(asked, answered)));
            assert_eq!(known == catalog, counts, "at {asked} ms: {known:?}");
        }
    }
}
