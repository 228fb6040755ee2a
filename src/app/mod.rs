//! Wiring: creates the services of a configuration, and runs workers, the API and checks with them.

pub mod api;
pub mod check;
pub mod health;
pub mod services;
pub mod worker;
