//! The files of one stream: muxed, verified, and where no muxer or decoder takes a track, kept as captured.

use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::documents::FileEntry;
use super::individual::Plan;
use super::object::ArchiveDescriptor;
use super::{ArchiveError, zip};
use crate::media::mux::{self, Muxed};
use crate::media::{MediaError, Pipelines, verify};
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
/// Verifying stalls on a machine that is busy: a file is given up only after so many times.
const VERIFY_TRIES: u32 = 3;

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
pub(super) fn build_files(
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

/// Whether the media is the cause, and not a disk that is full, a log that cannot be read, or a machine that is too slow.
const fn is_about_the_media(error: &ArchiveError) -> bool {
    matches!(error, ArchiveError::Invalid { .. } | ArchiveError::Media { source: MediaError::Element { .. }, .. })
}

impl Builder<'_> {
    /// Muxes and verifies the file of a plan.
    fn playable(&self, plan: &Plan) -> Result<Cancellable<FileEntry>, ArchiveError> {
        let path = self.out.join(&plan.name);
        let muxed = mux::mux(plan.input(), &path, self.pipelines, self.cancel).map_err(|e| media(plan, e))?;
        let Cancellable::Done(muxed) = muxed else { return Ok(Cancellable::Cancelled) };
        match self.check_patiently(plan, &muxed, &path)? {
            Cancellable::Done(()) => self.entry(plan, &muxed, false).map(Cancellable::Done),
            Cancellable::Cancelled => Ok(Cancellable::Cancelled),
        }
    }

    /// Verifies a file, again if a reader stalls in it.
    fn check_patiently(&self, plan: &Plan, muxed: &Muxed, path: &Path) -> Result<Cancellable<()>, ArchiveError> {
        for _ in 0..VERIFY_TRIES {
            match self.check(plan, muxed, path) {
                Err(ArchiveError::Media { source: stalled @ MediaError::Stalled { .. }, .. }) => {
                    let archive = self.descriptor.archive;
                    tracing::warn!(%archive, file = plan.name, "verifying is tried again: {}", chain(&stalled));
                }
                other => return other,
            }
        }
        let what = format!("reading it stalled {VERIFY_TRIES} times");
        Err(ArchiveError::Invalid { file: plan.name.clone(), what })
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
        let counted = verify::count(path, self.pipelines, self.cancel).map_err(|e| media(plan, e))?;
        let Cancellable::Done(counted) = counted else { return Ok(Cancellable::Cancelled) };
        for (found, fed, what) in [
            (counted.video_frames, muxed.video.frames, "pictures"),
            (counted.audio_buffers, muxed.audio.frames, "frames of sound"),
        ] {
            if found != fed {
                return Err(invalid(format!("it has {found} {what} of {fed}")));
            }
        }
        if muxed.video.frames > 0 && !counted.begins_with_keyframe {
            return Err(invalid("its first picture is no keyframe".to_owned()));
        }
        let times = || [muxed.video, muxed.audio].into_iter().filter_map(|track| track.times);
        let (last, end) = (times().map(|t| t.last).max(), times().map(|t| t.end).max());
        for (found, expected, what) in
            [(counted.last_ns, last, "its last frame is at"), (counted.duration_ns, end, "it lasts")]
        {
            let expected = expected.map_or(0, |at| nanoseconds(plan.start, at));
            if found.abs_diff(expected) > TOLERANCE {
                return Err(invalid(format!("{what} {} ms instead of {} ms", found / 1_000_000, expected / 1_000_000)));
            }
        }
        let decoded = verify::decode(path, Some(SAMPLE), self.pipelines, self.cancel).map_err(|e| media(plan, e))?;
        let Cancellable::Done(decoded) = decoded else { return Ok(Cancellable::Cancelled) };
        for (track, count, what) in
            [(muxed.video, decoded.video_frames, "picture"), (muxed.audio, decoded.audio_buffers, "sound")]
        {
            let begins = track.times.is_some_and(|times| times.first <= plan.start + HALF_SAMPLE);
            if begins && track.frames > 2 && count == 0 {
                return Err(invalid(format!("no {what} can be decoded")));
            }
        }
        Ok(Cancellable::Done(()))
    }
}

fn nanoseconds(from: MediaTime, to: MediaTime) -> u64 {
    u64::try_from(to - from).unwrap_or(0)
}

fn media(plan: &Plan, source: MediaError) -> ArchiveError {
    ArchiveError::Media { file: plan.name.clone(), source }
}
