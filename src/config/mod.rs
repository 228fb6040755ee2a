//! Configuration: a TOML file, overridden by the environment (`ARCHIVER__SECTION__KEY`), overridden by the command line. Every invalid
//! value is reported, none is silently replaced. Secrets may be in separate files (`<key>_file`), and appear in no message.

mod check;
mod sections;
mod source;
#[cfg(test)]
mod tests;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use crate::model::fault::{Fault, FaultKind, HasFault};
use crate::model::ids::WorkerId;

pub use sections::{
    ApiSection, BridgeSection, BrokerSection, CallbacksSection, CaptureSection, CatalogSection, GeoSection,
    HttpSection, LimitsSection, LogSection, MediaSection, PipelinesSection, RegionSection, RoomSection, RouterSection,
    SpoolSection, StoreKind, StoreSection, WorkerSection,
};
pub use values::{ByteCount, DurationValue, List};

/// A lease's length by default.
const LEASE: Duration = Duration::from_secs(3);
/// The same with SQLite: each heartbeat waits for the disk.
const LEASE_SQLITE: Duration = Duration::from_secs(8);

/// All errors of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errors = if self.0.len() == 1 { "error" } else { "errors" };
        write!(f, "the configuration has {} {errors}:", self.0.len())?;
        self.0.iter().try_for_each(|error| write!(f, "\n  {error}"))
    }
}

impl std::error::Error for ConfigErrors {}

impl HasFault for ConfigErrors {
    fn fault(&self) -> Fault {
        FaultKind::ConfigInvalid.fault()
    }
}

/// The whole configuration, validated.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `[worker]`.
    pub worker: WorkerSection,
    /// `[broker]`.
    pub broker: BrokerSection,
    /// `[catalog]`.
    pub catalog: CatalogSection,
    /// `[store]`.
    pub store: StoreSection,
    /// `[[router]]`.
    pub routers: Vec<RouterSection>,
    /// `[[region]]`.
    pub regions: Vec<RegionSection>,
    /// `[geo]`.
    pub geo: GeoSection,
    /// `[api]`.
    pub api: ApiSection,
    /// `[callbacks]`.
    pub callbacks: CallbacksSection,
    /// `[bridge]`.
    pub bridge: BridgeSection,
    /// `[spool]`.
    pub spool: SpoolSection,
    /// `[media]`.
    pub media: MediaSection,
    /// `[capture]`.
    pub capture: CaptureSection,
    /// `[pipelines]`.
    pub pipelines: PipelinesSection,
    /// `[limits]`.
    pub limits: LimitsSection,
    /// `[http]`.
    pub http: HttpSection,
    /// `[log]`.
    pub log: LogSection,
}

impl Settings {
    /// Reads the file, if there is one, and the environment, and validates all values.
    ///
    /// # Errors
    /// All errors at once.
    pub fn load(path: Option<&Path>, environment: &BTreeMap<String, String>) -> Result<Self, ConfigErrors> {
        let Some(path) = path else { return Self::read("", environment) };
        let text = std::fs::read_to_string(path)
            .map_err(|e| ConfigErrors(vec![format!("{} cannot be read: {e}", path.display())]))?;
        Self::read(&text, environment)
    }

    fn read(text: &str, environment: &BTreeMap<String, String>) -> Result<Self, ConfigErrors> {
        let mut errors = Vec::new();
        let mut source = source::Source::new(text, environment, &mut errors)?;
        let settings = Self {
            worker: source.take("worker", &mut errors),
            broker: source.take("broker", &mut errors),
            catalog: source.take("catalog", &mut errors),
            store: source.take("store", &mut errors),
            routers: source.take_list("router", &[("name", "x"), ("url", "ws://x")], &mut errors),
            regions: source.take_list("region", &[("name", "x")], &mut errors),
            geo: source.take("geo", &mut errors),
            api: source.take("api", &mut errors),
            callbacks: source.take("callbacks", &mut errors),
            bridge: source.take("bridge", &mut errors),
            spool: source.take("spool", &mut errors),
            media: source.take("media", &mut errors),
            capture: source.take("capture", &mut errors),
            pipelines: source.take("pipelines", &mut errors),
            limits: source.take("limits", &mut errors),
            http: source.take("http", &mut errors),
            log: source.take("log", &mut errors),
        };
        source.report_unknown(&mut errors);
        check::check(&settings, &mut errors);
        if errors.is_empty() { Ok(settings) } else { Err(ConfigErrors(errors)) }
    }

    /// Checks what a worker needs in addition.
    ///
    /// # Errors
    /// What is missing.
    pub fn for_worker(&self) -> Result<(), ConfigErrors> {
        let mut errors = Vec::new();
        if self.broker.url.is_none() {
            errors.push("broker.url: is missing, such as amqp://guest:guest@localhost:5672/%2f".to_owned());
        }
        if self.routers.is_empty() {
            errors.push("[[router]]: there is none; a worker needs a media router to record from".to_owned());
        }
        if errors.is_empty() { Ok(()) } else { Err(ConfigErrors(errors)) }
    }

    /// This worker's id; the host name by default.
    #[must_use]
    pub fn worker_id(&self) -> WorkerId {
        self.worker.id.clone().unwrap_or_else(|| {
            let name = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
            name.trim().parse().unwrap_or_else(|_| "worker".parse().expect("a valid name"))
        })
    }

    /// How long a lease lasts without a heartbeat.
    #[must_use]
    pub fn lease(&self) -> Duration {
        let is_sqlite = self.catalog_url().expose_secret().starts_with("sqlite:");
        self.worker.lease.map_or(if is_sqlite { LEASE_SQLITE } else { LEASE }, |lease| lease.0)
    }

    /// The spool's folder.
    #[must_use]
    pub fn spool_dir(&self) -> PathBuf {
        self.spool.dir.clone().unwrap_or_else(|| self.worker.data_dir.join("spool"))
    }

    /// The catalog's address.
    #[must_use]
    pub fn catalog_url(&self) -> SecretString {
        let default = || format!("sqlite:{}", self.worker.data_dir.join("catalog.sqlite").display()).into();
        self.catalog.url.clone().unwrap_or_else(default)
    }
}

/// Prints an equivalent file, with all defaults and without secrets.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut section = |name: &str, values: Vec<(&str, Option<String>)>| {
            writeln!(f, "\n{name}")?;
            values.into_iter().try_for_each(|(key, value)| match value {
                Some(value) => writeln!(f, "{key} = {value}"),
                None => writeln!(f, "# {key} ="),
            })
        };
        section("[worker]", self.worker.redacted())?;
        section("[broker]", self.broker.redacted())?;
        section("[catalog]", self.catalog.redacted())?;
        section("[store]", self.store.redacted())?;
        for router in &self.routers {
            section("[[router]]", router.redacted())?;
        }
        for region in &self.regions {
            section("[[region]]", region.redacted())?;
        }
        section("[geo]", self.geo.redacted())?;
        section("[api]", self.api.redacted())?;
        section("[callbacks]", self.callbacks.redacted())?;
        section("[bridge]", self.bridge.redacted())?;
        section("[spool]", self.spool.redacted())?;
        section("[media]", self.media.redacted())?;
        section("[capture]", self.capture.redacted())?;
        section("[pipelines]", self.pipelines.redacted())?;
        section("[limits]", self.limits.redacted())?;
        section("[http]", self.http.redacted())?;
        section("[log]", self.log.redacted())
    }
}
