//! `archiver workers …`

use anyhow::{Result, bail};
use clap::Subcommand;

use super::{operator, print_json, print_line};
use crate::catalog::{Catalog, JobState, WorkerRow};
use crate::config::Settings;
use crate::model::ids::WorkerId;
use crate::model::time::Wallclock;

/// Running jobs that are counted, at most.
const JOBS_MAX: u32 = 10_000;

#[derive(Debug, Subcommand)]
pub(super) enum WorkersCommand {
    /// List the workers: which live, and which are drained.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make a worker hand its sessions over, and take none until `resume`. It captures each session until another worker does, so nothing is lost;
    /// where no other worker lives, until the session ends. The worker goes on running. Seen with its next heartbeat.
    Drain {
        /// Its name.
        worker: WorkerId,
    },
    /// Let a drained worker take sessions again.
    Resume {
        /// Its name.
        worker: WorkerId,
    },
}

pub(super) async fn run(settings: &Settings, command: WorkersCommand) -> Result<()> {
    let catalog = crate::app::services::catalog(settings).await?;
    match command {
        WorkersCommand::List { json } => list(catalog.as_ref(), json).await,
        WorkersCommand::Drain { worker } => {
            tell(catalog.as_ref(), &worker, Some(&operator())).await?;
            let (rows, now) = (catalog.workers().await?, catalog.clock().await?);
            let lives = rows.iter().any(|row| row.worker == worker && row.lease_expires_at > now);
            print_line(&match lives {
                true => format!("{worker} hands its sessions over; `archiver jobs list` shows who has each"),
                false => format!("{worker} is away: it takes no sessions when it starts again"),
            });
            Ok(())
        }
        WorkersCommand::Resume { worker } => {
            tell(catalog.as_ref(), &worker, None).await?;
            print_line(&format!("{worker} takes sessions again"));
            Ok(())
        }
    }
}

async fn tell(catalog: &dyn Catalog, worker: &WorkerId, drained_by: Option<&str>) -> Result<()> {
    if !catalog.drain_worker(worker, drained_by, catalog.clock().await?).await? {
        bail!("the catalog knows no worker {worker}; see `archiver workers list`");
    }
    Ok(())
}

/// What a worker does, by the catalog's clock.
fn doing(row: &WorkerRow, now: Wallclock) -> &'static str {
    match (row.lease_expires_at > now, row.drain_at.is_some(), row.takes.is_some()) {
        (false, false, _) => "away",
        (false, true, _) => "away, drained",
        (true, true, false) => "drained",
        (true, true, true) => {
            "told to drain, and takes sessions: it has not heard of it yet, or is of an earlier version"
        }
        (true, false, true) => "takes sessions",
        (true, false, false) => "takes none: full, sick, or it stops",
    }
}

async fn list(catalog: &dyn Catalog, json: bool) -> Result<()> {
    let (rows, now) = (catalog.workers().await?, catalog.clock().await?);
    if json {
        return print_json(&serde_json::json!({ "workers": rows, "now": now }));
    }
    let jobs = catalog.jobs(&JobState::OPEN, JOBS_MAX).await?;
    for row in &rows {
        let by = row.drain_by.as_ref().zip(row.drain_at).map_or(String::new(), |(by, at)| format!(", by {by} at {at}"));
        let own = jobs.iter().filter(|job| job.owner.as_ref() == Some(&row.worker)).count();
        print_line(&format!("{}  since {}  {own} jobs  {}{by}", row.worker, row.since, doing(row, now)));
    }
    print_line(&format!("{} workers", rows.len()));
    Ok(())
}
