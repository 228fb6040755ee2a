//! The tracks of a log as they are composed: the newest picture of each stream, and its sound at its place.

use std::collections::VecDeque;
use std::path::PathBuf;

use super::clock::Clocks;
use crate::media::MediaError;
use crate::media::SAMPLE_RATE;
use crate::media::decode::{AudioDecoder, DecodedFrame, VideoDecoder};
use crate::model::fault::chain;
use crate::model::ids::TrackId;
use crate::model::media::{Codec, Frame, TrackFormat};
use crate::model::time::MediaTime;
use crate::recording::LogError;
use crate::recording::reader::{Frames, LogItem, TrackIndex};

/// Sound that is further from where it belongs than this many samples (10 ms) is put there at once; else it is
/// brought there sample by sample, which nobody hears.
const APART_MAX: i64 = 480;
/// Frames of a stream that is not shown are kept up to this many bytes; then it comes back with a keyframe.
const WAITING_BYTES_MAX: usize = 32 << 20;

/// A track's frames in order, with corrected times.
struct Source {
    track: TrackId,
    frames: Frames,
    /// What comes next, and the parts that could not be read before it.
    next: Option<(LogItem, u64)>,
    /// Parts that could not be read before what was taken last.
    damaged: u64,
    /// Up to where frames were taken.
    taken: MediaTime,
    /// Frames that were not there when their time had come.
    late: u64,
}

impl Source {
    fn new(index: &TrackIndex) -> Self {
        let taken = MediaTime(i64::MIN);
        Self { track: index.track, frames: index.frames(), next: None, damaged: 0, taken, late: 0 }
    }

    /// Takes what comes next if it is a format, or a frame that is not later than `to`. The flag says whether
    /// something that could not be read lies before it.
    fn take(&mut self, to: MediaTime, clocks: &Clocks) -> Option<(LogItem, bool)> {
        if self.next.is_none() {
            let next = self.frames.next();
            self.next = next.map(|item| (item, self.frames.damaged_parts()));
        }
        let (item, damaged) = self.next.take()?;
        let item = match item {
            LogItem::Frame(frame) => {
                let pts = clocks.apply(self.track, frame.pts);
                if pts > to {
                    self.next = Some((LogItem::Frame(frame), damaged));
                    self.taken = to;
                    return None;
                }
                self.late += u64::from(pts <= self.taken);
                LogItem::Frame(Frame { pts, ..frame })
            }
            format @ LogItem::Format(_) => format,
        };
        let torn = std::mem::replace(&mut self.damaged, damaged) != damaged;
        Some((item, torn))
    }
}

/// What could not be decoded, for the report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Errors {
    /// Frames at which a decoder failed.
    pub decoder: u64,
    /// Frames that were passed over until the next keyframe.
    pub skipped: u64,
}

/// The newest picture of a video track. Frames are decoded only while their stream is in the picture; those since the
/// last keyframe are kept until then.
pub struct VideoInput {
    source: Source,
    pipelines: Option<PathBuf>,
    /// Read, and not decoded yet.
    waiting: Vec<Waiting>,
    waiting_bytes: usize,
    /// Frames of use begin with the next keyframe.
    needs_keyframe: bool,
    /// The format of the frame that was decoded last.
    format: Option<TrackFormat>,
    decoder: Option<VideoDecoder>,
    picture: Option<DecodedFrame>,
    /// Counts the pictures, so that whoever has drawn one knows it again.
    number: u64,
    newest: MediaTime,
    /// What could not be decoded.
    pub errors: Errors,
}

/// What waits to be decoded.
enum Waiting {
    Format(TrackFormat),
    Frame(Frame),
    /// Something between the frames could not be read.
    Torn,
}

impl VideoInput {
    /// The input of a track. `pipelines` are the operator's fragments.
    #[must_use]
    pub fn new(index: &TrackIndex, pipelines: Option<PathBuf>) -> Self {
        Self {
            source: Source::new(index),
            pipelines,
            waiting: Vec::new(),
            waiting_bytes: 0,
            needs_keyframe: true,
            format: None,
            decoder: None,
            picture: None,
            number: 0,
            newest: MediaTime(i64::MIN),
            errors: Errors::default(),
        }
    }

