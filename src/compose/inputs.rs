//! The tracks of a log as they are composed: the newest video frame of each stream, and its audio at its place.

use std::collections::VecDeque;
use std::path::PathBuf;

use super::clock::Clocks;
use crate::media::decode::{AudioDecoder, DecodedFrame, REORDERED_MAX, VideoDecoder};
use crate::media::{MediaError, SAMPLE_RATE};
use crate::model::fault::chain;
use crate::model::ids::TrackId;
use crate::model::media::{Codec, Frame, TrackFormat};
use crate::model::time::MediaTime;
use crate::recording::LogError;
use crate::recording::reader::{Frames, LogItem, TrackIndex};
use crate::rtp::clock::BACK_MAX;
use crate::rtp::depacketize::h264;

/// Audio further from its place than this many samples (10 ms) is moved there at once. Else it is moved sample by sample,
/// which is not audible.
const SAMPLES_APART_MAX: i64 = 480;
/// Items that are read ahead where frames are reordered, at most.
const AHEAD_MAX: usize = 128;
/// Frames of a stream that is not shown are kept up to this many bytes; then it comes back with a keyframe.
const PENDING_BYTES_MAX: usize = 32 << 20;

/// A track's frames in decoding order, with corrected times.
///
/// Where frames are reordered, one that is due may stand behind others that are shown later. So the reader looks ahead, as far in the log as such a
/// frame can be: not further than the log has grown, so that nothing is waited for.
struct TrackReader {
    track: TrackId,
    frames: Frames,
    /// The items that were read and not taken.
    ahead: VecDeque<ItemAhead>,
    /// Whether frames of the format that was read last may be shown before others that come earlier.
    may_reorder: bool,
    /// The number of unreadable parts before the item that was taken last.
    damaged: u64,
    /// Up to where frames were taken.
    taken: MediaTime,
    /// Frames that were not there when their time had come.
    late: u64,
}

/// An item of the log that waits for its moment.
struct ItemAhead {
    item: LogItem,
    /// The number of unreadable parts before it.
    damaged: u64,
    /// The corrected time of a frame.
    at: MediaTime,
}

impl TrackReader {
    fn new(index: &TrackIndex) -> Self {
        let (ahead, taken) = (VecDeque::new(), MediaTime(i64::MIN));
        Self { track: index.track, frames: index.frames(), ahead, may_reorder: false, damaged: 0, taken, late: 0 }
    }

    /// Takes the next item if it is a format, or a frame that is not later than `to` or stands before one. The flag says whether an unreadable
    /// part lies before it.
    fn take(&mut self, to: MediaTime, clocks: &Clocks) -> Option<(LogItem, bool)> {
        self.read_ahead(to, clocks);
        let is_due = |ahead: &ItemAhead| matches!(ahead.item, LogItem::Frame(_)) && ahead.at <= to;
        let next = self.ahead.front()?;
        if matches!(next.item, LogItem::Frame(_)) && !self.ahead.iter().any(is_due) {
            self.taken = to;
            return None;
        }
        self.take_next()
    }

    /// Takes the next item whatever its time, of those that were read.
    fn take_next(&mut self) -> Option<(LogItem, bool)> {
        let ItemAhead { item, damaged, at } = self.ahead.pop_front()?;
        let torn = std::mem::replace(&mut self.damaged, damaged) != damaged;
        let item = match item {
            LogItem::Frame(frame) => LogItem::Frame(Frame { pts: at, ..frame }),
            format @ LogItem::Format(_) => format,
        };
        Some((item, torn))
    }

    /// Reads the next item, and where frames are reordered all behind which there may be one for the moment `to`.
    fn read_ahead(&mut self, to: MediaTime, clocks: &Clocks) {
        for ahead in &mut self.ahead {
            if let LogItem::Frame(frame) = &ahead.item {
                ahead.at = clocks.apply(self.track, frame.pts);
            }
        }
        while match self.ahead.back() {
            None => true,
            Some(_) if !self.may_reorder => false,
            Some(last) => matches!(last.item, LogItem::Format(_)) || last.at <= to + BACK_MAX,
        } && self.ahead.len() < AHEAD_MAX
        {
            let Some(item) = self.frames.next() else { return };
            let at = match &item {
                LogItem::Frame(frame) => clocks.apply(self.track, frame.pts),
                LogItem::Format(format) => {
                    self.may_reorder = h264::may_reorder(format);
                    MediaTime(i64::MIN)
                }
            };
            self.late += u64::from(matches!(item, LogItem::Frame(_)) && at <= self.taken);
            self.ahead.push_back(ItemAhead { item, damaged: self.frames.damaged_parts(), at });
        }
    }
}

