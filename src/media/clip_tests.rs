//! Where a part may begin and end, and what is copied for it.

use super::*;
use crate::media::mp4::read::tests::{data, index, made};

fn source(file: &[u8]) -> ClipSource {
    ClipSource::parse(index(file), file.len() as u64, 30).expect("an index")
}

fn part(from_ms: u32, to_ms: Option<u32>) -> ClipRange {
    ClipRange { from_ms, to_ms, at_keyframe: false }
}

/// Groups of six pictures, each from a keyframe, of which four are not in the order in which they are shown.
fn groups(count: u32) -> (Vec<u32>, Vec<usize>) {
    let numbers = (0..count).flat_map(|g| [0, 4, 2, 1, 3, 5].map(|n| g * 6 + n)).collect();
    (numbers, (0..count as usize).map(|g| g * 6).collect())
}

#[test]
fn a_part_begins_at_a_keyframe_and_has_all_pictures_before_its_end() {
    let (numbers, keyframes) = groups(10);
    let source = source(&made(&numbers, &keyframes, 94));
    // Pictures of 33.3 ms: 6 begins at 200 ms, 12 at 400 ms.
    for (from, to, before, pictures, video_range) in [
        (0, None, 0, 60, 0..60),
        (200, None, 6, 54, 6..60),
        // Half a picture beside it.
        (184, Some(600), 6, 12, 6..18),
        (216, Some(600), 6, 12, 6..18),
        // The end is rounded to a picture.
        (200, Some(617), 6, 13, 6..19),
        // Before picture 8: those that are shown are 6 and 7, and 7 leans on 10 and 8, which stand before it.
        (200, Some(267), 6, 2, 6..10),
        (200, Some(300), 6, 3, 6..10),
        (200, Some(334), 6, 4, 6..11),
        (200, Some(5000), 6, 54, 6..60),
    ] {
        let clip = source.clip(part(from, to)).expect("a cut");
        assert_eq!((clip.before, clip.pictures, clip.video_range), (before, pictures, video_range), "{from}..{to:?}");
    }
}

#[test]
fn beside_a_keyframe_it_says_where_the_nearest_are_or_begins_at_the_one_before() {
    let (numbers, keyframes) = groups(10);
    let source = source(&made(&numbers, &keyframes, 0));
    for (from, before, after) in [(100, 0, Some(200)), (250, 200, Some(400)), (1900, 1800, None)] {
        let refused = source.clip(part(from, None)).expect_err("no keyframe");
        assert_eq!(refused, ClipRangeError::NoKeyframe { at: from.into(), before, after });
        let clip = source.clip(ClipRange { at_keyframe: true, ..part(from, None) }).expect("a cut");
        assert_eq!(source.moment(clip.before), before);
        // What it says can be asked for.
        for at in [Some(before), after].into_iter().flatten() {
            assert!(source.clip(part(u32::try_from(at).expect("ms"), None)).is_ok(), "{at}");
        }
    }
    let text = source.clip(part(250, None)).expect_err("no keyframe").to_string();
    assert_eq!(text, "there is no keyframe at 0.250 s: the nearest are at 0.200 s and 0.400 s");
    for (from, to) in [(400, Some(410)), (2000, None), (400, Some(200)), (u32::MAX, None)] {
        assert!(matches!(source.clip(part(from, to)), Err(ClipRangeError::Empty { .. })), "{from}..{to:?}");
    }
}

#[test]
fn no_part_begins_at_the_keyframe_of_an_open_group() {
    // 6 is a keyframe, and 4 and 5 behind it in the file lean on what was before.
    let source = source(&made(&[0, 1, 2, 3, 6, 4, 5, 7, 8, 9], &[0, 4, 8], 0));
    assert!(matches!(
        source.clip(part(200, None)),
        Err(ClipRangeError::NoKeyframe { before: 0, after: Some(267), .. })
    ));
    assert!(source.clip(part(267, None)).is_ok());
}

