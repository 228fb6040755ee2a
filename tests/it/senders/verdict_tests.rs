//! The verdict is seen to fail on each fault that it is there to find.

use super::*;

/// When the first picture was sent.
const BEGIN: f64 = 100.0;

/// Four seconds of 30 pictures a second and a beep a second that are all where they belong, 40 ms later.
fn whole() -> Evidence {
    let marks = |count: u32, step: f64, late: f64| -> Vec<Mark> {
        (0..count).map(|n| Mark { life: 1, number: n, at: BEGIN + f64::from(n) * step + late }).collect()
    };
    let flow = |count, step| Flow {
        sent: marks(count, step, 0.0),
        decoded: marks(count, step, 0.04),
        shown: marks(count, step, 0.05),
        gaps: Vec::new(),
    };
    Evidence {
        pictures: flow(120, 1.0 / 30.0),
        beeps: flow(4, 1.0),
        begins: vec![Begin { at: BEGIN, announced: BEGIN }],
        sound: Some((4.0, 4.0)),
        ..Evidence::default()
    }
}

/// The sender pauses for three seconds behind a picture.
fn pause_after(evidence: &mut Evidence, number: u32) {
    for list in [&mut evidence.pictures.sent, &mut evidence.pictures.decoded, &mut evidence.pictures.shown] {
        list.iter_mut().filter(|mark| mark.number > number).for_each(|mark| mark.at += 3.0);
    }
}

fn gap(from: f64, to: f64, cause: &str) -> GapSpan {
    GapSpan { from: BEGIN + from, to: BEGIN + to, cause: cause.to_owned() }
}

/// Takes pictures out of both files.
fn without(evidence: &mut Evidence, numbers: std::ops::Range<u32>) {
    for list in [&mut evidence.pictures.decoded, &mut evidence.pictures.shown] {
        list.retain(|mark| !numbers.contains(&mark.number));
    }
}

type Fault = fn(&mut Evidence);
/// How many are excused, by cause.
type Excused = &'static [(&'static str, usize)];

#[test]
fn what_is_whole_or_excused_passes() {
    let cases: [(&str, Fault, Excused); 14] = [
        ("whole", |_| (), &[]),
        (
            "the time to be told of it and to subscribe",
            |e| {
                e.begins[0].announced += 0.5;
                without(e, 0..44);
            },
            &[("lead", 44)],
        ),
        ("the time to subscribe", |e| without(e, 0..12), &[("lead", 12)]),
        (
            "a gap with a cause",
            |e| {
                without(e, 30..60);
                e.pictures.gaps.push(gap(1.0, 2.0, "network"));
            },
            &[("network", 30)],
        ),
        (
            "the last pictures before a pause, and the gap behind the pause",
            |e| {
                pause_after(e, 59);
                without(e, 58..60);
                e.pictures.gaps.push(gap(4.94, 5.0, "network"));
            },
            &[("network", 2)],
        ),
        (
            "B-frames of the last picture before a pause, which was sent before them",
            |e| {
                e.has_b_frames = true;
                pause_after(e, 59);
                without(e, 57..59);
                e.pictures.gaps.push(gap(4.94, 5.0, "network"));
            },
            &[("network", 2)],
        ),
        (
            "every second of 60 pictures a second",
            |e| {
                for list in [&mut e.pictures.sent, &mut e.pictures.decoded, &mut e.pictures.shown] {
                    list.iter_mut().for_each(|mark| mark.at -= f64::from(mark.number) / 60.0);
                }
                e.pictures.shown.retain(|mark| mark.number % 2 == 1);
            },
            &[],
        ),
        ("a picture that is shown twice", |e| e.pictures.shown.insert(7, e.pictures.shown[7]), &[]),
        (
            "black pictures of a muted track",
            |e| {
                e.blanks = vec![BEGIN + 1.0, BEGIN + 2.0];
                e.unreadable = vec![BEGIN + 1.0, BEGIN + 2.0];
            },
            &[],
        ),
        (
            "a beep that the sender cut",
            |e| {
                e.beeps.decoded.remove(3);
                e.beeps.shown.remove(3);
                e.cuts = vec![BEGIN + 3.05];
            },
            &[("cut", 1)],
        ),
        (
            "a beep that the sender cut, and half of which is in the composed file",
            |e| {
                e.beeps.decoded.remove(3);
                e.cuts = vec![BEGIN + 3.05];
            },
            &[("cut", 1)],
        ),
        (
            "a beep that the sender began in its middle",
            |e| {
                e.beeps.sent.remove(3);
                e.cuts = vec![BEGIN + 3.05];
            },
            &[],
        ),
        (
            "a picture that one layer left out",
            |e| {
                without(e, 40..41);
                e.partial = vec![e.pictures.sent[40]];
            },
            &[("layer", 1)],
        ),
        (
            "pictures that the killed sender did not tell of",
            |e| {
                e.pictures.sent.truncate(117);
                e.unknown_after = Some(e.pictures.sent[116].at);
            },
            &[],
        ),
    ];
    for (name, change, excused) in cases {
        let mut evidence = whole();
        change(&mut evidence);
        let verdict = judge(&evidence);
        assert_eq!(verdict.problems, Vec::<String>::new(), "{name}");
        let excused: BTreeMap<String, usize> = excused.iter().map(|(cause, n)| ((*cause).to_owned(), *n)).collect();
        assert_eq!(verdict.excused, excused, "{name}");
    }
}

