//! An API process: its services, its server, and the tasks beside the requests.

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
use crate::archive::derive::queue::keep_making;
use crate::bridge::{self, Bridge};
use crate::catalog::{CatalogError, SharedCatalog};
use crate::config::Settings;
use crate::model::fault::chain;
use crate::notify::{self, Dispatcher};
use crate::runtime::supervise;
use crate::runtime::supervise::restart_on_panic;
use crate::session::geo::{Geo, GeoError};

/// What goes on beside the requests has so long to end at shutdown: longer than each of it needs when nothing hangs.
const TASKS_MAX: Duration = Duration::from_secs(20);
/// How often counters of who has not asked for a while are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// What must be there before the API can be served.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Catalog, store or broker.
    #[error(transparent)]
    Services(#[from] ServicesError),
    /// The database of addresses.
    #[error(transparent)]
    Geo(#[from] GeoError),
    /// The address or the certificate.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// Serves the API until `stop`. `serving` has the catalog while it listens.
///
/// # Errors
/// When it cannot start.
pub async fn run(
    settings: Settings,
    serving: watch::Sender<Option<SharedCatalog>>,
    stop: CancellationToken,
) -> Result<(), StartError> {
    let Some(services) = Services::open(&settings, &stop).await? else { return Ok(()) };
    serve(settings, services, serving, stop).await
}

/// Serves the API with these parts until `stop`. `serving` has the catalog while it listens.
///
/// # Errors
/// When it cannot start.
pub async fn serve(
    settings: Settings,
    services: Services,
    serving: watch::Sender<Option<SharedCatalog>>,
    stop: CancellationToken,
) -> Result<(), StartError> {
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
    let told = Arc::clone(&broker);
    let tasks = TaskTracker::new();
    let ending = stop.child_token();
    let bridge = Bridge { catalog: catalog.clone(), routers, broker: Arc::clone(&broker), settings: section };
    tasks.spawn(bridge::run(bridge, ending.clone()));
    tasks.spawn({
        let (api, ending) = (Arc::clone(&api), ending.clone());
        async move {
            let nudging = async || broker.publish_wakeups(api.wanted(), &ending).await;
            while supervise::panicked("nudging the workers", &ending, nudging()).await {}
        }
    });
    tasks.spawn({
        let (api, catalog, cancel) = (Arc::clone(&api), catalog.clone(), ending.clone());
        restart_on_panic("counting and forgetting", ending.clone(), move || {
            keep_house(Arc::clone(&api), catalog.clone(), cancel.clone())
        })
    });
    tasks.spawn({
        let (settings, catalog, store) = (shared_settings, catalog.clone(), Arc::clone(&store));
        let cancel = ending.clone();
        let making = move || keep_making(Arc::clone(&settings), catalog.clone(), Arc::clone(&store), cancel.clone());
        restart_on_panic("making archives of others", ending.clone(), making)
    });
    tasks.spawn({
        let (catalog, store, ending) = (catalog.clone(), Arc::clone(&store), ending.clone());
        async move {
            let mut deleting = async || run_deletions(catalog.as_ref(), &store, &mut deleted, &ending).await;
            while supervise::panicked("removing deleted archives", &ending, deleting()).await {}
        }
    });
    let render = Arc::new(NoticeBody(Arc::clone(&api)));
    let dispatcher = Dispatcher::new(catalog, &callbacks, Some(told), render);
    tasks.spawn({
        let cancel = ending.clone();
        restart_on_panic("the notification dispatcher", ending.clone(), move || {
            notify::run(dispatcher.clone(), cancel.clone())
        })
    });
    let served = listen(&api, &serving, &stop).await;
    serving.send_replace(None);
    ending.cancel();
    tasks.close();
    if timeout(TASKS_MAX, tasks.wait()).await.is_err() {
        tracing::warn!(tasks = tasks.len(), "what goes on beside the requests did not end in time, it is left");
    }
    Ok(served?)
}

/// What is looked after while requests are answered.
async fn keep_house(api: Shared, catalog: SharedCatalog, stop: CancellationToken) {
    if let Err(error) = catalog.recount_archives().await {
        tracing::warn!("archives are not counted anew: {}", chain(&error));
    }
    while stop.run_until_cancelled(sleep(FORGET_EVERY)).await.is_some() {
        api.forget_limits();
    }
}
