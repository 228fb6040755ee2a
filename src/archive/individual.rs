//! From a log's tracks to the files that are made of them.
//!
//! One file a stream, unless its format changes in a way that no muxer can follow (another codec, another AV1 sequence): then a further
//! file, as Vonage has them after a reconnect.

use std::collections::BTreeMap;

use crate::compose::timeline::selections;
use crate::media::mux::{MuxInput, MuxTrack, is_webm};
use crate::model::archive_options::ArchiveOptions;
use crate::model::desired::Selection;
use crate::model::ids::{StreamId, TrackId, TrackKind};
use crate::model::media::{Codec, Frame, TrackFormat};
use crate::model::time::{MediaSpan, MediaTime};
use crate::recording::frames::LogItem;
use crate::recording::history::Event;
use crate::recording::reader::{SegmentIndex, TrackIndex};
use crate::rtp::clock::Correction;
use crate::rtp::depacketize::h264;

/// A last frame lasts as long as the one before it, but no longer than this.
const LAST_FRAME_MAX: MediaSpan = 100_000_000;

/// The media of one file.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its stream.
    pub stream: StreamId,
    /// The file's name.
    pub name: String,
    /// The picture.
    pub video: Option<Run>,
    /// The sound.
    pub audio: Option<Run>,
    /// Start of its first frame, in corrected time.
    pub start: MediaTime,
    /// End of its last frame.
    pub end: MediaTime,
}

/// Segments of one track that go into one file, cut to a span of corrected time.
#[derive(Debug, Clone)]
pub struct Run {
    pub(super) index: TrackIndex,
    pub(super) correction: Correction,
    pub(super) format: TrackFormat,
    from: MediaTime,
    to: MediaTime,
    /// Whether a selection cut it: at any frame, not where a format begins.
    is_trimmed: bool,
    frames: FrameSpan,
}

/// The frames of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FrameSpan {
    first: MediaTime,
    end: MediaTime,
}

impl Run {
    /// The part of a track's run that lies in a span, if any does.
    fn within(
        index: &TrackIndex,
        correction: Correction,
        (from, to): (MediaTime, MediaTime),
        is_trimmed: bool,
    ) -> Option<Self> {
        let (first, end) = (correction.apply(index.start()?), correction.apply(index.end()?));
        if first >= to || end <= from {
            return None;
        }
        let format = index.segments.first()?.format.clone();
        // As the index has it, before frames that two epochs have are told apart.
        let frames = FrameSpan { first: first.max(from), end: end.min(to) };
        let run = Self { index: index.clone(), correction, format, from, to, is_trimmed, frames };
        match is_trimmed {
            false => Some(run),
            true => frame_span(run.source()).map(|frames| Self { frames, ..run }),
        }
    }

    /// Its segments, all within the span.
    pub(super) fn segments(&self) -> std::ops::Range<usize> {
        let segments = &self.index.segments;
        if !self.is_trimmed {
            return 0..segments.len();
        }
        let within = |segment: &SegmentIndex| {
            let at = |time| self.correction.apply(time);
            segment.parts.iter().all(|part| at(part.from) >= self.from && at(part.to) <= self.to)
        };
        let first = segments.iter().position(within).unwrap_or(segments.len());
        first..first + segments[first..].iter().take_while(|segment| within(segment)).count()
    }

    /// Its frames, in decoding order and at corrected times.
    pub fn source(&self) -> impl Iterator<Item = Frame> + Send + use<> {
        let (correction, from, to) = (self.correction.clone(), self.from, self.to);
        // Frames before the first keyframe of a trimmed span refer to frames that are not in the file.
        let mut decodable = !self.is_trimmed || self.index.track.kind == TrackKind::Audio;
        let mut format = self.format.clone();
        // A frame may refer to one that comes before it and is shown after it. Where that one is cut off, so are those behind it.
        let (mut may_reorder, mut ended) = (h264::may_reorder(&format), false);
        self.index.frames().filter_map(move |item| match item {
            LogItem::Format(changed) => {
                may_reorder = h264::may_reorder(&changed);
                format = changed;
                None
            }
            LogItem::Frame(frame) => {
                let pts = correction.apply(frame.pts);
                ended |= may_reorder && pts >= to;
                let within = pts >= from && pts < to && !ended;
                decodable |= within && frame.keyframe;
                let data = if frame.keyframe { h264::with_parameter_sets(&format, frame.data) } else { frame.data };
                (within && decodable).then_some(Frame { pts, data, ..frame })
            }
        })
    }
}

