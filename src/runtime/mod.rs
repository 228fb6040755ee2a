//! Infrastructure of long-running programs: supervised tasks, retries, journals, metrics, logs, TLS.

pub mod journal;
pub mod metrics;
pub mod retry;
pub mod supervise;
pub mod telemetry;
pub mod tls;