/// Cuts a file as it is done with one in a store.
fn clipped(file: &[u8], part: ClipRange) -> (Vec<u8>, ClipResult) {
    let (source, dir) = (source(file), tempfile::tempdir().expect("folder"));
    let clip = source.clip(part).expect("a cut");
    let (range, media, out) = (source.bytes(&clip), dir.path().join("media"), dir.path().join("out.mp4"));
    std::fs::write(&media, &file[range.start as usize..range.end as usize]).expect("media");
    source.write(&clip, &File::open(&media).expect("media"), &out).expect("written");
    (std::fs::read(out).expect("file"), clip)
}

/// When each frame of sound and each picture is played, in samples of sound, with its bytes.
fn played_ticks(file: &[u8], from: u64) -> Vec<(i64, Vec<u8>)> {
    let movie = source(file).movie;
    let bytes = |place: &SampleLocation| file[place.at as usize..][..place.size as usize].to_vec();
    let sound = movie.audio.as_ref().expect("sound");
    let audio_range = (0..).zip(&sound.samples).map(|(n, place)| (n * 1024 - sound.before.cast_signed(), bytes(place)));
    let picture = movie.video.as_ref().expect("pictures");
    let pictures = picture.samples.iter().map(|place| (i64::from(place.number) * 1600, bytes(place)));
    audio_range.chain(pictures).map(|(at, bytes)| (at + from.cast_signed() * 1600, bytes)).collect()
}

#[test]
fn what_is_copied_is_the_same_at_the_same_time_and_can_be_cut_again() {
    let (numbers, keyframes) = groups(10);
    let file = made(&numbers, &keyframes, 94);
    let all = played_ticks(&file, 0);
    for (from, to) in [(0, Some(700)), (200, None), (400, Some(1000)), (1200, Some(1267)), (1800, None)] {
        let (bytes, clip) = clipped(&file, part(from, to));
        let there = played_ticks(&bytes, clip.before);
        assert!(there.iter().all(|one| all.contains(one)), "{from}..{to:?}");
        let (begin, end) = (clip.before.cast_signed() * 1600, (clip.before + clip.pictures).cast_signed() * 1600);
        // All that is played between the two, and the frame of sound that the first one needs.
        let needed = all.iter().filter(|(at, bytes)| {
            let lasts = if bytes[0] == b's' { 1024 } else { 0 };
            (begin..end).contains(at) || (*at < end && at + 2 * lasts > begin)
        });
        assert!(needed.clone().all(|one| there.contains(one)), "{from}..{to:?}");
        assert!(there.len() <= needed.count() + 2, "{from}..{to:?}: {there:?}");
        assert_eq!(source(&bytes).pictures, clip.pictures, "{from}..{to:?}");
    }
    let (once, _) = clipped(&file, part(200, Some(1500)));
    let (twice, clip) = clipped(&once, part(400, Some(667)));
    assert_eq!((clip.before, clip.pictures), (12, 8));
    assert!(played_ticks(&twice, 18).iter().all(|one| all.contains(one)));
    let (directly, _) = clipped(&file, part(600, Some(867)));
    assert_eq!(twice, directly);
}

#[test]
fn sound_alone_is_cut_at_any_picture_s_time() {
    let file = made(&[], &[], 94);
    let (bytes, clip) = clipped(&file, part(500, Some(1000)));
    // Half a second behind the beginning is sample 24,000: in frame 23, which needs frame 22.
    assert_eq!((clip.before, clip.pictures, clip.skipped_samples), (15, 15, 24_000 - 22 * 1024));
    let sound = source(&bytes).movie.audio.expect("sound");
    assert_eq!((sound.samples.len(), sound.length_ms), (47 - 22, 500));
    assert_eq!(&bytes[sound.samples[0].at as usize..][..sound.samples[0].size as usize], data(b's', 22));
}

#[test]
fn sound_that_ends_before_the_part_is_left_out() {
    let (numbers, keyframes) = groups(10);
    let (bytes, clip) = clipped(&made(&numbers, &keyframes, 9), part(1800, None));
    assert_eq!((clip.pictures, clip.audio_range), (6, 0..0));
    let movie = source(&bytes).movie;
    assert!(movie.video.is_some() && movie.audio.is_none());
}
