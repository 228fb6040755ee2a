//! The `archiver` command.

use std::process::ExitCode;
use std::time::Duration;

/// Blocking work that nobody waits for any more has so long to end.
const BLOCKING_MAX: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("the system gives threads");
    let code = runtime.block_on(archiver::cli::main());
    runtime.shutdown_timeout(BLOCKING_MAX);
    code
}
