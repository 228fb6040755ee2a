//! The sections of the configuration: each key with its meaning, unit and default.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;

use super::values::{ByteCount, DurationValue, List, Redacted};
use crate::model::ids::{Region, RoomId, RouterName, WorkerId};
use crate::runtime::telemetry::LogFormat;

/// Keys with secrets, by section. Each may be in a file: `<key>_file`. Messages never contain their values.
pub(super) const SECRETS: &[(&str, &[&str])] = &[
    ("broker", &["url"]),
    ("catalog", &["url"]),
    ("store", &["secret_key"]),
    ("router", &["api_secret", "token", "pin", "admin_key", "room_key", "token_secret"]),
    (ROUTER_ROOM, &["token"]),
    ("api", &["operator_token"]),
];

/// The sections of a router's rooms, within its own.
pub(super) const ROUTER_ROOM: &str = "router.rooms";

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

            /// Keys and values, without secrets.
            pub(super) fn redacted(&self) -> Vec<(&'static str, Option<String>)> {
                vec![$((stringify!($field), self.$field.redacted()),)*]
            }
        }
    };
}

section! {
    /// `[worker]`: the worker process.
    WorkerSection {
        /// Its unique name. It must stay the same over restarts, so that the worker claims its own jobs again.
        id: Option<WorkerId> = None,
        /// The region whose queues it consumes.
        region: Region = "default".parse().expect("a valid name"),
        /// Jobs that may run at a time.
        capacity: usize = 20,
        /// The folder of all local files, unless another section names another.
        data_dir: PathBuf = PathBuf::from("/var/lib/archiver"),
        /// A lease without a heartbeat expires after this time. 3 s by default; 8 s with SQLite, which writes each heartbeat to the disk.
        lease: Option<DurationValue> = None,
        /// How long a worker that stops captures on while no other worker takes its sessions. `0s`: it stops at once, with a gap.
        offer: DurationValue = DurationValue(Duration::from_secs(10)),
    }
}

section! {
    /// `[broker]`: RabbitMQ.
    BrokerSection {
        /// `amqp://user:password@host:5672/%2f`, or `amqps://…`. Needed; or `url_file`.
        url: Option<SecretString> = None,
        /// Prefix of the names of exchanges and queues.
        prefix: String = "archiver".to_owned(),
        /// AMQP heartbeat: a connection without traffic for twice this time is dead.
        heartbeat: DurationValue = DurationValue(Duration::from_secs(10)),
        /// Delay before an event that could not be handled is delivered again.
        retry_after: DurationValue = DurationValue(Duration::from_secs(5)),
    }
}

section! {
    /// `[catalog]`: the database.
    CatalogSection {
        /// `postgres://…`, or `sqlite:/path`; SQLite in the data folder by default. Or `url_file`.
        url: Option<SecretString> = None,
    }
}

/// Kinds of stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// A local directory.
    Dir,
    /// An S3-compatible bucket.
    S3,
}

section! {
    /// `[store]`: the object store of archives.
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
        /// How long segments stay in the store after an archive's end, so that the archive can be recomposed. Those of an archive that lacks
        /// media stay for 7 days at least: what comes late is added.
        keep_segments: DurationValue = DurationValue(Duration::from_secs(24 * 3600)),
        /// Validity of presigned URLs.
        link_valid: DurationValue = DurationValue(Duration::from_secs(600)),
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
    /// A token that Janus accepts (`token_auth`), of its list or signed: sent with each request, and to rooms with a list of tokens unless
    /// `rooms` has another for them.
    pub token: Option<SecretString>,
    /// The pin of its rooms.
    pub pin: Option<SecretString>,
    /// Its region; the worker's by default.
    pub region: Option<Region>,
    /// Janus's `admin_key`, to create rooms with.
    pub admin_key: Option<SecretString>,
    /// The key from which the pins of rooms are derived that this program creates, so that a client of one room cannot join another.
    /// The same in all processes of a deployment.
    pub room_key: Option<SecretString>,
    /// Janus's `token_auth_secret`: signs the tokens of clients, which expire.
    pub token_secret: Option<SecretString>,
    /// The `wss://` address for clients; `url` by default.
    pub public_url: Option<String>,
    /// Whether rooms and feeds have names (`string_ids = true` in Janus) or numbers.
    #[serde(default = "default_true")]
    pub string_ids: bool,
    /// What this program's observers call themselves in rooms, for the other participants to see: `archiver:recorder` by default. Whoever has
    /// this name and publishes nothing is not counted as a client. The same in all processes of a deployment.
    pub observer_name: Option<String>,
    /// Whether the participants of rooms that this program creates are told who joins, observers too (`notify_joining`).
    #[serde(default = "default_true")]
    pub announce_joins: bool,
    /// What single rooms want, by their names: `[router.rooms."name"]`.
    #[serde(default)]
    pub rooms: BTreeMap<RoomId, RoomSection>,
}

