//! The file of a composed archive: made by a composer, and checked before it becomes an archive.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::documents::ComposedEntry;
use super::object::{ArchiveDescriptor, Object, journal};
use super::{ArchiveError, zip};
use crate::compose::composer::{Composed, Options};
use crate::compose::geometry::Size;
use crate::compose::process;
use crate::compose::thumbnails;
use crate::compose::verifier::{self, VerifierError};
use crate::media::Pipelines;
use crate::model::archive_options::{ArchiveOptions, Resolution};
use crate::model::cancellable::Cancellable;
use crate::model::fault::chain;
use crate::model::ids::{StreamId, TrackId, TrackKind};
use crate::model::time::MediaSpan;
use crate::recording::{LogError, history, spool};
use crate::store::keys::Kind;
use crate::store::streaming_upload;

/// Frames a second.
const RATE: u32 = 30;
/// How much of the file is decoded at each end to see that it can be.
const SAMPLE: Duration = Duration::from_secs(2);
/// The file may be longer or shorter than its frames by this much, in nanoseconds: audio comes in blocks.
const DURATION_TOLERANCE: u64 = 50_000_000;
const NAME: &str = "archive.mp4";

/// The options that the event requests, with Vonage's defaults.
pub(crate) fn options(wanted: &ArchiveOptions, longest: Duration) -> Options {
    let (width, height) = wanted.resolution.unwrap_or(Resolution::Sd).size();
    let layout = wanted.layout.clone().unwrap_or_default();
    Options {
        size: Size::new(width, height),
        rate: RATE,
        layout,
        video: wanted.has_video,
        audio: wanted.has_audio,
        quantizer: wanted.quantization_parameter,
        bitrate_max: wanted.max_bitrate,
        seconds_max: longest.as_secs(),
        clip: None,
        ignore_layout_history: false,
        excluded: BTreeSet::new(),
    }
}

/// The file of the archive whose folder is `dir`.
pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join(spool::BUILT).join(NAME)
}

/// A composed archive's file.
pub(super) struct ComposedFile {
    pub object: Object,
    pub entry: ComposedEntry,
    /// Tracks that are not in it because they cannot be decoded.
    pub undecodable: BTreeSet<TrackId>,
}

/// Composes the log in `dir`, unless the file of a composer that followed the session is valid. `tracks` are those of the log;
/// `offset` is that of the session's reports. Blocking.
pub(super) fn build_composed(
    dir: &Path,
    live_output: Option<Composed>,
    descriptor: &ArchiveDescriptor,
    tracks: &BTreeSet<TrackId>,
    offset: Option<MediaSpan>,
    pipelines: &Pipelines,
    cancel: &CancellationToken,
) -> Result<Cancellable<ComposedFile>, ArchiveError> {
    let path = path(dir);
    // Of a finished log the length is known.
    let options = Options {
        clip: descriptor.clip,
        ignore_layout_history: descriptor.ignore_layout_history,
        ..options(&descriptor.options, Duration::ZERO)
    };
    let check_composed = |composed: &Composed| {
        let Composed { pictures, rate, .. } = *composed;
        check(Expected { pictures, rate, video: options.video, audio: options.audio }, &path, pipelines, cancel)
    };
    let (mut sent, followed) = (None, live_output.is_some());
    let live_output = match live_output.map(|composed| (check_composed(&composed), composed)) {
        Some((Ok(Cancellable::Done(())), composed)) => {
            sent = streaming_upload::parts(&journal(&path), &path).map_err(LogError::from)?;
            Some(composed)
        }
        Some((Ok(Cancellable::Cancelled), _)) => return Ok(Cancellable::Cancelled),
        Some((Err(error), _)) => {
            tracing::warn!("the file made while following the session is made again: {}", chain(&error));
            None
        }
        None => None,
    };
    let composed = match live_output {
        Some(composed) => composed,
        None => {
            let composed = process::run(dir, &path, &options, pipelines, None, cancel)?;
            let Cancellable::Done(composed) = composed else { return Ok(Cancellable::Cancelled) };
            let Cancellable::Done(()) = check_composed(&composed)? else { return Ok(Cancellable::Cancelled) };
            composed
        }
    };
    let encrypted: BTreeSet<StreamId> = history::encrypted(&history::read(dir)?).collect();
    let of_encrypted: BTreeSet<TrackId> =
        tracks.iter().copied().filter(|track| encrypted.contains(&track.stream)).collect();
    let has_audio = |tracks: &BTreeSet<TrackId>| tracks.iter().any(|track| track.kind == TrackKind::Audio);
    // A composer that follows a session may have mixed sound before the router said what it is.
    let has_noise = has_audio(&composed.undecodable) || followed && has_audio(&of_encrypted);
    let undecodable: BTreeSet<TrackId> = composed.undecodable.union(&of_encrypted).copied().collect();
    if !undecodable.is_empty() && undecodable.is_superset(tracks) {
        return Err(ArchiveError::Undecodable);
    }
    let composed = if has_noise {
        // A stream whose pictures alone are damaged is still heard.
        let audio = undecodable.iter().filter(|track| track.kind == TrackKind::Audio);
        let excluded: BTreeSet<StreamId> = audio.map(|track| track.stream).collect();
        let ArchiveDescriptor { job, archive, .. } = descriptor;
        tracing::warn!(%job, %archive, ?excluded, "the composed file is made again without streams that cannot be decoded");
        sent = None;
        let again = Options { excluded, ..options.clone() };
        let composed = process::run(dir, &path, &again, pipelines, None, cancel)?;
        let Cancellable::Done(composed) = composed else { return Ok(Cancellable::Cancelled) };
        let Cancellable::Done(()) = check_composed(&composed)? else { return Ok(Cancellable::Cancelled) };
        composed
    } else {
        composed
    };
    let (sha256, size) = match &sent {
        Some(parts) => (parts.composite(), std::fs::metadata(&path).map_err(ArchiveError::io("read", &path))?.len()),
        None => zip::sha256(&path)?,
    };
    let entry = ComposedEntry {
        width: options.size.width,
        height: options.size.height,
        rate: composed.rate,
        late_frames: composed.late,
        start_ms: composed.start_by(offset).as_millis(),
        pictures: composed.pictures,
        errors: composed
            .errors
            .iter()
            .map(|(stream, kind, errors)| (*stream, *kind, errors.decoder, errors.skipped))
            .collect(),
    };
    let object = Object { kind: Kind::Mp4, path, size, sha256, parts: sent };
    Ok(Cancellable::Done(ComposedFile { object, entry, undecodable }))
}

