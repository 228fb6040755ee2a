//! Fault injection for the services in memory: rules or a seed decide which call meets which fault.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::time::sleep;

/// What happens to a call. The documentation of each service names the faults that it supports; all others are
/// [`Fault::Unavailable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call has no effect and fails at once, with an error that may be retried.
    Unavailable,
    /// The call has no effect and is refused, with an error that is not retried.
    Refused,
    /// The call waits until the faults are healed, and then takes effect.
    Hang,
    /// The call takes effect after a time, by tokio's clock.
    Slow(Duration),
    /// The call takes effect, but the caller gets an error that may be retried.
    LostAnswer,
    /// One byte of the data is changed.
    Corrupt,
    /// The second half of the data is missing.
    Truncated,
    /// The call succeeds without an effect.
    Lost,
    /// The call takes effect twice.
    Duplicated,
}

/// Which calls meet a fault.
#[derive(Debug, Clone, Default)]
pub struct Calls {
    operation: Option<&'static str>,
    key: String,
    skip: u64,
    count: Option<u64>,
}

impl Calls {
    /// Every call.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// The calls of one operation; its name is that of the trait's method.
    #[must_use]
    pub fn of(operation: &'static str) -> Self {
        Self { operation: Some(operation), ..Self::default() }
    }

    /// Only calls whose key contains `part`.
    #[must_use]
    pub fn with_key(mut self, part: &str) -> Self {
        part.clone_into(&mut self.key);
        self
    }

    /// Without the first `skip` calls.
    #[must_use]
    pub const fn after(mut self, skip: u64) -> Self {
        self.skip = skip;
        self
    }

    /// At most `count` calls. Without a limit, all calls until the faults are healed.
    #[must_use]
    pub const fn times(mut self, count: u64) -> Self {
        self.count = Some(count);
        self
    }

    /// Whether a call matches. Counts it.
    fn take(&mut self, operation: &str, key: &str) -> bool {
        let fits = self.operation.is_none_or(|wanted| wanted == operation) && key.contains(&self.key);
        if !fits || self.count == Some(0) {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.count = self.count.map(|count| count - 1);
        true
    }
}

/// A fault with a probability.
#[derive(Debug, Clone, Copy)]
pub struct Chance {
    /// The fault.
    pub fault: Fault,
    /// The share of calls that meet it, 0..=1.
    pub share: f64,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<(Calls, Fault)>,
    random: Option<(StdRng, Vec<Chance>)>,
}

/// The faults of one service, as one process sees it. Clones share them.
#[derive(Debug, Clone)]
pub struct Faults {
    state: Arc<Mutex<State>>,
    /// Counts the calls of [`Self::heal`]; calls that hang wait for a change.
    healed: watch::Sender<u64>,
}

impl Default for Faults {
    fn default() -> Self {
        Self { state: Arc::default(), healed: watch::channel(0).0 }
    }
}

impl Faults {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a rule. The first rule that matches a call decides.
    pub fn inject(&self, fault: Fault, calls: Calls) {
        self.state().rules.push((calls, fault));
    }

    /// Adds faults by chance, for calls that no rule matches. Equal seeds and equal calls give equal faults.
    pub fn randomly(&self, seed: u64, chances: &[Chance]) {
        self.state().random = Some((StdRng::seed_from_u64(seed), chances.to_vec()));
    }

    /// Removes all faults; calls that hang continue.
    pub fn heal(&self) {
        *self.state() = State::default();
        self.healed.send_modify(|times| *times += 1);
    }

    /// The fault of a call, without waiting.
    fn decide(&self, operation: &str, key: &str) -> Option<Fault> {
        let mut state = self.state();
        let by_rule = state.rules.iter_mut().find_map(|(calls, fault)| calls.take(operation, key).then_some(*fault));
        if by_rule.is_some() {
            return by_rule;
        }
        let (random, chances) = state.random.as_mut()?;
        let mut at: f64 = random.random();
        chances.iter().find_map(|chance| {
            at -= chance.share;
            (at < 0.0).then_some(chance.fault)
        })
    }

    /// The fault of a call. Waits for [`Fault::Slow`] and [`Fault::Hang`], and then returns `None`.
    pub async fn meet(&self, operation: &'static str, key: &str) -> Option<Fault> {
        // Subscribe before the decision, so that no call of `heal` is missed.
        let mut healed = self.healed.subscribe();
        match self.decide(operation, key) {
            Some(Fault::Hang) => {
                // The sender lives in `self`.
                healed.changed().await.unwrap_or_default();
                None
            }
            Some(Fault::Slow(time)) => {
                sleep(time).await;
                None
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rules_fit_by_operation_key_and_count_and_the_first_decides() {
        let faults = Faults::default();
        faults.inject(Fault::Refused, Calls::of("put").with_key("b/").after(1).times(2));
        faults.inject(Fault::Unavailable, Calls::of("get"));
        let mut met = Vec::new();
        for (operation, key) in
            [("put", "a/1"), ("put", "b/1"), ("put", "b/2"), ("get", "b/2"), ("put", "b/3"), ("put", "b/4")]
        {
            met.push(faults.meet(operation, key).await);
        }
        let (refused, away) = (Some(Fault::Refused), Some(Fault::Unavailable));
        assert_eq!(met, [None, None, refused, away, refused, None]);
        faults.heal();
        assert_eq!(faults.meet("get", "x").await, None, "healed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_call_takes_simulated_time_and_one_that_hangs_waits_until_all_is_healed() {
        let faults = Faults::default();
        faults.inject(Fault::Slow(Duration::from_secs(3600)), Calls::all().times(1));
        let begun = tokio::time::Instant::now();
        assert_eq!(faults.meet("put", "x").await, None);
        assert_eq!(begun.elapsed(), Duration::from_secs(3600));
        faults.inject(Fault::Hang, Calls::all());
        let (hung, ()) = tokio::join!(faults.meet("put", "x"), async {
            sleep(Duration::from_secs(60)).await;
            faults.heal();
        });
        assert_eq!((hung, begun.elapsed()), (None, Duration::from_secs(3660)));
    }

    #[tokio::test(start_paused = true)]
    async fn equal_seeds_give_equal_faults() {
        let met = async |seed| {
            let faults = Faults::default();
            let share = |fault| Chance { fault, share: 0.2 };
            faults.randomly(seed, &[share(Fault::Unavailable), share(Fault::LostAnswer)]);
            let mut met = Vec::new();
            for _ in 0..1000 {
                met.push(faults.meet("put", "x").await);
            }
            met
        };
        let first = met(7).await;
        let count = |fault| first.iter().filter(|met| **met == Some(fault)).count();
        assert_eq!(first, met(7).await, "the same seed");
        assert_ne!(first, met(8).await, "another seed");
        for fault in [Fault::Unavailable, Fault::LostAnswer] {
            assert!((150..250).contains(&count(fault)), "{fault:?}: wanted about 200 of 1000, got {}", count(fault));
        }
    }
}