    /// Reads what was added to the log.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn refresh(&mut self) -> Result<(), LogError> {
        self.source.frames.refresh()
    }

    /// Frames that were not in the log when their time had come.
    #[must_use]
    pub const fn late(&self) -> u64 {
        self.source.late
    }

    /// Reads all frames up to a moment. Returns the time of the newest that can be shown.
    pub fn read(&mut self, to: MediaTime, clocks: &Clocks) -> MediaTime {
        while let Some((item, torn)) = self.source.take(to, clocks) {
            if torn {
                self.drop_waiting();
                self.waiting.push(Waiting::Torn);
            }
            match item {
                LogItem::Format(format) => self.waiting.push(Waiting::Format(format)),
                LogItem::Frame(frame) => self.keep(frame),
            }
        }
        self.newest
    }

    fn keep(&mut self, frame: Frame) {
        if frame.keyframe {
            // Whoever was not shown until now begins here.
            self.waiting.retain(|waiting| !matches!(waiting, Waiting::Frame(_)));
            (self.needs_keyframe, self.waiting_bytes) = (false, 0);
        }
        if self.needs_keyframe || self.waiting_bytes > WAITING_BYTES_MAX {
            self.errors.skipped += 1;
            if !self.needs_keyframe {
                self.drop_waiting();
            }
            return;
        }
        self.newest = frame.pts;
        self.waiting_bytes += frame.data.len();
        self.waiting.push(Waiting::Frame(frame));
    }

    fn drop_waiting(&mut self) {
        self.waiting.retain(|waiting| !matches!(waiting, Waiting::Frame(_)));
        (self.needs_keyframe, self.waiting_bytes) = (true, 0);
    }

    /// Decodes what was read.
    ///
    /// # Errors
    /// When there can be no decoder for its format. A frame that cannot be decoded is no error.
    fn decode(&mut self) -> Result<(), MediaError> {
        self.waiting_bytes = 0;
        for waiting in std::mem::take(&mut self.waiting) {
            match waiting {
                Waiting::Torn => self.decoder = None,
                Waiting::Format(format) => {
                    if self.format.as_ref().is_none_or(|known| !same_decoder(known, &format)) {
                        self.decoder = None;
                    }
                    self.format = Some(format);
                }
                Waiting::Frame(frame) => self.frame(&frame)?,
            }
        }
        Ok(())
    }

    fn frame(&mut self, frame: &Frame) -> Result<(), MediaError> {
        let Some(format) = &self.format else { return Ok(()) };
        if self.decoder.is_none() {
            if !frame.keyframe {
                self.errors.skipped += 1;
                return Ok(());
            }
            self.decoder = Some(VideoDecoder::new(format, self.pipelines.as_deref())?);
        }
        let Some(decoder) = &mut self.decoder else { return Ok(()) };
        let mut decoded = decoder.decode(frame);
        if let (Err(error), true) = (&decoded, frame.keyframe) {
            // It may have been the decoder's state.
            tracing::warn!(at = ?frame.pts, "a keyframe cannot be decoded, trying anew: {}", chain(error));
            self.errors.decoder += 1;
            decoded = self.decoder.insert(VideoDecoder::new(format, self.pipelines.as_deref())?).decode(frame);
        }
        match decoded {
            Ok(Some(picture)) => {
                self.picture = Some(picture);
                self.number += 1;
            }
            Ok(None) => {}
            Err(error) => {
                if self.errors.decoder == 0 {
                    tracing::warn!(at = ?frame.pts, "a picture cannot be decoded: {}", chain(&error));
                }
                self.errors.decoder += 1;
                (self.decoder, self.needs_keyframe) = (None, true);
            }
        }
        Ok(())
    }

    /// The size of the newest picture. It is decoded only if what was read can make another one of it.
    ///
    /// # Errors
    /// See [`decode`](Self::decode).
    pub fn size(&mut self) -> Result<Option<(u32, u32)>, MediaError> {
        let builds_on = |waiting: &Waiting| matches!(waiting, Waiting::Frame(frame) if !frame.keyframe);
        if self.decoder.is_none() || self.picture.is_none() || !self.waiting.iter().all(builds_on) {
            self.decode()?;
        }
        Ok(self.picture.as_ref().map(DecodedFrame::size))
    }

    /// The newest picture, decoded, and its number.
    ///
    /// # Errors
    /// See [`decode`](Self::decode).
    pub fn picture(&mut self) -> Result<Option<(&DecodedFrame, u64)>, MediaError> {
        self.decode()?;
        Ok(self.picture.as_ref().map(|picture| (picture, self.number)))
    }
}

