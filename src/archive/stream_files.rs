//! The files of one stream: muxed, verified, and where no muxer or decoder takes a track, kept as captured.

use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::documents::FileEntry;
use super::individual::Plan;
use super::object::ArchiveDescriptor;
use super::{ArchiveError, zip};
use crate::compose::verifier::{self, VerifierError};
use crate::media::mux::{self, Muxed};
use crate::media::verify::Inspection;
use crate::media::{MediaError, Pipelines};
use crate::model::cancellable::Cancellable;
use crate::model::fault::chain;
use crate::model::ids::TrackKind;
use crate::model::time::MediaTime;
use crate::recording::reader::join;

/// How much of the beginning of each file is decoded to see that it can be.
const SAMPLE: std::time::Duration = std::time::Duration::from_secs(2);
/// A track that begins in the first half of it, in nanoseconds, must have something that can be decoded.
const HALF_SAMPLE: i64 = 1_000_000_000;
/// A file may be longer or shorter than its frames, and its last frame earlier or later, by this much, in nanoseconds.
const TOLERANCE: u64 = 20_000_000;

/// Makes the files of streams. A simulation makes others than GStreamer.
pub trait StreamFiles: Send + Sync {
    /// Makes the files of a plan in the folder `out`. Blocking.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    fn build(
        &self,
        plan: &Plan,
        out: &Path,
        descriptor: &ArchiveDescriptor,
        cancel: &CancellationToken,
    ) -> Result<Cancellable<Vec<FileEntry>>, ArchiveError>;
}

impl StreamFiles for Pipelines {
    fn build(
        &self,
        plan: &Plan,
        out: &Path,
        descriptor: &ArchiveDescriptor,
        cancel: &CancellationToken,
    ) -> Result<Cancellable<Vec<FileEntry>>, ArchiveError> {
        build_files(plan, out, descriptor, self, cancel)
    }
}

/// What building the files of a stream needs.
struct Builder<'a> {
    out: &'a Path,
    descriptor: &'a ArchiveDescriptor,
    pipelines: &'a Pipelines,
    cancel: &'a CancellationToken,
}

/// Makes the file of a plan in `out`. If the file cannot be made or does not play, each track becomes a file of its own, and a track that does
/// not play alone is kept as captured: one track's media must neither fail the archive of the others, nor be lost.
///
/// # Errors
/// See [`ArchiveError`].
fn build_files(
    plan: &Plan,
    out: &Path,
    descriptor: &ArchiveDescriptor,
    pipelines: &Pipelines,
    cancel: &CancellationToken,
) -> Result<Cancellable<Vec<FileEntry>>, ArchiveError> {
    let builder = Builder { out, descriptor, pipelines, cancel };
    let error = match builder.playable(plan) {
        Ok(made) => return Ok(made.map(|entry| vec![entry])),
        Err(error) if is_about_the_media(&error) => error,
        Err(error) => return Err(error),
    };
    if plan.video.is_none() || plan.audio.is_none() {
        return Ok(Cancellable::Done(vec![builder.as_captured(plan, &error)?]));
    }
    let mut files: Vec<FileEntry> = Vec::new();
    for kind in [TrackKind::Video, TrackKind::Audio] {
        // The first file that plays has the plan's name.
        let mut alone = plan.track(kind, files.iter().all(|file| file.raw));
        files.push(match builder.playable(&alone) {
            Ok(Cancellable::Done(entry)) => entry,
            Ok(Cancellable::Cancelled) => return Ok(Cancellable::Cancelled),
            Err(error) if is_about_the_media(&error) => {
                alone = plan.track(kind, false);
                builder.as_captured(&alone, &error)?
            }
            Err(error) => return Err(error),
        });
    }
    Ok(Cancellable::Done(files))
}

/// Whether the media is the cause, and not a disk that is full, or a log that cannot be read. A verifier that died or stalled at each try
/// counts as caused by the media: the file is then kept as captured.
const fn is_about_the_media(error: &ArchiveError) -> bool {
    matches!(
        error,
        ArchiveError::Invalid { .. }
            | ArchiveError::Media { source: MediaError::Element { .. }, .. }
            | ArchiveError::Verifier {
                source: VerifierError::BadFile(_) | VerifierError::Died(_) | VerifierError::Stalled(_),
                ..
            }
    )
}

