use std::io::Write;
use std::process::{Command, Stdio};

use super::*;
use crate::publisher::media::{picture, samples};

/// Codes pictures `numbers` and the sound of as many seconds with the given ffmpeg arguments.
fn make(
    numbers: std::ops::Range<u32>,
    size: (u32, u32),
    arguments: &[&str],
) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().expect("dir");
    let (sound, file) = (dir.path().join("sound"), dir.path().join("file.mkv"));
    std::fs::write(&sound, samples(48_000, 1600 * numbers.start, 1600 * u32::try_from(numbers.len()).expect("few")))
        .expect("write");
    let mut child = Command::new("ffmpeg")
        .args(["-v", "error", "-f", "rawvideo", "-pix_fmt", "yuv420p", "-r", "30", "-s"])
        .arg(format!("{}x{}", size.0, size.1))
        .args(["-i", "pipe:0", "-f", "s16le", "-ar", "48000", "-ac", "1", "-i"])
        .arg(&sound)
        .args(arguments)
        .arg(&file)
        .stdin(Stdio::piped())
        .spawn()
        .expect("ffmpeg");
    let mut stdin = child.stdin.take().expect("stdin");
    for number in numbers {
        stdin.write_all(&picture(size, number, 0xa5c3)).expect("write");
    }
    drop(stdin);
    assert!(child.wait().expect("wait").success());
    (dir, file)
}

const LOW: &[&str] = &[
    "-c:v",
    "libvpx",
    "-deadline",
    "realtime",
    "-cpu-used",
    "8",
    "-b:v",
    "60k",
    "-qmax",
    "63",
    "-g",
    "300",
    "-c:a",
    "libopus",
];

#[test]
fn numbers_and_beeps_are_read_after_low_bitrates_small_sizes_and_every_codec() {
    let quarter: Vec<&str> = [LOW, &["-vf", "scale=160:120"]].concat();
    let tiny: Vec<&str> = [LOW, &["-vf", "scale=80:60"]].concat();
    let table: &[(&str, (u32, u32), &[&str])] = &[
        ("VP8 320x240 at 60 kbit/s", (320, 240), LOW),
        ("VP8 640x480 at 60 kbit/s", (640, 480), LOW),
        ("VP8 a quarter of 640x480", (640, 480), &quarter),
        ("VP8 a quarter of 320x240", (320, 240), &tiny),
        (
            "VP9 and A-law",
            (320, 240),
            &[
                "-c:v",
                "libvpx-vp9",
                "-deadline",
                "realtime",
                "-cpu-used",
                "8",
                "-b:v",
                "60k",
                "-c:a",
                "pcm_alaw",
                "-ar",
                "8000",
            ],
        ),
        (
            "H.264 and mu-law",
            (320, 240),
            &[
                "-c:v",
                "libx264",
                "-preset",
                "ultrafast",
                "-tune",
                "zerolatency",
                "-crf",
                "40",
                "-c:a",
                "pcm_mulaw",
                "-ar",
                "8000",
            ],
        ),
        (
            "Opus at 16 kbit/s",
            (320, 240),
            &["-c:v", "libx264", "-preset", "ultrafast", "-bf", "0", "-c:a", "libopus", "-b:a", "16k"],
        ),
    ];
    for (name, size, arguments) in table {
        // Second 60 has the highest pitches, and the numbers have many bits set.
        let (_dir, file) = make(1785..1890, *size, arguments);
        let content = Content::read(&file).expect("read");
        assert_eq!(content.errors, Vec::<String>::new(), "{name}");
        let numbers: Vec<u16> = content.numbers().collect();
        assert_eq!(numbers, (1785..1890).collect::<Vec<u16>>(), "{name}");
        assert!(content.frames.iter().all(|f| f.code == Some(0xa5c3)), "{name}");
        assert!(content.in_order() && content.frames[0].keyframe && !content.frames[1].keyframe, "{name}");
        // The sound begins at 59.5 s.
        let expected = [(60, 0.5), (61, 1.5), (62, 2.5)];
        assert_eq!(content.beeps.iter().map(|b| b.second).collect::<Vec<_>>(), expected.map(|e| e.0), "{name}");
        for (beep, (_, at)) in content.beeps.iter().zip(expected) {
            assert!((beep.at - at).abs() < 0.004, "{name}: {beep:?} {at}");
        }
        let truth = Timeline {
            frames: (1785..1890).map(|n| (n, 1000.0 + f64::from(n) / 30.0)).collect(),
            beeps: (60..63).map(|s| (s, 1000.0 + f64::from(s))).collect(),
        };
        let matched = content.against(&truth);
        assert_eq!((matched.frames.len(), matched.missing.len(), matched.strange), (105, 0, 0), "{name}");
        let sync = matched.sound_after_picture();
        // This ffmpeg moves pictures by Opus's pre-skip of 6.5 ms and sound not.
        assert!(sync.len() == 3 && sync.iter().all(|s| s.abs() < 0.009), "{name}: {sync:?}");
    }
}

#[test]
fn pictures_without_cells_are_unreadable_and_noise_is_no_beep() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("noise.mkv");
    let made = Command::new("ffmpeg")
        .args(["-v", "error", "-f", "lavfi", "-i", "testsrc=size=320x240:duration=1", "-f", "lavfi", "-i"])
        .args(["anoisesrc=duration=3:amplitude=0.5,volume='if(between(t,1,1.2),1,0)':eval=frame", "-c:v", "libvpx"])
        .arg(&file)
        .status();
    assert!(made.expect("ffmpeg").success());
    let content = Content::read(&file).expect("read");
    assert_eq!((content.unreadable(), content.frames.len(), content.beeps.len()), (25, 25, 0), "{:?}", content.beeps);
    assert!((content.audio_span().expect("sound").1 - 3.0).abs() < 0.05);
}

