//! The sections of the configuration: each key with what it is, its unit, and its default.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;

use super::values::{ByteCount, Shown, Span};
use crate::ids::{Region, RouterName, WorkerId};
use crate::telemetry::LogFormat;

/// Keys that hold secrets, by section. Each may be given as a file: `<key>_file`. Their values appear in no message.
pub(super) const SECRETS: &[(&str, &[&str])] = &[
    ("broker", &["url"]),
    ("catalog", &["url"]),
    ("store", &["secret_key"]),
    ("router", &["api_secret", "token", "pin"]),
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
    /// Whether rooms and feeds have names (`string_ids = true` in Janus) or numbers.
    #[serde(default = "yes")]
    pub string_ids: bool,
}

impl RouterSection {
    /// The keys of this section.
    pub const KEYS: &'static [&'static str] = &["name", "url", "api_secret", "token", "pin", "string_ids"];

    /// Keys and values, secrets hidden.
    pub(super) fn shown(&self) -> Vec<(&'static str, Option<String>)> {
        vec![
            ("name", self.name.shown()),
            ("url", self.url.shown()),
            ("api_secret", self.api_secret.shown()),
            ("token", self.token.shown()),
            ("pin", self.pin.shown()),
            ("string_ids", self.string_ids.shown()),
        ]
    }
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
