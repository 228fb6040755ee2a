//! The newest picture of each stream.

use std::collections::VecDeque;
use std::path::PathBuf;

use super::clock::Clocks;
use super::track_reader::TrackReader;
use super::undecodable::DecodeCounts;
use crate::media::MediaError;
use crate::media::decode::{DecodedFrame, REORDERED_MAX, VideoDecoder};
use crate::model::fault::chain;
use crate::model::media::{Codec, Frame, TrackFormat};
use crate::model::time::MediaTime;
use crate::recording::LogError;
use crate::recording::frames::LogItem;
use crate::recording::reader::TrackIndex;
use crate::rtp::depacketize::h264;

/// Frames of a stream that is not shown are kept up to this many bytes; then it comes back with a keyframe.
const PENDING_BYTES_MAX: usize = 32 << 20;

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
    /// The frames since the last keyframe that went into a decoder, where it may give them in another order: another decoder can go on with them.
    group: FrameGroup,
    /// Up to there the pictures of a decoder that goes on were given by the one before.
    given: Option<MediaTime>,
    /// Up to where frames were read.
    to: MediaTime,
    /// Whether no later frame needs the decoder's state.
    nothing_follows: bool,
    /// Frames that went into the decoder before their moment.
    fed: Vec<MediaTime>,
    /// The newest of the frames up to the moment that went into the decoder, where it may give them in another order.
    due: Option<MediaTime>,
    /// Pictures that are decoded and shown later, in the order of presentation.
    coming: VecDeque<DecodedFrame>,
    newest_frame: Option<DecodedFrame>,
    /// Counts the pictures, so that whoever has drawn one knows it again.
    frame_number: u64,
    /// The time of the newest frame up to `to`.
    newest: MediaTime,
    /// The times of the frames that were read and are later than `to`.
    later: Vec<MediaTime>,
    /// What came of decoding it.
    pub counts: DecodeCounts,
    /// Nothing was decoded since a picture failed.
    has_failed: bool,
}

/// Frames from a keyframe on, in decoding order. None if they are too many.
#[derive(Default)]
struct FrameGroup {
    frames: Vec<Frame>,
    bytes: usize,
}

/// Frames of a group, at most: a decoder that goes on decodes them all again.
const GROUP_FRAMES_MAX: usize = 300;

impl FrameGroup {
    /// Adds the next frame. A keyframe begins a group.
    fn add(&mut self, frame: &Frame) {
        if frame.keyframe {
            *self = Self::default();
        } else if self.frames.is_empty() {
            return;
        }
        self.bytes += frame.data.len();
        match self.bytes <= PENDING_BYTES_MAX && self.frames.len() < GROUP_FRAMES_MAX {
            true => self.frames.push(frame.clone()),
            false => *self = Self::default(),
        }
    }

    /// Brings a new decoder to the end of the group. Its pictures were given before. What fails here shows when the decoder goes on.
    fn decode(&self, decoder: &mut VideoDecoder) {
        for frame in &self.frames {
            decoder.decode(frame).map(drop).unwrap_or_default();
        }
    }
}

/// An item that waits to be decoded.
enum Pending {
    Format(TrackFormat),
    Frame(Frame),
    /// Something between the frames could not be read.
    Torn,
}

