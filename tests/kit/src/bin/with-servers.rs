//! Runs a command while the servers that all tests share are there: `with-servers COMMAND [ARGUMENT]…`.
//!
//! Starts RabbitMQ, PostgreSQL and Janus once, names the file with their addresses to the command
//! (`ARCHIVER_TEST_SERVERS`), and stops them by their process ids when the command has ended.
//!
//! First measures how slow the machine is. On a slow machine the command is told so (`ARCHIVER_TEST_SLOWNESS`), and nextest takes its profile
//! `slow`, with fewer tests at a time and longer limits, unless the command names another profile.

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result};
use archiver_testkit::machine::{SLOWNESS, slowness};
use archiver_testkit::shared::{ADDRESSES, Lease};

/// From here on the machine is slow.
const SLOW_FROM: f64 = 1.5;

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments.next().context("usage: with-servers COMMAND [ARGUMENT]…")?;
    let slowness = slowness();
    eprintln!("this machine takes {slowness:.1} times as long as usual to compute");
    let began = Instant::now();
    eprintln!("starting RabbitMQ, PostgreSQL and Janus for the tests …");
    let lease = Lease::take()?;
    eprintln!("… ready after {:.1} s", began.elapsed().as_secs_f64());
    let mut command = Command::new(&program);
    command.args(arguments).env(ADDRESSES, lease.file());
    // Longer deadlines need nextest's longer limits.
    if slowness >= SLOW_FROM && std::env::var_os("NEXTEST_PROFILE").is_none() {
        eprintln!("longer limits, and fewer tests at a time unless the command names a profile of nextest");
        command.env("NEXTEST_PROFILE", "slow").env(SLOWNESS, format!("{slowness:.2}"));
    }
    let status = command.status();
    let status = status.with_context(|| format!("{} cannot be run", program.to_string_lossy()));
    lease.release()?;
    Ok(status?.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
