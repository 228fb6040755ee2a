//! Archives and sessions as they stand on the wire: what the SDKs of Vonage and `OpenTok` parse, and nothing that any of them
//! refuses: closed sets of words, numbers that are left out rather than null, texts that are never null.

use serde::Serialize;
use utoipa::ToSchema;

use crate::catalog::{ApplicationKind, ApplicationRow, ArchiveRow, ArchiveStatus};
use crate::model::archive_options::{OutputMode, Resolution, StreamMode};
use crate::model::desired::{Desired, Selection};
use crate::model::ids::{ApplicationId, StreamId};
use crate::model::media::MissingMedia;

/// A stream of an archive with stream mode manual.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ArchivedStream {
    /// Its id.
    pub stream_id: String,
    /// Whether its sound is in the archive.
    pub has_audio: bool,
    /// Whether its picture is in the archive.
    pub has_video: bool,
}

/// An archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Archive {
    /// A UUID.
    pub id: String,
    /// `started`, `paused`, `stopped`, `available`, `uploaded`, `expired`, `failed` or `deleted`.
    pub status: &'static str,
    /// Empty if it has none.
    pub name: String,
    /// Why it ended; empty while it runs.
    pub reason: String,
    /// The session.
    pub session_id: String,
    /// Of unified applications.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application_id: Option<String>,
    /// Of legacy projects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project_id: Option<u64>,
    /// Of legacy projects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partner_id: Option<u64>,
    /// Milliseconds since 1970.
    pub created_at: i64,
    /// Milliseconds since 1970.
    pub updated_at: i64,
    /// Seconds; 0 while it is recorded.
    pub duration: i64,
    /// Bytes; 0 until the file is made.
    pub size: i64,
    /// `composed` or `individual`.
    pub output_mode: &'static str,
    /// `auto` or `manual`.
    pub stream_mode: &'static str,
    /// Whether sound is archived.
    pub has_audio: bool,
    /// Whether pictures are archived.
    pub has_video: bool,
    /// Always false: there are no transcriptions.
    pub has_transcription: bool,
    /// Of composed archives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolution: Option<Resolution>,
    /// A link that is valid for ten minutes, when the status is `available`.
    pub url: Option<String>,
    /// Always `archive`.
    pub event: &'static str,
    /// Base64 of the file's SHA-256; empty until it is made.
    pub sha256sum: String,
    /// Always empty: archives are not encrypted by this program.
    pub password: &'static str,
    /// What sets it apart from other archives of the session at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multi_archive_tag: Option<String>,
    /// Bit a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bitrate: Option<u32>,
    /// 15 to 40.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization_parameter: Option<u8>,
    /// Ours, once the file is made: whether it has all that was sent. An archive of an older version of this program does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub complete: Option<bool>,
    /// Ours, of an archive that is not complete: what it lacks, the longest first, at most 100 entries. The manifest has all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<Vec<MissingMedia>>,
    /// Ours, of an archive that was made again because more of its media came: how often it was made, from 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    /// With stream mode manual, while it is recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams: Option<Vec<ArchivedStream>>,
}

/// A page of archives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ArchiveList {
    /// How many there are in all, not on this page.
    pub count: i64,
    /// Newest first.
    pub items: Vec<Archive>,
}

/// Whether an archive is still recorded.
#[must_use]
pub const fn is_running(status: ArchiveStatus) -> bool {
    matches!(status, ArchiveStatus::Started | ArchiveStatus::Paused)
}

/// A legacy project's key as the number that the SDKs of .NET, Java and PHP parse.
#[must_use]
pub fn project_number(application: &ApplicationId) -> Option<u64> {
    application.as_str().parse().ok()
}

/// An archive on the wire. `url` is its link if it has one now; `desired` what its job was asked for while it runs.
#[must_use]
pub fn archive(
    row: &ArchiveRow,
    application: &ApplicationRow,
    url: Option<String>,
    desired: Option<&Desired>,
) -> Archive {
    let options = &row.options;
    let legacy = application.kind == ApplicationKind::Legacy;
    let number = legacy.then(|| project_number(&row.application)).flatten();
    // What was made of both kinds is a composed archive to the SDKs, which know no third word.
    let composed = row.output_mode != OutputMode::Individual.as_str();
    let stream_mode = desired.and_then(|desired| desired.stream_mode).unwrap_or(options.stream_mode);
    let manual = stream_mode == StreamMode::Manual;
    let finished = !is_running(row.status);
    Archive {
        id: row.archive.to_string(),
        status: row.status.as_str(),
        name: row.name.clone().unwrap_or_default(),
        reason: row.reason.clone(),
        session_id: row.session.to_string(),
        application_id: (!legacy).then(|| row.application.to_string()),
        project_id: number,
        partner_id: number,
        created_at: row.created_at.as_millis(),
        updated_at: row.updated_at.as_millis(),
        duration: if finished { row.duration_s } else { 0 },
        size: row.size,
        output_mode: if composed { "composed" } else { "individual" },
        stream_mode: if manual { "manual" } else { "auto" },
        has_audio: options.has_audio,
        has_video: options.has_video,
        has_transcription: false,
        resolution: composed.then(|| options.resolution.unwrap_or(Resolution::Sd)),
        url,
        event: "archive",
        sha256sum: row.sha256.clone(),
        password: "",
        multi_archive_tag: options.multi_archive_tag.clone(),
        max_bitrate: options.max_bitrate,
        quantization_parameter: options.quantization_parameter,
        complete: row.is_complete(),
        missing: row.missing.clone().filter(|missing| !missing.is_empty()),
        revision: Some(row.revision).filter(|revision| *revision > 1),
        streams: (manual && !finished).then(|| desired.map(streams).unwrap_or_default()),
    }
}

