//! `archiver check`: a line for each thing that must be usable, and what to do where one is not.

use crate::config::Settings;
use crate::model::fault::chain;

/// One line.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Line {
    /// What was looked at.
    pub what: String,
    /// Whether it can be used.
    pub ok: bool,
    /// What was found, or what to do.
    pub text: String,
}

fn line(what: &str, result: Result<String, String>) -> Line {
    let ok = result.is_ok();
    Line { what: what.to_owned(), ok, text: result.unwrap_or_else(|e| e) }
}

fn told<T, E: crate::model::fault::HasFault>(
    result: Result<T, E>,
    text: impl FnOnce(T) -> String,
) -> Result<String, String> {
    result.map(text).map_err(|e| format!("{}; {}", chain(&e), e.fault().kind.advice()))
}

/// Looks at everything that a configuration names.
pub async fn check(settings: &Settings) -> Vec<Line> {
    let mut lines = vec![line("configuration", told(settings.for_worker(), |()| "valid".to_owned()))];
    lines.extend(elements(settings).await);
    let broker = match crate::app::services::broker(settings) {
        Ok(broker) => told(broker.probe().await, |()| "exchanges and queues are declared".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    lines.push(line("broker", broker));
    let catalog = match crate::app::services::catalog(settings).await {
        Ok(catalog) => told(catalog.probe().await, |kind| format!("{kind}, tables are up to date")),
        Err(error) => told(Err::<(), _>(error), |()| String::new()),
    };
    lines.push(line("catalog", catalog));
    lines.push(line("store", store(settings).await));
    for (name, router) in crate::app::services::routers(settings) {
        lines.push(line(&format!("router {name}"), told(router.probe().await, |version| version)));
    }
    lines.push(line("spool", spool(settings).await));
    lines.push(line("api", api(settings).await));
    lines
}

/// Certificate and database of addresses; whether its address is free is not looked at, for it may be serving.
async fn api(settings: &Settings) -> Result<String, String> {
    let (database, section) = (settings.geo.database.clone(), settings.api.clone());
    let looked = tokio::task::spawn_blocking(move || {
        let scheme = match (&section.certificate, &section.key) {
            (Some(certificate), Some(key)) => {
                crate::runtime::tls::server(certificate, key)
                    .map_err(|e| format!("api.certificate and api.key: {e}"))?;
                "https"
            }
            _ => "http",
        };
        told(crate::session::geo::Geo::open(database.as_deref()), |_| format!("{scheme} at {}", section.bind))
    });
    looked.await.map_err(|e| e.to_string())?
}

async fn elements(settings: &Settings) -> Vec<Line> {
    let folder = settings.pipelines.dir.clone();
    let checked = tokio::task::spawn_blocking(move || crate::media::check::elements(folder.as_deref())).await;
    match checked {
        Ok(Ok(elements)) => {
            let mut lines: Vec<Line> = Vec::new();
            for e in elements {
                let what = format!("element {}", e.element);
                if lines.iter().all(|l| l.what != what) {
                    let missing = || format!("is missing: apt-get install {}", e.package);
                    lines.push(line(&what, if e.found { Ok(e.package.clone()) } else { Err(missing()) }));
                }
            }
            lines
        }
        Ok(Err(error)) => vec![line("GStreamer", told(Err::<(), _>(error), |()| String::new()))],
        Err(panic) => vec![line("GStreamer", Err(panic.to_string()))],
    }
}

async fn store(settings: &Settings) -> Result<String, String> {
    let store = told(crate::app::services::store(settings).await.map(Some), |_| String::new());
    store?;
    let store = crate::app::services::store(settings).await.map_err(|e| chain(&e))?;
    let found = store.probe(".archiver-check/").await;
    let found = match found {
        // A directory has no hidden keys.
        Err(crate::store::StoreError::Refused { .. }) => store.probe("archiver-check/").await,
        found => found,
    };
    told(found, |can| {
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
    told(opened, |spool| format!("{}, {} MiB of {} MiB used", spool.root().display(), spool.used() >> 20, quota >> 20))
}
