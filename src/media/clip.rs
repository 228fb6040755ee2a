//! Clips a part of a composed file without decoding or encoding: the coded samples are copied, and the index says which of
//! them are played. The range is computed purely; only [`ClipSource::write`] touches files.
//!
//! A clip begins at a keyframe before which the same frames stand in file order and in display order. It may end before any
//! frame: frames of its last reordered group that are shown later, but that earlier ones refer to, are copied and not
//! played. Audio is exact to the sample: the AAC frames around the part are copied, with one more before, since each needs
//! the one before it to be decoded. The edit list leaves out the samples that are too many.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::mp4::index::{AAC_SAMPLES, FRAME_TICKS, Track};
pub use super::mp4::read::Mp4Error;
use super::mp4::read::{self, Movie, RATE_MAX, SampleLocation, TrackRead};
use super::mp4::{Mp4Writer, Sample};

/// The part of a file to clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ClipRange {
    /// Milliseconds from its beginning.
    pub from_ms: u32,
    /// Milliseconds from its beginning; to its end without.
    pub to_ms: Option<u32>,
    /// Begin at the keyframe before, if there is none at the beginning.
    pub at_keyframe: bool,
}

/// Why a part cannot be clipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClipRangeError {
    /// Its beginning is not a keyframe's.
    #[error("there is no keyframe at {} s: the nearest are at {} s and {}", seconds(*.at), seconds(*.before), or_the_end(*.after))]
    NoKeyframe {
        /// The requested beginning, in milliseconds.
        at: u64,
        /// The last before it, in milliseconds.
        before: u64,
        /// The first behind it, in milliseconds.
        after: Option<u64>,
    },
    /// No picture would be in it.
    #[error("there is no picture between {} s and {} s: the archive lasts {} s", seconds(*.from), seconds(*.to), seconds(*.length))]
    Empty {
        /// Its beginning, in milliseconds.
        from: u64,
        /// Its end, in milliseconds.
        to: u64,
        /// The length of the file, in milliseconds.
        length: u64,
    },
}

#[allow(clippy::cast_precision_loss)]
fn seconds(ms: u64) -> String {
    format!("{:.3}", ms as f64 / 1000.0)
}

fn or_the_end(ms: Option<u64>) -> String {
    ms.map_or_else(|| "the end".to_owned(), |ms| format!("{} s", seconds(ms)))
}

/// A composed file's index.
#[derive(Debug, Clone)]
pub struct ClipSource {
    movie: Movie,
    /// Pictures a second.
    rate: u32,
    /// Pictures that it shows.
    pictures: u64,
}

/// The samples that a clip takes, and where it begins and ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClipResult {
    /// Video frames before it.
    pub before: u64,
    /// Video frames that it shows.
    pub pictures: u64,
    /// The video frames in the order of the file.
    video_range: Range<usize>,
    /// The AAC frames.
    audio_range: Range<usize>,
    /// Audio samples in these frames before the part begins.
    skipped_samples: u64,
}

impl ClipSource {
    /// Bytes at the beginning of a file that are enough to find its index.
    pub const HEAD_BYTES: u64 = read::HEAD_BYTES;

    /// Where the index is in a file that begins with `head`.
    ///
    /// # Errors
    /// When there is none.
    pub fn index_range(head: &[u8]) -> Result<Range<u64>, Mp4Error> {
        read::index_range(head)
    }

    /// Reads the index of a file of so many bytes. `rate` is how many pictures a second it would have, if it has none.
    ///
    /// # Errors
    /// When it is not one that this program writes.
    pub fn parse(index: &[u8], file_bytes: u64, rate: u32) -> Result<Self, Mp4Error> {
        let movie = read::parse(index, file_bytes)?;
        let rate = match &movie.video {
            Some(TrackRead { track: Track::Video { rate, .. }, .. }) => *rate,
            _ => rate.clamp(1, RATE_MAX),
        };
        let played = movie.video.as_ref().or(movie.audio.as_ref()).ok_or(Mp4Error::Damaged("it has no track"))?;
        let pictures = nearest(played.length_ms, rate);
        let source = Self { movie, rate, pictures };
        source.check()?;
        Ok(source)
    }

