//! Wiring: makes services of a configuration and runs workers, the API and checks with them.

pub mod check;
pub mod worker;
