//! A part of a composed file without decoding or encoding: the coded samples are copied, and the index says what of them is
//! played. Where to cut is decided purely; only [`Source::write`] touches files.
//!
//! A part begins at a keyframe before which, in the file as on the screen, stand the same pictures. It ends before any
//! picture: those of its last reordered group that are shown later, but that earlier ones lean on, are copied and not
//! played. Sound is cut to the sample: the frames of AAC around the part are copied, with one more before, since each
//! needs the one before it to be decoded, and the edit list leaves out what is too much.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::mp4::index::{AAC_SAMPLES, PICTURE_TICKS, Track};
use super::mp4::read;
pub use super::mp4::read::Mp4Error;
use super::mp4::read::{Movie, Place, RATE_MAX, TrackRead};
use super::mp4::{Mp4Writer, Sample};

/// What is wanted of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Part {
    /// Milliseconds from its beginning.
    pub from_ms: u32,
    /// Milliseconds from its beginning; to its end without.
    pub to_ms: Option<u32>,
    /// Begin at the keyframe before, if there is none at the beginning.
    pub at_keyframe: bool,
}

/// Why a part cannot be cut out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CutError {
    /// Its beginning is not a keyframe's.
    #[error("there is no keyframe at {} s: the nearest are at {} s and {}", seconds(*.at), seconds(*.before), or_the_end(*.after))]
    NoKeyframe {
        /// What was asked for, in milliseconds.
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
pub struct Source {
    movie: Movie,
    /// Pictures a second.
    rate: u32,
    /// Pictures that it shows.
    pictures: u64,
}

/// A part of a file, to the sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Pictures before it.
    pub before: u64,
    /// Pictures that it shows.
    pub pictures: u64,
    /// The pictures in the order of the file.
    coded: Range<usize>,
    /// The frames of sound.
    sounds: Range<usize>,
    /// Samples of them that are before the part.
    sound_before: u64,
}

impl Source {
    /// A file begins with so many bytes before its index does.
    pub const HEAD_BYTES: u64 = read::HEAD_BYTES;

    /// Where the index is in a file that begins with `head`.
    ///
    /// # Errors
    /// When there is none.
    pub fn index_place(head: &[u8]) -> Result<Range<u64>, Mp4Error> {
        read::index_place(head)
    }

    /// Reads the index of a file of so many bytes. `rate` is how many pictures a second it would have, if it has none.
    ///
    /// # Errors
    /// When it is not one that this program writes.
    pub fn parse(index: &[u8], file_bytes: u64, rate: u32) -> Result<Self, Mp4Error> {
        let movie = read::parse(index, file_bytes)?;
        let rate = match &movie.picture {
            Some(TrackRead { track: Track::Picture { rate, .. }, .. }) => *rate,
            _ => rate.clamp(1, RATE_MAX),
        };
        let played = movie.picture.as_ref().or(movie.sound.as_ref()).ok_or(Mp4Error::Damaged("it has no track"))?;
        let pictures = nearest(played.length_ms, rate);
        let source = Self { movie, rate, pictures };
        source.check()?;
        Ok(source)
    }

    /// What is shown must all be there, from a keyframe on.
    fn check(&self) -> Result<(), Mp4Error> {
        let Some(track) = &self.movie.picture else { return Ok(()) };
        let shown = track.samples.iter().filter(|sample| u64::from(sample.number) < self.pictures).count();
        if shown as u64 != self.pictures || !track.samples.first().is_some_and(|s| s.keyframe && s.number == 0) {
            return Err(Mp4Error::Damaged("pictures are missing"));
        }
        Ok(())
    }

