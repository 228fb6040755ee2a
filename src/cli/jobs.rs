//! `archiver jobs …`

use anyhow::{Result, bail};
use base64::Engine;
use clap::Subcommand;

use super::parked::{self, CriteriaArgs, ParkedArgs, ReplayArgs};
use super::{print_json, print_line};
use crate::catalog::{Catalog, HistoryLine, JobState, ParkedState};
use crate::config::Settings;
use crate::model::ids::{JobId, ParkedId};
use crate::model::time::Wallclock;

/// Jobs that are listed, at most.
const JOBS_MAX: u32 = 1000;
/// Parked entries that are listed, at most.
const PARKED_MAX: usize = 10_000;

#[derive(Debug, Subcommand)]
pub(super) enum JobsCommand {
    /// List running and waiting jobs, then the parked ones.
    List {
        #[command(flatten)]
        criteria: CriteriaArgs,
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
    Replay(ReplayArgs),
    /// Give parked entries up. Workers remove the captured media of a discarded job from their spools.
    Discard(ParkedArgs),
}

pub(super) async fn run(settings: &Settings, command: JobsCommand) -> Result<()> {
    let catalog = crate::app::services::catalog(settings).await?;
    match command {
        JobsCommand::List { criteria, all, json } => list(catalog.as_ref(), &criteria, all, json).await,
        JobsCommand::Show { id, json } => show(catalog.as_ref(), id, json).await,
        JobsCommand::Replay(args) => parked::replay_parked(settings, catalog.as_ref(), &args).await,
        JobsCommand::Discard(args) => parked::discard_parked(catalog.as_ref(), &args).await,
    }
}

async fn list(catalog: &dyn Catalog, criteria: &CriteriaArgs, all: bool, json: bool) -> Result<()> {
    let mut jobs = catalog.jobs(if all { &[] } else { &JobState::OPEN }, JOBS_MAX).await?;
    jobs.retain(|job| criteria.fits_job(job));
    let state = if all { None } else { Some(ParkedState::Parked) };
    let parked = criteria.criteria(state, Wallclock::now()).select(catalog, PARKED_MAX).await?;
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