/// What came of decoding a track, for the report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Errors {
    /// Frames at which a decoder failed.
    pub decoder: u64,
    /// Frames that were passed over until the next keyframe.
    pub skipped: u64,
    /// Pictures, or packets of sound, that were decoded.
    #[serde(default)]
    pub decoded: u64,
}

impl Errors {
    /// Whether anything could not be decoded.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.decoder == 0 && self.skipped == 0
    }
}

/// The newest picture of a video track. Frames are decoded only while their stream is in the picture; those since the
/// last keyframe are kept until then.
pub struct VideoInput {
    source: TrackReader,
    pipelines: Option<PathBuf>,
    /// Read, and not decoded yet.
    pending: Vec<Pending>,
    pending_bytes: usize,
    /// Frames of use begin with the next keyframe.
    needs_keyframe: bool,
    /// The format of the frame that was decoded last.
    format: Option<TrackFormat>,
    /// Whether its frames may be shown before others that come earlier.
    may_reorder: bool,
    decoder: Option<VideoDecoder>,
    /// Up to where frames were read.
    to: MediaTime,
    /// Whether the log does not grow any more.
    has_ended: bool,
    /// Frames that went into the decoder before their moment.
    fed: Vec<MediaTime>,
    /// The newest of the frames up to the moment that went into the decoder, where it may give them in another order.
    due: Option<MediaTime>,
    /// Pictures that are decoded and shown later, in the order of presentation.
    coming: VecDeque<DecodedFrame>,
    newest_frame: Option<DecodedFrame>,
    /// Counts the pictures, so that whoever has drawn one knows it again.
    frame_number: u64,
    newest: MediaTime,
    /// What could not be decoded.
    pub errors: Errors,
}

/// An item that waits to be decoded.
enum Pending {
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
            source: TrackReader::new(index),
            pipelines,
            pending: Vec::new(),
            pending_bytes: 0,
            needs_keyframe: true,
            format: None,
            may_reorder: false,
            decoder: None,
            to: MediaTime(i64::MIN),
            has_ended: false,
            fed: Vec::new(),
            due: None,
            coming: VecDeque::new(),
            newest_frame: None,
            frame_number: 0,
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

    /// Reads all frames up to a moment of a log that may have ended. Returns the time of the newest that can be shown.
    pub fn read(&mut self, to: MediaTime, clocks: &Clocks, has_ended: bool) -> MediaTime {
        (self.to, self.has_ended) = (to, has_ended);
        while let Some((item, torn)) = self.source.take(to, clocks) {
            self.queue(item, torn);
        }
        self.newest
    }

    fn queue(&mut self, item: LogItem, torn: bool) {
        if torn {
            self.drop_pending();
            self.pending.push(Pending::Torn);
        }
        match item {
            LogItem::Format(format) => self.pending.push(Pending::Format(format)),
            LogItem::Frame(frame) => self.queue_frame(frame),
        }
    }

    fn queue_frame(&mut self, frame: Frame) {
        if frame.keyframe {
            // Frames before a keyframe are not needed to decode the frames after it.
            self.pending.retain(|pending| !matches!(pending, Pending::Frame(_)));
            (self.needs_keyframe, self.pending_bytes) = (false, 0);
        }
        if self.needs_keyframe || self.pending_bytes > PENDING_BYTES_MAX {
            self.errors.skipped += 1;
            if !self.needs_keyframe {
                self.drop_pending();
            }
            return;
        }
        self.newest = self.newest.max(frame.pts);
        self.pending_bytes += frame.data.len();
        self.pending.push(Pending::Frame(frame));
    }

    fn drop_pending(&mut self) {
        self.pending.retain(|pending| !matches!(pending, Pending::Frame(_)));
        (self.needs_keyframe, self.pending_bytes) = (true, 0);
    }

    /// Decodes what was read, so that the newest picture is that of the moment up to which was read.
    ///
    /// # Errors
    /// When there can be no decoder for its format. A frame that cannot be decoded is no error.
    fn decode(&mut self) -> Result<(), MediaError> {
        self.decode_pending()?;
        let due = self.fed.extract_if(.., |fed| *fed <= self.to).max();
        self.due = self.due.max(due);
        // A decoder gives a picture when a frame goes in behind which none can be shown earlier.
        let mut frames = 0;
        while self.is_held_back() && frames < REORDERED_MAX {
            let Some((item, torn)) = self.source.take_next() else {
                if self.has_ended {
                    self.finish_decoder();
                }
                break;
            };
            self.queue(item, torn);
            self.decode_pending()?;
            frames += 1;
        }
        while let Some(picture) = self.coming.pop_front_if(|picture| picture.pts() <= self.to) {
            self.show(picture);
        }
        Ok(())
    }

