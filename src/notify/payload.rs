//! The event that this program publishes: an archive's change of status. Pure.
//!
//! `fixtures/events/` has the JSON Schema and a sample, both made from these types.

use schemars::JsonSchema;
use serde::Serialize;

use crate::catalog::{ArchiveStatus, NoticeRow};
use crate::model::ids::{ApplicationId, ArchiveId, JobId, NoticeId, Region, SessionId};
use crate::model::media::MissingMedia;

/// Type of an archive's change, version 1.
pub const ARCHIVE_STATUS: &str = "archiver.archive.status.v1";
/// Who sends it.
const SOURCE: &str = "archiver";

/// An archive has another status (CloudEvents 1.0, JSON event format).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ArchiveStatusEvent {
    /// `1.0`.
    pub specversion: &'static str,
    /// The same however often it is published: one that came before is to be passed over.
    pub id: NoticeId,
    /// `archiver`.
    pub source: &'static str,
    /// [`ARCHIVE_STATUS`].
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The archive.
    pub subject: ArchiveId,
    /// When it changed, RFC 3339.
    pub time: String,
    /// `application/json`.
    pub datacontenttype: &'static str,
    /// The archive as it was then.
    pub data: ArchiveStatusData,
}

/// Data of [`ARCHIVE_STATUS`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveStatusData {
    /// The archive.
    pub archive_id: ArchiveId,
    /// The session.
    pub session_id: SessionId,
    /// Whose session.
    pub application_id: ApplicationId,
    /// The job that makes it.
    pub job_id: JobId,
    /// The region whose workers made it.
    pub region: Option<Region>,
    /// Which change of the archive this is, from 1.
    pub number: i64,
    /// What it has become.
    pub status: ArchiveStatus,
    /// Why it ended: one of Vonage's reasons; empty before.
    pub reason: String,
    /// Its name.
    pub name: Option<String>,
    /// `individual`, `composed` or `both`.
    pub output_mode: String,
    /// What sets it apart from others of the session at the same time; empty for the one that has none.
    pub multi_archive_tag: String,
    /// When it was begun, RFC 3339.
    pub created_at: String,
    /// Seconds; 0 until it is made.
    pub duration: i64,
    /// Bytes of its file; 0 until it is made.
    pub size: i64,
    /// Base64 of its SHA-256; empty until it is made.
    pub sha256: String,
    /// Its object in the store, once it is there.
    pub object_key: Option<String>,
    /// How often the archive was made, from 1. It is made again when more of its media comes.
    pub revision: i64,
    /// Whether it has all that was sent; null until it is made.
    pub complete: Option<bool>,
    /// What it lacks, the longest first, at most 100 entries; the manifest has all.
    pub missing: Vec<MissingMedia>,
}

impl ArchiveStatusEvent {
    /// The event of a notification.
    #[must_use]
    pub fn of(notice: &NoticeRow, region: Option<Region>, tag: String) -> Self {
        let row = notice.told.clone();
        let (archive, complete) = (row.archive, row.is_complete());
        let data = ArchiveStatusData {
            archive_id: archive,
            session_id: row.session,
            application_id: row.application,
            job_id: row.job,
            region,
            number: notice.number,
            status: row.status,
            reason: row.reason,
            name: row.name,
            output_mode: row.output_mode,
            multi_archive_tag: tag,
            created_at: row.created_at.to_rfc3339(),
            duration: row.duration_s,
            size: row.size,
            sha256: row.sha256,
            object_key: row.object_key,
            revision: row.revision,
            complete,
            missing: row.missing.unwrap_or_default(),
        };
        Self {
            specversion: "1.0",
            id: notice.notice,
            source: SOURCE,
            kind: ARCHIVE_STATUS,
            subject: archive,
            time: notice.created_at.to_rfc3339(),
            datacontenttype: "application/json",
            data,
        }
    }

    /// The routing key that the event is published with.
    #[must_use]
    pub fn routing_key(&self) -> String {
        let region = self.data.region.as_ref().map_or("default", Region::as_str);
        format!("{}.{}.{region}", crate::broker::ARCHIVE_KEY, self.data.status.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{ArchiveRow, NoticeState, NoticeTarget};
    use crate::model::archive_options::ArchiveOptions;
    use crate::model::ids::EventId;
    use crate::model::time::Wallclock;

    fn notice() -> NoticeRow {
        let session: SessionId = "1_MX4xMjM0NTZ-fjE3MDAwMDAwMDB-".parse().expect("id");
        let event: EventId = "5f0c9a52-started-1".parse().expect("id");
        let job = JobId::of_event(&session, &event);
        let (archive, application) = (ArchiveId::of_job(job), "78d335fa-323d-0114-9c3d-d6f0d48968cf");
        let at = Wallclock::parse_rfc3339("2026-11-20T11:00:00Z").expect("time");
        let row = ArchiveRow {
            archive,
            job,
            session,
            application: application.parse().expect("id"),
            name: Some("Team Ümlaut".to_owned()),
            status: ArchiveStatus::Available,
            reason: "session ended".to_owned(),
            output_mode: "composed".to_owned(),
            created_at: Wallclock::parse_rfc3339("2026-11-20T10:00:00Z").expect("time"),
            updated_at: at,
            duration_s: 3590,
            size: 120_345_678,
            sha256: "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=".to_owned(),
            object_key: Some(format!("{application}/{archive}/archive.mp4")),
            revision: 1,
            log_read: None,
            missing: None,
            options: ArchiveOptions::default(),
        };
        NoticeRow {
            notice: NoticeId::of(archive, "event", 3),
            archive,
            target: NoticeTarget::Event,
            number: 3,
            application: row.application.clone(),
            status: row.status,
            told: row,
            state: NoticeState::Waiting,
            failures: 0,
            first_at: None,
            due_at: at,
            detail: None,
            created_at: at,
            updated_at: at,
        }
    }

    #[test]
    fn what_is_published_is_what_was_agreed() {
        let event = ArchiveStatusEvent::of(&notice(), Some("eu".parse().expect("region")), String::new());
        assert_eq!(event.routing_key(), "archive.available.eu");
        let nowhere = ArchiveStatusEvent::of(&notice(), None, String::new());
        assert_eq!(nowhere.routing_key(), "archive.available.default");
        let schema = schemars::schema_for!(ArchiveStatusEvent);
        let folder = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/events");
        let sample = serde_json::to_value(&event).expect("JSON");
        for (file, now) in
            [("archive-status.schema.json", schema.as_value()), ("published/archive-status.json", &sample)]
        {
            let (path, text) = (folder.join(file), serde_json::to_string_pretty(now).expect("JSON") + "\n");
            if std::env::var_os("UPDATE_FIXTURES").is_some() {
                std::fs::create_dir_all(path.parent().expect("folder")).expect("folder");
                std::fs::write(&path, &text).expect("write");
            }
            let kept = std::fs::read_to_string(&path).expect("fixture");
            assert_eq!(kept, text, "{} is old: run the tests with UPDATE_FIXTURES=1", path.display());
        }
        let validator = jsonschema::validator_for(schema.as_value()).expect("schema");
        assert!(validator.is_valid(&sample));
    }
}
