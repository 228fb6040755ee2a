//! What long-running programs need whatever they do: supervised tasks, retries, metrics, logs, TLS.

pub mod journal;
pub mod metrics;
pub mod retry;
pub mod supervise;
pub mod telemetry;
pub mod tls;
