//! How slow this machine is, compared with the machine on which the tests' limits were chosen. A virtual machine may compute six times as
//! fast in one hour as in another.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

/// The variable in which `with-servers` tells the tests how slow the machine is: 1 as usual, 3 when everything takes three times as long.
pub const SLOWNESS: &str = "ARCHIVER_TEST_SLOWNESS";
/// No limit grows by more.
const SLOWNESS_MAX: f64 = 6.0;

/// Rounds of one measurement, and how long they take where the limits were chosen (a core of an AMD EPYC that nobody else uses).
const ROUNDS: u64 = 50_000_000;
const USUAL: Duration = Duration::from_millis(100);
/// Measurements, of which the median counts.
const MEASUREMENTS: usize = 5;

/// How slow `with-servers` found this machine, 1 to 6; 1 without `with-servers`.
#[must_use]
pub fn known_slowness() -> f64 {
    let told = std::env::var(SLOWNESS).ok().and_then(|text| text.parse().ok());
    told.filter(|slowness: &f64| slowness.is_finite()).unwrap_or(1.0).clamp(1.0, SLOWNESS_MAX)
}

/// Measures how many times as long as usual two threads take that compute at the same time. Takes half a second where it is 1.
#[must_use]
pub fn slowness() -> f64 {
    let mut times: Vec<Duration> = (0..MEASUREMENTS).map(|_| both_cores()).collect();
    times.sort_unstable();
    times[MEASUREMENTS / 2].as_secs_f64() / USUAL.as_secs_f64()
}

fn both_cores() -> Duration {
    let began = Instant::now();
    thread::scope(|scope| {
        scope.spawn(compute);
        compute();
    });
    began.elapsed()
}

/// Each round needs the result of the one before: neither more cores nor a better compiler make it faster.
fn compute() {
    let round = |state: u64, n: u64| (state ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
    black_box((0..black_box(ROUNDS)).fold(1, round));
}
