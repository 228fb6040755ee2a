//! An API process: services, HTTP server, and background tasks.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::services::{Services, ServicesError};
use crate::api::deletion_queue::{deletion_queue, run_deletions};
use crate::api::{Api, LINKS_SECRET, ListenError, NoticeBody, Shared, listen};
use crate::archive::derive::queue::run_derivations;
use crate::bridge::{self, Bridge};
use crate::catalog::{CatalogError, SharedCatalog};
use crate::config::Settings;
use crate::model::cancellable::Cancellable;
use crate::model::fault::chain;
use crate::notify::{self, Dispatcher};
use crate::runtime::supervise::{panicked, restart_on_panic};
use crate::session::geo::{Geo, GeoError};

/// At shutdown, background tasks may take this long to end. Each needs less unless it hangs.
const SHUTDOWN_MAX: Duration = Duration::from_secs(20);
/// Between two removals of unused rate limit counters.
const FORGET_LIMITS_EVERY: Duration = Duration::from_secs(60);

/// Why the API cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ApiStartError {
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Catalog, store or broker.
    #[error(transparent)]
    Services(#[from] ServicesError),
    /// The geo database.
    #[error(transparent)]
    Geo(#[from] GeoError),
    /// The listening address, or the certificate.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// Opens the services of a configuration, and serves the API until `stop`. `serving` holds the catalog while the API listens.
///
/// # Errors
/// When the API cannot start.
pub async fn open_and_serve(
    settings: Settings,
    serving: watch::Sender<Option<SharedCatalog>>,
    stop: CancellationToken,
) -> Result<(), ApiStartError> {
    let Cancellable::Done(services) = Services::open(&settings, &stop).await? else { return Ok(()) };
    serve(settings, services, serving, stop).await
}

/// Serves the API with these services until `stop`. `serving` holds the catalog while the API listens.
///
/// # Errors
/// When the API cannot start.
pub async fn serve(
    settings: Settings,
    services: Services,
    serving: watch::Sender<Option<SharedCatalog>>,
    stop: CancellationToken,
) -> Result<(), ApiStartError> {
    let Services { catalog, store, routers, broker } = services;
    let secret = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()).into();
    let secret = catalog.shared_secret(LINKS_SECRET, &secret).await?;
    let database = settings.geo.database.clone();
    let geo = tokio::task::spawn_blocking(move || Geo::open(database.as_deref())).await;
    let geo = geo.expect("reading a database does not panic")?;
    let (deletions, mut deleted) = deletion_queue();
    let (section, callbacks) = (settings.bridge.clone(), settings.callbacks.clone());
    let shared_settings = Arc::new(settings.clone());
    let api = Api::new(settings, catalog.clone(), Arc::clone(&store), routers.clone(), geo, secret, deletions);
    let api = Arc::new(api);
    let archive_events = Arc::clone(&broker);
    let tasks = TaskTracker::new();
    let cancel_tasks = stop.child_token();
    let bridge = Bridge { catalog: catalog.clone(), routers, broker: Arc::clone(&broker), settings: section };
    tasks.spawn(bridge::run(bridge, cancel_tasks.clone()));
    tasks.spawn({
        let (api, cancel_tasks) = (Arc::clone(&api), cancel_tasks.clone());
        async move {
            let publishing = async || broker.publish_wakeups(api.wake_requests(), &cancel_tasks).await;
            while panicked("publishing wake-ups", &cancel_tasks, publishing()).await {}
        }
    });
    tasks.spawn({
        let (api, catalog, cancel) = (Arc::clone(&api), catalog.clone(), cancel_tasks.clone());
        restart_on_panic("housekeeping", cancel_tasks.clone(), move || {
            run_housekeeping(Arc::clone(&api), catalog.clone(), cancel.clone())
        })
    });
    tasks.spawn({
        let (settings, catalog, store) = (shared_settings, catalog.clone(), Arc::clone(&store));
        let cancel = cancel_tasks.clone();
        let making =
            move || run_derivations(Arc::clone(&settings), catalog.clone(), Arc::clone(&store), cancel.clone());
        restart_on_panic("building derived archives", cancel_tasks.clone(), making)
    });
    tasks.spawn({
        let (catalog, store, cancel_tasks) = (catalog.clone(), Arc::clone(&store), cancel_tasks.clone());
        async move {
            let mut deleting = async || run_deletions(catalog.as_ref(), &store, &mut deleted, &cancel_tasks).await;
            while panicked("removing deleted archives", &cancel_tasks, deleting()).await {}
        }
    });
    let render = Arc::new(NoticeBody(Arc::clone(&api)));
    let dispatcher = Dispatcher::new(catalog, &callbacks, Some(archive_events), render);
    tasks.spawn({
        let cancel = cancel_tasks.clone();
        restart_on_panic("the notification dispatcher", cancel_tasks.clone(), move || {
            notify::run(dispatcher.clone(), cancel.clone())
        })
    });
    let served = listen(&api, &serving, &stop).await;
    serving.send_replace(None);
    cancel_tasks.cancel();
    tasks.close();
    if timeout(SHUTDOWN_MAX, tasks.wait()).await.is_err() {
        tracing::warn!(tasks = tasks.len(), "background tasks did not end in time and are aborted");
    }
    Ok(served?)
}

/// Counts archives once, and removes unused rate limit counters.
async fn run_housekeeping(api: Shared, catalog: SharedCatalog, stop: CancellationToken) {
    if let Err(error) = catalog.recount_archives().await {
        tracing::warn!("archives cannot be counted: {}", chain(&error));
    }
    while stop.run_until_cancelled(sleep(FORGET_LIMITS_EVERY)).await.is_some() {
        api.forget_limits();
    }
}
