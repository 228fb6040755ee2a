//! What the writer writes is read back; what is cut or damaged is refused, and does no harm.

use super::super::{Mp4Writer, Sample};
use super::*;

/// A file of pictures with these numbers in the order of the file, keyframes at these places, and frames of sound.
/// The bytes of each sample are of its own kind, and of a length of their own.
pub(in crate::media) fn made(numbers: &[u32], keyframes: &[usize], sounds: usize) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("made.mp4");
    let tracks = [Track::Video { width: 640, height: 480, rate: 30 }, Track::Audio { rate: 48_000 }];
    let there: Vec<Track> = tracks.into_iter().zip([numbers.len(), sounds]).filter(|t| t.1 > 0).map(|t| t.0).collect();
    let mut file = Mp4Writer::create(&path, &there, 1).expect("file");
    if !numbers.is_empty() {
        file.codec(0, b"private");
    }
    let sound = there.len() - 1;
    if sounds > 0 {
        file.codec(sound, &[0x11, 0x90]);
    }
    for (place, number) in numbers.iter().enumerate() {
        let sample = Sample { data: &data(b'p', place), number: *number, keyframe: keyframes.contains(&place) };
        file.add(0, sample).expect("sample");
    }
    for n in 0..sounds {
        file.add(sound, Sample { data: &data(b's', n), number: 0, keyframe: true }).expect("sample");
    }
    file.finish().expect("file");
    std::fs::read(path).expect("file")
}

/// The bytes of a sample.
pub(in crate::media) fn data(kind: u8, n: usize) -> Vec<u8> {
    let mut data = vec![kind; n % 7 + 5];
    data[1..5].copy_from_slice(&u32::try_from(n).expect("few").to_be_bytes());
    data
}

/// The index of a file.
pub(in crate::media) fn index(file: &[u8]) -> &[u8] {
    let place = index_range(&file[..file.len().min(HEAD_BYTES as usize)]).expect("an index");
    &file[place.start as usize..place.end as usize]
}

fn read(file: &[u8]) -> Result<Movie, Mp4Error> {
    parse(index(file), file.len() as u64)
}

#[test]
fn what_is_written_is_read_back() {
    let reordered: Vec<u32> = (0..100).flat_map(|g| [0, 4, 2, 1, 3].map(|n| g * 5 + n)).collect();
    for (numbers, keyframes, sounds) in [
        (vec![0], vec![0], 0),
        (vec![], vec![], 3),
        ((0..200).collect(), vec![0, 60, 120], 320),
        (reordered, vec![0, 5, 495], 1000),
    ] {
        let file = made(&numbers, &keyframes, sounds);
        let movie = read(&file).expect("an index");
        let bytes = |place: &SampleLocation| &file[place.at as usize..][..place.size as usize];
        assert_eq!(movie.video.is_some(), !numbers.is_empty());
        if let Some(picture) = &movie.video {
            assert_eq!(picture.track, Track::Video { width: 640, height: 480, rate: 30 });
            assert_eq!((picture.codec.as_slice(), picture.before), (&b"private"[..], 0));
            assert_eq!(picture.length_ms, numbers.len() as u64 * 100 / 3);
            assert_eq!(picture.samples.iter().map(|s| s.number).collect::<Vec<_>>(), numbers);
            let keys = picture.samples.iter().enumerate().filter(|(_, s)| s.keyframe).map(|(n, _)| n);
            assert_eq!(keys.collect::<Vec<_>>(), keyframes);
            assert!(picture.samples.iter().enumerate().all(|(n, place)| bytes(place) == data(b'p', n)));
        }
        assert_eq!(movie.audio.is_some(), sounds > 0);
        if let Some(sound) = &movie.audio {
            assert_eq!((sound.track, sound.codec.as_slice()), (Track::Audio { rate: 48_000 }, &[0x11, 0x90][..]));
            assert_eq!((sound.samples.len(), sound.before), (sounds, 0));
            assert!(sound.samples.iter().enumerate().all(|(n, place)| bytes(place) == data(b's', n)));
        }
    }
}

#[test]
fn an_index_that_is_cut_is_refused() {
    let file = made(&[0, 3, 1, 2, 4], &[0], 9);
    let index = index(&file);
    for cut in 0..index.len() {
        assert!(parse(&index[..cut], file.len() as u64).is_err(), "{cut}");
    }
    for cut in 0..40 {
        assert!(index_range(&file[..cut]).is_err(), "{cut}");
    }
    // Of a file that is shorter, some samples are not there.
    assert_eq!(parse(index, file.len() as u64 - 1), Err(Damaged("a sample lies behind the end of the file")));
    // And behind the media there is no index that plays while it is fetched.
    let begin = index_range(&file).expect("an index");
    let mut moved = file[..begin.start as usize].to_vec();
    moved.extend_from_slice(&file[begin.end as usize..]);
    assert_eq!(index_range(&moved), Err(Foreign("its index is not at its beginning")));
}

#[test]
fn a_damaged_index_does_no_harm() {
    let file = made(&[0, 3, 1, 2, 4, 5, 9, 7, 6, 8], &[0, 5], 16);
    let (index, size) = (index(&file), file.len() as u64);
    let harmless = |index: &[u8], what: &dyn std::fmt::Debug| {
        if let Ok(movie) = parse(index, size) {
            for track in movie.video.iter().chain(&movie.audio) {
                assert!(track.samples.len() <= 16, "{what:?}");
                assert!(track.samples.iter().all(|s| s.at + u64::from(s.size) <= size), "{what:?}");
                assert!(track.samples.iter().all(|s| s.number < 16 + REORDERED_MAX), "{what:?}");
            }
        }
    };
    for at in 0..index.len() {
        for byte in [0, 1, 2, 0x7f, 0x80, 0xfe, 0xff, index[at].wrapping_add(1), index[at].wrapping_sub(1)] {
            let mut index = index.to_vec();
            index[at] = byte;
            harmless(&index, &(at, byte));
        }
        // Sizes, counts and places that are as large as can be.
        for word in [0, 1, u32::MAX, u32::MAX - 8, 1 << 31] {
            let mut index = index.to_vec();
            let end = index.len().min(at + 4);
            index[at..end].copy_from_slice(&word.to_be_bytes()[..end - at]);
            harmless(&index, &(at, word));
        }
    }
    for at in 0..40 {
        for byte in 0..=255 {
            let mut head = file.clone();
            head[at] = byte;
            if let Ok(place) = index_range(&head) {
                assert!(place.end - place.start <= INDEX_BYTES_MAX);
            }
        }
    }
}