impl Builder<'_> {
    /// Muxes and verifies the file of a plan.
    fn playable(&self, plan: &Plan) -> Result<Cancellable<FileEntry>, ArchiveError> {
        let path = self.out.join(&plan.name);
        let muxed = mux::mux(plan.input(), &path, self.pipelines, self.cancel).map_err(|e| media(plan, e))?;
        let Cancellable::Done(muxed) = muxed else { return Ok(Cancellable::Cancelled) };
        match self.check(plan, &muxed, &path)? {
            Cancellable::Done(()) => self.entry(plan, &muxed, false).map(Cancellable::Done),
            Cancellable::Cancelled => Ok(Cancellable::Cancelled),
        }
    }

    /// Writes the log's segments as they are.
    fn as_captured(&self, plan: &Plan, error: &ArchiveError) -> Result<FileEntry, ArchiveError> {
        let ArchiveDescriptor { job, archive, .. } = self.descriptor;
        tracing::warn!(%job, %archive, file = plan.name, "kept as captured: {}", chain(error));
        let path = self.out.join(&plan.name);
        let mut file = std::fs::File::create(&path).map_err(ArchiveError::io("created", &path))?;
        for run in [&plan.video, &plan.audio].into_iter().flatten() {
            join(&run.index, run.segments(), &mut file)?;
        }
        self.entry(plan, &Muxed::default(), true)
    }

    fn entry(&self, plan: &Plan, muxed: &Muxed, raw: bool) -> Result<FileEntry, ArchiveError> {
        let (sha256, size) = zip::sha256(&self.out.join(&plan.name))?;
        Ok(FileEntry {
            name: plan.name.clone(),
            stream_id: plan.stream,
            size,
            sha256,
            start_ms: plan.start.as_millis(),
            end_ms: muxed.end().unwrap_or(plan.end).as_millis(),
            video: Plan::codec(&plan.video),
            audio: Plan::codec(&plan.audio),
            video_frames: muxed.video.frames,
            audio_frames: muxed.audio.frames,
            raw,
        })
    }

    /// Verifies that a player finds in the file what was muxed.
    fn check(&self, plan: &Plan, muxed: &Muxed, path: &Path) -> Result<Cancellable<()>, ArchiveError> {
        let invalid = |what: String| ArchiveError::Invalid { file: plan.name.clone(), what };
        let ArchiveDescriptor { job, archive, .. } = self.descriptor;
        let retried = |error: &VerifierError| {
            tracing::warn!(%job, %archive, file = plan.name, "verifying is tried again: {}", chain(error));
        };
        let found = verifier::patiently(|| verifier::inspect(path, SAMPLE, self.pipelines, self.cancel), retried);
        let found = found.map_err(|source| ArchiveError::Verifier { file: plan.name.clone(), source })?;
        let Cancellable::Done(found) = found else { return Ok(Cancellable::Cancelled) };
        for (track, codec, fed, what) in [
            (found.video, Plan::codec(&plan.video), muxed.video.frames, "pictures"),
            (found.audio, Plan::codec(&plan.audio), muxed.audio.frames, "frames of sound"),
        ] {
            let track_found = track.unwrap_or_default();
            if track_found.frames != fed {
                return Err(invalid(format!("it has {} {what} of {fed}", track_found.frames)));
            }
            if track.is_some_and(|track| track.codec != codec) {
                return Err(invalid(format!("its {what} are {:?} instead of {codec:?}", track_found.codec)));
            }
        }
        if muxed.video.frames > 0 {
            Self::check_sync_points(&found).map_err(invalid)?;
        }
        let times = || [muxed.video, muxed.audio].into_iter().filter_map(|track| track.times);
        let (last, end) = (times().map(|t| t.last).max(), times().map(|t| t.end).max());
        let last_ns = [found.video, found.audio].into_iter().flatten().map(|track| track.last_ns).max().unwrap_or(0);
        for (found, expected, what) in [(last_ns, last, "its last frame is at"), (found.duration_ns, end, "it lasts")] {
            let expected = expected.map_or(0, |at| nanoseconds(plan.start, at));
            if found.abs_diff(expected) > TOLERANCE {
                return Err(invalid(format!("{what} {} ms instead of {} ms", found / 1_000_000, expected / 1_000_000)));
            }
        }
        for (track, count, what) in [
            (muxed.video, found.beginning.video_frames, "picture"),
            (muxed.audio, found.beginning.audio_buffers, "sound"),
        ] {
            let begins = track.times.is_some_and(|times| times.first <= plan.start + HALF_SAMPLE);
            if begins && track.frames > 2 && count == 0 {
                return Err(invalid(format!("no {what} can be decoded")));
            }
        }
        Ok(Cancellable::Done(()))
    }

    /// The file begins with a keyframe that decodes. A sender may have damaged others: a file is wrong if most of them do not decode.
    fn check_sync_points(found: &Inspection) -> Result<(), String> {
        if !found.video.is_some_and(|video| video.begins_with_keyframe) {
            return Err("its first picture is no keyframe".to_owned());
        }
        let (all, good) = (found.sync_points.len(), found.sync_points.iter().filter(|decodes| **decodes).count());
        match found.sync_points.first() {
            Some(true) if 2 * good >= all => Ok(()),
            Some(true) => Err(format!("{good} of {all} keyframes can be decoded")),
            _ => Err("its first picture cannot be decoded".to_owned()),
        }
    }
}

fn nanoseconds(from: MediaTime, to: MediaTime) -> u64 {
    u64::try_from(to - from).unwrap_or(0)
}

fn media(plan: &Plan, source: MediaError) -> ArchiveError {
    ArchiveError::Media { file: plan.name.clone(), source }
}
