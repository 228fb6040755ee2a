//! The boxes of an MP4 file's index (ISO/IEC 14496-12, 14496-14, 14496-15). Pure.

/// Samples of sound in a frame of AAC.
pub(in crate::media) const AAC_SAMPLES: u32 = 1024;
/// Ticks of a picture, so that every rate is exact.
pub(in crate::media) const FRAME_TICKS: u32 = 1000;
/// Ticks of the file a second.
pub(in crate::media) const FILE_TICKS: u64 = 1000;
const MICROSECONDS: u64 = 1_000_000;
/// The two letters of "undetermined".
const LANGUAGE: u16 = 0x55c4;

/// A track's kind and properties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Track {
    /// H.264 video.
    Video {
        /// In pixels.
        width: u16,
        /// In pixels.
        height: u16,
        /// Frames a second.
        rate: u32,
    },
    /// AAC audio in two channels.
    Audio {
        /// Samples a second.
        rate: u32,
    },
}

impl Track {
    /// Ticks of its clock a second, and of one sample.
    pub(in crate::media) const fn ticks(self) -> (u32, u32) {
        match self {
            Self::Video { rate, .. } => (rate * FRAME_TICKS, FRAME_TICKS),
            Self::Audio { rate } => (rate, AAC_SAMPLES),
        }
    }

    /// Most bytes of the index for a second of it.
    const fn index_bytes(self) -> u64 {
        match self {
            // A size, a time of showing, now and then a keyframe.
            Self::Video { rate, .. } => rate as u64 * 12 + 4,
            Self::Audio { rate } => (rate / AAC_SAMPLES + 1) as u64 * 4,
        }
    }
}

/// Room for the index of a file of so many seconds.
pub(in crate::media) fn room(tracks: &[Track], seconds: u64) -> u64 {
    // Chunks: where they are, and how many samples they have.
    let second: u64 = tracks.iter().map(|track| track.index_bytes() + 2 * 20).sum();
    4096 + second.saturating_mul(seconds)
}

/// What is known of a track's samples.
#[derive(Debug)]
pub(in crate::media) struct TrackIndex {
    track: Track,
    pub codec: Vec<u8>,
    sizes: Vec<u32>,
    /// Of each picture its number in the order of showing.
    numbers: Vec<u32>,
    /// Of pictures; counted from 1.
    keyframes: Vec<u32>,
    /// Where each chunk is, and its samples.
    chunks: Vec<(u64, u32)>,
    /// What is played, if not all of it: ticks before it, and its ticks.
    played: Option<(u64, u64)>,
}

impl TrackIndex {
    pub fn new(track: Track) -> Self {
        let (sizes, numbers, keyframes) = (Vec::new(), Vec::new(), Vec::new());
        Self { track, codec: Vec::new(), sizes, numbers, keyframes, chunks: Vec::new(), played: None }
    }

    pub fn play(&mut self, before: u64, ticks: u64) {
        self.played = Some((before, ticks));
    }

    pub fn add(&mut self, size: u32, number: u32, keyframe: bool) {
        self.sizes.push(size);
        if let Track::Video { .. } = self.track {
            self.numbers.push(number);
            if keyframe {
                self.keyframes.push(self.count());
            }
        }
    }

    pub fn is_chunk_full(&self, samples: u32, chunks_a_second: u64) -> bool {
        let (second, sample) = self.track.ticks();
        u64::from(samples) * u64::from(sample) * chunks_a_second >= u64::from(second)
    }

    pub fn chunk(&mut self, at: u64, samples: u32) {
        self.chunks.push((at, samples));
    }

    pub fn count(&self) -> u32 {
        u32::try_from(self.sizes.len()).unwrap_or(u32::MAX)
    }

    /// By how many pictures a picture is shown later than its place in the file says, at least none.
    fn delay(&self) -> u32 {
        (0..).zip(&self.numbers).map(|(at, number)| u32::saturating_sub(at, *number)).max().unwrap_or(0)
    }

    /// Its length in the file's ticks.
    fn length(&self) -> u64 {
        let (second, sample) = self.track.ticks();
        let ticks = self.played.map_or(u64::from(self.count()) * u64::from(sample), |(_, ticks)| ticks);
        ticks * FILE_TICKS / u64::from(second.max(1))
    }

    /// When a sample begins, in microseconds.
    pub fn moment(&self, sample: u64) -> u64 {
        let (second, ticks) = self.track.ticks();
        sample * u64::from(ticks) * MICROSECONDS / u64::from(second.max(1))
    }
}