    /// Whether a part has pictures, and whether it has sound.
    #[must_use]
    pub fn has(&self, cut: &Cut) -> (bool, bool) {
        (!self.pictures_of(cut).is_empty(), !self.sounds_of(cut).is_empty())
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
    /// See [`CutError`].
    pub fn cut(&self, part: Part) -> Result<Cut, CutError> {
        let end = part.to_ms.map_or(self.pictures, |to| nearest(to.into(), self.rate).min(self.pictures));
        let wanted = nearest(part.from_ms.into(), self.rate);
        if wanted >= end {
            let (from, length) = (part.from_ms.into(), self.moment(self.pictures));
            return Err(CutError::Empty { from, to: part.to_ms.map_or(length, u64::from), length });
        }
        let from = self.keyframe(wanted, part)?;
        let coded = self.movie.picture.as_ref().map_or(0..0, |track| {
            // Where the cut may begin, a picture's place is its number.
            let place = usize::try_from(from).unwrap_or(usize::MAX);
            let last = track.samples.iter().rposition(|sample| u64::from(sample.number) < end);
            place..last.map_or(place, |last| last + 1)
        });
        let (sounds, sound_before) = self.sounds(from, end);
        Ok(Cut { before: from, pictures: end - from, coded, sounds, sound_before })
    }

    /// The picture at which a part begins that should begin with picture `wanted`.
    fn keyframe(&self, wanted: u64, part: Part) -> Result<u64, CutError> {
        let Some(track) = &self.movie.picture else { return Ok(wanted) };
        let (mut before, mut after) = (0, None);
        for place in beginnings(&track.samples) {
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
        Err(CutError::NoKeyframe { at: part.from_ms.into(), before, after })
    }

    /// The frames of sound of these pictures, and how many of their samples are before them.
    fn sounds(&self, from: u64, end: u64) -> (Range<usize>, u64) {
        let Some(TrackRead { track: Track::Sound { rate }, samples, before, .. }) = &self.movie.sound else {
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
    pub fn bytes(&self, cut: &Cut) -> Range<u64> {
        let all = || self.pictures_of(cut).iter().chain(self.sounds_of(cut));
        let begin = all().map(|sample| sample.at).min().unwrap_or(0);
        begin..all().map(|sample| sample.at + u64::from(sample.size)).max().unwrap_or(begin)
    }

    fn pictures_of(&self, cut: &Cut) -> &[Place] {
        self.movie.picture.as_ref().and_then(|track| track.samples.get(cut.coded.clone())).unwrap_or(&[])
    }

    fn sounds_of(&self, cut: &Cut) -> &[Place] {
        self.movie.sound.as_ref().and_then(|track| track.samples.get(cut.sounds.clone())).unwrap_or(&[])
    }

    /// Writes a file of a part. `media` has the part's [`Self::bytes`] and nothing else. Blocking.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn write(&self, cut: &Cut, media: &File, out: &Path) -> std::io::Result<()> {
        let (pictures, sounds) = (self.pictures_of(cut), self.sounds_of(cut));
        let tracks = [(&self.movie.picture, pictures), (&self.movie.sound, sounds)];
        let tracks: Vec<(&TrackRead, &[Place])> = tracks
            .into_iter()
            .filter(|(_, samples)| !samples.is_empty())
            .filter_map(|(track, samples)| Some((track.as_ref()?, samples)))
            .collect();
        let kinds: Vec<Track> = tracks.iter().map(|(track, _)| track.track).collect();
        let mut file = Mp4Writer::create(out, &kinds, cut.pictures / u64::from(self.rate) + 1)?;
        for (n, (track, samples)) in tracks.iter().enumerate() {
            file.codec(n, &track.codec);
            let (before, ticks) = self.played(cut, track.track, samples.len());
            file.play(n, before, ticks);
        }
        let (base, first) = (self.bytes(cut).start, u32::try_from(cut.before).unwrap_or(u32::MAX));
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
    fn played(&self, cut: &Cut, track: Track, samples: usize) -> (u64, u64) {
        match track {
            Track::Picture { .. } => (0, cut.pictures * u64::from(PICTURE_TICKS)),
            Track::Sound { rate } => {
                let there = samples as u64 * u64::from(AAC_SAMPLES) - cut.sound_before;
                (cut.sound_before, (cut.pictures * u64::from(rate) / u64::from(self.rate)).min(there))
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
fn beginnings(samples: &[Place]) -> impl Iterator<Item = u64> {
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
