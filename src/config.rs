//! Configuration: a TOML file, then the environment (`ARCHIVER__SECTION__KEY`), then the command line. Every
//! bad value is reported, none is silently replaced.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use secrecy::SecretString;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use crate::fault::{Fault, FaultKind, HasFault};
use crate::ids::{Region, RouterName, WorkerId};
use crate::job::presence::Limits;
use crate::telemetry::LogFormat;

/// All that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration has {} errors:", self.0.len())?;
        self.0.iter().try_for_each(|error| write!(f, "\n  {error}"))
    }
}

impl std::error::Error for ConfigErrors {}

impl HasFault for ConfigErrors {
    fn fault(&self) -> Fault {
        FaultKind::ConfigInvalid.fault()
    }
}

/// A duration, written `500ms`, `60s`, `10m`, `4h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a duration such as 500ms, 60s, 10m or 4h");
        let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: u64 = text[..split].parse().map_err(|_| bad())?;
        let ms = match &text[split..] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(bad()),
        };
        number.checked_mul(ms).map(|ms| Self(Duration::from_millis(ms))).ok_or_else(bad)
    }
}

/// A number of bytes, written `500MB`, `50GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteCount(pub u64);

impl FromStr for ByteCount {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a size such as 16MiB or 50GB");
        let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: u64 = text[..split].parse().map_err(|_| bad())?;
        let unit = match &text[split..] {
            "B" => 1,
            "KB" => 1000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            _ => return Err(bad()),
        };
        number.checked_mul(unit).map(Self).ok_or_else(bad)
    }
}

macro_rules! from_text {
    ($($name:ident),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
from_text!(Span, ByteCount);

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }
        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
        impl $name {
            /// The keys of this section.
            pub const KEYS: &'static [&'static str] = &[$(stringify!($field),)*];
        }
    };
}

section! {
    /// `[worker]`: who this process is.
    WorkerSection {
        /// Its name in the fleet; must stay the same over restarts, so that it takes its own jobs back.
        id: Option<WorkerId> = None,
        /// The region whose queues it consumes.
        region: Region = "default".parse().expect("a valid name"),
        /// Jobs that may run at a time.
        capacity: usize = 20,
        /// Where everything local is, unless another section says otherwise.
        data_dir: PathBuf = PathBuf::from("/var/lib/archiver"),
        /// A lease without a heartbeat is another worker's after this.
        lease: Span = Span(Duration::from_secs(8)),
    }
}

section! {
    /// `[broker]`: RabbitMQ.
    BrokerSection {
        /// `amqp://user:password@host:5672/%2f`.
        url: Option<SecretString> = None,
        /// Names of exchanges and queues begin with it.
        prefix: String = "archiver".to_owned(),
        /// A connection that is silent for twice this is dead.
        heartbeat: Span = Span(Duration::from_secs(10)),
        /// An event that could not be handled comes again after this.
        retry_after: Span = Span(Duration::from_secs(5)),
    }
}

section! {
    /// `[catalog]`: the database.
    CatalogSection {
        /// `postgres://…`, or `sqlite:/path`; SQLite in the data folder by default.
        url: Option<SecretString> = None,
    }
}

/// What the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// A local directory.
    Dir,
    /// An S3-compatible bucket.
    S3,
}

section! {
    /// `[store]`: where archives go.
    StoreSection {
        /// `dir` or `s3`.
        kind: StoreKind = StoreKind::Dir,
        /// The directory; `archives` in the data folder by default.
        path: Option<PathBuf> = None,
        /// The bucket.
        bucket: String = String::new(),
        /// The region; most compatible stores take any.
        region: String = "us-east-1".to_owned(),
        /// The address of a compatible store; Amazon's own if left out.
        endpoint: Option<String> = None,
        /// Bucket name in the path; most compatible stores need it.
        path_style: bool = true,
        /// Access key; the SDK's own chain (environment, profile, role) if left out.
        access_key: Option<String> = None,
        /// Secret key.
        secret_key: Option<SecretString> = None,
        /// Send checksums with every request; many compatible stores fail on them.
        checksums_always: bool = false,
        /// Encryption at rest: `AES256` or `aws:kms`.
        encryption: Option<String> = None,
        /// The KMS key.
        kms_key: Option<String> = None,
        /// Part of a multipart upload; at least 5 MiB.
        part_size: ByteCount = ByteCount(crate::store::upload::PART_BYTES),
        /// A download link is valid so long.
        link_valid: Span = Span(Duration::from_secs(600)),
    }
}