/// A box: its type, and what `content` writes.
fn boxed(out: &mut Vec<u8>, kind: &[u8; 4], content: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend([0; 4]);
    out.extend(kind);
    content(out);
    let size = u32::try_from(out.len() - at).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&size.to_be_bytes());
}

/// A box with version and flags.
fn full(out: &mut Vec<u8>, kind: &[u8; 4], version: u8, flags: u32, content: impl FnOnce(&mut Vec<u8>)) {
    boxed(out, kind, |out| {
        put32(out, u32::from(version) << 24 | flags);
        content(out);
    });
}

fn put16(out: &mut Vec<u8>, value: u16) {
    out.extend(value.to_be_bytes());
}

fn put32(out: &mut Vec<u8>, value: u32) {
    out.extend(value.to_be_bytes());
}

fn put64(out: &mut Vec<u8>, value: u64) {
    out.extend(value.to_be_bytes());
}

/// No rotation.
fn matrix(out: &mut Vec<u8>) {
    for value in [0x1_0000, 0, 0, 0, 0x1_0000, 0, 0, 0, 0x4000_0000] {
        put32(out, value);
    }
}

/// Everything before the media's box. Chunks lie `shift` bytes behind where they were written.
pub(in crate::media) fn head(tracks: &[&TrackIndex], shift: i64) -> Vec<u8> {
    let mut out = Vec::new();
    boxed(&mut out, b"ftyp", |out| {
        out.extend(b"isom");
        put32(out, 0x200);
        out.extend(b"isomiso2avc1mp41");
    });
    boxed(&mut out, b"moov", |out| {
        // What is seen ends with the last picture: the last frame of sound may be filled up behind it.
        let pictures = tracks.iter().filter(|t| matches!(t.track, Track::Video { .. })).map(|t| t.length()).max();
        let length = pictures.unwrap_or_else(|| tracks.iter().map(|t| t.length()).max().unwrap_or(0));
        full(out, b"mvhd", 1, 0, |out| {
            out.extend([0; 16]);
            put32(out, FILE_TICKS as u32);
            put64(out, length);
            put32(out, 0x1_0000);
            put16(out, 0x100);
            out.extend([0; 10]);
            matrix(out);
            out.extend([0; 24]);
            put32(out, u32::try_from(tracks.len()).unwrap_or(0) + 1);
        });
        for (number, track) in (1..).zip(tracks) {
            boxed(out, b"trak", |out| trak(out, track, number, length, shift));
        }
    });
    out
}

fn trak(out: &mut Vec<u8>, track: &TrackIndex, number: u32, length: u64, shift: i64) {
    let length = track.length().min(length);
    // Enabled, in the film and in its preview.
    full(out, b"tkhd", 1, 7, |out| {
        out.extend([0; 16]);
        put32(out, number);
        put32(out, 0);
        put64(out, length);
        out.extend([0; 12]);
        let (volume, width, height) = match track.track {
            Track::Video { width, height, .. } => (0, width, height),
            Track::Audio { .. } => (0x100, 0, 0),
        };
        put16(out, volume);
        put16(out, 0);
        matrix(out);
        put32(out, u32::from(width) << 16);
        put32(out, u32::from(height) << 16);
    });
    let (second, sample) = track.track.ticks();
    boxed(out, b"edts", |out| {
        full(out, b"elst", 1, 0, |out| {
            put32(out, 1);
            put64(out, length);
            let before = track.played.map_or(0, |(before, _)| before);
            put64(out, u64::from(track.delay()) * u64::from(sample) + before);
            put32(out, 0x1_0000);
        });
    });
    boxed(out, b"mdia", |out| {
        full(out, b"mdhd", 1, 0, |out| {
            out.extend([0; 16]);
            put32(out, second);
            put64(out, u64::from(track.count()) * u64::from(sample));
            put16(out, LANGUAGE);
            put16(out, 0);
        });
        let (handler, name) = match track.track {
            Track::Video { .. } => (b"vide", "picture\0"),
            Track::Audio { .. } => (b"soun", "sound\0"),
        };
        full(out, b"hdlr", 0, 0, |out| {
            put32(out, 0);
            out.extend(handler);
            out.extend([0; 12]);
            out.extend(name.as_bytes());
        });
        boxed(out, b"minf", |out| {
            match track.track {
                Track::Video { .. } => full(out, b"vmhd", 0, 1, |out| out.extend([0; 8])),
                Track::Audio { .. } => full(out, b"smhd", 0, 0, |out| out.extend([0; 4])),
            }
            boxed(out, b"dinf", |out| {
                full(out, b"dref", 0, 0, |out| {
                    put32(out, 1);
                    // In this file.
                    full(out, b"url ", 0, 1, |_| {});
                });
            });
            boxed(out, b"stbl", |out| stbl(out, track, shift));
        });
    });
}

