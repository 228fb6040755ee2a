//! Services in memory, for tests in simulated time: a catalog, an object store, a broker and a media router. They keep the contracts of
//! the real services, do no I/O, read no clock but tokio's, and fail as a test demands.
//!
//! Under `#[tokio::test(start_paused = true)]` time advances only while all tasks wait: hours of simulated time take milliseconds, and
//! equal seeds give equal runs.

pub mod broker;
pub mod catalog;
pub mod faults;
pub mod router;
pub mod store;

pub use broker::{MemoryBroker, MemoryRabbit};
pub use catalog::MemoryCatalog;
pub use faults::{Calls, Chance, Fault, Faults};
pub use router::FakeRouter;
pub use store::MemoryStore;

#[cfg(test)]
mod fleet;
#[cfg(test)]
mod tests;