#[test]
fn a_damaged_file_has_errors() {
    let (_dir, file) = make(0..60, (320, 240), LOW);
    let mut bytes = std::fs::read(&file).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle..middle + 2000].fill(0xff);
    std::fs::write(&file, bytes).expect("write");
    assert!(!Content::read(&file).expect("read").errors.is_empty());
}

#[test]
fn pictures_that_were_sent_again_later_are_the_first_ones() {
    // The publisher goes on for two minutes after the file's end. It once left out three numbers for a keyframe, so that each
    // number comes again a little sooner, and then as even as before.
    let taken = |n: u32| 50.0 + f64::from(n) / 30.0;
    let number = |n: u32| (n + if n > 900 { 3 } else { 0 }) % 1920;
    let truth = Timeline { frames: (0..6600).map(|n| (number(n), taken(n))).collect(), ..Timeline::default() };
    for tenths in -20..20 {
        // Every second picture is 4 ms late in the file.
        let frame = |n: u32| SeenFrame {
            pts: taken(n) - 50.0 + f64::from(tenths) / 40.0 + f64::from(n % 2) * 0.004,
            number: u16::try_from(number(n)).ok(),
            code: Some(1),
            size: (1, 1),
            keyframe: false,
        };
        let content = Content { frames: (1000..2900).map(frame).collect(), ..Content::default() };
        let matched = content.against(&truth);
        assert_eq!((matched.frames.len(), matched.missing.len()), (1900, 0), "{tenths}");
        let zero = matched.frames[0].zero();
        assert!((zero - 50.0).abs() < 1.0, "{tenths}: {zero}");
    }
}

#[test]
fn few_beeps_are_taken_for_those_of_the_pictures_minute() {
    let frame = |n: u32| SeenFrame {
        pts: f64::from(n) / 30.0 - 2.0,
        number: u16::try_from(n % 1920).ok(),
        code: Some(1),
        size: (1, 1),
        keyframe: false,
    };
    let truth = Timeline {
        frames: (0..3000).map(|n| (n % 1920, 50.0 + f64::from(n) / 30.0)).collect(),
        beeps: (0..100).map(|second| (second % 64, 50.0 + f64::from(second))).collect(),
    };
    // Of a hundred beeps only those are heard whose numbers were there before.
    let beep = |second: u32| SeenBeep { second: second % 64, at: f64::from(second) - 2.0 };
    let content =
        Content { frames: (0..3000).map(frame).collect(), beeps: (66..95).map(beep).collect(), ..Content::default() };
    let late = content.against(&truth).sound_after_picture();
    assert_eq!(late.len(), 29);
    assert!(late.iter().all(|late| late.abs() < 0.001), "{late:?}");
}

#[test]
fn what_is_missing_doubled_or_displaced_is_told() {
    let frame = |number, pts| SeenFrame { pts, number: Some(number), code: Some(1), size: (1, 1), keyframe: false };
    let truth = Timeline { frames: (0..3000).map(|n| (n % 1920, 50.0 + f64::from(n) / 30.0)).collect(), beeps: vec![] };
    let at = |n: u32| frame(u16::try_from(n % 1920).expect("small"), f64::from(n) / 30.0 - 2.0);
    let whole = Content { frames: (100..2900).map(at).collect(), ..Content::default() }.against(&truth);
    assert_eq!((whole.frames.len(), whole.missing.len(), whole.strange), (2800, 0, 0));
    assert_eq!((whole.before, whole.after), (100, 100));
    let mut frames: Vec<_> = (100..2900).filter(|n| *n != 500 && *n != 501).map(at).collect();
    frames.insert(50, frames[49]);
    frames.swap(1000, 1001);
    frames[2000].number = None;
    frames[2100].number = Some(60_000);
    let bad = Content { frames, ..Content::default() }.against(&truth);
    // Two left out, two at their place but not to be read, one overtaken, one twice.
    assert_eq!((bad.missing.len(), bad.damaged), (2, 3), "{:?}", bad.missing);
    assert_eq!((bad.frames.len(), bad.strange), (2795, 1));
    let other: Vec<Pair> = whole.frames.iter().map(|p| Pair { seen: p.seen - 0.020, ..*p }).collect();
    let distance = percentile(&apart(&whole.frames, &other), 99.0).expect("values");
    assert!((distance - 0.020).abs() < 0.001, "{distance}");
}

#[test]
fn a_contact_sheet_has_a_row_a_file() {
    let (dir, file) = make(0..60, (320, 240), LOW);
    let sound = dir.path().join("sound.webm");
    let made = Command::new("ffmpeg").args(["-v", "error", "-i"]).arg(&file).arg("-vn").arg(&sound).status();
    assert!(made.expect("ffmpeg").success());
    let png = dir.path().join("sheet.png");
    contact_sheet(&[("Anna: camera".to_owned(), &file), ("Bob's sound".to_owned(), &sound)], &png).expect("sheet");
    let bytes = std::fs::read(&png).expect("read");
    let number = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    assert_eq!((number(16), number(20)), (6 * 240, 2 * (180 + 22)));
}
