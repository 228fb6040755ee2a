//! `archiver jobs …`

use anyhow::{Context, Result, bail};
use base64::Engine;
use clap::{Args, Subcommand};
use indicatif::ProgressBar;

use super::{print_json, print_line};
use crate::catalog::{Catalog, HistoryLine, JobState, ParkedRow, ParkedState};
use crate::config::Settings;
use crate::model::fault::FaultKind;
use crate::model::ids::{JobId, ParkedId};
use crate::model::time::Wallclock;

/// Entries that one command processes, at most.
const ENTRIES_MAX: u32 = 10_000;

#[derive(Debug, Subcommand)]
pub(super) enum JobsCommand {
    /// List running and waiting jobs, then the parked ones.
    List {
        /// Only parked ones with this fault.
        #[arg(long)]
        fault: Option<FaultKind>,
        /// Ended ones too.
        #[arg(long)]
        all: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show a job or a parked entry, with its event and its history.
    Show {
        /// A job's or a parked entry's id.
        id: uuid::Uuid,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Publish parked events again. Any number of replays makes one archive.
    Replay(ParkedArgs),
    /// Give parked entries up. Workers remove the captured media of a discarded job from their spools.
    Discard(ParkedArgs),
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct ParkedSelection {
    /// These entries, or the entries of these jobs.
    ids: Vec<uuid::Uuid>,
    /// All with this fault.
    #[arg(long)]
    fault: Option<FaultKind>,
    /// All.
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
pub(super) struct ParkedArgs {
    #[command(flatten)]
    selection: ParkedSelection,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

async fn selected(catalog: &dyn Catalog, args: &ParkedSelection) -> Result<Vec<ParkedRow>> {
    let ids = &args.ids;
    // Named entries may be in any state. Without names, only parked entries are selected.
    let state = ids.is_empty().then_some(ParkedState::Parked);
    let mut rows = catalog.parked(state, args.fault, ENTRIES_MAX).await?;
    if !ids.is_empty() {
        rows.retain(|r| ids.contains(r.parked.as_uuid()) || r.job.is_some_and(|j| ids.contains(j.as_uuid())));
        if rows.is_empty() {
            bail!("no parked job has such an id; see `archiver jobs list`");
        }
    }
    Ok(rows)
}

fn operator() -> String {
    let user = std::env::var("USER").unwrap_or_else(|_| "somebody".to_owned());
    let host = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    format!("{user}@{}", host.trim())
}

pub(super) async fn run(settings: &Settings, command: JobsCommand) -> Result<()> {
    let catalog = crate::app::services::catalog(settings).await?;
    match command {
        JobsCommand::List { fault, all, json } => list(catalog.as_ref(), fault, all, json).await,
        JobsCommand::Show { id, json } => show(catalog.as_ref(), id, json).await,
        JobsCommand::Replay(args) => {
            let rows = selected(catalog.as_ref(), &args.selection).await?;
            print_plan("replay", &rows);
            if args.dry_run {
                return Ok(());
            }
            let publisher = crate::app::services::broker(settings)?.publisher().await?;
            let (bar, operator) = (ProgressBar::new(rows.len() as u64), operator());
            for row in &rows {
                crate::job::replay::replay(publisher.as_ref(), catalog.as_ref(), row, &operator)
                    .await
                    .with_context(|| format!("parked job {}", row.parked))?;
                bar.inc(1);
            }
            bar.finish_and_clear();
            publisher.close().await?;
            print_line(&format!("replayed {}", rows.len()));
            Ok(())
        }
        JobsCommand::Discard(args) => {
            let rows = selected(catalog.as_ref(), &args.selection).await?;
            print_plan("discard", &rows);
            if args.dry_run {
                return Ok(());
            }
            for row in &rows {
                let now = Wallclock::now();
                catalog.mark_parked(row.parked, ParkedState::Discarded, &operator(), now).await?;
                if let Some(job) = row.job {
                    catalog.discard_job(job, &operator(), now).await?;
                }
            }
            print_line(&format!("discarded {}", rows.len()));
            Ok(())
        }
    }
}

fn print_plan(action: &str, rows: &[ParkedRow]) {
    for row in rows {
        print_line(&format!("{action} {}  {:<22} {}", row.parked, row.fault, row.detail));
    }
}

async fn list(catalog: &dyn Catalog, fault: Option<FaultKind>, all: bool, json: bool) -> Result<()> {
    let jobs =
        if fault.is_some() { Vec::new() } else { catalog.jobs(if all { &[] } else { &JobState::OPEN }, 1000).await? };
    let state = if all { None } else { Some(ParkedState::Parked) };
    let parked = catalog.parked(state, fault, 1000).await?;
    if json {
        return print_json(&serde_json::json!({ "jobs": jobs, "parked": parked }));
    }
    for job in &jobs {
        let owner = job.owner.as_ref().map_or("-", crate::model::ids::WorkerId::as_str);
        print_line(&format!(
            "{}  {:<10} epoch {} {owner}  {}  {}",
            job.job,
            job.state.as_str(),
            job.epoch.0,
            job.created_at,
            job.session
        ));
    }
    for row in &parked {
        let job = row.job.map_or("-".to_owned(), |j| j.to_string());
        print_line(&format!(
            "{}  {:<9} {:<22} {}x  {}  job {job}\n    {}",
            row.parked,
            row.state.as_str(),
            row.fault,
            row.times,
            row.last_at,
            row.detail
        ));
    }
    print_line(&format!("{} jobs, {} parked", jobs.len(), parked.len()));
    Ok(())
}

async fn show(catalog: &dyn Catalog, id: uuid::Uuid, json: bool) -> Result<()> {
    let entry = catalog.parked_entry(ParkedId::from_uuid(id)).await?;
    let job_id = entry.as_ref().and_then(|e| e.job).unwrap_or(JobId::from_uuid(id));
    let job = catalog.job(job_id).await?;
    let history = catalog.job_history(job_id).await?;
    if entry.is_none() && job.is_none() {
        bail!("there is no job and no parked job with the id {id}");
    }
    if json {
        return print_json(&serde_json::json!({ "parked": entry, "job": job, "history": history }));
    }
    if let Some(entry) = &entry {
        print_line(&format!(
            "parked    {}  {}  {}\nwhy       {}\ntimes     {}, first {}, last {}\nto        {}",
            entry.parked,
            entry.state.as_str(),
            entry.fault,
            entry.detail,
            entry.times,
            entry.first_at,
            entry.last_at,
            entry.routing_key
        ));
        let body = base64::engine::general_purpose::STANDARD.decode(&entry.body).unwrap_or_default();
        let text: String = String::from_utf8_lossy(&body).chars().take(4000).collect();
        print_line(&format!("event     {text}"));
        for HistoryLine { at, what, who } in &entry.history {
            print_line(&format!("  {at}  {what} by {who}"));
        }
    }
    if let Some(job) = &job {
        print_line(&format!(
            "job       {}\narchive   {}\nsession   {}\nstate     {}, epoch {}",
            job.job,
            job.archive,
            job.session,
            job.state.as_str(),
            job.epoch.0
        ));
        for HistoryLine { at, what, who } in &history {
            print_line(&format!("  {at}  {what} by {who}"));
        }
    }
    Ok(())
}