fn streams(desired: &Desired) -> Vec<ArchivedStream> {
    let one = |(stream, selection): (&StreamId, &Selection)| ArchivedStream {
        stream_id: stream.to_string(),
        has_audio: selection.has_audio,
        has_video: selection.has_video,
    };
    desired.selected.iter().filter(|(_, selection)| **selection != Selection::NONE).map(one).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::archive_options::ArchiveOptions;
    use crate::model::ids::ArchiveId;
    use crate::model::ids::JobId;
    use crate::model::time::Wallclock;

    pub fn application(kind: ApplicationKind, id: &str) -> ApplicationRow {
        ApplicationRow {
            application: id.parse().expect("id"),
            kind,
            name: String::new(),
            keys: Vec::new(),
            callback_url: None,
            callback_secret: None,
            created_at: Wallclock(0),
            updated_at: Wallclock(0),
        }
    }

    fn row(application: &ApplicationRow, status: ArchiveStatus, options: ArchiveOptions) -> ArchiveRow {
        let job: JobId = "2f6f2d9a-8d1c-4b1e-9c41-0b8a7d1f4c11".parse().expect("id");
        ArchiveRow {
            archive: ArchiveId::of_job(job),
            job,
            session: "2_MX4x".parse().expect("id"),
            application: application.application.clone(),
            name: options.name.clone(),
            status,
            reason: String::new(),
            output_mode: options.output_mode.as_str().to_owned(),
            created_at: Wallclock(1_727_870_434_974_123),
            updated_at: Wallclock(1_727_870_434_977_000),
            duration_s: 62,
            size: 3 << 31,
            sha256: "c2hh".to_owned(),
            object_key: None,
            revision: 1,
            log_read: None,
            missing: None,
            options,
        }
    }

    fn wire(kind: ApplicationKind, id: &str, status: ArchiveStatus, options: ArchiveOptions) -> Value {
        let application = application(kind, id);
        let row = row(&application, status, options);
        serde_json::to_value(archive(&row, &application, None, None)).expect("JSON")
    }

    const UUID: &str = "78d335fa-323d-0114-9c3d-d6f0d48968cf";

    /// For each of these there is an SDK that would fail on anything else.
    #[test]
    fn what_strict_sdks_read_is_there_and_of_their_types() {
        let unified = wire(ApplicationKind::Unified, UUID, ArchiveStatus::Available, ArchiveOptions::default());
        for (field, value) in [
            ("applicationId", json!(UUID)),
            ("event", json!("archive")),
            ("name", json!("")),
            ("reason", json!("")),
            ("password", json!("")),
            ("sha256sum", json!("c2hh")),
            ("createdAt", json!(1_727_870_434_974_i64)),
            ("updatedAt", json!(1_727_870_434_977_i64)),
            ("size", json!(3_i64 << 31)),
            ("duration", json!(62)),
            ("resolution", json!("640x480")),
            ("outputMode", json!("composed")),
            ("streamMode", json!("auto")),
            ("hasTranscription", json!(false)),
            ("url", Value::Null),
        ] {
            assert_eq!(unified[field], value, "{field}");
        }
        for absent in ["partnerId", "projectId", "maxBitrate", "quantizationParameter", "transcription", "streams"] {
            assert!(unified.get(absent).is_none(), "{absent}");
        }
        let legacy = wire(ApplicationKind::Legacy, "123456", ArchiveStatus::Available, ArchiveOptions::default());
        assert_eq!((&legacy["partnerId"], &legacy["projectId"]), (&json!(123_456), &json!(123_456)));
        assert!(legacy.get("applicationId").is_none());
    }

    #[test]
    fn individual_archives_have_no_size_and_running_ones_no_length() {
        let individual = ArchiveOptions { output_mode: OutputMode::Individual, ..ArchiveOptions::default() };
        let individual = wire(ApplicationKind::Unified, UUID, ArchiveStatus::Started, individual);
        assert!(individual.get("resolution").is_none());
        assert_eq!((&individual["outputMode"], &individual["duration"]), (&json!("individual"), &json!(0)));
        let both = ArchiveOptions { output_mode: OutputMode::Both, ..ArchiveOptions::default() };
        assert_eq!(wire(ApplicationKind::Unified, UUID, ArchiveStatus::Started, both)["outputMode"], "composed");
    }

    #[test]
    fn the_streams_of_a_manual_archive_are_those_that_were_added() {
        let application = application(ApplicationKind::Unified, UUID);
        let options = ArchiveOptions { stream_mode: StreamMode::Manual, ..ArchiveOptions::default() };
        let row = row(&application, ArchiveStatus::Started, options);
        let (shown, gone): (StreamId, StreamId) =
            (UUID.parse().expect("id"), uuid::Uuid::nil().to_string().parse().expect("id"));
        let desired = Desired {
            selected: [(shown, Selection { has_audio: true, has_video: false }), (gone, Selection::NONE)].into(),
            ..Desired::default()
        };
        let wire = serde_json::to_value(archive(&row, &application, None, Some(&desired))).expect("JSON");
        assert_eq!(wire["streams"], json!([{ "streamId": UUID, "hasAudio": true, "hasVideo": false }]));
        assert_eq!(wire["streamMode"], "manual");
    }
}
