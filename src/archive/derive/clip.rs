//! Makes a new archive of a part of a composed one, without decoding or encoding. It needs only the archive's file in the
//! store, so it works long after the segments were deleted, and costs no more than copying.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::workspace::{CLIP, Derivation, DeriveError, Workspace, finished_archive, publish};
use crate::archive::ArchiveError;
use crate::archive::composed::{Expected, verified_object};
use crate::archive::documents::{ComposedEntry, Manifest, ObjectEntry, Report};
use crate::archive::object::Built;
use crate::catalog::{ArchiveRow, Catalog};
use crate::config::Settings;
pub use crate::media::clip::ClipRange;
use crate::media::clip::{ClipRangeError, ClipResult, ClipSource, Mp4Error};
use crate::media::{self, Pipelines};
use crate::model::cancellable::Cancellable;
use crate::model::fault::{Fault, FaultKind, HasFault};
use crate::model::ids::ArchiveId;
use crate::model::time::{MediaTime, Wallclock};
use crate::store::body::collect;
use crate::store::download::{DownloadError, download_range};
use crate::store::keys::{Keys, Kind};
use crate::store::{ByteRange, ObjectStore, StoreError};

/// The largest manifest or report that is read.
const DOCUMENT_BYTES_MAX: usize = 16 << 20;

/// Why an archive cannot be clipped.
#[derive(Debug, thiserror::Error)]
pub enum ClipError {
    /// A step of every derivation.
    #[error(transparent)]
    Derive(#[from] DeriveError),
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
    #[error("{why}; {}", suggestion(why, .archive, *.part))]
    Range {
        /// The archive.
        archive: ArchiveId,
        /// The requested part.
        part: ClipRange,
        /// The cause.
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
            Self::Derive(e) => e.fault(),
            Self::Store(e) => e.fault(),
            Self::Fetch(e) => e.fault(),
            Self::Index(_) | Self::Document { .. } => FaultKind::StoreCorrupt.fault(),
            Self::Range { .. } => FaultKind::RequestInvalid.fault(),
            Self::NotComposed(_) => FaultKind::Conflict.fault(),
        }
    }
}

