//! Parked entries on the command line: which are meant, and what becomes of them.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use indicatif::ProgressBar;

use super::{operator, print_line};
use crate::broker::STARTED_KEY;
use crate::catalog::{Catalog, JobRow, ParkedFilter, ParkedMark, ParkedRow, ParkedState};
use crate::config::{DurationValue, Settings};
use crate::event::{self, SessionEvent};
use crate::job::parked::Criteria;
use crate::job::replay::{MendedEvent, Replayer, replay};
use crate::model::fault::FaultKind;
use crate::model::ids::{JobId, ParkedId};
use crate::model::time::Wallclock;

/// Entries that one command processes, at most: their events are in memory.
const ENTRIES_MAX: usize = 10_000;
/// Entries of one job, at most: one for each fault.
const ENTRIES_OF_JOB: u32 = 100;
/// Where no terminal shows a bar, progress is a line each so many entries.
const LINE_EVERY: usize = 100;

/// What parked entries have in common.
#[derive(Debug, Args)]
pub(super) struct CriteriaArgs {
    /// Only those with this fault.
    #[arg(long)]
    fault: Option<FaultKind>,
    /// Only those of this session.
    #[arg(long)]
    session: Option<String>,
    /// Only those of this application.
    #[arg(long)]
    application: Option<String>,
    /// Only those of this region.
    #[arg(long)]
    region: Option<String>,
    /// Only those that came for the last time longer ago than this, such as 30m or 4h.
    #[arg(long, value_name = "DURATION")]
    older_than: Option<DurationValue>,
    /// Only those that came for the last time less long ago than this.
    #[arg(long, value_name = "DURATION")]
    newer_than: Option<DurationValue>,
}

impl CriteriaArgs {
    /// Nothing is asked for.
    pub fn is_empty(&self) -> bool {
        let Self { fault, session, application, region, older_than, newer_than } = self;
        let says = [session, application, region].iter().any(|text| text.is_some());
        !says && fault.is_none() && older_than.is_none() && newer_than.is_none()
    }

    /// Whether a job is meant, which has neither fault nor age of an entry.
    pub fn fits_job(&self, job: &JobRow) -> bool {
        let is = |wanted: &Option<String>, what: &str| wanted.as_ref().is_none_or(|wanted| wanted == what);
        let is_of_entries = self.fault.is_some() || self.older_than.is_some() || self.newer_than.is_some();
        !is_of_entries
            && is(&self.session, job.session.as_str())
            && is(&self.application, job.application.as_str())
            && is(&self.region, job.region.as_str())
    }

    /// The criteria at a time, for entries in a state.
    pub fn criteria(&self, state: Option<ParkedState>, now: Wallclock) -> Criteria {
        let ago =
            |age: DurationValue| Wallclock(now.0.saturating_sub(i64::try_from(age.0.as_micros()).unwrap_or(i64::MAX)));
        let filter = ParkedFilter {
            state,
            fault: self.fault,
            job: None,
            since: self.newer_than.map(ago),
            before: self.older_than.map(ago),
            behind: None,
        };
        let Self { session, application, region, .. } = self;
        Criteria { filter, session: session.clone(), application: application.clone(), region: region.clone() }
    }
}

/// Which entries a command is about.
#[derive(Debug, Args)]
struct ParkedSelection {
    /// These entries, or the entries of these jobs.
    ids: Vec<uuid::Uuid>,
    #[command(flatten)]
    criteria: CriteriaArgs,
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
    /// Why, for the entries' histories.
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct ReplayArgs {
    #[command(flatten)]
    parked: ParkedArgs,
    /// Publish the event in this file in place of that of the one entry that is named. `archiver jobs show ID` prints the event as it came.
    #[arg(long, value_name = "FILE")]
    event: Option<PathBuf>,
}

async fn selected(catalog: &dyn Catalog, args: &ParkedSelection) -> Result<Vec<ParkedRow>> {
    let ids = &args.ids;
    let is_asked_for = [!ids.is_empty(), args.all, !args.criteria.is_empty()];
    match is_asked_for.iter().filter(|is| **is).count() {
        0 => bail!("say which: ids of entries or jobs, criteria such as --fault or --session, or --all"),
        1 => {}
        _ => bail!("say which by ids, by criteria, or with --all, not by two of them"),
    }
    // Named entries may be in any state. Without names, only parked entries are selected.
    if ids.is_empty() {
        let criteria = args.criteria.criteria(Some(ParkedState::Parked), Wallclock::now());
        return Ok(criteria.select(catalog, ENTRIES_MAX).await?);
    }
    named(catalog, ids).await
}

/// The entries that are named by their ids, or by the ids of their jobs.
async fn named(catalog: &dyn Catalog, ids: &[uuid::Uuid]) -> Result<Vec<ParkedRow>> {
    let mut rows: BTreeMap<ParkedId, ParkedRow> = BTreeMap::new();
    for id in ids {
        let found = match catalog.parked_entry(ParkedId::from_uuid(*id)).await? {
            Some(row) => vec![row],
            None => {
                let of_job = ParkedFilter { job: Some(JobId::from_uuid(*id)), ..ParkedFilter::default() };
                catalog.parked(&of_job, ENTRIES_OF_JOB).await?
            }
        };
        ensure!(!found.is_empty(), "no parked job has the id {id}; see `archiver jobs list`");
        rows.extend(found.into_iter().map(|row| (row.parked, row)));
    }
    Ok(rows.into_values().collect())
}

fn print_plan(action: &str, rows: &[ParkedRow]) {
    for row in rows {
        print_line(&format!("{action} {}  {:<22} {}", row.parked, row.fault, row.detail));
    }
}

/// Shows how far a command is.
struct Progress {
    bar: ProgressBar,
    total: usize,
    done: usize,
    done_word: &'static str,
}

impl Progress {
    fn new(total: usize, done_word: &'static str) -> Self {
        Self { bar: ProgressBar::new(total as u64), total, done: 0, done_word }
    }

