//! What stands for the muxers: a file with a line for each frame.

use std::fmt::Write;
use std::path::Path;

use archiver::archive::documents::FileEntry;
use archiver::archive::object::ArchiveDescriptor;
use archiver::archive::{ArchiveError, Plan, Run, StreamFiles};
use archiver::model::cancellable::Cancellable;
use archiver::model::ids::TrackKind;
use archiver::model::time::MediaTime;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::publishers::FrameId;

/// A frame of an archive, and its media time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchivedFrame {
    /// Which.
    pub frame: FrameId,
    /// Its time.
    pub pts: MediaTime,
}

/// Makes files of text.
#[derive(Debug, Clone, Copy)]
pub(super) struct TextFiles;

impl StreamFiles for TextFiles {
    fn build(
        &self,
        plan: &Plan,
        out: &Path,
        _: &ArchiveDescriptor,
        _: &CancellationToken,
    ) -> Result<Cancellable<Vec<FileEntry>>, ArchiveError> {
        let mut text = String::new();
        let mut counts = [0; 2];
        for (count, kind, run) in
            [(0, TrackKind::Audio, &plan.audio), (1, TrackKind::Video, &plan.video)].into_iter().filter_map(of_track)
        {
            for frame in run.source() {
                counts[count] += 1;
                let line = match FrameId::read(kind, &frame.data) {
                    Some(FrameId { publication, n, .. }) => {
                        format!("{} {publication} {n} {}", kind.as_str(), frame.pts.0)
                    }
                    None => "damaged".to_owned(),
                };
                writeln!(text, "{line}").expect("a string takes everything");
            }
        }
        let path = out.join(&plan.name);
        std::fs::write(&path, &text).map_err(|source| ArchiveError::Io {
            doing: "written",
            path: path.display().to_string(),
            source,
        })?;
        Ok(Cancellable::Done(vec![FileEntry {
            name: plan.name.clone(),
            stream_id: plan.stream,
            size: text.len() as u64,
            sha256: STANDARD.encode(Sha256::digest(&text)),
            start_ms: plan.start.as_millis(),
            end_ms: plan.end.as_millis(),
            video: None,
            audio: None,
            video_frames: counts[1],
            audio_frames: counts[0],
            raw: false,
        }]))
    }
}

type TrackOfPlan<'a> = (usize, TrackKind, &'a Option<Run>);

fn of_track((count, kind, run): TrackOfPlan<'_>) -> Option<(usize, TrackKind, &Run)> {
    run.as_ref().map(|run| (count, kind, run))
}

/// Reads such a file. A line that is none says so.
pub(super) fn read(text: &str) -> Result<Vec<ArchivedFrame>, String> {
    let frame = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [kind, publication, n, pts] = words[..] else { return None };
        let kind = if kind == "audio" { TrackKind::Audio } else { TrackKind::Video };
        let frame = FrameId { publication: publication.parse().ok()?, kind, n: n.parse().ok()? };
        Some(ArchivedFrame { frame, pts: MediaTime(pts.parse().ok()?) })
    };
    text.lines().map(|line| frame(line).ok_or_else(|| line.to_owned())).collect()
}