/// The thumbnails that the composer wrote beside the file, if it could.
pub(super) fn thumbnail_objects(dir: &Path) -> Result<Vec<Object>, ArchiveError> {
    let mut objects = Vec::new();
    for (path, kind) in
        thumbnails::paths(&path(dir)).into_iter().zip([Kind::Thumbnail, Kind::Sprite, Kind::SpriteIndex])
    {
        if path.exists() {
            let (sha256, size) = zip::sha256(&path)?;
            objects.push(Object { kind, path, size, sha256, parts: None });
        }
    }
    Ok(objects)
}

/// Expected properties of a composed file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    pub pictures: u64,
    /// Pictures a second.
    pub rate: u32,
    pub video: bool,
    pub audio: bool,
}

/// The composed file at `path`, if it is valid.
pub(crate) fn verified_object(
    expected: Expected,
    path: PathBuf,
    pipelines: &Pipelines,
    cancel: &CancellationToken,
) -> Result<Cancellable<Object>, ArchiveError> {
    let checked = check(expected, &path, pipelines, cancel)?;
    let Cancellable::Done(()) = checked else { return Ok(Cancellable::Cancelled) };
    let (sha256, size) = zip::sha256(&path)?;
    Ok(Cancellable::Done(Object { kind: Kind::Mp4, path, size, sha256, parts: None }))
}

fn check(
    expected: Expected,
    path: &Path,
    pipelines: &Pipelines,
    cancel: &CancellationToken,
) -> Result<Cancellable<()>, ArchiveError> {
    let invalid = |what: String| ArchiveError::Invalid { file: NAME.to_owned(), what };
    let failed = |source| ArchiveError::Verifier { file: NAME.to_owned(), source };
    let retried = |error: &VerifierError| tracing::warn!(file = NAME, "verifying is tried again: {}", chain(error));
    let decoded = verifier::patiently(|| verifier::decode_ends(path, SAMPLE, pipelines, cancel), retried);
    let decoded = decoded.map_err(failed)?;
    let Cancellable::Done((first, last)) = decoded else { return Ok(Cancellable::Cancelled) };
    let lasts = expected.pictures * 1_000_000_000 / u64::from(expected.rate.max(1));
    if first.duration_ns.abs_diff(lasts) > DURATION_TOLERANCE {
        let ms = |ns: u64| ns / 1_000_000;
        return Err(invalid(format!("it lasts {} ms instead of {} ms", ms(first.duration_ns), ms(lasts))));
    }
    for (place, decoded) in [("beginning", first), ("end", last)] {
        if (expected.video && decoded.video_frames == 0) || (expected.audio && decoded.audio_buffers == 0) {
            return Err(invalid(format!("its picture or its sound cannot be decoded at its {place}")));
        }
    }
    Ok(Cancellable::Done(()))
}
