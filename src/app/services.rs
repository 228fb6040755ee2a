//! The external services: catalog, store, media routers, broker. [`Services::open`] creates them from a configuration; tests create
//! others.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::broker::{BrokerConfig, RabbitBroker, SharedBroker};
use crate::catalog::{CatalogError, SharedCatalog};
use crate::config::{ConfigErrors, Settings, StoreKind};
use crate::model::cancellable::Cancellable;
use crate::router::janus::{JanusConfig, JanusRouter};
use crate::router::{MediaRouter, Routers};
use crate::runtime::retry::{CATALOG, retry_until_cancelled};
use crate::store::dir::DirStore;
use crate::store::s3::{S3Config, S3Store};
use crate::store::{SharedStore, StoreError};

/// The services that a worker or an API uses.
#[derive(Clone)]
pub struct Services {
    /// The catalog.
    pub catalog: SharedCatalog,
    /// The store.
    pub store: SharedStore,
    /// The media routers.
    pub routers: Routers,
    /// The broker.
    pub broker: SharedBroker,
}

/// Why the services of a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ServicesError {
    /// The broker's address.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Services {
    /// Opens the services of a configuration. Retries while the catalog is unavailable, until `stop` is cancelled.
    ///
    /// # Errors
    /// When a service cannot be used and its fault is not retried.
    pub async fn open(settings: &Settings, stop: &CancellationToken) -> Result<Cancellable<Self>, ServicesError> {
        let broker = broker(settings)?;
        let opened = retry_until_cancelled("open the catalog", CATALOG, stop, || catalog(settings)).await;
        let Cancellable::Done(catalog) = opened? else { return Ok(Cancellable::Cancelled) };
        Ok(Cancellable::Done(Self { catalog, store: store(settings).await?, routers: routers(settings), broker }))
    }
}

/// The media routers of a configuration.
#[must_use]
pub fn routers(settings: &Settings) -> Routers {
    let router = |section: &crate::config::RouterSection| {
        let mut config = JanusConfig::new(section.name.as_str(), &section.url);
        config.api_secret.clone_from(&section.api_secret);
        config.token.clone_from(&section.token);
        config.pin.clone_from(&section.pin);
        config.admin_key.clone_from(&section.admin_key);
        config.room_key.clone_from(&section.room_key);
        config.string_ids = section.string_ids;
        config.announces_joins = section.announce_joins;
        if let Some(name) = &section.observer_name {
            config.observer_name.clone_from(name);
        }
        let tokens = section.rooms.iter().filter_map(|(room, section)| Some((room.clone(), section.token.clone()?)));
        config.room_tokens = tokens.collect();
        (section.name.clone(), Arc::new(JanusRouter::new(config)) as Arc<dyn MediaRouter>)
    };
    settings.routers.iter().map(router).collect()
}

/// The store of a configuration.
///
/// # Errors
/// When the directory cannot be created.
pub async fn store(settings: &Settings) -> Result<SharedStore, StoreError> {
    let section = &settings.store;
    Ok(match section.kind {
        StoreKind::Dir => {
            let path = section.path.clone().unwrap_or_else(|| settings.worker.data_dir.join("archives"));
            Arc::new(DirStore::open(&path)?)
        }
        StoreKind::S3 => Arc::new(
            S3Store::new(S3Config {
                bucket: section.bucket.clone(),
                region: section.region.clone(),
                endpoint: section.endpoint.clone(),
                path_style: section.path_style,
                credentials: section.access_key.clone().zip(section.secret_key.clone()),
                checksums_always: section.checksums_always,
                encryption: section.encryption.clone(),
                kms_key: section.kms_key.clone(),
            })
            .await,
        ),
    })
}

/// The broker of a configuration.
///
/// # Errors
/// When the configuration names no broker.
pub fn broker(settings: &Settings) -> Result<SharedBroker, ConfigErrors> {
    Ok(Arc::new(RabbitBroker::new(broker_config(settings)?)))
}

/// The broker's part of a configuration.
///
/// # Errors
/// When the configuration names no broker.
pub fn broker_config(settings: &Settings) -> Result<BrokerConfig, ConfigErrors> {
    let Some(url) = settings.broker.url.clone() else {
        return Err(ConfigErrors(vec!["broker.url: is missing".to_owned()]));
    };
    let mut config = BrokerConfig::new(url, settings.worker.region.clone());
    config.prefix.clone_from(&settings.broker.prefix);
    config.heartbeat = settings.broker.heartbeat.0;
    config.retry_after = settings.broker.retry_after.0;
    Ok(config)
}

/// The catalog of a configuration.
///
/// # Errors
/// When the catalog cannot be used.
pub async fn catalog(settings: &Settings) -> Result<SharedCatalog, CatalogError> {
    use secrecy::ExposeSecret;
    crate::catalog::open(settings.catalog_url().expose_secret()).await
}
