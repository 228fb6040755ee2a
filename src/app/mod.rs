//! Wiring: creates the services of a configuration, and runs workers, the API and checks with them.

pub mod api;
pub mod check;
mod check_text;
pub mod health;
mod router_check;
pub mod services;
pub mod worker;
mod worker_name;