#[test]
fn each_fault_is_found() {
    let cases: [(&str, Fault, &str); 25] = [
        ("a picture less", |e| without(e, 40..41), "1 pictures missing without a gap"),
        ("the last one", |e| without(e, 119..120), "1 pictures missing without a gap"),
        ("no picture at all", |e| without(e, 0..120), "pictures missing without a gap"),
        (
            "a gap elsewhere",
            |e| {
                without(e, 30..60);
                e.pictures.gaps.push(gap(2.5, 3.0, "network"));
            },
            "30 pictures missing without a gap",
        ),
        (
            "a picture that is no part of the gap behind the pause",
            |e| {
                pause_after(e, 59);
                without(e, 55..56);
                e.pictures.gaps.push(gap(4.94, 5.0, "network"));
            },
            "1 pictures missing without a gap",
        ),
        (
            "pictures before the last one before a pause, and the gap behind the pause",
            |e| {
                pause_after(e, 59);
                without(e, 57..59);
                e.pictures.gaps.push(gap(4.94, 5.0, "network"));
            },
            "2 pictures missing without a gap",
        ),
        (
            "a beep, and a gap at the next one",
            |e| {
                e.beeps.decoded.remove(2);
                e.beeps.shown.remove(2);
                for list in [&mut e.beeps.sent, &mut e.beeps.decoded, &mut e.beeps.shown] {
                    list.iter_mut().for_each(|mark| mark.at += f64::from(mark.number));
                }
                e.beeps.gaps.push(gap(6.0, 6.1, "network"));
            },
            "1 beeps missing without a gap",
        ),
        (
            "the last pictures before a pause, and nothing that tells of a loss",
            |e| {
                pause_after(e, 59);
                without(e, 58..60);
                e.pictures.gaps.push(gap(4.94, 5.0, "not_sent"));
            },
            "2 pictures missing without a gap",
        ),
        (
            "a gap of the sound",
            |e| {
                without(e, 30..60);
                e.beeps.gaps.push(gap(1.0, 2.0, "network"));
            },
            "30 pictures missing without a gap",
        ),
        ("a late beginning", |e| without(e, 0..45), "15 pictures missing without a gap"),
        (
            "a beginning that the room told of late",
            |e| {
                e.begins[0].announced += 3.0;
                without(e, 0..75);
            },
            "15 pictures missing without a gap",
        ),
        ("a hole behind the beginning", |e| without(e, 5..12), "7 pictures missing without a gap"),
        ("a picture twice", |e| e.pictures.decoded.insert(41, e.pictures.decoded[40]), "1 pictures twice"),
        ("two pictures swapped", |e| e.pictures.decoded.swap(40, 41), "1 pictures out of order in the file"),
        ("a picture at another time", |e| e.pictures.decoded[40].at += 0.4, "1 pictures at another time in the file"),
        (
            "a picture of another life",
            |e| {
                e.pictures.decoded[40].life = 2;
                e.pictures.shown[40].life = 2;
            },
            "1 pictures in the file that were never sent",
        ),
        ("a grey picture", |e| e.unreadable.push(BEGIN + 1.0), "1 pictures in the file that cannot be read"),
        (
            "two neighbours not shown",
            |e| e.pictures.shown.retain(|mark| !(39..42).contains(&mark.number)),
            "1 pictures not in the composed file",
        ),
        (
            "a slow picture not shown",
            |e| {
                for list in [&mut e.pictures.sent, &mut e.pictures.decoded, &mut e.pictures.shown] {
                    list.iter_mut().for_each(|mark| mark.at += f64::from(mark.number));
                }
                e.pictures.shown.remove(40);
            },
            "1 pictures not in the composed file",
        ),
        ("the composed file goes back", |e| e.pictures.shown.swap(40, 41), "1 pictures out of order in the composed"),
        (
            "a beep less",
            |e| {
                e.beeps.decoded.remove(2);
                e.beeps.shown.remove(2);
            },
            "1 beeps missing without a gap",
        ),
        (
            "a beep that is not composed",
            |e| e.beeps.shown.retain(|mark| mark.number != 2),
            "1 beeps not in the composed file",
        ),
        (
            "a beep in the composed file alone",
            |e| e.beeps.decoded.retain(|beep| beep.number != 2),
            "1 beeps in the composed file that are not in the individual one",
        ),
        (
            "a beep that was never sent",
            |e| e.beeps.sent.retain(|beep| beep.number != 2),
            "1 beeps in the file that were never sent",
        ),
        ("sound less", |e| e.sound = Some((6.0, 4.5)), "4.50 s of sound of 6.00 s"),
    ];
    for (name, change, problem) in cases {
        let mut evidence = whole();
        change(&mut evidence);
        let problems = judge(&evidence).problems;
        assert!(problems.iter().any(|found| found.contains(problem)), "{name}: {problems:?}");
    }
}