/// Whether a decoder goes on with another format: VP8 and VP9 tell sizes in their keyframes.
fn same_decoder(a: &TrackFormat, b: &TrackFormat) -> bool {
    a.codec == b.codec && (matches!(a.codec, Codec::Vp8 | Codec::Vp9) || a.codec_private == b.codec_private)
}

/// The sound of an audio track, sample by sample from the beginning of the file.
pub struct AudioInput {
    source: Source,
    pipelines: Option<PathBuf>,
    start: MediaTime,
    format: Option<TrackFormat>,
    decoder: Option<AudioDecoder>,
    /// Left and right in turn.
    waiting: VecDeque<f32>,
    /// Where the first of them belongs, in samples from the beginning.
    first: i64,
    /// Whether it was heard in the last block.
    heard: Option<bool>,
    scratch: Vec<f32>,
    /// What could not be decoded.
    pub errors: Errors,
}

impl AudioInput {
    /// The input of a track in a file that begins at `start`.
    #[must_use]
    pub fn new(index: &TrackIndex, start: MediaTime, pipelines: Option<PathBuf>) -> Self {
        Self {
            source: Source::new(index),
            pipelines,
            start,
            format: None,
            decoder: None,
            waiting: VecDeque::new(),
            first: 0,
            heard: None,
            scratch: Vec::new(),
            errors: Errors::default(),
        }
    }

    /// Reads what was added to the log.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn refresh(&mut self) -> Result<(), LogError> {
        self.source.frames.refresh()
    }

    /// Frames that were not in the log when their time had come.
    #[must_use]
    pub const fn late(&self) -> u64 {
        self.source.late
    }

    /// Adds its sound to a block that begins at sample `from`, if it is `heard`. Blocks come in order. Within a block its
    /// sound comes or goes smoothly: a step would be a click.
    ///
    /// # Errors
    /// When there can be no decoder for its format.
    pub fn mix(&mut self, from: i64, block: &mut [f32], clocks: &Clocks, heard: bool) -> Result<(), MediaError> {
        let before = self.heard.replace(heard).unwrap_or(heard);
        let to = from + i64::try_from(block.len() / 2).unwrap_or(0);
        self.read(self.start + nanoseconds(to) + -1, clocks, heard || before)?;
        let skipped = usize::try_from(from - self.first).unwrap_or(0).min(self.waiting.len() / 2);
        self.waiting.drain(..2 * skipped);
        self.first += i64::try_from(skipped).unwrap_or(0);
        let offset = usize::try_from(self.first - from).unwrap_or(0).min(block.len() / 2);
        let ready = self.waiting.len().min(block.len() - 2 * offset);
        let length = (block.len() / 2) as f32;
        let sums = block[2 * offset..].iter_mut().zip(self.waiting.drain(..ready));
        for (n, (sum, sample)) in sums.enumerate() {
            let part = (offset + n / 2) as f32 / length;
            *sum += match (before, heard) {
                (true, true) => sample,
                (false, true) => sample * part,
                (true, false) => sample * (1.0 - part),
                (false, false) => 0.0,
            };
        }
        self.first += i64::try_from(ready / 2).unwrap_or(0);
        Ok(())
    }

    /// Reads all frames up to a moment. What nobody hears is not decoded: a decoder begins anew behind it.
    fn read(&mut self, last: MediaTime, clocks: &Clocks, decoded: bool) -> Result<(), MediaError> {
        while let Some((item, torn)) = self.source.take(last, clocks) {
            if torn || !decoded {
                self.decoder = None;
            }
            match item {
                LogItem::Format(format) => {
                    if self.format.as_ref() != Some(&format) {
                        self.decoder = None;
                    }
                    self.format = Some(format);
                }
                LogItem::Frame(frame) if decoded => self.frame(&frame)?,
                LogItem::Frame(_) => {}
            }
        }
        Ok(())
    }

    fn frame(&mut self, frame: &Frame) -> Result<(), MediaError> {
        let Some(format) = &self.format else { return Ok(()) };
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            none => none.insert(AudioDecoder::new(format, self.pipelines.as_deref())?),
        };
        self.scratch.clear();
        if let Err(error) = decoder.decode(frame, &mut self.scratch) {
            if self.errors.decoder == 0 {
                tracing::warn!(at = ?frame.pts, "sound cannot be decoded: {}", chain(&error));
            }
            self.errors.decoder += 1;
            self.decoder = None;
        }
        let at = samples(frame.pts - self.start) - delay(format);
        place(&mut self.waiting, &mut self.first, at, &mut self.scratch);
        Ok(())
    }
}