fn stbl(out: &mut Vec<u8>, track: &TrackIndex, shift: i64) {
    let (_, sample) = track.track.ticks();
    full(out, b"stsd", 0, 0, |out| {
        put32(out, 1);
        match track.track {
            Track::Video { width, height, .. } => avc1(out, width, height, &track.codec),
            Track::Audio { rate } => mp4a(out, rate, &track.codec),
        }
    });
    full(out, b"stts", 0, 0, |out| {
        put32(out, 1);
        put32(out, track.count());
        put32(out, sample);
    });
    let delay = track.delay();
    if (0..).zip(&track.numbers).any(|(at, number)| at != *number) {
        let offsets: Vec<u32> = (0..).zip(&track.numbers).map(|(at, number)| (number + delay - at) * sample).collect();
        let runs: Vec<&[u32]> = offsets.chunk_by(|a, b| a == b).collect();
        full(out, b"ctts", 0, 0, |out| {
            put32(out, u32::try_from(runs.len()).unwrap_or(0));
            for run in runs {
                put32(out, u32::try_from(run.len()).unwrap_or(0));
                put32(out, run[0]);
            }
        });
    }
    if let Track::Video { .. } = track.track {
        full(out, b"stss", 0, 0, |out| {
            put32(out, u32::try_from(track.keyframes.len()).unwrap_or(0));
            track.keyframes.iter().for_each(|number| put32(out, *number));
        });
    }
    full(out, b"stsz", 0, 0, |out| {
        put32(out, 0);
        put32(out, track.count());
        track.sizes.iter().for_each(|size| put32(out, *size));
    });
    let runs: Vec<(u32, u32)> = (1..)
        .zip(&track.chunks)
        .scan(None, |before, (number, (_, samples))| {
            let new = *before != Some(*samples);
            *before = Some(*samples);
            Some(new.then_some((number, *samples)))
        })
        .flatten()
        .collect();
    full(out, b"stsc", 0, 0, |out| {
        put32(out, u32::try_from(runs.len()).unwrap_or(0));
        for (number, samples) in runs {
            put32(out, number);
            put32(out, samples);
            put32(out, 1);
        }
    });
    full(out, b"co64", 0, 0, |out| {
        put32(out, u32::try_from(track.chunks.len()).unwrap_or(0));
        track.chunks.iter().for_each(|(at, _)| put64(out, at.saturating_add_signed(shift)));
    });
}

fn avc1(out: &mut Vec<u8>, width: u16, height: u16, avcc: &[u8]) {
    boxed(out, b"avc1", |out| {
        out.extend([0; 6]);
        put16(out, 1);
        out.extend([0; 16]);
        put16(out, width);
        put16(out, height);
        // 72 dpi, twice.
        put32(out, 0x48_0000);
        put32(out, 0x48_0000);
        put32(out, 0);
        put16(out, 1);
        out.extend([0; 32]);
        put16(out, 24);
        put16(out, 0xffff);
        boxed(out, b"avcC", |out| out.extend(avcc));
        // BT.601, in the limited range: primaries of SMPTE 170M, transfer and matrix likewise.
        boxed(out, b"colr", |out| {
            out.extend(b"nclx");
            [6, 6, 6].iter().for_each(|value| put16(out, *value));
            out.push(0);
        });
        boxed(out, b"pasp", |out| {
            put32(out, 1);
            put32(out, 1);
        });
    });
}

fn mp4a(out: &mut Vec<u8>, rate: u32, config: &[u8]) {
    boxed(out, b"mp4a", |out| {
        out.extend([0; 6]);
        put16(out, 1);
        out.extend([0; 8]);
        put16(out, 2);
        put16(out, 16);
        put32(out, 0);
        put32(out, rate << 16);
        full(out, b"esds", 0, 0, |out| {
            // Descriptors of ISO/IEC 14496-1: each a tag, a length of one byte, and what it says.
            let config_len = u8::try_from(config.len().min(64)).unwrap_or(0);
            out.extend([3, 3 + 15 + 2 + config_len + 3, 0, 0, 0]);
            // AAC, a stream of sound, no sizes of buffers.
            out.extend([4, 13 + 2 + config_len, 0x40, 0x15, 0, 0, 0]);
            put32(out, 0);
            put32(out, 0);
            out.extend([5, config_len]);
            out.extend(&config[..usize::from(config_len)]);
            out.extend([6, 1, 2]);
        });
    });
}

