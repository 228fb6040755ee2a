//! Runs a command while the servers that all tests share are there: `with-servers COMMAND [ARGUMENT]…`.
//!
//! Starts RabbitMQ, PostgreSQL and Janus once, names the file with their addresses to the command
//! (`ARCHIVER_TEST_SERVERS`), and stops them by their process ids when the command has ended.

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result};
use archiver_testkit::shared::{ADDRESSES, Lease};

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments.next().context("usage: with-servers COMMAND [ARGUMENT]…")?;
    let began = Instant::now();
    eprintln!("starting RabbitMQ, PostgreSQL and Janus for the tests …");
    let lease = Lease::take()?;
    eprintln!("… ready after {:.1} s", began.elapsed().as_secs_f64());
    let status = Command::new(&program).args(arguments).env(ADDRESSES, lease.file()).status();
    let status = status.with_context(|| format!("{} cannot be run", program.to_string_lossy()));
    lease.release()?;
    Ok(status?.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
