//! The sections of the configuration: each key with what it is, its unit, and its default.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;

use super::values::{ByteCount, List, Shown, Span};
use crate::model::ids::{Region, RouterName, WorkerId};
use crate::runtime::telemetry::LogFormat;

/// Keys that hold secrets, by section. Each may be given as a file: `<key>_file`. Their values appear in no message.
pub(super) const SECRETS: &[(&str, &[&str])] = &[
    ("broker", &["url"]),
    ("catalog", &["url"]),
    ("store", &["secret_key"]),
    ("router", &["api_secret", "token", "pin", "admin_key", "room_key", "token_secret"]),
    ("api", &["operator_token"]),
];

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

            /// Keys and values, secrets hidden.
            pub(super) fn shown(&self) -> Vec<(&'static str, Option<String>)> {
                vec![$((stringify!($field), self.$field.shown()),)*]
            }
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
        /// `amqp://user:password@host:5672/%2f`, or `amqps://…`. Needed; or `url_file`.
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
        /// `postgres://…`, or `sqlite:/path`; SQLite in the data folder by default. Or `url_file`.
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
        /// Secret key; or `secret_key_file`.
        secret_key: Option<SecretString> = None,
        /// Send checksums with every request; many compatible stores fail on them.
        checksums_always: bool = false,
        /// Encryption at rest: `AES256` or `aws:kms`.
        encryption: Option<String> = None,
        /// The KMS key.
        kms_key: Option<String> = None,
        /// Part of a multipart upload; at least 5 MiB.
        part_size: ByteCount = ByteCount(crate::store::upload::PART_BYTES),
        /// Segments stay in the store for so long behind an archive's end: it can be made again meanwhile.
        keep_segments: Span = Span(Duration::from_secs(24 * 3600)),
        /// A download link is valid so long.
        link_valid: Span = Span(Duration::from_secs(600)),
    }
}

/// `[[router]]`: a media router. Each secret may be in a file: `api_secret_file`, `token_file`, `pin_file`.
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
    /// The region that it is in; the worker's own if left out.
    pub region: Option<Region>,
    /// Janus's `admin_key`, to create rooms with.
    pub admin_key: Option<SecretString>,
    /// Rooms that this program creates have pins of their own, made of this; a client that is let into one room cannot enter
    /// another. All processes of a deployment have the same.
    pub room_key: Option<SecretString>,
    /// Janus's `token_auth_secret`: clients are given tokens that are signed with it, and end by themselves.
    pub token_secret: Option<SecretString>,
    /// The `wss://` address that clients are given; `url` if left out.
    pub public_url: Option<String>,
    /// Whether rooms and feeds have names (`string_ids = true` in Janus) or numbers.
    #[serde(default = "yes")]
    pub string_ids: bool,
}

impl RouterSection {
    /// The keys of this section.
    pub const KEYS: &'static [&'static str] = &[
        "name",
        "url",
        "api_secret",
        "token",
        "pin",
        "region",
        "admin_key",
        "room_key",
        "token_secret",
        "public_url",
        "string_ids",
    ];

    /// Keys and values, secrets hidden.
    pub(super) fn shown(&self) -> Vec<(&'static str, Option<String>)> {
        vec![
            ("name", self.name.shown()),
            ("url", self.url.shown()),
            ("api_secret", self.api_secret.shown()),
            ("token", self.token.shown()),
            ("pin", self.pin.shown()),
            ("region", self.region.shown()),
            ("admin_key", self.admin_key.shown()),
            ("room_key", self.room_key.shown()),
            ("token_secret", self.token_secret.shown()),
            ("public_url", self.public_url.shown()),
            ("string_ids", self.string_ids.shown()),
        ]
    }
}

const fn yes() -> bool {
    true
}

/// `[[region]]`: a region, and the clients that are near to it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionSection {
    /// Its name.
    pub name: Region,
    /// Networks whose clients are near to it, such as `203.0.113.0/24`; the longest that has an address counts.
    #[serde(default)]
    pub networks: List,
    /// Degrees north, for the distance to where `geo.database` says a client is.
    pub latitude: Option<f64>,
    /// Degrees east.
    pub longitude: Option<f64>,
}

impl RegionSection {
    /// The keys of this section.
    pub const KEYS: &'static [&'static str] = &["name", "networks", "latitude", "longitude"];

    /// Keys and values.
    pub(super) fn shown(&self) -> Vec<(&'static str, Option<String>)> {
        vec![
            ("name", self.name.shown()),
            ("networks", self.networks.shown()),
            ("latitude", self.latitude.shown()),
            ("longitude", self.longitude.shown()),
        ]
    }
}

section! {
    /// `[geo]`: where clients are.
    GeoSection {
        /// A MaxMind database of cities (GeoLite2-City.mmdb): for addresses in no region's networks.
        database: Option<PathBuf> = None,
    }
}

section! {
    /// `[api]`: the REST API.
    ApiSection {
        /// Its address.
        bind: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8090)),
        /// The address that developers know, such as `https://video.example.com`: links begin with it. Without, what their
        /// requests name.
        public_url: Option<String> = None,
        /// The certificate chain (PEM). With it and `key` the API speaks https only.
        certificate: Option<PathBuf> = None,
        /// The certificate's key (PEM).
        key: Option<PathBuf> = None,
        /// Longest body of a request.
        body_max: ByteCount = ByteCount(256 << 10),
        /// A request that takes longer is answered with an error.
        timeout: Span = Span(Duration::from_secs(30)),
        /// Requests a second of one application, or of one address without a valid token; twice as many may come at once.
        requests_per_second: u32 = 100,
        /// Web pages of these origins may call it; `*` is all. None by default: secrets do not belong into pages.
        cors_origins: List = List(Vec::new()),
        /// What operators' requests carry as a bearer token. Without one there are no operators' endpoints.
        operator_token: Option<SecretString> = None,
    }
}

section! {
    /// `[callbacks]`: notices to developers.
    CallbacksSection {
        /// Networks that callbacks may go to although they are not public, such as `10.1.0.0/16`.
        allow: List = List(Vec::new()),
        /// A receiver has so long to answer.
        timeout: Span = Span(Duration::from_secs(10)),
        /// Callbacks that are sent at a time.
        at_once: usize = 16,
        /// What was delivered is kept in the catalog for so long; what was not, ten times as long.
        keep: Span = Span(Duration::from_secs(7 * 24 * 3600)),
    }
}

section! {
    /// `[bridge]`: how sessions are found to have started.
    BridgeSection {
        /// Whether the API's process looks for them; `false` where the platform publishes events itself.
        enabled: bool = true,
        /// How often routers are asked who is in their rooms.
        poll: Span = Span(Duration::from_secs(3)),
        /// The queue that Janus's event handler publishes to, to hear of it sooner.
        queue: String = "archiver.janus".to_owned(),
        /// A room that this program created is removed when nobody was there for so long.
        remove_rooms_after: Span = Span(Duration::from_secs(15 * 60)),
    }
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
    /// `[pipelines]`: how archives are made by GStreamer.
    PipelinesSection {
        /// A folder with fragments of the operator's own; each goes before the one of its name in this build.
        dir: Option<PathBuf> = None,
        /// A pipeline that makes no progress for so long has stalled, and is tried again.
        stall: Span = Span(Duration::from_secs(30)),
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