/// Reads all frames: the index has no exact times for a trimmed run.
fn frame_span(mut source: impl Iterator<Item = Frame>) -> Option<FrameSpan> {
    let first = source.next()?.pts;
    // Of the frames that are shown last.
    let (mut last, mut before) = (first, first);
    for frame in source {
        match frame.pts {
            pts if pts >= last => (last, before) = (pts, last),
            pts => before = before.max(pts),
        }
    }
    Some(FrameSpan { first, end: last + (last - before).clamp(0, LAST_FRAME_MAX) })
}

impl Plan {
    pub(super) fn input(&self) -> MuxInput {
        let track = |run: &Run| -> MuxTrack { (run.format.clone(), Box::new(run.source())) };
        let track = |run: &Option<Run>| run.as_ref().map(track);
        MuxInput { video: track(&self.video), audio: track(&self.audio), start: self.start }
    }

    /// A plan for one of its tracks alone. The file has this plan's name, or that name with the track's kind.
    pub(super) fn track(&self, kind: TrackKind, keeps_name: bool) -> Self {
        let (video, audio) = match kind {
            TrackKind::Video => (self.video.clone(), None),
            TrackKind::Audio => (None, self.audio.clone()),
        };
        let frames = video.as_ref().or(audio.as_ref()).map(|run| run.frames);
        let stem = self.name.rsplit_once('.').map_or(self.name.as_str(), |(stem, _)| stem);
        let addition = if keeps_name { String::new() } else { format!("-{}", kind.as_str()) };
        Self {
            stream: self.stream,
            name: format!("{stem}{addition}.{}", extension(&video, &audio)),
            start: frames.map_or(self.start, |frames| frames.first),
            end: frames.map_or(self.end, |frames| frames.end),
            video,
            audio,
        }
    }

    pub(super) fn codec(run: &Option<Run>) -> Option<Codec> {
        run.as_ref().map(|run| run.format.codec)
    }
}

fn extension(video: &Option<Run>, audio: &Option<Run>) -> &'static str {
    if is_webm(Plan::codec(video), Plan::codec(audio)) { "webm" } else { "mkv" }
}

/// Whether a muxer can go on from one format to the other within one track.
fn can_continue(a: &TrackFormat, b: &TrackFormat) -> bool {
    a.codec == b.codec && (matches!(a.codec, Codec::Vp8 | Codec::Vp9 | Codec::H264) || a == b)
}

