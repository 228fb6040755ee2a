//! The one file of a composed archive: made by a composer, and looked at before it is an archive.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::documents::ComposedEntry;
use super::object::journal;
use super::object::{About, Object};
use super::{ArchiveError, zip};
use crate::compose::composer::{Composed, Options};
use crate::compose::geometry::Size;
use crate::compose::process;
use crate::compose::process::ChildError;
use crate::compose::thumbnails;
use crate::media::{MediaError, Pipelines, verify};
use crate::model::archive_options::{ArchiveOptions, Resolution};
use crate::model::fault::chain;
use crate::recording::LogError;
use crate::store::keys::Kind;
use crate::store::streaming_upload;

/// Pictures a second.
const RATE: u32 = 30;
/// How much of the file is decoded at each end to see that it can be.
const SAMPLE: Duration = Duration::from_secs(2);
/// The file may be longer or shorter than its pictures by this much, in nanoseconds: sound comes in blocks.
const DURATION_TOLERANCE: u64 = 50_000_000;
const NAME: &str = "archive.mp4";

/// What the event asks for, with Vonage's defaults.
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
    }
}

/// The file of the archive whose folder is `dir`.
pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join("out").join(NAME)
}

/// Composes the log in `dir`, unless a composer that followed it has done so rightly. Blocking.
pub(super) fn make(
    dir: &Path,
    followed: Option<Composed>,
    about: &About,
    pipelines: &Pipelines,
    cancel: &CancellationToken,
) -> Result<(Object, ComposedEntry), ArchiveError> {
    let path = path(dir);
    // Of a finished log the length is known.
    let options = Options {
        clip: about.clip,
        ignore_layout_history: about.ignore_layout_history,
        ..options(&about.options, Duration::ZERO)
    };
    let right = |composed: &Composed| {
        let Composed { pictures, rate, .. } = *composed;
        check(Expected { pictures, rate, video: options.video, audio: options.audio }, &path, pipelines, cancel)
    };
    let mut sent = None;
    let followed = match followed.map(|composed| right(&composed).map(|()| composed)) {
        Some(Err(ArchiveError::Cancelled)) => return Err(ArchiveError::Cancelled),
        Some(Err(error)) => {
            tracing::warn!("the file made while following the session is made again: {}", chain(&error));
            None
        }
        Some(Ok(composed)) => {
            sent = streaming_upload::parts(&journal(&path), &path).map_err(LogError::from)?;
            Some(composed)
        }
        None => None,
    };
    let composed = match followed {
        Some(composed) => composed,
        None => {
            let run = process::run(dir, &path, &options, pipelines, None, cancel);
            let composed = run.map_err(|error| match error {
                ChildError::Cancelled => ArchiveError::Cancelled,
                error => ArchiveError::Composer(error),
            })?;
            right(&composed)?;
            composed
        }
    };
    let (sha256, size) = match &sent {
        Some(parts) => (parts.composite(), std::fs::metadata(&path).map_err(ArchiveError::io("read", &path))?.len()),
        None => zip::sha256(&path)?,
    };
    let entry = ComposedEntry {
        width: options.size.width,
        height: options.size.height,
        rate: composed.rate,
        start_ms: composed.start.as_millis(),
        pictures: composed.pictures,
        errors: composed
            .errors
            .iter()
            .map(|(stream, kind, errors)| (*stream, *kind, errors.decoder, errors.skipped))
            .collect(),
    };
    Ok((Object { kind: Kind::Mp4, path, size, sha256, parts: sent }, entry))
}

/// The small pictures that the composer has put beside the file, if it could.
pub(super) fn stills(dir: &Path) -> Result<Vec<Object>, ArchiveError> {
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

/// What a composed file must be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    pub pictures: u64,
    /// Pictures a second.
    pub rate: u32,
    pub video: bool,
    pub audio: bool,
}

/// A composed file that lies at `path`, if it is right.
pub(crate) fn checked(
    expected: Expected,
    path: PathBuf,
    pipelines: &Pipelines,
    cancel: &CancellationToken,
) -> Result<Object, ArchiveError> {
    check(expected, &path, pipelines, cancel)?;
    let (sha256, size) = zip::sha256(&path)?;
    Ok(Object { kind: Kind::Mp4, path, size, sha256, parts: None })
}

fn check(
    expected: Expected,
    path: &Path,
    pipelines: &Pipelines,
    cancel: &CancellationToken,
) -> Result<(), ArchiveError> {
    let invalid = |what: String| ArchiveError::Invalid { file: NAME.to_owned(), what };
    let media = |source| match source {
        MediaError::Cancelled => ArchiveError::Cancelled,
        source => ArchiveError::Media { file: NAME.to_owned(), source },
    };
    let (first, last) = verify::decode_ends(path, SAMPLE, pipelines, cancel).map_err(media)?;
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
    Ok(())
}