section! {
    /// `[router.rooms."name"]`: a room that wants more than its router.
    RoomSection {
        /// The token to join it with: one of its list (`allowed`), or one that is signed for it (`signed_tokens`). Or `token_file`.
        token: Option<SecretString> = None,
    }
}

impl RouterSection {
    /// The keys of this section; `rooms` has sections of its own.
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
        "observer_name",
        "announce_joins",
    ];

    /// Keys and values, without secrets.
    pub(super) fn redacted(&self) -> Vec<(&'static str, Option<String>)> {
        vec![
            ("name", self.name.redacted()),
            ("url", self.url.redacted()),
            ("api_secret", self.api_secret.redacted()),
            ("token", self.token.redacted()),
            ("pin", self.pin.redacted()),
            ("region", self.region.redacted()),
            ("admin_key", self.admin_key.redacted()),
            ("room_key", self.room_key.redacted()),
            ("token_secret", self.token_secret.redacted()),
            ("public_url", self.public_url.redacted()),
            ("string_ids", self.string_ids.redacted()),
            ("observer_name", self.observer_name.redacted()),
            ("announce_joins", self.announce_joins.redacted()),
            ("rooms", self.rooms.redacted()),
        ]
    }
}

const fn default_true() -> bool {
    true
}

/// `[[region]]`: a region, and which clients are near to it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionSection {
    /// Its name.
    pub name: Region,
    /// Networks whose clients are near to it, such as `203.0.113.0/24`; the longest that has an address counts.
    #[serde(default)]
    pub networks: List,
    /// Degrees north, for the distance to a client's position in `geo.database`.
    pub latitude: Option<f64>,
    /// Degrees east.
    pub longitude: Option<f64>,
}

impl RegionSection {
    /// The keys of this section.
    pub const KEYS: &'static [&'static str] = &["name", "networks", "latitude", "longitude"];

    /// Keys and values.
    pub(super) fn redacted(&self) -> Vec<(&'static str, Option<String>)> {
        vec![
            ("name", self.name.redacted()),
            ("networks", self.networks.redacted()),
            ("latitude", self.latitude.redacted()),
            ("longitude", self.longitude.redacted()),
        ]
    }
}

section! {
    /// `[geo]`: positions of clients.
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
        /// The address in links, such as `https://video.example.com`. By default the address that the request was sent to.
        public_url: Option<String> = None,
        /// The certificate chain (PEM). With it and `key` the API speaks https only.
        certificate: Option<PathBuf> = None,
        /// The certificate's key (PEM).
        key: Option<PathBuf> = None,
        /// Largest body of a request.
        body_max: ByteCount = ByteCount(256 << 10),
        /// Time limit of a request.
        timeout: DurationValue = DurationValue(Duration::from_secs(30)),
        /// Requests a second of one application, or of one address without a valid token. A burst may have twice as many.
        requests_per_second: u32 = 100,
        /// Origins of web pages that may call the API; `*` allows all. None by default, because pages must not contain secrets.
        cors_origins: List = List(Vec::new()),
        /// The bearer token of operators' requests. Without one, the operators' endpoints do not exist.
        operator_token: Option<SecretString> = None,
    }
}

section! {
    /// `[callbacks]`: notifications of applications.
    CallbacksSection {
        /// Networks that callbacks may go to although they are not public, such as `10.1.0.0/16`.
        allow: List = List(Vec::new()),
        /// Time limit of a receiver's response.
        timeout: DurationValue = DurationValue(Duration::from_secs(10)),
        /// Callbacks in flight at a time.
        at_once: usize = 16,
        /// How long the catalog keeps delivered notifications. Undelivered ones are kept ten times as long.
        keep: DurationValue = DurationValue(Duration::from_secs(7 * 24 * 3600)),
    }
}

