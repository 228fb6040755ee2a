//! The command line.

mod apps;
mod archives;
mod callbacks;
pub mod compose;
mod jobs;
mod parked;
mod reconcile;
mod verify_file;
mod workers;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{CommandFactory, Parser, Subcommand};
use tokio_util::sync::CancellationToken;

use crate::broker::{ENDED_KEY, Headers, STARTED_KEY};
use crate::config::Settings;
use crate::event::SessionEvent;
use crate::webrtc::EngineConfig;

/// Records routed video sessions by themselves, and loses nothing.
#[derive(Debug, Parser)]
#[command(name = "archiver", version, max_term_width = 100)]
struct Cli {
    /// The configuration file. Without one, the environment (`ARCHIVER__SECTION__KEY`) and defaults are used.
    #[arg(long, short, global = true, env = "ARCHIVER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run everything in one process: take events, record, deliver, serve the API, answer for health and metrics.
    Serve,
    /// Run a worker: take events, record, deliver.
    Worker,
    /// Run the REST API that the SDKs of Vonage and OpenTok call.
    Api,
    /// Add, list and change applications: who may use the API, and with what keys.
    #[command(subcommand)]
    Apps(apps::AppsCommand),
    /// Look whether configuration, GStreamer, broker, catalog, store, routers and disk can be used.
    Check {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Print the configuration that results from file and environment, without secrets, and look at nothing else.
        #[arg(long)]
        print_config: bool,
    },
    /// Ask the running worker whether it lives; for container health checks.
    Health,
    /// Publish session events.
    #[command(subcommand)]
    Events(EventsCommand),
    /// List, show, download, verify and delete archives.
    #[command(subcommand)]
    Archives(archives::ArchivesCommand),
    /// List, show, replay and discard jobs.
    #[command(subcommand)]
    Jobs(jobs::JobsCommand),
    /// List the workers; make one hand its sessions over.
    #[command(subcommand)]
    Workers(workers::WorkersCommand),
    /// Check whether everything is recorded: list rooms in which somebody publishes without a job, jobs without a worker, parked jobs and events,
    /// and failed or incomplete archives. The exit status is 1 if there are any, or if a router cannot be asked.
    Reconcile(reconcile::Reconcile),
    /// List callbacks and send them once more; check where they may go.
    #[command(subcommand)]
    Callbacks(callbacks::CallbacksCommand),
    /// Compose an archive's capture log into one MP4. The worker runs it by itself; by hand, on a copy of a log.
    Compose(compose::Compose),
    /// Verify a finished file for a worker, which starts this in a process of its own.
    #[command(hide = true)]
    VerifyFile(verify_file::VerifyFile),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
enum EventsCommand {
    /// Publish a session event from a file (`-` is standard input), with a confirm of the broker.
    Publish {
        /// CloudEvents JSON; see `fixtures/events/`.
        file: PathBuf,
        /// Publish it although this program would refuse it; it will be parked.
        #[arg(long)]
        force: bool,
        /// The region to publish to when the event cannot be read.
        #[arg(long)]
        region: Option<String>,
    },
}

/// Runs the command.
pub async fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli).await {
        Ok(code) => code,
        Err(error) => {
            print_error(&format!("archiver: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints a line. A closed pipe is not an error.
pub(crate) fn print_line(text: &str) {
    writeln!(std::io::stdout(), "{text}").unwrap_or_default();
}

fn print_error(text: &str) {
    writeln!(std::io::stderr(), "{text}").unwrap_or_default();
}

/// Who runs the command, for histories.
fn operator() -> String {
    let user = std::env::var("USER").unwrap_or_else(|_| "somebody".to_owned());
    let host = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    format!("{user}@{}", host.trim())
}

fn print_json(value: &impl serde::Serialize) -> Result<()> {
    print_line(&serde_json::to_string_pretty(value)?);
    Ok(())
}

async fn run(cli: Cli) -> Result<ExitCode> {
    let environment: BTreeMap<String, String> = std::env::vars().collect();
    let load = || Settings::load(cli.config.as_deref(), &environment);
    match cli.command {
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "archiver", &mut std::io::stdout());
        }
        Command::Serve => serve(load()?, Roles { worker: true, api: true }).await?,
        Command::Worker => serve(load()?, Roles { worker: true, api: false }).await?,
        Command::Api => serve(load()?, Roles { worker: false, api: true }).await?,
        Command::Apps(command) => apps::run(&load()?, command).await?,
        Command::Check { print_config: true, .. } => print_line(load()?.to_string().trim()),
        Command::Check { json, .. } => return check(&load()?, json).await,
        Command::Health => health(&load()?).await?,
        Command::Events(EventsCommand::Publish { file, force, region }) => {
            publish(&load()?, &file, force, region).await?;
        }
        Command::Archives(command) => archives::run(&load()?, command).await?,
        Command::Compose(args) => tokio::task::spawn_blocking(move || compose::run(&args)).await??,
        Command::VerifyFile(args) => tokio::task::spawn_blocking(move || verify_file::run(&args)).await?,
        Command::Callbacks(command) => return callbacks::run(&load()?, command).await,
        Command::Workers(command) => workers::run(&load()?, command).await?,
        Command::Reconcile(args) => return reconcile::run(&load()?, args).await,
        Command::Jobs(command) => jobs::run(&load()?, command).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The parts that a process runs.
#[derive(Debug, Clone, Copy)]
struct Roles {
    worker: bool,
    api: bool,
}

async fn serve(settings: Settings, roles: Roles) -> Result<()> {
    crate::runtime::telemetry::start(settings.log.format, &settings.log.level)?;
    crate::runtime::tls::choose_provider();
    let stop = CancellationToken::new();
    let signals = tokio_util::task::TaskTracker::new();
    signals.spawn(stop_on_signals(stop.clone()));
    // When one part cannot start or ends, the other one stops, too.
    let (worker_ended, api_ended) = tokio::join!(
        then_stop(&stop, run_worker(&settings, roles, stop.clone())),
        then_stop(&stop, serve_api(&settings, roles, stop.clone())),
    );
    worker_ended.context("the worker cannot start")?;
    api_ended.context("the API cannot start")
}

/// Runs one part, then stops the others.
async fn then_stop<T>(stop: &CancellationToken, part: impl Future<Output = T>) -> T {
    let result = part.await;
    stop.cancel();
    result
}

async fn run_worker(
    settings: &Settings,
    roles: Roles,
    stop: CancellationToken,
) -> Result<(), crate::app::worker::WorkerStartError> {
    if !roles.worker {
        stop.cancelled().await;
        return Ok(());
    }
    let engine = EngineConfig {
        bind: settings.media.bind,
        advertise: settings.media.advertise,
        receive_buffer_bytes: usize::try_from(settings.media.receive_buffer.0).unwrap_or(4 << 20),
        ..EngineConfig::default()
    };
    crate::app::worker::open_and_run(settings.clone(), engine, stop).await
}

async fn serve_api(
    settings: &Settings,
    roles: Roles,
    stop: CancellationToken,
) -> Result<(), crate::app::api::ApiStartError> {
    if !roles.api {
        stop.cancelled().await;
        return Ok(());
    }
    let (serving, seen) = tokio::sync::watch::channel(None);
    // With a worker in the same process, the worker serves health checks.
    let health = async {
        if !roles.worker {
            let ready = crate::app::health::api_readiness(seen);
            crate::app::health::serve(settings.http.bind, ready, stop.clone()).await;
        }
    };
    tokio::join!(then_stop(&stop, crate::app::api::open_and_serve(settings.clone(), serving, stop.clone())), health).0
}

async fn stop_on_signals(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return tracing::error!("signals cannot be received");
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
        () = stop.cancelled() => {}
    }
    stop.cancel();
}

async fn check(settings: &Settings, json: bool) -> Result<ExitCode> {
    let lines = crate::app::check::check(settings).await;
    if json {
        print_json(&lines)?;
    } else {
        for line in &lines {
            print_line(&format!("{} {:<28} {}", if line.ok { "ok  " } else { "FAIL" }, line.subject, line.text));
        }
    }
    Ok(if lines.iter().all(|l| l.ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn health(settings: &Settings) -> Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let bind = settings.http.bind;
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(bind).await?;
        stream.write_all(b"GET /health/live HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(std::time::Duration::from_secs(3), ask).await.context("no answer within 3 s")?;
    let answer = answer.with_context(|| format!("nothing answers at {bind}"))?;
    if answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200") {
        print_line("ok");
        return Ok(());
    }
    bail!("the worker answers: {}", answer.lines().next().unwrap_or_default())
}

async fn publish(settings: &Settings, file: &std::path::Path, force: bool, region: Option<String>) -> Result<()> {
    let body = if file.as_os_str() == "-" {
        let mut body = Vec::new();
        std::io::Read::read_to_end(&mut std::io::stdin(), &mut body)?;
        body
    } else {
        std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?
    };
    let routing_key = match crate::event::parse(&body) {
        Ok(SessionEvent::Started(event)) => format!("{STARTED_KEY}.{}", event.data.region),
        Ok(SessionEvent::Ended(event)) => format!("{ENDED_KEY}.{}", event.data.region),
        Err(_) if force => {
            format!("{STARTED_KEY}.{}", region.unwrap_or_else(|| settings.worker.region.to_string()))
        }
        Err(error) => bail!("{error}\n(--force publishes it all the same; it will be parked)"),
    };
    let publisher = crate::app::services::broker(settings)?.publisher().await?;
    publisher.publish(&routing_key, &body, &Headers::new()).await?;
    publisher.close().await;
    print_line(&format!("published to {routing_key}"));
    Ok(())
}