/// `[[router]]`: a media router.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterSection {
    /// Its name in events.
    pub name: RouterName,
    /// `ws://` or `wss://` of Janus.
    pub url: String,
    /// Janus's `api_secret`.
    pub api_secret: Option<SecretString>,
    /// A token for Janus's stored-token authentication.
    pub token: Option<SecretString>,
    /// The pin of its rooms.
    pub pin: Option<SecretString>,
    /// Whether rooms and feeds have names (`string_ids = true` in Janus) or numbers.
    #[serde(default = "yes")]
    pub string_ids: bool,
}

const fn yes() -> bool {
    true
}

section! {
    /// `[spool]`: the local disk that captures are written to.
    SpoolSection {
        /// The folder; `spool` in the data folder by default.
        dir: Option<PathBuf> = None,
        /// Bytes it may use.
        quota: ByteCount = ByteCount(50 << 30),
        /// No further job is accepted when so much of the quota is used.
        admission_percent: u8 = 70,
    }
}

section! {
    /// `[media]`: the UDP socket that media arrives at.
    MediaSection {
        /// Its local address.
        bind: SocketAddr = SocketAddr::from(([0, 0, 0, 0], 0)),
        /// The address that routers see, behind a translation.
        advertise: Option<IpAddr> = None,
        /// The kernel's receive buffer to ask for.
        receive_buffer: ByteCount = ByteCount(4 << 20),
    }
}

section! {
    /// `[capture]`: how media is written.
    CaptureSection {
        /// Longest part: what a dying process loses at most.
        part: Span = Span(Duration::from_millis(500)),
        /// Length of a segment: what a dying machine loses at most.
        segment: Span = Span(Duration::from_secs(5)),
        /// A missing packet of a picture is waited for so long.
        video_hold: Span = Span(Duration::from_millis(1500)),
        /// A missing packet of sound is waited for so long.
        audio_hold: Span = Span(Duration::from_millis(200)),
        /// Time without media after which it is a gap.
        stall: Span = Span(Duration::from_secs(2)),
        /// Least time between two requests for a keyframe of a track.
        keyframe_interval_min: Span = Span(Duration::from_secs(1)),
        /// A keyframe is asked for when none came for so long; `0s` never asks without a reason.
        keyframe_interval_max: Span = Span(Duration::from_secs(30)),
        /// Streams of one session that are captured.
        streams_max: usize = 50,
    }
}

section! {
    /// `[limits]`: when a session has ended. Vonage's values.
    LimitsSection {
        /// No client was there for so long.
        no_clients: Span = Span(Duration::from_secs(60)),
        /// Nobody ever published within so long.
        never_published: Span = Span(Duration::from_secs(60)),
        /// Clients are there, but nobody has published for so long.
        nobody_publishing: Span = Span(Duration::from_secs(3600)),
        /// An archive that recorded so long ends, and another one follows.
        recorded_max: Span = Span(Duration::from_secs(4 * 3600)),
        /// An archive that is so old ends.
        total_max: Span = Span(Duration::from_secs(12 * 3600)),
    }
}

section! {
    /// `[http]`: health and metrics.
    HttpSection {
        /// Its address; keep it inside.
        bind: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8080)),
    }
}

section! {
    /// `[log]`: what is written to standard error.
    LogSection {
        /// `pretty` or `json`.
        format: LogFormat = LogFormat::Pretty,
        /// `error`, `warn`, `info`, `debug`, or a list of `module=level`.
        level: String = "info".to_owned(),
    }
}

/// The whole configuration, checked.
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
    /// `[spool]`.
    pub spool: SpoolSection,
    /// `[media]`.
    pub media: MediaSection,
    /// `[capture]`.
    pub capture: CaptureSection,
    /// `[limits]`.
    pub limits: LimitsSection,
    /// `[http]`.
    pub http: HttpSection,
    /// `[log]`.
    pub log: LogSection,
    /// Pipeline fragments of the operator's own go before those of this build.
    pub pipelines_dir: Option<PathBuf>,
}