section! {
    /// `[bridge]`: detection of sessions that start.
    BridgeSection {
        /// Whether the API's process runs the bridge; `false` where the platform publishes events itself.
        enabled: bool = true,
        /// Interval of listing the clients in the routers' rooms.
        poll: DurationValue = DurationValue(Duration::from_secs(3)),
        /// The queue that Janus's event handler publishes to, which makes the bridge faster than polling.
        queue: String = "archiver.janus".to_owned(),
        /// A room that this program created is removed after it was empty for this time.
        remove_rooms_after: DurationValue = DurationValue(Duration::from_secs(15 * 60)),
    }
}

section! {
    /// `[spool]`: the local disk that captures are written to.
    SpoolSection {
        /// The folder; `spool` in the data folder by default.
        dir: Option<PathBuf> = None,
        /// Bytes that it may use.
        quota: ByteCount = ByteCount(50 << 30),
        /// No further job is accepted when this percentage of the quota is used.
        admission_percent: u8 = 70,
        /// No further job is accepted when the disk has fewer bytes free.
        free_min: ByteCount = ByteCount(256 << 20),
    }
}

section! {
    /// `[media]`: the UDP socket for media.
    MediaSection {
        /// Its local address. `0.0.0.0` reaches routers by IPv4, `[::]` by IPv4 and IPv6.
        bind: SocketAddr = SocketAddr::from(([0, 0, 0, 0], 0)),
        /// The address that routers see, if it is translated (NAT). It stands for the local ones of its own family.
        advertise: Option<IpAddr> = None,
        /// The requested size of the kernel's receive buffer.
        receive_buffer: ByteCount = ByteCount(4 << 20),
    }
}

section! {
    /// `[capture]`: writing of media.
    CaptureSection {
        /// Longest part. A crash of the process loses at most this much.
        part: DurationValue = DurationValue(Duration::from_millis(500)),
        /// Length of a segment. A crash of the machine loses at most this much.
        segment: DurationValue = DurationValue(Duration::from_secs(5)),
        /// How long the jitter buffer waits for a missing video packet.
        video_hold: DurationValue = DurationValue(Duration::from_millis(1500)),
        /// How long the jitter buffer waits for a missing audio packet.
        audio_hold: DurationValue = DurationValue(Duration::from_millis(200)),
        /// Time without media that counts as a gap.
        stall: DurationValue = DurationValue(Duration::from_secs(2)),
        /// Shortest time between two keyframe requests for a track.
        keyframe_interval_min: DurationValue = DurationValue(Duration::from_secs(1)),
        /// A keyframe is requested when none came for this time; `0s` disables this.
        keyframe_interval_max: DurationValue = DurationValue(Duration::from_secs(30)),
        /// Streams of one session that are captured.
        streams_max: usize = 50,
    }
}

section! {
    /// `[pipelines]`: GStreamer pipelines that build archives.
    PipelinesSection {
        /// A folder with pipeline fragments of the operator; each replaces the built-in one of the same name.
        dir: Option<PathBuf> = None,
        /// A pipeline without progress for this time has stalled, and is started again. Waiting for a processor does not count, up to four
        /// times as long.
        stall: DurationValue = DurationValue(Duration::from_secs(30)),
    }
}

section! {
    /// `[limits]`: when a session or an archive ends. The defaults are Vonage's.
    LimitsSection {
        /// The room has had no client for this time.
        no_clients: DurationValue = DurationValue(Duration::from_secs(60)),
        /// Nobody has ever published within this time: an automatic session's job waits from then on, another archive ends.
        never_published: DurationValue = DurationValue(Duration::from_secs(60)),
        /// There are clients, but nobody has published for this time.
        nobody_publishing: DurationValue = DurationValue(Duration::from_secs(3600)),
        /// Maximum recorded duration of an archive; then a successor follows.
        recorded_max: DurationValue = DurationValue(Duration::from_secs(4 * 3600)),
        /// Maximum age of an archive, pauses included.
        total_max: DurationValue = DurationValue(Duration::from_secs(12 * 3600)),
    }
}

section! {
    /// `[http]`: health and metrics.
    HttpSection {
        /// Its address; must not be reachable from outside.
        bind: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8080)),
    }
}

section! {
    /// `[log]`: the log on standard error.
    LogSection {
        /// `pretty` or `json`.
        format: LogFormat = LogFormat::Pretty,
        /// `error`, `warn`, `info`, `debug`, or a list of `module=level`.
        level: String = "info".to_owned(),
    }
}