/// The runs of a track's segments that fit one muxer track each.
fn runs(track: &TrackIndex) -> Vec<TrackIndex> {
    let mut runs: Vec<TrackIndex> = Vec::new();
    for segment in track.segments.iter().filter(|s| !s.parts.is_empty()) {
        match runs.last_mut() {
            Some(run) if run.segments.last().is_some_and(|s| can_continue(&s.format, &segment.format)) => {
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

/// Which media of a stream is in the archive, each time from when on.
fn selected(stream: StreamId, events: &[Event], options: &ArchiveOptions) -> Vec<(MediaTime, Selection)> {
    let only = |selection: Selection| Selection {
        has_audio: selection.has_audio && options.has_audio,
        has_video: selection.has_video && options.has_video,
    };
    // At the same moment the last one counts.
    let changes: BTreeMap<MediaTime, Selection> = selections(stream, events).into_iter().collect();
    let mut selected = vec![(MediaTime(i64::MIN), only(Selection::ALL))];
    for (at, selection) in changes {
        // What is said at the origin is true from the beginning; media may be a moment older.
        match selected.last_mut() {
            Some(first) if at <= MediaTime::ZERO => first.1 = only(selection),
            Some((_, before)) if *before == only(selection) => {}
            _ => selected.push((at, only(selection))),
        }
    }
    selected
}

/// The files of all streams.
pub(super) fn plan(
    tracks: &[TrackIndex],
    corrections: &BTreeMap<TrackId, Correction>,
    events: &[Event],
    options: &ArchiveOptions,
) -> Vec<Plan> {
    let mut streams: BTreeMap<StreamId, [Vec<TrackIndex>; 2]> = BTreeMap::new();
    for track in tracks {
        let slot = usize::from(track.track.kind == TrackKind::Audio);
        streams.entry(track.track.stream).or_default()[slot] = runs(track);
    }
    let files = |(stream, [video, audio]): (StreamId, [Vec<TrackIndex>; 2])| {
        files(stream, &video, &audio, corrections, &selected(stream, events, options))
    };
    streams.into_iter().flat_map(files).collect()
}

fn files(
    stream: StreamId,
    video: &[TrackIndex],
    audio: &[TrackIndex],
    corrections: &BTreeMap<TrackId, Correction>,
    selected: &[(MediaTime, Selection)],
) -> Vec<Plan> {
    let correction = |index: &TrackIndex| corrections.get(&index.track).cloned().unwrap_or_default();
    // Cuts are where either track's format changes, and where something else of the stream is wanted.
    let begins = |runs: &[TrackIndex]| -> Vec<MediaTime> {
        runs.iter().skip(1).filter_map(|r| r.start().map(|t| correction(r).apply(t))).collect()
    };
    let mut edges = begins(video);
    edges.extend(begins(audio));
    edges.extend(selected.iter().map(|(at, _)| *at));
    edges.extend([MediaTime(i64::MIN), MediaTime(i64::MAX)]);
    edges.sort_unstable();
    edges.dedup();
    let is_trimmed = selected.len() > 1;
    let within = |runs: &[TrackIndex], span: (MediaTime, MediaTime)| -> Option<Run> {
        // The last one that fits: the end of the run before is an estimate, and may lie within this span.
        runs.iter().rev().find_map(|index| Run::within(index, correction(index), span, is_trimmed))
    };
    let mut plans: Vec<Plan> = Vec::new();
    for span in edges.windows(2) {
        let span = (span[0], span[1]);
        let selection =
            selected.iter().take_while(|(at, _)| *at <= span.0).last().map_or(Selection::ALL, |(_, what)| *what);
        let video = if selection.has_video { within(video, span) } else { None };
        let audio = if selection.has_audio { within(audio, span) } else { None };
        let frames = || [&video, &audio].into_iter().flatten().map(|run| run.frames);
        let (starts, ends) = (frames().map(|frames| frames.first).min(), frames().map(|frames| frames.end).max());
        let (Some(start), Some(end)) = (starts, ends) else { continue };
        let extension = extension(&video, &audio);
        let name = match plans.len() {
            0 => format!("{stream}.{extension}"),
            n => format!("{stream}-{n}.{extension}"),
        };
        plans.push(Plan { stream, name, video, audio, start, end });
    }
    plans
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::archive_options::StreamMode;
    use crate::recording::history::EventKind;

    const FIRST: MediaTime = MediaTime(i64::MIN);
    const SOUND: Selection = Selection { has_audio: true, has_video: false };
    const PICTURE: Selection = Selection { has_audio: false, has_video: true };

    fn at(ms: i64) -> MediaTime {
        MediaTime::from_millis(ms)
    }

    #[test]
    fn a_stream_s_files_have_what_was_added_of_it_and_of_what_the_archive_has() {
        let id: StreamId = "00000000-0000-4000-8000-000000000001".parse().expect("id");
        let mode = |ms, mode| Event { at: at(ms), kind: EventKind::StreamMode { mode } };
        let manual = |ms| mode(ms, StreamMode::Manual);
        let select = |ms, selection| Event { at: at(ms), kind: EventKind::Selected { stream: id, selection } };
        let (all, none) = (Selection::ALL, Selection::NONE);
        let sound_only = ArchiveOptions { has_video: false, ..ArchiveOptions::default() };
        for (name, options, events, expected) in [
            ("all streams", ArchiveOptions::default(), vec![], vec![(FIRST, all)]),
            ("sound alone", sound_only.clone(), vec![], vec![(FIRST, SOUND)]),
            ("never added", ArchiveOptions::default(), vec![manual(0)], vec![(FIRST, none)]),
            (
                "added, removed and added again without its sound",
                ArchiveOptions::default(),
                vec![manual(0), select(1000, all), select(2000, none), select(3000, PICTURE)],
                vec![(FIRST, none), (at(1000), all), (at(2000), none), (at(3000), PICTURE)],
            ),
            (
                "the same again, and two at once",
                ArchiveOptions::default(),
                vec![manual(0), select(1000, all), select(2000, all), select(3000, none), select(3000, SOUND)],
                vec![(FIRST, none), (at(1000), all), (at(3000), SOUND)],
            ),
            (
                "a picture that the archive does not have",
                sound_only,
                vec![manual(0), select(1000, all), select(2000, PICTURE)],
                vec![(FIRST, none), (at(1000), SOUND), (at(2000), none)],
            ),
            (
                "manual for a while",
                ArchiveOptions::default(),
                vec![manual(1000), mode(2000, StreamMode::Auto)],
                vec![(FIRST, all), (at(1000), none), (at(2000), all)],
            ),
        ] {
            assert_eq!(selected(id, &events, &options), expected, "{name}");
        }
    }
}