impl Settings {
    /// Reads the file (none is an empty one) and the environment, and checks everything.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn load(path: Option<&Path>, environment: &BTreeMap<String, String>) -> Result<Self, ConfigErrors> {
        let text = match path {
            None => String::new(),
            Some(path) => std::fs::read_to_string(path)
                .map_err(|e| ConfigErrors(vec![format!("{} cannot be read: {e}", path.display())]))?,
        };
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| ConfigErrors(vec![e.to_string()]))?;
        Self::of_table(table, environment)
    }

    fn of_table(mut table: toml::Table, environment: &BTreeMap<String, String>) -> Result<Self, ConfigErrors> {
        let mut errors = Vec::new();
        for (name, value) in environment {
            let Some(path) = name.strip_prefix("ARCHIVER__") else { continue };
            let Some((section, key)) = path.split_once("__") else {
                errors.push(format!("{name}: is not of the form ARCHIVER__SECTION__KEY"));
                continue;
            };
            let section = table
                .entry(section.to_lowercase())
                .or_insert_with(|| toml::Value::Table(toml::Table::new()))
                .as_table_mut();
            if let Some(section) = section {
                section.insert(key.to_lowercase(), typed(value));
            }
        }
        let mut settings = Self {
            worker: take(&mut table, "worker", &mut errors),
            broker: take(&mut table, "broker", &mut errors),
            catalog: take(&mut table, "catalog", &mut errors),
            store: take(&mut table, "store", &mut errors),
            routers: Vec::new(),
            spool: take(&mut table, "spool", &mut errors),
            media: take(&mut table, "media", &mut errors),
            capture: take(&mut table, "capture", &mut errors),
            limits: take(&mut table, "limits", &mut errors),
            http: take(&mut table, "http", &mut errors),
            log: take(&mut table, "log", &mut errors),
            pipelines_dir: table.remove("pipelines_dir").and_then(|v| v.as_str().map(PathBuf::from)),
        };
        if let Some(routers) = table.remove("router") {
            for (n, router) in routers.as_array().into_iter().flatten().enumerate() {
                match serde_path_to_error::deserialize(router.clone()) {
                    Ok(router) => settings.routers.push(router),
                    Err(e) => errors.push(format!("router[{n}].{}: {}", e.path().clone(), first_line(&e.into_inner()))),
                }
            }
        }
        errors.extend(table.keys().map(|key| format!("{key}: there is no such section")));
        settings.check(&mut errors);
        if errors.is_empty() { Ok(settings) } else { Err(ConfigErrors(errors)) }
    }

    fn check(&self, errors: &mut Vec<String>) {
        let mut rule = |ok: bool, text: String| {
            if !ok {
                errors.push(text);
            }
        };
        let ms = |span: Span| span.0.as_millis();
        rule(self.worker.capacity > 0, "worker.capacity = 0: at least 1".to_owned());
        rule(
            (2000..=120_000).contains(&ms(self.worker.lease)),
            format!("worker.lease = {} ms: 2s to 120s", ms(self.worker.lease)),
        );
        let part = ms(self.capture.part);
        rule(
            (50..=1000).contains(&part),
            format!("capture.part = {part} ms: 50ms to 1s, for a dying process loses so much"),
        );
        let segment = ms(self.capture.segment);
        rule((1000..=60_000).contains(&segment), format!("capture.segment = {segment} ms: 1s to 60s"));
        rule(part <= segment, "capture.part is longer than capture.segment".to_owned());
        rule(ms(self.capture.video_hold) <= 10_000, "capture.video_hold: at most 10s".to_owned());
        rule(
            (1..=500).contains(&self.capture.streams_max),
            format!("capture.streams_max = {}: 1 to 500", self.capture.streams_max),
        );
        rule(self.spool.quota.0 >= 100 << 20, "spool.quota: at least 100MiB".to_owned());
        let admission = self.spool.admission_percent;
        rule((1..=95).contains(&admission), format!("spool.admission_percent = {admission}: 1 to 95"));
        rule(
            self.store.part_size.0 >= crate::store::upload::PART_BYTES_MIN,
            "store.part_size: at least 5MiB".to_owned(),
        );
        rule(ms(self.store.link_valid) <= 7 * 24 * 3_600_000, "store.link_valid: at most 168h".to_owned());
        if self.store.kind == StoreKind::S3 {
            rule(!self.store.bucket.is_empty(), "store.bucket: is missing, store.kind is s3".to_owned());
            let pair = self.store.access_key.is_some() == self.store.secret_key.is_some();
            rule(pair, "store.access_key and store.secret_key: go together".to_owned());
        }
        for router in &self.routers {
            let scheme = router.url.starts_with("ws://") || router.url.starts_with("wss://");
            rule(scheme, format!("router {}: url = {:?}: ws:// or wss://", router.name, router.url));
            let same = self.routers.iter().filter(|r| r.name == router.name).count();
            rule(same == 1, format!("router {}: is there {same} times", router.name));
        }
    }

    /// What serving needs beyond being valid.
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

    /// This worker's name: as configured, or the machine's.
    #[must_use]
    pub fn worker_id(&self) -> WorkerId {
        self.worker.id.clone().unwrap_or_else(|| {
            let name = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
            name.trim().parse().unwrap_or_else(|_| "worker".parse().expect("a valid name"))
        })
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

    /// The limits of an archive.
    #[must_use]
    pub const fn job_limits(&self) -> Limits {
        Limits {
            no_clients: self.limits.no_clients.0,
            never_published: self.limits.never_published.0,
            nobody_publishing: self.limits.nobody_publishing.0,
            recorded_max: self.limits.recorded_max.0,
            total_max: self.limits.total_max.0,
        }
    }
}

