//! The `archiver` command.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    archiver::cli::main().await
}
