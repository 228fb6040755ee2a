//! `archiver check`: checks each service and setting that a configuration names, with advice for those that cannot be used.

use std::time::Duration;

use super::check_text::result_text;
use super::services;
use crate::config::Settings;
use crate::job::catalog_clock::SKEW_TOLD;
use crate::model::time::Wallclock;

/// Time limit of one check. Requests to services have shorter ones.
const CHECK_MAX: Duration = Duration::from_secs(60);

/// The result of one check.
#[derive(Debug, Clone, serde::Serialize)]
pub struct CheckResult {
    /// The service or setting that was checked.
    #[serde(rename = "what")]
    pub subject: String,
    /// Whether it is usable.
    pub ok: bool,
    /// What was found, or the error with advice.
    pub text: String,
}

/// Runs one check with a time limit: each request has its own, but a check may make many.
async fn with_time_limit(check: impl Future<Output = Result<String, String>>) -> Result<String, String> {
    let late =
        |_| format!("no result within {} s; run it again, and look at the logs of the service", CHECK_MAX.as_secs());
    tokio::time::timeout(CHECK_MAX, check).await.map_err(late)?
}

fn check_result(subject: &str, result: Result<String, String>) -> CheckResult {
    let ok = result.is_ok();
    CheckResult { subject: subject.to_owned(), ok, text: result.unwrap_or_else(|e| e) }
}

/// Checks everything that a configuration names.
pub async fn check(settings: &Settings) -> Vec<CheckResult> {
    let mut lines = vec![check_result("configuration", result_text(settings.for_worker(), |()| "valid".to_owned()))];
    lines.extend(elements(settings).await);
    lines.push(check_result("broker", with_time_limit(broker(settings)).await));
    lines.push(check_result("catalog", with_time_limit(catalog(settings)).await));
    lines.push(check_result("store", with_time_limit(store(settings)).await));
    let routers = services::routers(settings);
    for section in &settings.routers {
        if let Some(router) = routers.get(&section.name) {
            let checked = with_time_limit(super::router_check::check(settings, section, router.as_ref())).await;
            lines.push(check_result(&format!("router {}", section.name), checked));
        }
    }
    lines.push(check_result("spool", with_time_limit(spool(settings)).await));
    lines.push(check_result("api", with_time_limit(api(settings)).await));
    lines
}

/// Checks the certificate and the geo database. Not whether the address is free: the API may be running.
async fn api(settings: &Settings) -> Result<String, String> {
    let (database, section) = (settings.geo.database.clone(), settings.api.clone());
    let checked = tokio::task::spawn_blocking(move || {
        let scheme = match (&section.certificate, &section.key) {
            (Some(certificate), Some(key)) => {
                crate::runtime::tls::server(certificate, key)
                    .map_err(|e| format!("api.certificate and api.key: {e}"))?;
                "https"
            }
            _ => "http",
        };
        result_text(crate::session::geo::Geo::open(database.as_deref()), |_| format!("{scheme} at {}", section.bind))
    });
    checked.await.map_err(|e| e.to_string())?
}

async fn elements(settings: &Settings) -> Vec<CheckResult> {
    let folder = settings.pipelines.dir.clone();
    let checked = tokio::task::spawn_blocking(move || crate::media::check::elements(folder.as_deref())).await;
    match checked {
        Ok(Ok(elements)) => {
            let mut lines: Vec<CheckResult> = Vec::new();
            for e in elements {
                let subject = format!("element {}", e.element);
                if lines.iter().all(|l| l.subject != subject) {
                    let missing = || format!("is missing: apt-get install {}", e.package);
                    lines.push(check_result(&subject, if e.found { Ok(e.package.clone()) } else { Err(missing()) }));
                }
            }
            lines
        }
        Ok(Err(error)) => vec![check_result("GStreamer", result_text(Err::<(), _>(error), |()| String::new()))],
        Err(panic) => vec![check_result("GStreamer", Err(panic.to_string()))],
    }
}

async fn broker(settings: &Settings) -> Result<String, String> {
    match services::broker(settings) {
        Ok(broker) => result_text(broker.probe().await, |()| {
            "exchanges and queues are declared; a test message was accepted".to_owned()
        }),
        Err(error) => Err(error.to_string()),
    }
}

async fn catalog(settings: &Settings) -> Result<String, String> {
    let catalog = match services::catalog(settings).await {
        Ok(catalog) => catalog,
        Err(error) => return result_text(Err::<(), _>(error), |()| String::new()),
    };
    let kind = result_text(catalog.probe().await, str::to_owned)?;
    let clock = result_text(catalog.clock().await, |now| clock_text(Wallclock::now(), now))?;
    Ok(format!("{kind}, tables are up to date{clock}"))
}

/// What is wrong with this machine's clock, if anything is.
fn clock_text(machine: Wallclock, catalog: Wallclock) -> String {
    let (ahead, behind) = (machine.since(catalog), catalog.since(machine));
    match (ahead > SKEW_TOLD, behind > SKEW_TOLD) {
        (true, _) => format!("; this machine's clock is {:.1} s ahead of the catalog's: set it", ahead.as_secs_f64()),
        (_, true) => format!("; this machine's clock is {:.1} s behind the catalog's: set it", behind.as_secs_f64()),
        (false, false) => String::new(),
    }
}

async fn store(settings: &Settings) -> Result<String, String> {
    let store = match services::store(settings).await {
        Ok(store) => store,
        Err(error) => return result_text(Err::<(), _>(error), |()| String::new()),
    };
    let capabilities = match store.probe(".archiver-check/").await {
        // The directory store refuses keys that begin with a dot.
        Err(crate::store::StoreError::Refused { .. }) => store.probe("archiver-check/").await,
        probed => probed,
    };
    result_text(capabilities, |can| {
        let conditional = if can.conditional_put {
            ""
        } else {
            ", without conditional writes (keys carry the epoch, so that is safe)"
        };
        let lists = if can.list_uploads { "" } else { ", without a list of uploads" };
        format!("{}: write, read, multipart{conditional}{lists}", store.describe())
    })
}

async fn spool(settings: &Settings) -> Result<String, String> {
    let (dir, quota, percent) = (settings.spool_dir(), settings.spool.quota.0, settings.spool.admission_percent);
    let opened = tokio::task::spawn_blocking(move || {
        let spool = crate::recording::spool::Spool::open(&dir, quota, percent)?;
        let probe = dir.join(".check");
        std::fs::write(&probe, b"check")
            .and_then(|()| std::fs::remove_file(&probe))
            .map_err(crate::recording::LogError::io("write", &probe))?;
        Ok::<_, crate::recording::LogError>(spool)
    });
    let opened = opened.await.map_err(|e| e.to_string())?;
    result_text(opened, |spool| {
        format!("{}, {} MiB of {} MiB used", spool.root().display(), spool.used() >> 20, quota >> 20)
    })
}
