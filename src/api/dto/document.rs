//! Parameters and bodies as the API's description shows them. `request.rs` reads them.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// The application that the token is of.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code)]
pub struct Project {
    /// The application's UUID, or the project's API key.
    project: String,
}

/// An archive.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code)]
pub struct OfArchive {
    /// The archive's id.
    archive: uuid::Uuid,
}

/// A session.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code)]
pub struct OfSession {
    /// The session's id.
    session: String,
}

/// A stream.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code)]
pub struct OfStream {
    /// The stream's id.
    stream: uuid::Uuid,
}

/// A callback.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code)]
pub struct OfCallback {
    /// The callback's id.
    callback: uuid::Uuid,
}

/// Which archives.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code)]
#[serde(rename_all = "camelCase")]
pub struct ListQuery {
    /// Pass over so many.
    offset: Option<u32>,
    /// At most so many: 50 without, 1000 at most.
    count: Option<u32>,
    /// Only of this session; `session_id` means the same.
    session_id: Option<String>,
    /// Ours: only with this status.
    status: Option<String>,
    /// Ours: only those created then or later, in milliseconds since 1970.
    from: Option<i64>,
    /// Ours: only those created before, in milliseconds since 1970.
    to: Option<i64>,
}

/// The query of a list of streams.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code)]
pub struct PageQuery {
    /// Pass over so many.
    offset: Option<u32>,
    /// At most so many: all without.
    count: Option<u32>,
}

/// The form of a new session.
#[derive(Debug, Serialize, ToSchema)]
#[allow(dead_code)]
pub struct SessionForm {
    /// `manual` or `always`.
    #[serde(rename = "archiveMode")]
    archive_mode: Option<String>,
    /// `disabled` (routed, the default) or `enabled` (relayed).
    #[serde(rename = "p2p.preference")]
    p2p_preference: Option<String>,
    /// The first client's IP address: the session is held near to it.
    location: Option<String>,
    /// Of automatic archives: 1 to 80 characters.
    #[serde(rename = "archiveName")]
    archive_name: Option<String>,
    /// Of automatic archives: one of Vonage's six sizes.
    #[serde(rename = "archiveResolution")]
    archive_resolution: Option<String>,
    /// Media is encrypted from client to client.
    e2ee: Option<bool>,
    /// Ours, of automatic archives: `composed`, `individual` or `both`.
    #[serde(rename = "archiveOutputMode")]
    archive_output_mode: Option<String>,
    /// Ours, of automatic archives: a layout in JSON.
    #[serde(rename = "archiveLayout")]
    archive_layout: Option<String>,
}

/// How a composed archive looks.
#[derive(Debug, Serialize, ToSchema)]
#[allow(dead_code)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveLayout {
    /// `bestFit`, `pip`, `verticalPresentation`, `horizontalPresentation` or `custom`.
    r#type: String,
    /// Only with, and needed for, `custom`.
    stylesheet: Option<String>,
    /// Only with `bestFit`: the layout while a screen is shared.
    screenshare_type: Option<String>,
}

/// What an archive is to be.
#[derive(Debug, Serialize, ToSchema)]
#[allow(dead_code)]
#[serde(rename_all = "camelCase")]
pub struct StartArchive {
    /// The session.
    session_id: String,
    /// 1 to 80 characters.
    name: Option<String>,
    /// True without it.
    has_audio: Option<bool>,
    /// True without it.
    has_video: Option<bool>,
    /// `composed` (the default), `individual`, or ours: `both`.
    output_mode: Option<String>,
    /// Of composed archives: one of Vonage's six sizes, `640x480` without it.
    resolution: Option<String>,
    /// Of composed archives.
    layout: Option<ArchiveLayout>,
    /// `auto` (the default) or `manual`.
    stream_mode: Option<String>,
    /// Sets it apart from other archives of the session at the same time.
    multi_archive_tag: Option<String>,
    /// Of composed archives: 100,000 to 6,000,000 bit/s.
    max_bitrate: Option<u32>,
    /// Of composed archives: 15 to 40; not together with `maxBitrate`.
    quantization_parameter: Option<u8>,
}

/// A stream to add or to remove: one of the two.
#[derive(Debug, Serialize, ToSchema)]
#[allow(dead_code)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveStreams {
    /// The stream to add, or to have otherwise.
    add_stream: Option<uuid::Uuid>,
    /// The stream to remove.
    remove_stream: Option<uuid::Uuid>,
    /// With its sound; true without it.
    has_audio: Option<bool>,
    /// With its picture; true without it.
    has_video: Option<bool>,
}

/// Layout classes of a stream.
#[derive(Debug, Serialize, ToSchema)]
#[allow(dead_code)]
#[serde(rename_all = "camelCase")]
pub struct StreamClasses {
    /// The stream.
    id: uuid::Uuid,
    /// Its classes from now on.
    layout_class_list: Vec<String>,
}

/// Layout classes of streams.
#[derive(Debug, Serialize, ToSchema)]
#[allow(dead_code)]
pub struct LayoutClasses {
    /// Each of them.
    items: Vec<StreamClasses>,
}

/// What part of an archive is wanted.
#[derive(Debug, Serialize, ToSchema)]
#[allow(dead_code)]
#[serde(rename_all = "camelCase")]
pub struct ClipArchive {
    /// Seconds from its beginning.
    from: Option<f64>,
    /// Seconds from its beginning.
    to: Option<f64>,
    /// Begin at the keyframe before, if there is none at the beginning; without it that is an error.
    at_keyframe: Option<bool>,
}

/// How an archive is to be composed anew.
#[derive(Debug, Serialize, ToSchema)]
#[allow(dead_code)]
#[serde(rename_all = "camelCase")]
pub struct RecomposeArchive {
    /// Another layout; as it was without.
    layout: Option<ArchiveLayout>,
    /// Another size; as it was without.
    resolution: Option<String>,
    /// Only a part: seconds from its beginning.
    from: Option<f64>,
    /// Only a part: seconds from its beginning.
    to: Option<f64>,
}

/// Where callbacks are to go.
#[derive(Debug, Serialize, ToSchema)]
#[allow(dead_code)]
pub struct RegisterCallback {
    /// An address such as `https://host/path`.
    url: String,
    /// `archive`.
    group: Option<String>,
    /// `status`.
    event: Option<String>,
}
