//! The state that all handlers share: services, links, limits and queues.

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

/// The state that all handlers share.
pub struct Api {
    pub(super) settings: Settings,
    pub(super) catalog: SharedCatalog,
    pub(super) store: SharedStore,
    pub(super) links: Links,
    pub(super) limits: Limits,
    pub(super) routers: Routers,
    pub(super) region_selector: RegionSelector,
    pub(super) geo: Geo,
    /// Deleted archives, whose objects are removed after the answer.
    pub(super) deletions: DeletionQueue,
    /// Notified when workers should look at the catalog now.
    pub(super) wake_requests: Notify,
}

/// The state as handlers take it.
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
            wake_requests: Notify::new(),
            catalog,
            store,
            settings,
        }
    }

    /// Notified when workers should look at the catalog now.
    #[must_use]
    pub const fn wake_requests(&self) -> &Notify {
        &self.wake_requests
    }

    /// Removes the idle counters of the rate limits.
    pub fn forget_limits(&self) {
        self.limits.forget();
    }

    /// Makes all workers look at the catalog now.
    pub(super) fn wake_workers(&self) {
        self.wake_requests.notify_one();
    }

    /// The URL at which clients reach the API, given a request's `Host`.
    pub(super) fn public_url(&self, host: Option<&str>) -> String {
        if let Some(url) = &self.settings.api.public_url {
            return url.trim_end_matches('/').to_owned();
        }
        let scheme = if self.settings.api.certificate.is_some() { "https" } else { "http" };
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
        let host = host.filter(|host| !host.is_empty() && host.chars().all(plain));
        host.map_or_else(|| format!("{scheme}://{}", self.settings.api.bind), |host| format!("{scheme}://{host}"))
    }
}
