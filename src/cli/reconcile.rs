//! `archiver reconcile`

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::{print_json, print_line};
use crate::catalog::{ArchiveRow, Catalog};
use crate::config::{DurationValue, Settings};
use crate::model::time::Wallclock;
use crate::reconcile::CONFIRM_AFTER;
use crate::reconcile::archives::RecentArchives;
use crate::reconcile::findings::{Finding, confirmed, findings, rooms_without_session};
use crate::reconcile::snapshot::{Snapshot, take_snapshot};
use crate::router::Routers;

#[derive(Debug, Args)]
pub(super) struct Reconcile {
    /// Count the archives that changed within this time.
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    since: DurationValue,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The result of a comparison.
struct Report {
    snapshot: Snapshot,
    findings: Vec<Finding>,
    since: Wallclock,
    archives: RecentArchives,
}

impl Report {
    fn is_complete(&self) -> bool {
        self.findings.is_empty() && self.archives.is_complete()
    }
}

pub(super) async fn run(settings: &Settings, args: Reconcile) -> Result<ExitCode> {
    let catalog = crate::app::services::catalog(settings).await?;
    let routers = crate::app::services::routers(settings);
    let (snapshot, findings) = compare(catalog.as_ref(), &routers).await?;
    let since = snapshot.now.before(args.since.0);
    let archives = RecentArchives::read(catalog.as_ref(), since).await?;
    let report = Report { snapshot, findings, since, archives };
    if args.json {
        print_report_as_json(&report)?;
    } else {
        print_report(&report);
    }
    Ok(if report.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Compares, and compares once more if there are findings: sessions begin and end meanwhile. What could not be seen either time counts.
async fn compare(catalog: &dyn Catalog, routers: &Routers) -> Result<(Snapshot, Vec<Finding>)> {
    let first = take_snapshot(catalog, routers).await?;
    let before = findings(&first);
    if before.is_empty() {
        return Ok((first, before));
    }
    tokio::time::sleep(CONFIRM_AFTER).await;
    let second = take_snapshot(catalog, routers).await?;
    let mut found = confirmed(&before, &findings(&second));
    let is_seen_now = |finding: &&Finding| matches!(finding, Finding::Router { router, .. } if !second.lacks(router));
    found.extend(before.iter().filter(is_seen_now).cloned());
    Ok((second, found))
}

fn print_report_as_json(report: &Report) -> Result<()> {
    let rooms: Vec<_> = rooms_without_session(&report.snapshot)
        .iter()
        .map(|room| json!({ "router": room.router, "room": room.room, "publishing": room.publishing }))
        .collect();
    print_json(&json!({
        "isComplete": report.is_complete(), "since": report.since, "archives": report.archives, "findings": report.findings,
        "roomsWithoutSession": rooms,
    }))
}

fn print_report(report: &Report) {
    let RecentArchives { complete, under_way, incomplete, failed, unreadable } = &report.archives;
    print_line(&format!(
        "archives since {}: {complete} complete, {} incomplete, {} failed, {under_way} under way",
        report.since,
        incomplete.len(),
        failed.len()
    ));
    for archive in incomplete.iter().chain(failed) {
        print_line(&format!("ARCHIVE {} of session {} {}", archive.archive, archive.session, lack(archive)));
    }
    if *unreadable > 0 {
        print_line(&format!(
            "ARCHIVE {unreadable} archives cannot be read by this version: run the command of the newest version of the fleet"
        ));
    }
    for finding in &report.findings {
        print_line(&format!("FINDING {finding}"));
    }
    for room in rooms_without_session(&report.snapshot) {
        print_line(&format!(
            "ROOM    {} at {}: {} publishing clients; neither a session nor an open job has this room (not counted)",
            room.room, room.router, room.publishing
        ));
    }
    print_line(match report.is_complete() {
        true => "everything is recorded, as far as rooms, jobs and archives show",
        false => "not everything is recorded, or not everything could be seen",
    });
}

/// What an archive lacks, in words.
fn lack(archive: &ArchiveRow) -> String {
    let missing = archive.missing.iter().flatten();
    let seconds: i64 = missing.clone().map(|one| one.duration_ms).sum::<i64>() / 1000;
    let mut causes: Vec<&str> = missing.map(|one| one.cause.as_str()).collect();
    causes.sort_unstable();
    causes.dedup();
    if causes.is_empty() {
        return format!("failed: {}", archive.reason);
    }
    format!("is incomplete: {seconds} s missing in all tracks ({})", causes.join(", "))
}
