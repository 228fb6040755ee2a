//! The JSON that goes with an archive: Vonage's manifest inside the ZIP, our own manifest and the quality
//! report beside it. All have a version; fields are only ever added.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::ids::{ApplicationId, ArchiveId, Epoch, JobId, SessionId, StreamId, TrackKind};
use crate::model::media::{Codec, Gap, MissingMedia, TrackStats, VideoType};

/// The version of [`Manifest`] and [`Report`].
pub const VERSION: u32 = 1;

/// Vonage's manifest of individual files (their archiving guide, "individual stream archives").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VonageManifest {
    /// Milliseconds since 1970 at which the first media came.
    pub created_at: i64,
    /// The archive.
    pub id: ArchiveId,
    /// Its name, empty if none.
    pub name: String,
    /// Unified applications.
    pub application_id: ApplicationId,
    /// Legacy projects: the numeric key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partner_id: Option<u64>,
    /// The session.
    pub session_id: SessionId,
    /// The files.
    pub files: Vec<VonageFile>,
}

/// One file of [`VonageManifest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VonageFile {
    /// What the client's token carried.
    pub connection_data: String,
    /// In the ZIP.
    pub filename: String,
    /// Bytes.
    pub size: u64,
    /// Milliseconds from `createdAt`.
    pub start_time_offset: i64,
    /// Milliseconds from `createdAt`.
    pub stop_time_offset: i64,
    /// The stream.
    pub stream_id: StreamId,
    /// What it shows.
    pub video_type: VideoType,
}

/// Our manifest: the archive's truth in the store, written last. The catalog can be rebuilt from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// The archive.
    pub archive_id: ArchiveId,
    /// The job that made it.
    pub job_id: JobId,
    /// The session.
    pub session_id: SessionId,
    /// Whose session.
    pub application_id: ApplicationId,
    /// Its name.
    pub name: Option<String>,
    /// Why it ended: one of Vonage's reasons.
    pub reason: String,
    /// UTC of media time zero, RFC 3339.
    pub origin: String,
    /// UTC of the first media, RFC 3339; the origin if there is none.
    pub started_at: String,
    /// Seconds from the first to the last media.
    pub duration_s: f64,
    /// The last epoch.
    pub epochs: u32,
    /// Whether the archive has all that was sent, as far as is known. Manifests of older versions do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete: Option<bool>,
    /// The media that the archive lacks, the longest first.
    #[serde(default)]
    pub missing: Vec<MissingMedia>,
    /// The objects, without this one.
    pub objects: Vec<ObjectEntry>,
    /// The files in the ZIP.
    pub files: Vec<FileEntry>,
    /// The streams of the session. Manifests of older versions do not have them.
    #[serde(default)]
    pub streams: Vec<StreamEntry>,
    /// The composed file, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub composed: Option<ComposedEntry>,
    /// How often the archive was made, from 1. It is made again when more of its media comes.
    #[serde(default = "first_revision")]
    pub revision: i64,
}

const fn first_revision() -> i64 {
    1
}

/// The composed file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComposedEntry {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Pictures a second.
    pub rate: u32,
    /// Milliseconds from the origin at which it begins.
    pub start_ms: i64,
    /// Pictures in it.
    pub pictures: u64,
    /// Frames that came after their moments were composed: the file shows them late, or lacks them. Individual files have them at
    /// their times. A clip tells those of the file that it was cut from.
    #[serde(default)]
    pub late_frames: u64,
    /// What could not be decoded: stream, track, frames at which a decoder failed, frames passed over.
    pub errors: Vec<(StreamId, TrackKind, u64, u64)>,
}

impl ComposedEntry {
    /// How long it lasts, in seconds.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn duration_s(&self) -> f64 {
        self.pictures as f64 / f64::from(self.rate.max(1))
    }
}

/// An object of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectEntry {
    /// Its key.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// Base64 of its SHA-256; with `partBytes`, of that of its parts, and their number behind it.
    pub sha256: String,
    /// Bytes of each part but the last, of an object whose parts were sent while it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_bytes: Option<u64>,
}