    /// What is shown must all be there, from a keyframe on.
    fn check(&self) -> Result<(), Mp4Error> {
        let Some(track) = &self.movie.video else { return Ok(()) };
        let shown = track.samples.iter().filter(|sample| u64::from(sample.number) < self.pictures).count();
        if shown as u64 != self.pictures || !track.samples.first().is_some_and(|s| s.keyframe && s.number == 0) {
            return Err(Mp4Error::Damaged("pictures are missing"));
        }
        Ok(())
    }

    /// Whether a part has pictures, and whether it has sound.
    #[must_use]
    pub fn has(&self, clip: &ClipResult) -> (bool, bool) {
        (!self.video_samples(clip).is_empty(), !self.audio_samples(clip).is_empty())
    }

    /// Pictures a second.
    #[must_use]
    pub fn rate(&self) -> u32 {
        self.rate
    }

    /// When a picture is shown, in milliseconds.
    #[must_use]
    pub fn moment(&self, picture: u64) -> u64 {
        let rate = u64::from(self.rate);
        (picture * 1000 + rate / 2) / rate
    }

    /// Finds a part.
    ///
    /// # Errors
    /// See [`ClipRangeError`].
    pub fn clip(&self, part: ClipRange) -> Result<ClipResult, ClipRangeError> {
        let end = part.to_ms.map_or(self.pictures, |to| nearest(to.into(), self.rate).min(self.pictures));
        let wanted = nearest(part.from_ms.into(), self.rate);
        if wanted >= end {
            let (from, length) = (part.from_ms.into(), self.moment(self.pictures));
            return Err(ClipRangeError::Empty { from, to: part.to_ms.map_or(length, u64::from), length });
        }
        let from = self.start_keyframe(wanted, part)?;
        let video_range = self.movie.video.as_ref().map_or(0..0, |track| {
            // Where the cut may begin, a picture's place is its number.
            let place = usize::try_from(from).unwrap_or(usize::MAX);
            let last = track.samples.iter().rposition(|sample| u64::from(sample.number) < end);
            place..last.map_or(place, |last| last + 1)
        });
        let (audio_range, skipped_samples) = self.audio_frames(from, end);
        Ok(ClipResult { before: from, pictures: end - from, video_range, audio_range, skipped_samples })
    }

    /// The picture at which a part begins that should begin with picture `wanted`.
    fn start_keyframe(&self, wanted: u64, part: ClipRange) -> Result<u64, ClipRangeError> {
        let Some(track) = &self.movie.video else { return Ok(wanted) };
        let (mut before, mut after) = (0, None);
        for place in clean_keyframes(&track.samples) {
            if place <= wanted {
                before = place;
            } else {
                after = Some(place).filter(|place| *place < self.pictures);
                break;
            }
        }
        if before == wanted || part.at_keyframe {
            return Ok(before);
        }
        let (before, after) = (self.moment(before), after.map(|after| self.moment(after)));
        Err(ClipRangeError::NoKeyframe { at: part.from_ms.into(), before, after })
    }

    /// The frames of sound of these pictures, and how many of their samples are before them.
    fn audio_frames(&self, from: u64, end: u64) -> (Range<usize>, u64) {
        let Some(TrackRead { track: Track::Audio { rate }, samples, before, .. }) = &self.movie.audio else {
            return (0..0, 0);
        };
        let at = |picture: u64| before.saturating_add(picture * u64::from(*rate) / u64::from(self.rate));
        let frame = u64::from(AAC_SAMPLES);
        // Each frame is decoded with the one before it.
        let first = (at(from) / frame).saturating_sub(1);
        let last = at(end).div_ceil(frame).min(samples.len() as u64);
        let place = |frame: u64| usize::try_from(frame).unwrap_or(usize::MAX);
        // Sound may end before the picture: then there is none, since nothing of it would be heard.
        if at(from) >= last * frame { (0..0, 0) } else { (place(first)..place(last), at(from) - first * frame) }
    }

