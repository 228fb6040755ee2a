//! The sound of each stream, at its place.

use std::collections::VecDeque;
use std::path::PathBuf;

use super::clock::Clocks;
use super::track_reader::TrackReader;
use super::undecodable::DecodeCounts;
use crate::media::decode::AudioDecoder;
use crate::media::{MediaError, SAMPLE_RATE};
use crate::model::fault::chain;
use crate::model::media::{Codec, Frame, TrackFormat};
use crate::model::time::MediaTime;
use crate::recording::LogError;
use crate::recording::frames::LogItem;
use crate::recording::reader::TrackIndex;

/// Audio further from its place than this many samples (10 ms) is moved there at once. Else it is moved sample by sample,
/// which is not audible.
const SAMPLES_APART_MAX: i64 = 480;

/// The sound of an audio track, sample by sample from the beginning of the file.
pub struct AudioInput {
    source: TrackReader,
    pipelines: Option<PathBuf>,
    start: MediaTime,
    format: Option<TrackFormat>,
    decoder: Option<AudioDecoder>,
    /// Left and right in turn.
    pending: VecDeque<f32>,
    /// Where the first of them belongs, in samples from the beginning.
    first: i64,
    /// Whether it was heard in the last block.
    audible: Option<bool>,
    scratch: Vec<f32>,
    /// What came of decoding it.
    pub counts: DecodeCounts,
}

impl AudioInput {
    /// The input of a track in a file that begins at `start` and is composed up to `composed`.
    #[must_use]
    pub fn new(index: &TrackIndex, start: MediaTime, composed: MediaTime, pipelines: Option<PathBuf>) -> Self {
        Self {
            source: TrackReader::new(index, composed),
            pipelines,
            start,
            format: None,
            decoder: None,
            pending: VecDeque::new(),
            first: 0,
            audible: None,
            scratch: Vec::new(),
            counts: DecodeCounts::default(),
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

    /// Adds its sound to a block that begins at sample `from`, if it is `audible`. Blocks come in order. Within a block its
    /// sound comes or goes smoothly: a step would be a click.
    ///
    /// # Errors
    /// When there can be no decoder for its format.
    pub fn mix(&mut self, from: i64, block: &mut [f32], clocks: &Clocks, audible: bool) -> Result<(), MediaError> {
        let before = self.audible.replace(audible).unwrap_or(audible);
        let to = from + i64::try_from(block.len() / 2).unwrap_or(0);
        self.read(self.start + nanoseconds(to) + -1, clocks, audible || before)?;
        let skipped = usize::try_from(from - self.first).unwrap_or(0).min(self.pending.len() / 2);
        self.pending.drain(..2 * skipped);
        self.first += i64::try_from(skipped).unwrap_or(0);
        let offset = usize::try_from(self.first - from).unwrap_or(0).min(block.len() / 2);
        let ready = self.pending.len().min(block.len() - 2 * offset);
        let length = (block.len() / 2) as f32;
        let sums = block[2 * offset..].iter_mut().zip(self.pending.drain(..ready));
        for (n, (sum, sample)) in sums.enumerate() {
            let part = (offset + n / 2) as f32 / length;
            *sum += match (before, audible) {
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
                LogItem::Frame(frame) if decoded => self.decode_frame(&frame)?,
                LogItem::Frame(_) => {}
            }
        }
        Ok(())
    }

    fn decode_frame(&mut self, frame: &Frame) -> Result<(), MediaError> {
        let Some(format) = &self.format else { return Ok(()) };
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            none => none.insert(AudioDecoder::new(format, self.pipelines.as_deref())?),
        };
        self.scratch.clear();
        let decoded = decoder.decode(frame, &mut self.scratch);
        if decoded.is_ok() && !self.scratch.is_empty() {
            self.counts.decoded += 1;
        }
        if let Err(error) = decoded {
            if self.counts.decoder == 0 {
                tracing::warn!(at = ?frame.pts, "sound cannot be decoded: {}", chain(&error));
            }
            self.counts.decoder += 1;
            self.decoder = None;
        }
        let at = samples(frame.pts - self.start) - delay(format);
        append_samples(&mut self.pending, &mut self.first, at, &mut self.scratch);
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

/// Appends samples to the pending ones, at their place: a gap becomes silence, samples that come twice are left out, and
/// clock drift is followed sample by sample.
fn append_samples(pending: &mut VecDeque<f32>, first: &mut i64, at: i64, new: &mut Vec<f32>) {
    if new.len() < 2 {
        return;
    }
    let end = *first + i64::try_from(pending.len() / 2).unwrap_or(0);
    let ahead = at - end;
    if ahead.abs() <= SAMPLES_APART_MAX {
        match ahead.signum() {
            1 => {
                let pair = [new[0], new[1]];
                new.splice(0..0, pair);
            }
            -1 => drop(new.drain(..2)),
            _ => {}
        }
    } else if ahead > 0 {
        if pending.is_empty() {
            *first = at;
        } else {
            pending.extend(std::iter::repeat_n(0.0, 2 * usize::try_from(ahead).unwrap_or(0)));
        }
    } else {
        let twice = usize::try_from(-ahead).unwrap_or(usize::MAX).saturating_mul(2).min(new.len());
        new.drain(..twice);
    }
    pending.extend(new.iter());
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
        let (mut pending, mut first) = (VecDeque::new(), 0);
        for (n, (at, len)) in blocks.iter().enumerate() {
            let mut new = vec![n as f32 + 1.0; 2 * len];
            append_samples(&mut pending, &mut first, *at, &mut new);
        }
        (first, pending.into_iter().step_by(2).collect())
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