    /// Whether the picture that is due is still in the decoder.
    fn is_held_back(&self) -> bool {
        let given = self.coming.back().or(self.newest_frame.as_ref()).map(DecodedFrame::pts);
        self.decoder.is_some() && self.due.is_some_and(|due| given.is_none_or(|given| given < due))
    }

    fn show(&mut self, picture: DecodedFrame) {
        self.newest_frame = Some(picture);
        self.frame_number += 1;
    }

    /// Takes the pictures that the decoder still has, before it goes.
    fn finish_decoder(&mut self) {
        let Some(mut decoder) = self.decoder.take() else { return };
        match decoder.finish() {
            Ok(pictures) => self.coming.extend(pictures),
            Err(error) => tracing::debug!("a decoder does not end: {}", chain(&error)),
        }
    }

    fn decode_pending(&mut self) -> Result<(), MediaError> {
        self.pending_bytes = 0;
        for pending in std::mem::take(&mut self.pending) {
            match pending {
                Pending::Torn => self.decoder = None,
                Pending::Format(format) => {
                    if self.format.as_ref().is_none_or(|known| !same_decoder(known, &format)) {
                        self.finish_decoder();
                    }
                    self.may_reorder = h264::may_reorder(&format);
                    self.format = Some(format);
                }
                Pending::Frame(frame) => self.decode_frame(&frame)?,
            }
        }
        Ok(())
    }

    fn decode_frame(&mut self, frame: &Frame) -> Result<(), MediaError> {
        let Some(format) = &self.format else { return Ok(()) };
        if self.decoder.is_none() {
            if !frame.keyframe {
                self.errors.skipped += 1;
                return Ok(());
            }
            self.decoder = Some(VideoDecoder::new(format, self.pipelines.as_deref())?);
        }
        let Some(decoder) = &mut self.decoder else { return Ok(()) };
        if self.may_reorder {
            self.fed.push(frame.pts);
        }
        let mut decoded = decoder.decode(frame);
        if let (Err(error), true) = (&decoded, frame.keyframe) {
            // The cause may be the decoder's state: try with a new one.
            tracing::warn!(at = ?frame.pts, "a keyframe cannot be decoded, trying anew: {}", chain(error));
            self.errors.decoder += 1;
            decoded = self.decoder.insert(VideoDecoder::new(format, self.pipelines.as_deref())?).decode(frame);
        }
        self.errors.decoded += decoded.as_ref().map_or(0, |pictures| pictures.len() as u64);
        match decoded {
            Ok(pictures) if self.may_reorder => self.coming.extend(pictures),
            Ok(mut pictures) => {
                if let Some(newest) = pictures.pop() {
                    self.show(newest);
                }
            }
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

    /// The size of the newest frame. Pending frames are decoded only if they may have another size.
    ///
    /// # Errors
    /// See [`decode`](Self::decode).
    pub fn size(&mut self) -> Result<Option<(u32, u32)>, MediaError> {
        let builds_on = |pending: &Pending| matches!(pending, Pending::Frame(frame) if !frame.keyframe);
        if self.decoder.is_none() || self.newest_frame.is_none() || !self.pending.iter().all(builds_on) {
            self.decode()?;
        }
        Ok(self.newest_frame.as_ref().map(DecodedFrame::size))
    }

    /// The newest frame, decoded, and its number.
    ///
    /// # Errors
    /// See [`decode`](Self::decode).
    pub fn newest_frame(&mut self) -> Result<Option<(&DecodedFrame, u64)>, MediaError> {
        self.decode()?;
        Ok(self.newest_frame.as_ref().map(|newest_frame| (newest_frame, self.frame_number)))
    }
}

/// Whether a decoder goes on with another format: VP8 and VP9 tell sizes in their keyframes.
fn same_decoder(a: &TrackFormat, b: &TrackFormat) -> bool {
    a.codec == b.codec && (matches!(a.codec, Codec::Vp8 | Codec::Vp9) || a.codec_private == b.codec_private)
}

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
    /// What could not be decoded.
    pub errors: Errors,
}

impl AudioInput {
    /// The input of a track in a file that begins at `start`.
    #[must_use]
    pub fn new(index: &TrackIndex, start: MediaTime, pipelines: Option<PathBuf>) -> Self {
        Self {
            source: TrackReader::new(index),
            pipelines,
            start,
            format: None,
            decoder: None,
            pending: VecDeque::new(),
            first: 0,
            audible: None,
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
            self.errors.decoded += 1;
        }
        if let Err(error) = decoded {
            if self.errors.decoder == 0 {
                tracing::warn!(at = ?frame.pts, "sound cannot be decoded: {}", chain(&error));
            }
            self.errors.decoder += 1;
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