    /// The bytes of the file from the first to the last of a part.
    #[must_use]
    pub fn bytes(&self, clip: &ClipResult) -> Range<u64> {
        let all = || self.video_samples(clip).iter().chain(self.audio_samples(clip));
        let begin = all().map(|sample| sample.at).min().unwrap_or(0);
        begin..all().map(|sample| sample.at + u64::from(sample.size)).max().unwrap_or(begin)
    }

    fn video_samples(&self, clip: &ClipResult) -> &[SampleLocation] {
        self.movie.video.as_ref().and_then(|track| track.samples.get(clip.video_range.clone())).unwrap_or(&[])
    }

    fn audio_samples(&self, clip: &ClipResult) -> &[SampleLocation] {
        self.movie.audio.as_ref().and_then(|track| track.samples.get(clip.audio_range.clone())).unwrap_or(&[])
    }

    /// Writes a file of a part. `media` has the part's [`Self::bytes`] and nothing else. Blocking.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn write(&self, clip: &ClipResult, media: &File, out: &Path) -> std::io::Result<()> {
        let (pictures, audio_range) = (self.video_samples(clip), self.audio_samples(clip));
        let tracks = [(&self.movie.video, pictures), (&self.movie.audio, audio_range)];
        let tracks: Vec<(&TrackRead, &[SampleLocation])> = tracks
            .into_iter()
            .filter(|(_, samples)| !samples.is_empty())
            .filter_map(|(track, samples)| Some((track.as_ref()?, samples)))
            .collect();
        let kinds: Vec<Track> = tracks.iter().map(|(track, _)| track.track).collect();
        let mut file = Mp4Writer::create(out, &kinds, clip.pictures / u64::from(self.rate) + 1)?;
        for (n, (track, samples)) in tracks.iter().enumerate() {
            file.codec(n, &track.codec);
            let (before, ticks) = self.played_ticks(clip, track.track, samples.len());
            file.play(n, before, ticks);
        }
        let (base, first) = (self.bytes(clip).start, u32::try_from(clip.before).unwrap_or(u32::MAX));
        let (mut data, mut next) = (Vec::new(), vec![0_usize; tracks.len()]);
        // In the order of their times, so that the writer need not keep one track until the other has come.
        let moment = |track: Track, sample: usize| {
            let (second, ticks) = track.ticks();
            sample as u64 * u64::from(ticks) * 1_000_000 / u64::from(second)
        };
        loop {
            let left = (0..tracks.len()).filter(|n| next[*n] < tracks[*n].1.len());
            let Some(n) = left.min_by_key(|n| moment(tracks[*n].0.track, next[*n])) else { break };
            let sample = tracks[n].1[next[n]];
            data.resize(usize::try_from(sample.size).unwrap_or(0), 0);
            media.read_exact_at(&mut data, sample.at - base)?;
            let number = sample.number.saturating_sub(first);
            file.add(n, Sample { data: &data, number, keyframe: sample.keyframe })?;
            next[n] += 1;
        }
        file.finish()
    }

    /// The ticks of a track's clock before what is played, and of what is played.
    fn played_ticks(&self, clip: &ClipResult, track: Track, samples: usize) -> (u64, u64) {
        match track {
            Track::Video { .. } => (0, clip.pictures * u64::from(FRAME_TICKS)),
            Track::Audio { rate } => {
                let there = samples as u64 * u64::from(AAC_SAMPLES) - clip.skipped_samples;
                (clip.skipped_samples, (clip.pictures * u64::from(rate) / u64::from(self.rate)).min(there))
            }
        }
    }
}

/// The picture that is nearest to a moment.
fn nearest(ms: u64, rate: u32) -> u64 {
    (ms.saturating_mul(rate.into()).saturating_add(500)) / 1000
}

/// The places at which a part may begin: keyframes at which the same pictures have been shown as stand before them in the
/// file. At the keyframe of an open group it is not so.
fn clean_keyframes(samples: &[SampleLocation]) -> impl Iterator<Item = u64> {
    let mut later = 0;
    (0..).zip(samples).filter_map(move |(place, sample)| {
        let clean = sample.keyframe && sample.number == place && later <= place;
        later = later.max(sample.number.saturating_add(1));
        clean.then_some(u64::from(place))
    })
}

#[cfg(test)]
#[path = "clip_tests.rs"]
mod tests;