    fn step(&mut self) {
        self.done += 1;
        self.bar.inc(1);
        if !std::io::stderr().is_terminal() && self.done.is_multiple_of(LINE_EVERY) && self.done < self.total {
            print_line(&format!("{} {} of {}", self.done_word, self.done, self.total));
        }
    }

    /// What to say when it fails in the middle.
    fn failed(&self, row: &ParkedRow) -> String {
        let Self { done, total, done_word, .. } = self;
        format!("parked job {}; {done_word} {done} of {total}, run the command again for the others", row.parked)
    }

    fn end(self) {
        self.bar.finish_and_clear();
        print_line(&format!("{} {}", self.done_word, self.done));
        if self.total == ENTRIES_MAX {
            print_line("that is as many as one command takes: run it again for the others");
        }
    }
}

/// `archiver jobs replay`
pub(super) async fn replay_parked(settings: &Settings, catalog: &dyn Catalog, args: &ReplayArgs) -> Result<()> {
    let rows = selected(catalog, &args.parked.selection).await?;
    let mended = match &args.event {
        Some(path) => Some(mended_event(catalog, path, &rows).await?),
        None => None,
    };
    print_plan("replay", &rows);
    if args.parked.dry_run {
        return Ok(());
    }
    let publisher = crate::app::services::broker(settings)?.publisher().await?;
    let (mut progress, operator) = (Progress::new(rows.len(), "replayed"), operator());
    for row in &rows {
        let by = Replayer { who: &operator, why: args.parked.why.as_deref() };
        let replayed = replay(publisher.as_ref(), catalog, row, mended.clone(), by).await;
        replayed.with_context(|| progress.failed(row))?;
        progress.step();
    }
    progress.end();
    publisher.close().await;
    Ok(())
}

/// The event that somebody mended, for the one entry that is selected.
async fn mended_event(catalog: &dyn Catalog, path: &Path, rows: &[ParkedRow]) -> Result<MendedEvent> {
    let [row] = rows else { bail!("--event is of one entry, and {} are selected", rows.len()) };
    if let Some(job) = row.job
        && catalog.job(job).await?.is_some()
    {
        bail!("job {job} was accepted with its event, which it keeps; replay it without --event");
    }
    let size = std::fs::metadata(path).with_context(|| path.display().to_string())?.len();
    ensure!(size <= event::EVENT_BYTES_MAX as u64, "{} is larger than an event may be", path.display());
    let body = std::fs::read(path).with_context(|| path.display().to_string())?;
    match event::parse(&body).with_context(|| path.display().to_string())? {
        SessionEvent::Started(started) => {
            Ok(MendedEvent { routing_key: format!("{STARTED_KEY}.{}", started.data.region), body })
        }
        SessionEvent::Ended(_) => bail!("{} is not an event of a session that starts", path.display()),
    }
}

/// `archiver jobs discard`
pub(super) async fn discard_parked(catalog: &dyn Catalog, args: &ParkedArgs) -> Result<()> {
    let rows = selected(catalog, &args.selection).await?;
    print_plan("discard", &rows);
    if args.dry_run {
        return Ok(());
    }
    let (mut progress, operator) = (Progress::new(rows.len(), "discarded"), operator());
    for row in &rows {
        let now = Wallclock::now();
        let discard = async {
            // The entry last: if this fails in between, the entry is still selected when the command is run again.
            if let Some(job) = row.job {
                catalog.discard_job(job, &operator, now).await?;
            }
            let mark = ParkedMark { state: ParkedState::Discarded, who: &operator, why: args.why.as_deref() };
            catalog.mark_parked(row.parked, &mark, now).await
        };
        discard.await.with_context(|| progress.failed(row))?;
        progress.step();
    }
    progress.end();
    Ok(())
}
