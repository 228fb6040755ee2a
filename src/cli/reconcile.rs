//! `archiver reconcile`

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::{print_json, print_line};
use crate::catalog::{ArchiveFilter, ArchiveRow, ArchiveStatus, Catalog, JobState};
use crate::config::{DurationValue, Settings};
use crate::model::time::Wallclock;
use crate::reconcile::CONFIRM_AFTER;
use crate::reconcile::look::look;
use crate::reconcile::recorded::{Finding, Seen, confirmed, findings, unknown_rooms};
use crate::router::Routers;

/// Archives that are read at once.
const PAGE: u32 = 500;
/// Ended jobs that are looked at, at most.
const JOBS_MAX: u32 = 10_000;

#[derive(Debug, Args)]
pub(super) struct Reconcile {
    /// The archives that are counted: those begun since so long.
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    since: DurationValue,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The archives that were begun in a time.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Counts {
    /// Made, and have all that was sent.
    complete: usize,
    /// Made, and lack something.
    incomplete: usize,
    failed: usize,
    /// Not made yet.
    under_way: usize,
    /// Sessions that ended before anybody published.
    without_stream: usize,
}

/// Looks twice, and says whether everything is recorded.
pub(super) async fn run(settings: &Settings, args: Reconcile) -> Result<ExitCode> {
    let catalog = crate::app::services::catalog(settings).await?;
    let routers = crate::app::services::routers(settings);
    let (seen, found) = look_twice(catalog.as_ref(), &routers).await?;
    let from = seen.now.before(args.since.0);
    let archives = archives_since(catalog.as_ref(), from).await?;
    let mut counts = counted(&archives);
    let empty = catalog.jobs(&[JobState::Empty], JOBS_MAX).await?;
    counts.without_stream = empty.iter().filter(|job| job.created_at >= from).count();
    let lacking: Vec<&ArchiveRow> = archives.iter().filter(|archive| lacks(archive)).collect();
    let is_fine = found.is_empty() && lacking.is_empty() && seen.unseen.is_empty();
    if args.json {
        let unseen: Vec<_> = seen.unseen.iter().map(|(router, why)| json!({ "router": router, "why": why })).collect();
        let unknown: Vec<_> = unknown_rooms(&seen)
            .iter()
            .map(|room| json!({ "router": room.router, "room": room.room, "publishing": room.publishing }))
            .collect();
        print_json(&json!({
            "since": from, "archives": counts, "findings": found, "lacking": lacking, "unseenRouters": unseen, "unknownRooms": unknown,
        }))?;
    } else {
        print(&seen, from, &counts, &found, &lacking);
    }
    Ok(if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Looks, and looks once more if something was found: a session that begins or ends is found once.
async fn look_twice(catalog: &dyn Catalog, routers: &Routers) -> Result<(Seen, Vec<Finding>)> {
    let first = look(catalog, routers).await?;
    let found = findings(&first);
    if found.is_empty() {
        return Ok((first, found));
    }
    tokio::time::sleep(CONFIRM_AFTER).await;
    let second = look(catalog, routers).await?;
    let found = confirmed(&found, &findings(&second));
    Ok((second, found))
}

async fn archives_since(catalog: &dyn Catalog, from: Wallclock) -> Result<Vec<ArchiveRow>> {
    let mut all = Vec::new();
    loop {
        let offset = u32::try_from(all.len())?;
        let filter = ArchiveFilter { from: Some(from), offset, count: PAGE, ..ArchiveFilter::default() };
        let (page, _) = catalog.archives(&filter).await?;
        let is_last = page.len() < PAGE as usize;
        all.extend(page);
        if is_last {
            return Ok(all);
        }
    }
}

/// Whether an archive is made and lacks something, or is not made for good.
fn lacks(archive: &ArchiveRow) -> bool {
    let misses = archive.missing.as_ref().is_some_and(|missing| !missing.is_empty());
    archive.status == ArchiveStatus::Failed || (is_made(archive) && misses)
}

fn is_made(archive: &ArchiveRow) -> bool {
    matches!(archive.status, ArchiveStatus::Available | ArchiveStatus::Uploaded | ArchiveStatus::Expired)
}

fn counted(archives: &[ArchiveRow]) -> Counts {
    let mut counts = Counts::default();
    for archive in archives {
        let counter = match archive.status {
            ArchiveStatus::Failed => &mut counts.failed,
            _ if !is_made(archive) => &mut counts.under_way,
            _ if lacks(archive) => &mut counts.incomplete,
            _ => &mut counts.complete,
        };
        *counter += 1;
    }
    counts
}

fn print(seen: &Seen, from: Wallclock, counts: &Counts, found: &[Finding], lacking: &[&ArchiveRow]) {
    let Counts { complete, incomplete, failed, under_way, without_stream } = counts;
    print_line(&format!(
        "archives since {from}: {complete} complete, {incomplete} incomplete, {failed} failed, {under_way} under way; {without_stream} sessions without a \
         stream"
    ));
    for archive in lacking {
        let missing = archive.missing.iter().flatten();
        let seconds: i64 = missing.clone().map(|one| one.duration_ms).sum::<i64>() / 1000;
        let mut causes: Vec<&str> = missing.map(|one| one.cause.as_str()).collect();
        causes.sort_unstable();
        causes.dedup();
        let what = match archive.status {
            ArchiveStatus::Failed => format!("failed: {}", archive.reason),
            _ => format!("lacks {seconds} s of tracks: {}", causes.join(", ")),
        };
        print_line(&format!("LACKS    archive {} of session {} {what}", archive.archive, archive.session));
    }
    for finding in found {
        print_line(&format!("NOW      {finding}"));
    }
    for (router, why) in &seen.unseen {
        print_line(&format!("NOT SEEN the rooms at {router}: {why}"));
    }
    for room in unknown_rooms(seen) {
        print_line(&format!(
            "?        room {} at {}: {} publish; it is no session's of the API, and no event tells of it",
            room.room, room.router, room.publishing
        ));
    }
    let is_fine = found.is_empty() && lacking.is_empty() && seen.unseen.is_empty();
    print_line(if is_fine { "everything is recorded" } else { "not everything is recorded, or can be seen" });
}
