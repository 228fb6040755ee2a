//! `archiver callbacks …`

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Subcommand;

use super::{print_json, print_line};
use crate::catalog::{Catalog, NoticeFilter, NoticeRow, NoticeState, NoticeTarget};
use crate::config::Settings;
use crate::model::ids::{ApplicationId, ArchiveId};
use crate::model::time::Wallclock;
use crate::notify::url_policy::allowed;
use crate::notify::{UrlError, check_url};

#[derive(Debug, Subcommand)]
pub(super) enum CallbacksCommand {
    /// List callbacks, newest first: what waits, what was delivered, and what was given up after a day.
    List {
        /// Only in this state: waiting, delivered or undelivered.
        #[arg(long)]
        state: Option<NoticeState>,
        /// Only of this application.
        #[arg(long)]
        application: Option<ApplicationId>,
        /// Only of this archive.
        #[arg(long)]
        archive: Option<ArchiveId>,
        /// Pass over so many.
        #[arg(long, default_value_t = 0)]
        offset: u32,
        /// At most so many.
        #[arg(long, default_value_t = 50)]
        count: u32,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Send an archive's callbacks once more: those that were given up, or the one with a number.
    Resend {
        /// The archive.
        archive: ArchiveId,
        /// Only this one, even if it was delivered; `archiver callbacks list` has the numbers.
        #[arg(long)]
        number: Option<i64>,
    },
    /// Say whether callbacks may go to a URL, and why not.
    Check {
        /// The URL.
        url: String,
    },
}

pub(super) async fn run(settings: &Settings, command: CallbacksCommand) -> Result<ExitCode> {
    match command {
        CallbacksCommand::List { state, application, archive, offset, count, json } => {
            let target = Some(NoticeTarget::Callback);
            let filter = NoticeFilter { target, state, application, archive, offset, count };
            list(crate::app::services::catalog(settings).await?.as_ref(), &filter, json).await?;
        }
        CallbacksCommand::Resend { archive, number } => {
            let catalog = crate::app::services::catalog(settings).await?;
            match catalog.resend_notices(archive, number, Wallclock::now()).await? {
                0 if number.is_none() => {
                    bail!("no callback of this archive was given up; --number sends a delivered one once more")
                }
                0 => bail!("this archive has no callback with that number that was delivered or given up"),
                sent => print_line(&format!("{sent} will be sent once more")),
            }
        }
        CallbacksCommand::Check { url } => return Ok(check(settings, &url).await),
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(catalog: &dyn Catalog, filter: &NoticeFilter, json: bool) -> Result<()> {
    let (notices, total) = catalog.notices(filter).await?;
    if json {
        return print_json(&serde_json::json!({ "count": total, "items": notices }));
    }
    for NoticeRow { archive, number, status, state, failures, created_at, application, detail, due_at, .. } in &notices
    {
        let next =
            if *state == NoticeState::Waiting && *failures > 0 { format!(", next {due_at}") } else { String::new() };
        print_line(&format!(
            "{archive}  {number:>3} {:<10} {:<11} {created_at}  {application}",
            status.as_str(),
            state.as_str()
        ));
        if let Some(detail) = detail {
            print_line(&format!("    {failures} failures{next}: {detail}"));
        }
    }
    print_line(&format!("{} of {total} callbacks", notices.len()));
    Ok(())
}

async fn check(settings: &Settings, url: &str) -> ExitCode {
    match check_url(url, &allowed(&settings.callbacks)).await {
        Ok(_) => {
            print_line("callbacks may go there");
            ExitCode::SUCCESS
        }
        Err(error) => {
            print_line(&error.to_string());
            // Developers are not told what a name stands for here; whoever runs this may know.
            if let UrlError::Forbidden { address, .. } = error {
                print_line(&format!("the address is {address}"));
            }
            ExitCode::FAILURE
        }
    }
}
