//! Logging: one line an event, as JSON or human-readable. Ids are fields. Secrets, SDP, addresses of clients and presigned URLs are
//! never logged.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line, for machines.
    Json,
    /// Human-readable, with colours on a terminal.
    #[default]
    Pretty,
}

/// Starts logging to standard error. `filter` is a level or a list of `module=level`.
///
/// # Errors
/// When `filter` cannot be read, or logging was started before.
pub fn start(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    // str0m and lapin log every packet and frame below `warn`, which is useless to an operator.
    let filter = EnvFilter::try_new(format!("{filter},str0m=warn,is=warn,lapin=warn,dimpl=warn,sqlx=warn"))?;
    let registry = tracing_subscriber::registry().with(filter);
    let out = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Json => registry.with(out.json().flatten_event(true)).try_init()?,
        LogFormat::Pretty => registry.with(out.with_target(false)).try_init()?,
    }
    log_panics();
    Ok(())
}

/// Logs panics as bugs. Otherwise they appear on standard error only.
fn log_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(fault.kind = "bug", place, "panic: {}", info.payload_as_str().unwrap_or("?"));
        before(info);
    }));
}
