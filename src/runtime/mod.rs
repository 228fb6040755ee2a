//! Infrastructure of long-running programs: supervised tasks, retries, stalls, data folders, journals, metrics, logs, TLS.

pub mod data_folder;
pub mod journal;
pub mod metrics;
pub mod retry;
pub mod stall;
pub mod supervise;
pub mod telemetry;
pub mod tls;
