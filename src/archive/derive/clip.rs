//! Making a new archive of a part of a composed one, without decoding and encoding: the archive's own file in the store is
//! enough, so it works long after the segments are gone, and costs what copying costs.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::workspace::{CLIP, RemakeError, Work, finished, publish};
use crate::archive::ArchiveError;
use crate::archive::composed::{Expected, checked};
use crate::archive::documents::{ComposedEntry, Manifest, ObjectEntry, Report};
use crate::archive::object::Built;
use crate::catalog::{ArchiveRow, Catalog};
use crate::config::Settings;
pub use crate::media::clip::ClipRange;
use crate::media::clip::{ClipRangeError, ClipResult, ClipSource, Mp4Error};
use crate::media::{self, Pipelines};
use crate::model::fault::{Fault, FaultKind, HasFault};
use crate::model::ids::ArchiveId;
use crate::model::time::{MediaTime, Wallclock};
use crate::store::body::collect;
use crate::store::download::{DownloadError, download_range};
use crate::store::keys::{Keys, Kind};
use crate::store::{ByteRange, ObjectStore, StoreError};

/// The largest manifest or report that is read.
const DOCUMENT_BYTES_MAX: usize = 16 << 20;

/// Why there is no new archive.
#[derive(Debug, thiserror::Error)]
pub enum ClipError {
    /// What any new archive takes.
    #[error(transparent)]
    Remake(#[from] RemakeError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Fetching the part.
    #[error(transparent)]
    Fetch(#[from] DownloadError),
    /// The index of the archive's file.
    #[error(transparent)]
    Index(#[from] Mp4Error),
    /// The part.
    #[error("{why}; {}", way_out(why, .archive, *.part))]
    Range {
        /// The archive.
        archive: ArchiveId,
        /// What was asked for.
        part: ClipRange,
        /// Why not.
        why: ClipRangeError,
    },
    /// It has no composed file.
    #[error(
        "archive {0} has no composed file; `archiver archives recompose {0}` makes one while its segments are kept"
    )]
    NotComposed(ArchiveId),
    /// Its manifest or its report.
    #[error("{key} cannot be understood")]
    Document {
        /// Its key.
        key: String,
        /// Why.
        source: serde_json::Error,
    },
}

impl HasFault for ClipError {
    fn fault(&self) -> Fault {
        match self {
            Self::Remake(e) => e.fault(),
            Self::Store(e) => e.fault(),
            Self::Fetch(e) => e.fault(),
            Self::Index(_) | Self::Document { .. } => FaultKind::StoreCorrupt.fault(),
            Self::Range { .. } => FaultKind::RequestInvalid.fault(),
            Self::NotComposed(_) => FaultKind::Conflict.fault(),
        }
    }
}

/// What can be asked for instead.
fn way_out(error: &ClipRangeError, archive: &ArchiveId, part: ClipRange) -> String {
    let seconds = |ms: u32| f64::from(ms) / 1000.0;
    match error {
        ClipRangeError::NoKeyframe { .. } => {
            let to = part.to_ms.map(|to| format!(" --to {}", seconds(to))).unwrap_or_default();
            let exactly = format!("archiver archives recompose {archive} --from {}{to}", seconds(part.from_ms));
            format!("--at-keyframe begins at the one before, and `{exactly}` cuts exactly while the segments are kept")
        }
        ClipRangeError::Empty { .. } => "give another --from and --to".to_owned(),
    }
}

/// Cuts a part out of a composed archive (the first), and publishes it as a new one (the second). Returns that.
///
/// # Errors
/// See [`ClipError`].
pub async fn clip(
    settings: &Settings,
    catalog: &dyn Catalog,
    store: &dyn ObjectStore,
    (archive, new): (ArchiveId, ArchiveId),
    part: ClipRange,
    cancel: &CancellationToken,
) -> Result<ArchiveRow, ClipError> {
    let row = finished(catalog, archive).await?;
    let keys = Keys::new(row.application.clone(), archive);
    let manifest: Manifest = document(store, keys.key(Kind::Manifest)).await?;
    let file = manifest.objects.iter().find(|object| object.key == keys.key(Kind::Mp4));
    let (Some(file), Some(entry)) = (file.cloned(), manifest.composed.clone()) else {
        return Err(ClipError::NotComposed(archive));
    };
    let report: Report = document(store, keys.key(Kind::Report)).await?;
    let work = Work::begin(settings, CLIP, new).await?;
    let made: Result<ArchiveRow, ClipError> = async {
        let source = index(store, &file, entry.rate, &work.dir, cancel).await?;
        let clip = source.clip(part).map_err(|why| ClipError::Range { archive, part, why })?;
        let (range, media) = (source.bytes(&clip), work.dir.join("media"));
        let len = range.end - range.start;
        work.has_room(len).await?;
        let range = ByteRange { start: range.start, len };
        download_range(store, &file.key, range, &media, cancel, &|_| {}).await?;
        let out = work.dir.join("out");
        std::fs::create_dir_all(&out).map_err(RemakeError::io(&out))?;
        let pipelines = Pipelines { dir: settings.pipelines.dir.clone(), stall: settings.pipelines.stall.0 };
        let (path, stop) = (out.join("archive.mp4"), cancel.clone());
        let documents = (manifest, entry, report);
        let making = move || make(new, &source, &clip, (&media, path), documents, &pipelines, &stop);
        let built = tokio::task::spawn_blocking(making).await.expect("cutting does not panic")?;
        Ok(publish((catalog, store), settings.store.part_size.0, row, &built, &out, cancel).await?)
    }
    .await;
    work.end().await;
    made
}

async fn document<T: DeserializeOwned>(store: &dyn ObjectStore, key: String) -> Result<T, ClipError> {
    let bytes = collect(store.get(&key, None).await?, &key, DOCUMENT_BYTES_MAX).await?;
    serde_json::from_slice(&bytes).map_err(|source| ClipError::Document { key, source })
}

/// Reads the index of an archive's file: it stands at the beginning, so that no more than it is fetched.
async fn index(
    store: &dyn ObjectStore,
    file: &ObjectEntry,
    rate: u32,
    work: &Path,
    cancel: &CancellationToken,
) -> Result<ClipSource, ClipError> {
    let range = async |range: std::ops::Range<u64>, name: &str| {
        let path = work.join(name);
        let range = ByteRange { start: range.start, len: range.end - range.start };
        download_range(store, &file.key, range, &path, cancel, &|_| {}).await?;
        Ok::<_, ClipError>(tokio::fs::read(&path).await.map_err(RemakeError::io(&path))?)
    };
    let place = ClipSource::index_range(&range(0..file.size.min(ClipSource::HEAD_BYTES), "head").await?)?;
    if place.end > file.size {
        return Err(Mp4Error::Damaged("it is larger than the file").into());
    }
    Ok(ClipSource::parse(&range(place, "index").await?, file.size, rate)?)
}

/// Writes the file, looks whether it can be played, and writes its documents. Blocking.
fn make(
    archive: ArchiveId,
    source: &ClipSource,
    clip: &ClipResult,
    (media, path): (&Path, PathBuf),
    (manifest, entry, report): (Manifest, ComposedEntry, Report),
    pipelines: &Pipelines,
    cancel: &CancellationToken,
) -> Result<Built, RemakeError> {
    let bytes = File::open(media).map_err(RemakeError::io(media))?;
    source.write(clip, &bytes, &path).map_err(RemakeError::io(&path))?;
    media::init().map_err(|source| ArchiveError::Media { file: path.display().to_string(), source })?;
    let (video, audio) = source.has(clip);
    let expected = Expected { pictures: clip.pictures, rate: source.rate(), video, audio };
    let object = checked(expected, path, pipelines, cancel)?;
    let start_ms = entry.start_ms.saturating_add_unsigned(source.moment(clip.before));
    let origin = Wallclock::parse_rfc3339(&manifest.origin);
    let started_at = origin.map(|origin| MediaTime::from_millis(start_ms).to_wallclock(origin).to_rfc3339());
    // What could not be decoded has no times: what is told of the whole holds for the part at most.
    let entry = ComposedEntry { start_ms, pictures: clip.pictures, rate: source.rate(), ..entry };
    let key = Keys::new(manifest.application_id.clone(), archive).key(object.kind);
    let told = ObjectEntry { key, size: object.size, sha256: object.sha256.clone(), part_bytes: None };
    let manifest = Manifest {
        archive_id: archive,
        started_at: started_at.unwrap_or_else(|| manifest.started_at.clone()),
        duration_s: entry.duration_s(),
        objects: vec![told],
        files: Vec::new(),
        composed: Some(entry),
        ..manifest
    };
    Ok(Built { objects: vec![object], manifest, report: Report { archive_id: archive, ..report } })
}