impl VideoInput {
    /// The input of a track in a file that is composed up to `composed`. `pipelines` are the operator's fragments.
    #[must_use]
    pub fn new(index: &TrackIndex, composed: MediaTime, pipelines: Option<PathBuf>) -> Self {
        Self {
            source: TrackReader::new(index, composed),
            pipelines,
            pending: Vec::new(),
            pending_bytes: 0,
            needs_keyframe: true,
            format: None,
            may_reorder: false,
            decoder: None,
            group: FrameGroup::default(),
            given: None,
            to: MediaTime(i64::MIN),
            nothing_follows: false,
            fed: Vec::new(),
            due: None,
            coming: VecDeque::new(),
            newest_frame: None,
            frame_number: 0,
            newest: MediaTime(i64::MIN),
            later: Vec::new(),
            counts: DecodeCounts::default(),
            has_failed: false,
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

    /// Reads all frames up to a moment. With `nothing_follows`, no later frame needs the decoder's state: it gives its last pictures. Returns
    /// the time of the newest frame that can be shown.
    pub fn read(&mut self, to: MediaTime, clocks: &Clocks, nothing_follows: bool) -> MediaTime {
        (self.to, self.nothing_follows) = (to, nothing_follows);
        let due = self.later.extract_if(.., |later| *later <= to).max();
        self.newest = due.map_or(self.newest, |due| self.newest.max(due));
        while let Some((item, torn)) = self.source.take(to, clocks) {
            self.queue(item, torn);
        }
        self.newest
    }

    /// The time of the first frame that is later than the moment up to which was read; `None` when the log has no such frame.
    pub fn next_at(&mut self, clocks: &Clocks) -> Option<MediaTime> {
        self.later.iter().copied().chain(self.source.next_at(clocks)).min()
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
            self.skip();
            if !self.needs_keyframe {
                self.drop_pending();
            }
            return;
        }
        if frame.pts <= self.to {
            self.newest = self.newest.max(frame.pts);
        } else {
            self.later.push(frame.pts);
        }
        self.pending_bytes += frame.data.len();
        self.pending.push(Pending::Frame(frame));
    }

    fn skip(&mut self) {
        self.counts.skipped += 1;
        self.counts.skipped_after_failure += u64::from(self.has_failed);
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
                // Nothing follows within the time that is read ahead: the publisher pauses, or sends very few pictures.
                if self.nothing_follows || !self.group.frames.is_empty() {
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

    fn drop_decoder(&mut self) {
        (self.decoder, self.group) = (None, FrameGroup::default());
    }

    /// Takes the pictures that the decoder still has, before it goes.
    fn finish_decoder(&mut self) {
        let Some(mut decoder) = self.decoder.take() else { return };
        match decoder.finish() {
            Ok(pictures) => {
                self.counts.decoded += pictures.len() as u64;
                self.coming.extend(pictures);
            }
            Err(error) => {
                if self.counts.decoder == 0 {
                    tracing::warn!("the last pictures cannot be decoded: {}", chain(&error));
                }
                self.counts.decoder += 1;
                self.group = FrameGroup::default();
            }
        }
    }

    fn decode_pending(&mut self) -> Result<(), MediaError> {
        self.pending_bytes = 0;
        for pending in std::mem::take(&mut self.pending) {
            match pending {
                Pending::Torn => self.drop_decoder(),
                Pending::Format(format) => {
                    if self.format.as_ref().is_none_or(|known| !same_decoder(known, &format)) {
                        self.finish_decoder();
                        self.group = FrameGroup::default();
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
            if !frame.keyframe && self.group.frames.is_empty() {
                self.skip();
                return Ok(());
            }
            let mut decoder = VideoDecoder::new(format, self.pipelines.as_deref())?;
            if !frame.keyframe {
                self.group.decode(&mut decoder);
                self.given = self.coming.back().or(self.newest_frame.as_ref()).map(DecodedFrame::pts);
            }
            self.decoder = Some(decoder);
        }
        let Some(decoder) = &mut self.decoder else { return Ok(()) };
        if frame.keyframe {
            self.given = None;
        }
        if self.may_reorder {
            self.fed.push(frame.pts);
            self.group.add(frame);
        }
        let mut decoded = decoder.decode(frame);
        if let (Err(error), true) = (&decoded, frame.keyframe) {
            // The cause may be the decoder's state: try with a new one.
            tracing::warn!(at = ?frame.pts, "a keyframe cannot be decoded, trying anew: {}", chain(error));
            self.counts.decoder += 1;
            decoded = self.decoder.insert(VideoDecoder::new(format, self.pipelines.as_deref())?).decode(frame);
        }
        if let (Ok(pictures), Some(given)) = (&mut decoded, self.given) {
            pictures.retain(|picture| picture.pts() > given);
        }
        let pictures = decoded.as_ref().map_or(0, |pictures| pictures.len() as u64);
        self.counts.decoded += pictures;
        self.has_failed &= pictures == 0;
        match decoded {
            Ok(pictures) if self.may_reorder => self.coming.extend(pictures),
            Ok(mut pictures) => {
                if let Some(newest) = pictures.pop() {
                    self.show(newest);
                }
            }
            Err(error) => {
                if self.counts.decoder == 0 {
                    tracing::warn!(at = ?frame.pts, "a picture cannot be decoded: {}", chain(&error));
                }
                self.counts.decoder += 1;
                self.drop_decoder();
                (self.needs_keyframe, self.has_failed) = (true, true);
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
