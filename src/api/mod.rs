//! HTTP: the REST API that the SDKs of Vonage and `OpenTok` call, health and metrics.
//!
//! ```text
//! request ─► id, time limit, count ─► caller: token ─► application ─► rate ─► handler ─► catalog, store, router
//!                                          403            path's project?        │
//!                                                                                └─► nudge: workers look at once
//! ```
//!
//! What is asked for of a running archive goes into the catalog, where it survives whoever owns the job; nobody is called.

mod archives;
mod auth;
mod callbacks;
mod error;
mod extract;
mod extras;
pub mod health;
mod join;
mod limits;
mod links;
mod openapi;
mod operator;
mod place;
mod removals;
mod request;
mod server;
mod sessions;
mod wire;

use std::sync::Arc;

use tokio::sync::Notify;

use crate::catalog::{CatalogError, SharedCatalog};
use crate::config::Settings;
use crate::router::Routers;
use crate::services::ServicesError;
use crate::session::geo::{Geo, GeoError};
use crate::session::region::Atlas;
use crate::store::SharedStore;

pub use openapi::document;
pub use server::{run, serve};

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
    /// The address is another's, or not this machine's.
    #[error("the API cannot listen at {bind}: change api.bind, or end who listens there")]
    Bind {
        /// Where.
        bind: std::net::SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Certificate or key.
    #[error("the API's certificate {certificate:?} and key {key:?} cannot be used: {why}")]
    Certificate {
        /// `api.certificate`.
        certificate: std::path::PathBuf,
        /// `api.key`.
        key: std::path::PathBuf,
        /// Why.
        why: String,
    },
}

/// What all requests use.
pub struct Api {
    settings: Settings,
    catalog: SharedCatalog,
    store: SharedStore,
    links: links::Links,
    limits: limits::Limits,
    routers: Routers,
    atlas: Atlas,
    geo: Geo,
    /// What is to be removed although nobody waits for it any more.
    removals: removals::Removals,
    /// Notified when workers should look into the catalog.
    wanted: Notify,
}

/// As handlers have it.
pub type Shared = Arc<Api>;

impl Api {
    /// Makes all workers look into the catalog at once.
    fn nudge(&self) {
        self.wanted.notify_one();
    }

    /// Where this service is found, given a request's `Host`.
    fn base(&self, host: Option<&str>) -> String {
        if let Some(url) = &self.settings.api.public_url {
            return url.trim_end_matches('/').to_owned();
        }
        let scheme = if self.settings.api.certificate.is_some() { "https" } else { "http" };
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
        let host = host.filter(|host| !host.is_empty() && host.chars().all(plain));
        host.map_or_else(|| format!("{scheme}://{}", self.settings.api.bind), |host| format!("{scheme}://{host}"))
    }
}
