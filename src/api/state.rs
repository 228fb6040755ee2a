//! What all requests use: services, links, limits and queues.

use std::sync::Arc;

use secrecy::SecretString;
use tokio::sync::Notify;

use super::deletion_queue::DeletionQueue;
use super::limits::Limits;
use super::links::Links;
use crate::catalog::SharedCatalog;
use crate::config::Settings;
use crate::router::Routers;
use crate::session::geo::Geo;
use crate::session::region::RegionSelector;
use crate::store::SharedStore;

/// What all requests use.
pub struct Api {
    pub(super) settings: Settings,
    pub(super) catalog: SharedCatalog,
    pub(super) store: SharedStore,
    pub(super) links: Links,
    pub(super) limits: Limits,
    pub(super) routers: Routers,
    pub(super) region_selector: RegionSelector,
    pub(super) geo: Geo,
    /// What is to be removed although nobody waits for it any more.
    pub(super) deletions: DeletionQueue,
    /// Notified when workers should look into the catalog.
    pub(super) wanted: Notify,
}

/// As handlers have it.
pub type Shared = Arc<Api>;

/// The name in the catalog of the secret that signs links.
pub const LINKS_SECRET: &str = "links";

impl Api {
    /// The state of an API with these services. `secret` signs links.
    #[must_use]
    pub fn new(
        settings: Settings,
        catalog: SharedCatalog,
        store: SharedStore,
        routers: Routers,
        geo: Geo,
        secret: SecretString,
        deletions: DeletionQueue,
    ) -> Self {
        Self {
            region_selector: RegionSelector::new(&settings.worker.region, &settings.regions, &settings.routers),
            geo,
            links: Links::new(Arc::clone(&store), secret, settings.store.link_valid.0),
            limits: Limits::new(settings.api.requests_per_second),
            routers,
            deletions,
            wanted: Notify::new(),
            catalog,
            store,
            settings,
        }
    }

    /// Notified when workers should look into the catalog.
    #[must_use]
    pub const fn wanted(&self) -> &Notify {
        &self.wanted
    }

    /// Forgets the counters of who has not asked for a while.
    pub fn forget_limits(&self) {
        self.limits.forget();
    }

    /// Makes all workers look into the catalog at once.
    pub(super) fn nudge(&self) {
        self.wanted.notify_one();
    }

    /// Where this service is found, given a request's `Host`.
    pub(super) fn base(&self, host: Option<&str>) -> String {
        if let Some(url) = &self.settings.api.public_url {
            return url.trim_end_matches('/').to_owned();
        }
        let scheme = if self.settings.api.certificate.is_some() { "https" } else { "http" };
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
        let host = host.filter(|host| !host.is_empty() && host.chars().all(plain));
        host.map_or_else(|| format!("{scheme}://{}", self.settings.api.bind), |host| format!("{scheme}://{host}"))
    }
}