/// A request that would succeed instead.
fn suggestion(error: &ClipRangeError, archive: &ArchiveId, part: ClipRange) -> String {
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

/// Clips a part of a composed archive, and publishes it as a new archive. Returns the new one.
///
/// # Errors
/// See [`ClipError`].
pub async fn clip(
    settings: &Settings,
    catalog: &dyn Catalog,
    store: &dyn ObjectStore,
    Derivation { source: archive, new }: Derivation,
    part: ClipRange,
    cancel: &CancellationToken,
) -> Result<Cancellable<ArchiveRow>, ClipError> {
    let row = finished_archive(catalog, archive).await?;
    let keys = Keys::new(row.application.clone(), archive);
    let manifest: Manifest = load_document(store, keys.key(Kind::Manifest)).await?;
    let file = manifest.objects.iter().find(|object| object.key == keys.key(Kind::Mp4));
    let (Some(file), Some(entry)) = (file.cloned(), manifest.composed.clone()) else {
        return Err(ClipError::NotComposed(archive));
    };
    let report: Report = load_document(store, keys.key(Kind::Report)).await?;
    let workspace = Workspace::create(settings, CLIP, new).await?;
    let made: Result<Cancellable<ArchiveRow>, ClipError> = async {
        let source = load_index(store, &file, entry.rate, &workspace.dir, cancel).await?;
        let Cancellable::Done(source) = source else { return Ok(Cancellable::Cancelled) };
        let clip = source.clip(part).map_err(|why| ClipError::Range { archive, part, why })?;
        let (range, media) = (source.bytes(&clip), workspace.dir.join("media"));
        let len = range.end - range.start;
        workspace.check_free_space(len).await?;
        let range = ByteRange { start: range.start, len };
        let fetched = download_range(store, &file.key, range, &media, cancel, &|_| {}).await?;
        let Cancellable::Done(()) = fetched else { return Ok(Cancellable::Cancelled) };
        let out = workspace.dir.join("out");
        std::fs::create_dir_all(&out).map_err(DeriveError::io(&out))?;
        let section = &settings.pipelines;
        let pipelines = Pipelines::new(section.dir.clone(), section.stall.0);
        let (path, stop) = (out.join("archive.mp4"), cancel.clone());
        let input = ClipInput { source, clip, media, manifest, entry, report };
        let making = move || build_clip(new, input, path, &pipelines, &stop);
        let built = tokio::task::spawn_blocking(making).await.expect("cutting does not panic")?;
        let Cancellable::Done(built) = built else { return Ok(Cancellable::Cancelled) };
        Ok(publish(catalog, store, settings.store.part_size.0, row, &built, &out, cancel).await?)
    }
    .await;
    workspace.remove().await;
    made
}

async fn load_document<T: DeserializeOwned>(store: &dyn ObjectStore, key: String) -> Result<T, ClipError> {
    let bytes = collect(store.get(&key, None).await?, &key, DOCUMENT_BYTES_MAX).await?;
    serde_json::from_slice(&bytes).map_err(|source| ClipError::Document { key, source })
}

/// Fetches the index of an archive's file, which is at its beginning.
async fn load_index(
    store: &dyn ObjectStore,
    file: &ObjectEntry,
    rate: u32,
    workspace: &Path,
    cancel: &CancellationToken,
) -> Result<Cancellable<ClipSource>, ClipError> {
    let range = async |range: std::ops::Range<u64>, name: &str| {
        let path = workspace.join(name);
        let range = ByteRange { start: range.start, len: range.end - range.start };
        let fetched = download_range(store, &file.key, range, &path, cancel, &|_| {}).await?;
        let Cancellable::Done(()) = fetched else { return Ok(Cancellable::Cancelled) };
        Ok::<_, ClipError>(Cancellable::Done(tokio::fs::read(&path).await.map_err(DeriveError::io(&path))?))
    };
    let head = range(0..file.size.min(ClipSource::HEAD_BYTES), "head").await?;
    let Cancellable::Done(head) = head else { return Ok(Cancellable::Cancelled) };
    let place = ClipSource::index_range(&head)?;
    if place.end > file.size {
        return Err(Mp4Error::Damaged("it is larger than the file").into());
    }
    let Cancellable::Done(index) = range(place, "index").await? else { return Ok(Cancellable::Cancelled) };
    Ok(Cancellable::Done(ClipSource::parse(&index, file.size, rate)?))
}

/// A clip and its source, as fetched from the store.
struct ClipInput {
    source: ClipSource,
    clip: ClipResult,
    /// The file with the clip's bytes.
    media: PathBuf,
    /// The source's manifest, its entry of the composed file, and its report.
    manifest: Manifest,
    entry: ComposedEntry,
    report: Report,
}

/// Writes the file, checks that it can be played, and builds its documents. Blocking.
fn build_clip(
    archive: ArchiveId,
    input: ClipInput,
    path: PathBuf,
    pipelines: &Pipelines,
    cancel: &CancellationToken,
) -> Result<Cancellable<Built>, DeriveError> {
    let ClipInput { source, clip, media, manifest, entry, report } = input;
    let bytes = File::open(&media).map_err(DeriveError::io(&media))?;
    source.write(&clip, &bytes, &path).map_err(DeriveError::io(&path))?;
    media::init().map_err(|source| ArchiveError::Media { file: path.display().to_string(), source })?;
    let (video, audio) = source.has(&clip);
    let expected = Expected { pictures: clip.pictures, rate: source.rate(), video, audio };
    let object = verified_object(expected, path, pipelines, cancel)?;
    let Cancellable::Done(object) = object else { return Ok(Cancellable::Cancelled) };
    let start_ms = entry.start_ms.saturating_add_unsigned(source.moment(clip.before));
    let origin = Wallclock::parse_rfc3339(&manifest.origin);
    let started_at = origin.map(|origin| MediaTime::from_millis(start_ms).to_wallclock(origin).to_rfc3339());
    // Decoding errors and late frames have no times, so the clip's entry keeps those of the whole file.
    let entry = ComposedEntry { start_ms, pictures: clip.pictures, rate: source.rate(), ..entry };
    let key = Keys::new(manifest.application_id.clone(), archive).key(object.kind);
    let entry_of_file = ObjectEntry { key, size: object.size, sha256: object.sha256.clone(), part_bytes: None };
    let manifest = Manifest {
        archive_id: archive,
        started_at: started_at.unwrap_or_else(|| manifest.started_at.clone()),
        duration_s: entry.duration_s(),
        objects: vec![entry_of_file],
        files: Vec::new(),
        composed: Some(entry),
        revision: 1,
        ..manifest
    };
    let report = Report { archive_id: archive, ..report };
    Ok(Cancellable::Done(Built { objects: vec![object], manifest, report }))
}