/// The environment has texts only: numbers and booleans are recognised, all else stays text.
fn typed(text: &str) -> toml::Value {
    if let Ok(number) = text.parse::<i64>() {
        return toml::Value::Integer(number);
    }
    text.parse::<bool>().map_or_else(|_| toml::Value::String(text.to_owned()), toml::Value::Boolean)
}

fn first_line(error: &toml::de::Error) -> String {
    error.message().lines().next().unwrap_or_default().to_owned()
}

fn take<T: DeserializeOwned + Default>(table: &mut toml::Table, name: &str, errors: &mut Vec<String>) -> T {
    let Some(section) = table.remove(name) else { return T::default() };
    // Field by field, so that every bad one is told, not only the first.
    let fields: Vec<(String, toml::Value)> = match &section {
        toml::Value::Table(fields) => fields.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        _ => {
            errors.push(format!("{name}: is not a section"));
            return T::default();
        }
    };
    let mut good = toml::Table::new();
    for (key, value) in fields {
        let alone = toml::Value::Table([(key.clone(), value.clone())].into_iter().collect());
        match alone.try_into::<T>() {
            Ok(_) => drop(good.insert(key, value)),
            Err(e) => errors.push(format!("{name}.{key}: {}", first_line(&e))),
        }
    }
    toml::Value::Table(good).try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, environment: &[(&str, &str)]) -> Result<Settings, ConfigErrors> {
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Settings::of_table(text.parse().expect("TOML"), &environment)
    }

    #[test]
    fn an_empty_configuration_is_valid_and_says_what_a_worker_needs() {
        let settings = load("", &[]).expect("valid");
        let missing = settings.for_worker().expect_err("no broker").to_string();
        assert!(missing.contains("broker.url") && missing.contains("[[router]]"), "{missing}");
    }

    #[test]
    fn every_bad_value_is_told_with_its_key() {
        let text = "
            [worker]\ncapacity = 0\nregion = 'a b'
            [capture]\npart = '3s'\nsegment = 'long'\nnonsense = 1
            [spool]\nquota = '5 GB'
            [store]\nkind = 's3'
            [[router]]\nname = 'j'\nurl = 'http://x'
            [extra]\na = 1";
        let errors = load(text, &[("ARCHIVER__LIMITS__NO_CLIENTS", "soon")]).expect_err("bad").to_string();
        for key in [
            "worker.capacity",
            "worker.region",
            "capture.part",
            "capture.segment",
            "capture.nonsense",
            "spool.quota",
            "store.bucket",
            "router j",
            "extra",
            "limits.no_clients",
        ] {
            assert!(errors.contains(key), "{key} is not in:\n{errors}");
        }
    }

    #[test]
    fn the_environment_goes_before_the_file() {
        let settings = load(
            "[worker]\ncapacity = 3",
            &[("ARCHIVER__WORKER__CAPACITY", "7"), ("ARCHIVER__STORE__PATH_STYLE", "false")],
        );
        let settings = settings.expect("valid");
        assert_eq!((settings.worker.capacity, settings.store.path_style), (7, false));
    }

    #[test]
    fn the_example_is_valid_and_has_every_key() {
        let text = include_str!("../fixtures/archiver.example.toml");
        load(text, &[]).expect("valid");
        for (section, keys) in [
            ("worker", WorkerSection::KEYS),
            ("broker", BrokerSection::KEYS),
            ("catalog", CatalogSection::KEYS),
            ("store", StoreSection::KEYS),
            ("spool", SpoolSection::KEYS),
            ("media", MediaSection::KEYS),
            ("capture", CaptureSection::KEYS),
            ("limits", LimitsSection::KEYS),
            ("http", HttpSection::KEYS),
            ("log", LogSection::KEYS),
        ] {
            let part = text.split(&format!("[{section}]")).nth(1).expect(section);
            let part = part.split("\n[").next().expect("part");
            for key in keys {
                assert!(part.contains(&format!("{key} = ")), "{section}.{key} is not in the example");
            }
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let settings = load("[broker]\nurl = 'amqp://u:hunter2@h'", &[]).expect("valid");
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
