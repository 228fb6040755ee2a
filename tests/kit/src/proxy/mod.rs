//! A bad network between a client and a server, in the test's own process (the kernel here has no netem).

mod tcp;
mod udp;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use tcp::{TcpMode, TcpProxy};
pub use udp::{Conditions, Counts, Path, UdpProxy};

/// Longest wait of a proxy's thread; so late it notices that it is to end.
const TICK: Duration = Duration::from_millis(20);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