/// Fills room behind the index; none, or at least eight bytes.
pub(in crate::media) fn fill(out: &mut Vec<u8>, bytes: u64) {
    if bytes >= 8 {
        boxed(out, b"free", |out| out.resize(out.len() + usize::try_from(bytes - 8).unwrap_or(0), 0));
    }
}

/// The header of the media's box.
pub(in crate::media) fn mdat(out: &mut Vec<u8>, media: u64) {
    put32(out, 1);
    out.extend(b"mdat");
    put64(out, media.saturating_add(16));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pictures(numbers: &[u32]) -> TrackIndex {
        let mut index = TrackIndex::new(Track::Video { width: 640, height: 480, rate: 30 });
        numbers.iter().for_each(|number| index.add(100, *number, *number == 0));
        index.chunk(1000, index.count());
        index
    }

    /// The boxes of a stretch of bytes: type and content.
    fn boxes(bytes: &[u8]) -> Vec<(String, &[u8])> {
        let (mut at, mut found) = (0, Vec::new());
        while at < bytes.len() {
            let size = u32::from_be_bytes(bytes[at..at + 4].try_into().expect("a size")) as usize;
            found.push((String::from_utf8_lossy(&bytes[at + 4..at + 8]).into_owned(), &bytes[at + 8..at + size]));
            at += size;
        }
        found
    }

    fn find<'a>(bytes: &'a [u8], path: &[&str]) -> &'a [u8] {
        path.iter().fold(bytes, |bytes, kind| {
            boxes(bytes).into_iter().find(|(found, _)| found == kind).unwrap_or_else(|| panic!("{kind}")).1
        })
    }

    #[test]
    fn pictures_that_are_shown_in_another_order_are_delayed_by_no_more_than_needed() {
        for (numbers, delay, offsets) in [
            (vec![0, 1, 2, 3], 0, None),
            // One picture before the two that lean on it.
            (vec![0, 3, 1, 2, 4], 1, Some(vec![1, 3, 0, 0, 1])),
            (vec![0, 4, 2, 1, 3], 2, Some(vec![2, 5, 2, 0, 1])),
        ] {
            let index = pictures(&numbers);
            assert_eq!(index.delay(), delay, "{numbers:?}");
            let head = head(&[&index], 0);
            let table = find(&head, &["moov", "trak", "mdia", "minf", "stbl"]);
            let Some(offsets) = offsets else {
                assert!(!boxes(table).iter().any(|(kind, _)| kind == "ctts"));
                continue;
            };
            let words: Vec<u32> =
                find(table, &["ctts"]).as_chunks::<4>().0.iter().map(|b| u32::from_be_bytes(*b)).collect();
            let told: Vec<u32> = words[2..].chunks(2).flat_map(|run| vec![run[1] / 1000; run[0] as usize]).collect();
            assert_eq!(told, offsets, "{numbers:?}");
        }
    }

    #[test]
    fn the_room_is_enough_for_the_worst_index() {
        let (picture, sound) = (Track::Video { width: 640, height: 480, rate: 30 }, Track::Audio { rate: 48_000 });
        for seconds in [1, 10, 600] {
            let (mut a, mut b) = (TrackIndex::new(picture), TrackIndex::new(sound));
            for n in 0..seconds * 30 {
                // No two offsets are the same, and there are twice as many keyframes as are asked for.
                a.add(1, n + (n * n) % 3, n % 30 == 0);
            }
            (0..seconds * 47).for_each(|_| b.add(1, 0, true));
            for n in 0..seconds * 2 {
                a.chunk(u64::from(n), 15 + n % 2);
                b.chunk(u64::from(n), 23 + n % 2);
            }
            let needed = head(&[&a, &b], 0).len() as u64;
            let room = room(&[picture, sound], u64::from(seconds));
            assert!(needed <= room, "{seconds} s: {needed} of {room}");
        }
    }

    #[test]
    fn chunks_are_told_where_they_are_moved_to() {
        let head = head(&[&pictures(&[0])], -300);
        let place = find(&head, &["moov", "trak", "mdia", "minf", "stbl", "co64"]);
        assert_eq!(place[8..], 700_u64.to_be_bytes());
    }
}
