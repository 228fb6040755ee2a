//! From a log's tracks to the files that are made of them.
//!
//! One file a stream, unless its format changes in a way that no muxer can follow (another codec; other
//! parameter sets of H.264; another AV1 sequence): then a further file, as Vonage has them after a reconnect.

use std::collections::BTreeMap;

use crate::capture::clock::Correction;
use crate::capture::log::reader::{LogItem, TrackIndex};
use crate::capture::types::{Codec, Frame, TrackFormat};
use crate::ids::{StreamId, TrackId, TrackKind};
use crate::media::mux::{FrameSource, MuxInput, is_webm};
use crate::time::MediaTime;

/// What becomes one file.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub stream: StreamId,
    pub name: String,
    pub video: Option<Run>,
    pub audio: Option<Run>,
    pub start: MediaTime,
    pub end: MediaTime,
}

/// Segments of one track that go into one file, cut to a span of corrected time.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub index: TrackIndex,
    pub correction: Correction,
    pub format: TrackFormat,
    from: MediaTime,
    to: MediaTime,
}

impl Run {
    /// Frames that should come out, before frames that two epochs have are told apart.
    pub fn frames_expected(&self) -> u64 {
        self.index.frames_total()
    }

    fn source(&self) -> FrameSource {
        let (correction, from, to) = (self.correction.clone(), self.from, self.to);
        Box::new(self.index.frames().filter_map(move |item| match item {
            LogItem::Format(_) => None,
            LogItem::Frame(frame) => {
                let pts = correction.apply(frame.pts);
                (pts >= from && pts < to).then_some(Frame { pts, ..frame })
            }
        }))
    }

    /// Whether its first frame is not later than this.
    pub fn begins_by(&self, at: MediaTime) -> bool {
        self.first().is_some_and(|first| first <= at)
    }

    fn first(&self) -> Option<MediaTime> {
        self.index.start().map(|t| self.correction.apply(t).max(self.from))
    }

    fn last(&self) -> Option<MediaTime> {
        self.index.end().map(|t| self.correction.apply(t).min(self.to))
    }
}

impl Plan {
    pub fn input(&self) -> MuxInput {
        let track = |run: &Option<Run>| run.as_ref().map(|run| (run.format.clone(), run.source()));
        MuxInput { video: track(&self.video), audio: track(&self.audio), start: self.start }
    }

    pub fn codec(run: &Option<Run>) -> Option<Codec> {
        run.as_ref().map(|run| run.format.codec)
    }
}

/// Whether a muxer can go on from one format to the other within one track.
fn goes_on(a: &TrackFormat, b: &TrackFormat) -> bool {
    a.codec == b.codec && (matches!(a.codec, Codec::Vp8 | Codec::Vp9) || a == b)
}

/// The runs of a track's segments that fit one muxer track each.
fn runs(track: &TrackIndex) -> Vec<TrackIndex> {
    let mut runs: Vec<TrackIndex> = Vec::new();
    for segment in track.segments.iter().filter(|s| !s.parts.is_empty()) {
        match runs.last_mut() {
            Some(run) if run.segments.last().is_some_and(|s| goes_on(&s.format, &segment.format)) => {
                run.segments.push(segment.clone());
            }
            _ => {
                let mut run = track.clone();
                run.segments = vec![segment.clone()];
                runs.push(run);
            }
        }
    }
    runs
}

/// The files of all streams.
pub(super) fn plan(tracks: &[TrackIndex], corrections: &BTreeMap<TrackId, Correction>) -> Vec<Plan> {
    let mut streams: BTreeMap<StreamId, [Vec<TrackIndex>; 2]> = BTreeMap::new();
    for track in tracks {
        let slot = usize::from(track.track.kind == TrackKind::Audio);
        streams.entry(track.track.stream).or_default()[slot] = runs(track);
    }
    streams.into_iter().flat_map(|(stream, [video, audio])| files(stream, &video, &audio, corrections)).collect()
}

fn files(
    stream: StreamId,
    video: &[TrackIndex],
    audio: &[TrackIndex],
    corrections: &BTreeMap<TrackId, Correction>,
) -> Vec<Plan> {
    let correction = |index: &TrackIndex| corrections.get(&index.track).cloned().unwrap_or_default();
    // Cuts are where either track's format changes.
    let begins = |runs: &[TrackIndex]| -> Vec<MediaTime> {
        runs.iter().skip(1).filter_map(|r| r.start().map(|t| correction(r).apply(t))).collect()
    };
    let mut cuts = begins(video);
    cuts.extend(begins(audio));
    cuts.sort_unstable();
    cuts.dedup();
    let mut edges = vec![MediaTime(i64::MIN)];
    edges.extend(cuts);
    edges.push(MediaTime(i64::MAX));
    let within = |runs: &[TrackIndex], from: MediaTime, to: MediaTime| -> Option<Run> {
        // The last one that fits: the end of the run before is an estimate, and may lie within this span.
        runs.iter().rev().find_map(|index| {
            let correction = correction(index);
            let (first, last) = (correction.apply(index.start()?), correction.apply(index.end()?));
            let format = index.segments.first()?.format.clone();
            (first < to && last > from).then(|| Run { index: index.clone(), correction, format, from, to })
        })
    };
    let mut plans: Vec<Plan> = Vec::new();
    for span in edges.windows(2) {
        let (video, audio) = (within(video, span[0], span[1]), within(audio, span[0], span[1]));
        let starts = [&video, &audio].into_iter().flatten().filter_map(Run::first).min();
        let ends = [&video, &audio].into_iter().flatten().filter_map(Run::last).max();
        let (Some(start), Some(end)) = (starts, ends) else { continue };
        let extension = if is_webm(Plan::codec(&video), Plan::codec(&audio)) { "webm" } else { "mkv" };
        let name = match plans.len() {
            0 => format!("{stream}.{extension}"),
            n => format!("{stream}-{n}.{extension}"),
        };
        plans.push(Plan { stream, name, video, audio, start, end });
    }
    plans
}