/// Who published a stream, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StreamEntry {
    /// The stream.
    pub stream_id: StreamId,
    /// The name that the client gave itself. Never signed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The connection data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_data: Option<String>,
    /// What it showed at first.
    pub video_type: VideoType,
    /// Whether stream id and connection data are those that this program gave the client when it joined. What is not signed, anybody in the
    /// room can have said.
    pub signed: bool,
}

/// A file in the ZIP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileEntry {
    /// In the ZIP.
    pub name: String,
    /// The stream.
    pub stream_id: StreamId,
    /// Bytes.
    pub size: u64,
    /// Base64 of its SHA-256.
    pub sha256: String,
    /// Milliseconds from the origin.
    pub start_ms: i64,
    /// Milliseconds from the origin.
    pub end_ms: i64,
    /// The picture's codec.
    pub video: Option<Codec>,
    /// The sound's codec.
    pub audio: Option<Codec>,
    /// Pictures in it.
    pub video_frames: u64,
    /// Packets of sound in it.
    pub audio_frames: u64,
    /// It could not be muxed, and holds the capture log's segments as they are.
    pub raw: bool,
}

/// The quality report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// The archive.
    pub archive_id: ArchiveId,
    /// Its streams.
    pub streams: Vec<StreamReport>,
    /// Whether the archive has all that was sent, as far as is known. Reports of older versions do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete: Option<bool>,
    /// The media that the archive lacks, the longest first.
    #[serde(default)]
    pub missing: Vec<MissingMedia>,
    /// Time without media in all tracks together, in seconds, also where nothing was sent.
    pub gap_s: f64,
    /// Times at which a worker began to own the job, in milliseconds from the origin.
    pub epochs_ms: Vec<(Epoch, i64)>,
}

impl Report {
    /// Adds media that the archive lacks.
    pub fn add_missing(&mut self, lacking: impl Iterator<Item = MissingMedia>) {
        self.missing.extend(lacking);
        self.missing.sort_by_key(|one| std::cmp::Reverse(one.duration_ms));
        self.complete = Some(self.missing.is_empty());
    }
}

/// One stream of the report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StreamReport {
    /// The stream.
    pub stream_id: StreamId,
    /// Its id at the router.
    pub router_id: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// What it shows.
    pub video_type: VideoType,
    /// Spans in which it was published, in milliseconds from the origin.
    pub present_ms: Vec<(i64, i64)>,
    /// Its tracks.
    pub tracks: Vec<TrackReport>,
    /// Layers the router sent: time in milliseconds from the origin, spatial, temporal.
    pub layers: Vec<(i64, Option<u32>, Option<u32>)>,
}

/// One track of the report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrackReport {
    /// Sound or picture.
    pub kind: TrackKind,
    /// The codec's name as the publisher announced it, if the router told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announced_codec: Option<String>,
    /// What stood in the way of capturing, in the words of the router or of the negotiation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
    /// Its codecs, in order; none of a track that never came.
    pub codecs: Vec<Codec>,
    /// Sizes of the picture: corrected time in milliseconds from the origin, width, height.
    pub sizes: Vec<(i64, u32, u32)>,
    /// Milliseconds from the origin.
    pub start_ms: i64,
    /// Milliseconds from the origin.
    pub end_ms: i64,
    /// What happened to its packets.
    pub stats: TrackStats,
    /// What is missing. Times are in nanoseconds from the origin, corrected as those of the files are.
    pub gaps: Vec<Gap>,
    /// How far the provisional clock was off at its beginning and end, in milliseconds.
    pub correction_ms: (f64, f64),
    /// Sender reports used and refused, of those in the log. Reports that did not fit the packets were not written: see `stats`.
    pub sender_reports: (usize, usize),
    /// Parts of the log that could not be read.
    pub damaged_parts: u64,
}

impl TrackReport {
    /// Of a track that never came.
    #[must_use]
    pub fn of_nothing(kind: TrackKind) -> Self {
        Self {
            kind,
            announced_codec: None,
            details: Vec::new(),
            codecs: Vec::new(),
            sizes: Vec::new(),
            start_ms: 0,
            end_ms: 0,
            stats: TrackStats::default(),
            gaps: Vec::new(),
            correction_ms: (0.0, 0.0),
            sender_reports: (0, 0),
            damaged_parts: 0,
        }
    }
}