/// Samples by which a decoder's sound comes later than its packets: Opus tells its encoder's look-ahead in `OpusHead`
/// (RFC 7845 section 5.1, "pre-skip").
fn delay(format: &TrackFormat) -> i64 {
    match (format.codec, format.codec_private.get(10..12)) {
        (Codec::Opus, Some(&[low, high])) => i64::from(u16::from_le_bytes([low, high])),
        _ => 0,
    }
}

/// Puts samples behind those that wait, at the place where they belong: over what is missing there is silence,
/// what comes twice is left out, and a clock that runs a little otherwise is followed sample by sample.
fn place(waiting: &mut VecDeque<f32>, first: &mut i64, at: i64, new: &mut Vec<f32>) {
    if new.len() < 2 {
        return;
    }
    let end = *first + i64::try_from(waiting.len() / 2).unwrap_or(0);
    let ahead = at - end;
    if ahead.abs() <= APART_MAX {
        match ahead.signum() {
            1 => {
                let pair = [new[0], new[1]];
                new.splice(0..0, pair);
            }
            -1 => drop(new.drain(..2)),
            _ => {}
        }
    } else if ahead > 0 {
        if waiting.is_empty() {
            *first = at;
        } else {
            waiting.extend(std::iter::repeat_n(0.0, 2 * usize::try_from(ahead).unwrap_or(0)));
        }
    } else {
        let twice = usize::try_from(-ahead).unwrap_or(usize::MAX).saturating_mul(2).min(new.len());
        new.drain(..twice);
    }
    waiting.extend(new.iter());
}

/// Samples in a span of nanoseconds.
const fn samples(span: i64) -> i64 {
    // In two steps, so that nothing overflows in an archive of days.
    let (seconds, rest) = (span.div_euclid(1_000_000_000), span.rem_euclid(1_000_000_000));
    seconds * SAMPLE_RATE as i64 + rest * SAMPLE_RATE as i64 / 1_000_000_000
}

/// Nanoseconds of a number of samples.
pub(super) const fn nanoseconds(samples: i64) -> i64 {
    let rate = SAMPLE_RATE as i64;
    samples.div_euclid(rate) * 1_000_000_000 + samples.rem_euclid(rate) * 1_000_000_000 / rate
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(blocks: &[(i64, usize)]) -> (i64, Vec<f32>) {
        let (mut waiting, mut first) = (VecDeque::new(), 0);
        for (n, (at, len)) in blocks.iter().enumerate() {
            let mut new = vec![n as f32 + 1.0; 2 * len];
            place(&mut waiting, &mut first, *at, &mut new);
        }
        (first, waiting.into_iter().step_by(2).collect())
    }

    fn counts(samples: &[f32]) -> Vec<(i32, usize)> {
        let chunks = samples.chunk_by(|a, b| a == b);
        chunks.map(|same| (same[0] as i32, same.len())).collect()
    }

    #[test]
    fn sound_is_put_where_it_belongs() {
        for (name, blocks, first, expected) in [
            ("one behind the other", vec![(0, 960), (960, 960)], 0, vec![(1, 960), (2, 960)]),
            ("late at first", vec![(5000, 960)], 5000, vec![(1, 960)]),
            ("a gap is silence", vec![(0, 960), (2880, 960)], 0, vec![(1, 960), (0, 1920), (2, 960)]),
            ("a clock that is slow", vec![(0, 960), (965, 960), (1925, 960)], 0, vec![(1, 960), (2, 961), (3, 961)]),
            ("a clock that is fast", vec![(0, 960), (955, 960)], 0, vec![(1, 960), (2, 959)]),
            ("half of it twice", vec![(0, 1920), (960, 1920)], 0, vec![(1, 1920), (2, 960)]),
            ("all of it twice", vec![(0, 1920), (0, 960)], 0, vec![(1, 1920)]),
        ] {
            let (at, samples) = placed(&blocks);
            assert_eq!((at, counts(&samples)), (first, expected), "{name}");
        }
    }

    #[test]
    fn samples_and_nanoseconds_agree_over_days() {
        assert_eq!(samples(20_000_000), 960);
        assert_eq!(samples(-20_000_000), -960);
        let day = 86_400 * i64::from(SAMPLE_RATE);
        assert_eq!(samples(nanoseconds(day)), day);
    }
}
