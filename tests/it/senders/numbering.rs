//! Which pictures a browser sent. Its page knows which pictures it drew, by their numbers, and which pictures were coded, by their
//! times. A decoded picture has both: so the coded ones that are in the file get their numbers, and the others are missing. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use archiver_testkit::chromium::{CodedPicture, SentByBrowser};
use archiver_testkit::content::percentile;

use super::verdict::Mark;

/// Pictures without one for so long are matched for themselves, in seconds: a new subscription may have another clock.
const PAUSE: f64 = 0.5;
/// A decoded picture is this near to its coded one, in seconds; but for a browser's first two, none are nearer to each other than twice that.
const SAME_PLACE: f64 = 0.010;
/// A picture is coded within this after it was drawn, in seconds.
const CODED_WITHIN: f64 = 1.5;
/// The browser's time of a picture is so much after it was drawn, in seconds: less than the time between two pictures.
const CODED_AFTER: std::ops::Range<f64> = -0.005..0.028;
/// The same in milliseconds, as it is found for all pictures together.
const CODED_LATE: RangeInclusive<i32> = -5..=28;
/// One picture with an RTP time that is too late makes the times of all too early: it is taken for the one that was coded at once.
const CODED_EARLY: RangeInclusive<i32> = -20..=-5;
/// Half of the time between two pictures, in seconds.
const HALF_STEP: f64 = 0.016;
/// Numbers of pictures that are not in the file.
const UNKNOWN: u32 = 1_000_000;

/// A picture of the individual files: when it is shown, its number if that can be read, and its size, which tells the layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    pub at: f64,
    pub number: Option<u32>,
    pub size: (u32, u32),
}

/// What a browser sent, numbered.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Numbered {
    pub sent: Vec<Mark>,
    /// Those of them that a layer left out.
    pub partial: Vec<Mark>,
    /// Times of decoded pictures without a number that were sent so: the black ones of a muted track.
    pub blank: Vec<f64>,
    /// Pictures in the file that were not drawn when they should have been.
    pub strange: Vec<Mark>,
}

/// How much later the file has pictures than they were drawn, in the middle.
fn lateness(browser: &SentByBrowser, seen: &[Seen]) -> Option<f64> {
    let drawn: BTreeMap<u32, f64> = browser.drawn.frames.iter().copied().collect();
    let late: Vec<f64> = seen.iter().filter_map(|one| Some(one.at - drawn.get(&one.number?)?)).collect();
    percentile(&late, 50.0)
}

/// The pictures at the times that they would have if the router had not changed to another layer: where it does, times jump by less than a
/// picture, or by as much as one.
fn aligned(browser: &SentByBrowser, seen: &[Seen]) -> Vec<Seen> {
    let of_layer = || seen.chunk_by(|a, b| a.size == b.size);
    let longest = of_layer().max_by_key(|run| run.len());
    let Some(late) = longest.and_then(|longest| lateness(browser, longest)) else { return seen.to_vec() };
    let align = |run: &[Seen]| -> Vec<Seen> {
        let jump = lateness(browser, run).map_or(0.0, |own| own - late);
        run.iter().map(|one| Seen { at: one.at - jump, ..*one }).collect()
    };
    of_layer().flat_map(align).collect()
}

/// Gives each coded picture the number of the decoded one at its time. Where doubts are left: without the jumps between the file's layers; then
/// with times of coded pictures that are taken for too early; then both; at last by their order alone. The fewest doubts count. `tells_all`: the
/// browser told of all that it sent, to its end.
pub fn number(life: u16, browser: &SentByBrowser, tells_all: bool, in_file: &[Seen]) -> Numbered {
    let aligned = || aligned(browser, in_file);
    let tries: [&dyn Fn() -> Option<Numbered>; 5] = [
        &|| Some(number_by(life, browser, in_file, in_file, CODED_LATE)),
        &|| Some(number_by(life, browser, &aligned(), in_file, CODED_LATE)),
        &|| Some(number_by(life, browser, in_file, in_file, CODED_EARLY)),
        &|| Some(number_by(life, browser, &aligned(), in_file, CODED_EARLY)),
        &|| number_in_order(life, browser, in_file),
    ];
    // Where the first pictures and the last ones are not known, pictures that are taken for the ones before them leave fewer doubts.
    let tries = &tries[..if tells_all { 5 } else { 2 }];
    let mut best: Option<(usize, Numbered)> = None;
    for numbered in tries.iter().filter_map(|attempt| attempt()) {
        let doubts = numbered.doubts(in_file);
        if best.as_ref().is_none_or(|(least, _)| doubts < *least) {
            best = Some((doubts, numbered));
        }
        if doubts == 0 {
            break;
        }
    }
    best.map(|(_, numbered)| numbered).unwrap_or_default()
}

/// Where the file has as many pictures as were coded: the first is the first, and so on. Nothing if a picture of a layer is half a step and more from
/// where the others of its layer have it: one that is missing makes all behind it a step too early.
fn number_in_order(life: u16, browser: &SentByBrowser, in_file: &[Seen]) -> Option<Numbered> {
    let coded = &browser.coded;
    let numbers: Vec<u32> = in_file.iter().map(|one| one.number).collect::<Option<_>>()?;
    if numbers.len() != coded.len() || !numbers.is_sorted_by(|a, b| a < b) {
        return None;
    }
    let pairs: Vec<(&Seen, f64)> = in_file.iter().zip(coded).map(|(seen, coded)| (seen, seen.at - coded.at)).collect();
    for layer in pairs.chunk_by(|a, b| a.0.size == b.0.size) {
        let late: Vec<f64> = layer.iter().map(|(_, late)| *late).collect();
        let middle = percentile(&late, 50.0)?;
        if late.iter().any(|late| (late - middle).abs() >= HALF_STEP) {
            return None;
        }
    }
    let drawn: BTreeMap<u32, f64> = browser.drawn.frames.iter().copied().collect();
    let is_drawn = |(number, coded): (&u32, &CodedPicture)| {
        drawn.get(number).is_some_and(|drawn| (coded.at - drawn).abs() <= CODED_WITHIN)
    };
    if !numbers.iter().zip(coded).all(is_drawn) {
        return None;
    }
    let mark = |(number, coded): (u32, &CodedPicture)| Mark { life, number, at: coded.at };
    let sent: Vec<Mark> = numbers.into_iter().zip(coded).map(mark).collect();
    let partial = sent.iter().zip(coded).filter(|(_, coded)| coded.partial).map(|(mark, _)| *mark).collect();
    Some(Numbered { sent, partial, ..Numbered::default() })
}

/// The same by these times of the pictures in the file, each at the place of the one in `in_file`. `coded_late`: how much later than a picture was
/// drawn it was coded, in milliseconds.
fn number_by(
    life: u16,
    browser: &SentByBrowser,
    times: &[Seen],
    in_file: &[Seen],
    coded_late: RangeInclusive<i32>,
) -> Numbered {
    let mut numbered = Numbered::default();
    let mut pictures: Vec<(Seen, f64)> = times.iter().copied().zip(in_file.iter().map(|one| one.at)).collect();
    pictures.sort_by(|(a, _), (b, _)| a.at.total_cmp(&b.at));
    let (seen, times): (Vec<Seen>, Vec<f64>) = pictures.into_iter().unzip();
    let seen = seen.as_slice();
    let mut is_used = vec![false; seen.len()];
    for piece in browser.coded.chunk_by(|a, b| b.at - a.at < PAUSE) {
        let (first, last) = (piece[0].at - 0.2, piece[piece.len() - 1].at + 0.2);
        let drawn_at = |number: u32| browser.drawn.frames.iter().find(|(n, _)| *n == number).map(|(_, at)| *at);
        // How much later the file has what was drawn in this piece.
        let late_in_file: Vec<f64> = seen
            .iter()
            .filter_map(|one| Some((one.at, drawn_at(one.number?)?)))
            .filter(|(_, drawn)| (first..last).contains(drawn))
            .map(|(at, drawn)| at - drawn)
            .collect();
        let mut offset = offset(piece, seen, percentile(&late_in_file, 50.0).unwrap_or(0.0), &coded_late);
        for (index, picture) in piece.iter().enumerate() {
            let place = seen.partition_point(|one| one.at < picture.at + offset);
            let near = [place.checked_sub(1), (place < seen.len()).then_some(place)];
            let off = |place: &usize| (seen[*place].at - picture.at - offset).abs();
            let found = near.into_iter().flatten().filter(|place| !is_used[*place] && off(place) < SAME_PLACE);
            let found = found.min_by(|a, b| off(a).total_cmp(&off(b)));
            let mut mark = Mark { life, number: UNKNOWN + u32::try_from(index).unwrap_or(0), at: picture.at };
            mark.number += u32::try_from(numbered.sent.len()).unwrap_or(0);
            if let Some(place) = found {
                is_used[place] = true;
                offset += 0.2 * (seen[place].at - picture.at - offset);
                let is_muted =
                    || !browser.drawn.frames.iter().any(|(_, drawn)| CODED_AFTER.contains(&(picture.at - drawn)));
                match seen[place].number {
                    Some(number) => mark.number = number,
                    None if is_muted() => {
                        numbered.blank.push(times[place]);
                        continue;
                    }
                    None => {}
                }
                let drawn = seen[place].number.map(drawn_at);
                if drawn.is_some_and(|drawn| drawn.is_none_or(|drawn| (picture.at - drawn).abs() > CODED_WITHIN)) {
                    numbered.strange.push(mark);
                }
            }
            numbered.sent.push(mark);
            if picture.partial {
                numbered.partial.push(mark);
            }
        }
    }
    numbered.by_order(seen);
    numbered.by_drawing(browser, seen, &is_used);
    numbered
}

impl Numbered {
    /// Pictures that were sent and have no number, and those of the file that were not sent.
    fn doubts(&self, in_file: &[Seen]) -> usize {
        let sent: BTreeSet<u32> = self.sent.iter().map(|mark| mark.number).collect();
        let strange = in_file.iter().filter_map(|one| one.number).filter(|number| !sent.contains(number));
        sent.iter().filter(|number| **number >= UNKNOWN).count() + strange.count()
    }

    /// Gives the pictures that are not found by their times the numbers of the decoded ones that were drawn then: where the router
    /// changes to another layer, times in the file may jump by some milliseconds.
    fn by_drawing(&mut self, browser: &SentByBrowser, seen: &[Seen], is_used: &[bool]) {
        for one in seen.iter().zip(is_used).filter(|(_, used)| !**used).filter_map(|(one, _)| one.number) {
            if self.sent.iter().any(|mark| mark.number == one) {
                continue;
            }
            let Some((_, drawn)) = browser.drawn.frames.iter().find(|(number, _)| *number == one) else { continue };
            let is_it = |mark: &&mut Mark| mark.number >= UNKNOWN && CODED_AFTER.contains(&(mark.at - drawn));
            let Some(mark) = self.sent.iter_mut().find(is_it) else { continue };
            if let Some(partial) = self.partial.iter_mut().find(|partial| partial.number == mark.number) {
                partial.number = one;
            }
            mark.number = one;
        }
    }

    /// Gives pictures that are not found by their times the numbers of those of the file between the same two neighbours, if they are as
    /// many: what was coded in an order is in the file in that order.
    fn by_order(&mut self, seen: &[Seen]) {
        let known: BTreeSet<u32> =
            self.sent.iter().map(|mark| mark.number).filter(|number| *number < UNKNOWN).collect();
        let left: BTreeSet<u32> = seen.iter().filter_map(|one| one.number).filter(|n| !known.contains(n)).collect();
        let mut before = None;
        for run in self.sent.chunk_by_mut(|a, b| (a.number < UNKNOWN) == (b.number < UNKNOWN)) {
            if run[0].number < UNKNOWN {
                before = run.last().map(|mark| mark.number);
                continue;
            }
            let after = known.range(before.map_or(0, |before| before + 1)..).next().copied().unwrap_or(UNKNOWN);
            let between: Vec<u32> = left.range(before.map_or(0, |before| before + 1)..after).copied().collect();
            if between.len() != run.len() {
                continue;
            }
            for (mark, number) in run.iter_mut().zip(between) {
                let unknown = std::mem::replace(&mut mark.number, number);
                self.partial.iter_mut().filter(|partial| partial.number == unknown).for_each(|one| one.number = number);
            }
        }
    }
}

/// How much later the file has a piece's pictures than they were coded: about as much as it has them later than they were drawn, less
/// the time to code one (`coded_late`, in milliseconds), so that most are at their places.
fn offset(piece: &[CodedPicture], seen: &[Seen], late_in_file: f64, coded_late: &RangeInclusive<i32>) -> f64 {
    let fits = |offset: f64| {
        let near = |at: f64| {
            let place = seen.partition_point(|one| one.at < at);
            let near = [place.checked_sub(1), (place < seen.len()).then_some(place)];
            near.into_iter().flatten().map(|place| (seen[place].at - at).abs()).min_by(f64::total_cmp).unwrap_or(1.0)
        };
        piece.iter().map(|picture| (SAME_PLACE - near(picture.at + offset)).max(0.0)).sum::<f64>()
    };
    let candidates = coded_late.clone().map(|ms| late_in_file - f64::from(ms) / 1000.0);
    candidates.max_by(|a, b| fits(*a).total_cmp(&fits(*b))).unwrap_or(late_in_file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use archiver_testkit::content::Timeline;

    const SIZE: (u32, u32) = (640, 480);

    /// Thirty pictures are drawn; the encoder leaves two out, and codes each 8 ms late and a little unevenly. The file has them 50 ms
    /// later, but for one.
    #[test]
    fn coded_pictures_get_the_numbers_of_the_decoded_ones_at_their_times() {
        let drawn: Vec<(u32, f64)> = (0..30).map(|n| (n, 100.0 + f64::from(n) / 30.0)).collect();
        let coded = drawn.iter().filter(|(n, _)| ![9, 10].contains(n));
        let time = |n: u32, at: f64| at + 0.008 + 0.002 * f64::from(n % 3);
        let coded: Vec<CodedPicture> =
            coded.map(|(n, at)| CodedPicture { at: time(*n, *at), partial: *n == 3 }).collect();
        let seen = drawn.iter().filter(|(n, _)| ![9, 10, 20].contains(n));
        let seen: Vec<Seen> =
            seen.map(|(n, at)| Seen { at: time(*n, *at) + 0.05, number: Some(*n), size: SIZE }).collect();
        let browser = SentByBrowser { drawn: Timeline { frames: drawn, beeps: vec![] }, coded, audio_packets: 0 };
        let numbered = number(1, &browser, true, &seen);
        let numbers: Vec<u32> = numbered.sent.iter().map(|mark| mark.number).filter(|n| *n < UNKNOWN).collect();
        assert_eq!(numbers, (0..30).filter(|n| ![9, 10, 20].contains(n)).collect::<Vec<u32>>());
        assert_eq!(numbered.sent.len(), 28, "the one that is missing was sent");
        assert_eq!(numbered.partial.iter().map(|mark| mark.number).collect::<Vec<_>>(), [3]);
        assert!(numbered.blank.is_empty() && numbered.strange.is_empty());
    }

    /// The first three come from another layer, whose times in the file are 20 ms later.
    #[test]
    fn a_change_of_layers_moves_times_in_the_file_and_loses_no_picture() {
        let drawn: Vec<(u32, f64)> = (0..30).map(|n| (n, 100.0 + f64::from(n) / 30.0)).collect();
        let coded: Vec<CodedPicture> =
            drawn.iter().map(|(n, at)| CodedPicture { at: at + 0.008, partial: *n < 3 }).collect();
        let late = |n: u32| if n < 3 { 0.07 } else { 0.05 };
        let mut seen: Vec<Seen> =
            drawn.iter().map(|(n, at)| Seen { at: at + late(*n), number: Some(*n), size: SIZE }).collect();
        let browser = SentByBrowser { drawn: Timeline { frames: drawn, beeps: vec![] }, coded, audio_packets: 0 };
        let numbers = |seen: &[Seen]| -> Vec<u32> {
            number(1, &browser, true, seen).sent.iter().map(|mark| mark.number).filter(|n| *n < UNKNOWN).collect()
        };
        assert_eq!(numbers(&seen), (0..30).collect::<Vec<u32>>());
        // One of them is not in the file.
        seen.remove(1);
        assert_eq!(numbers(&seen), std::iter::once(0).chain(2..30).collect::<Vec<u32>>());
    }

    /// The first five come from a lower layer, whose times in the file are later by nearly as much as a picture lasts: without their sizes, each would
    /// be taken for the one behind it.
    #[test]
    fn a_change_of_layers_by_nearly_a_picture_takes_none_for_another() {
        let drawn: Vec<(u32, f64)> = (0..30).map(|n| (n, 100.0 + f64::from(n) / 30.0)).collect();
        let coded: Vec<CodedPicture> =
            drawn.iter().map(|(n, at)| CodedPicture { at: at + 0.008, partial: *n < 5 }).collect();
        let picture = |(n, at): &(u32, f64)| match *n {
            n @ 0..5 => Seen { at: at + 0.076, number: Some(n), size: (320, 240) },
            n => Seen { at: at + 0.05, number: Some(n), size: SIZE },
        };
        let seen: Vec<Seen> = drawn.iter().map(picture).collect();
        let browser = SentByBrowser { drawn: Timeline { frames: drawn, beeps: vec![] }, coded, audio_packets: 0 };
        let numbers: Vec<u32> = number(1, &browser, true, &seen).sent.iter().map(|mark| mark.number).collect();
        assert_eq!(numbers, (0..30).collect::<Vec<u32>>());
    }

    /// Two pictures are coded 23 ms later than the others. They are between the same two as in the file; a third one is not in the file.
    #[test]
    fn pictures_at_no_time_of_their_own_are_numbered_by_their_order() {
        let drawn: Vec<(u32, f64)> = (0..30).map(|n| (n, 100.0 + f64::from(n) / 30.0)).collect();
        let late = |n: u32| if [10, 11].contains(&n) { 0.031 } else { 0.008 };
        let coded: Vec<CodedPicture> =
            drawn.iter().map(|(n, at)| CodedPicture { at: at + late(*n), partial: false }).collect();
        let in_file = drawn.iter().filter(|(n, _)| *n != 20);
        let seen: Vec<Seen> = in_file.map(|(n, at)| Seen { at: at + 0.058, number: Some(*n), size: SIZE }).collect();
        let browser = SentByBrowser { drawn: Timeline { frames: drawn, beeps: vec![] }, coded, audio_packets: 0 };
        let numbers: Vec<u32> = number(1, &browser, true, &seen).sent.iter().map(|mark| mark.number).collect();
        let (known, unknown): (Vec<u32>, Vec<u32>) = numbers.into_iter().partition(|number| *number < UNKNOWN);
        assert_eq!(known, (0..30).filter(|n| *n != 20).collect::<Vec<_>>());
        assert_eq!(unknown.len(), 1);
    }

    /// All pictures seem to be coded 10 ms before they were drawn: none is taken for the one before.
    #[test]
    fn pictures_that_seem_to_be_coded_too_early_keep_their_numbers() {
        let drawn: Vec<(u32, f64)> = (0..30).map(|n| (n, 100.0 + f64::from(n) / 30.0)).collect();
        let coded: Vec<CodedPicture> =
            drawn.iter().map(|(_, at)| CodedPicture { at: at - 0.010, partial: false }).collect();
        let seen: Vec<Seen> =
            drawn.iter().map(|(n, at)| Seen { at: at + 0.05, number: Some(*n), size: SIZE }).collect();
        let browser = SentByBrowser { drawn: Timeline { frames: drawn, beeps: vec![] }, coded, audio_packets: 0 };
        let numbers: Vec<u32> = number(1, &browser, true, &seen).sent.iter().map(|mark| mark.number).collect();
        assert_eq!(numbers, (0..30).collect::<Vec<_>>());
    }

    /// The first two that are drawn are not coded. Six of a lower layer seem to be coded later than they were drawn, at odd times, and those of the higher
    /// one earlier: no time is right for both (chromium-h264-simulcast).
    #[test]
    fn pictures_of_two_layers_with_clocks_of_their_own_are_numbered_by_their_order() {
        let drawn: Vec<(u32, f64)> = (0..60).map(|n| (n, 100.0 + f64::from(n) / 30.0)).collect();
        let late = [0.003, 0.004, 0.004, 0.014, 0.016, 0.004];
        let coded: Vec<CodedPicture> = (0..58)
            .map(|n| CodedPicture { at: drawn[n + 2].1 + late.get(n).copied().unwrap_or(-0.008), partial: n < 6 })
            .collect();
        let seen = coded.iter().zip(&drawn[2..]);
        let mut seen: Vec<Seen> = seen
            .map(|(coded, (n, _))| match coded.partial {
                true => Seen { at: coded.at + 0.08, number: Some(*n), size: (320, 240) },
                false => Seen { at: coded.at + 0.05, number: Some(*n), size: SIZE },
            })
            .collect();
        let browser = SentByBrowser { drawn: Timeline { frames: drawn, beeps: vec![] }, coded, audio_packets: 0 };
        let numbers = |seen: &[Seen]| -> Vec<u32> {
            number(1, &browser, true, seen).sent.iter().map(|mark| mark.number).collect()
        };
        assert_eq!(numbers(&seen), (2..60).collect::<Vec<_>>());
        // Of the higher layer, one is not in the file, and one was never sent.
        seen.remove(30);
        seen.push(Seen { at: seen[56].at + 0.033, number: Some(60), size: SIZE });
        assert!(number_in_order(1, &browser, &seen).is_none());
    }

    /// A killed browser: the first two were sent before the recorder came, the last two after the browser had told. Each is coded 20 ms late.
    #[test]
    fn where_the_last_pictures_are_not_known_none_is_taken_for_the_one_before() {
        let drawn: Vec<(u32, f64)> = (0..30).map(|n| (n, 100.0 + f64::from(n) / 30.0)).collect();
        let coded: Vec<CodedPicture> =
            drawn[..28].iter().map(|(_, at)| CodedPicture { at: at + 0.020, partial: false }).collect();
        let seen: Vec<Seen> =
            drawn[2..].iter().map(|(n, at)| Seen { at: at + 0.07, number: Some(*n), size: SIZE }).collect();
        let browser = SentByBrowser { drawn: Timeline { frames: drawn, beeps: vec![] }, coded, audio_packets: 0 };
        let sent = number(1, &browser, false, &seen).sent;
        assert!(
            sent.iter()
                .all(|mark| mark.number >= UNKNOWN || (mark.at - 100.02 - f64::from(mark.number) / 30.0).abs() < 0.001)
        );
        assert_eq!(sent.iter().filter(|mark| mark.number < UNKNOWN).count(), 26);
    }

    /// A black picture is no picture that is lost, where nothing was drawn.
    #[test]
    fn a_picture_without_a_number_is_blank_only_where_none_was_drawn() {
        // The first black one comes when the next one would have been drawn.
        let coded = [100.0, 100.033, 100.070, 100.3].map(|at| CodedPicture { at, partial: false }).to_vec();
        let seen = [Some(0), None, None, None].into_iter().zip(&coded);
        let seen: Vec<Seen> = seen.map(|(number, picture)| Seen { at: picture.at, number, size: SIZE }).collect();
        let drawn = Timeline { frames: vec![(0, 100.0), (1, 100.033)], beeps: vec![] };
        let numbered = number(1, &SentByBrowser { drawn, coded, audio_packets: 0 }, true, &seen);
        assert_eq!(numbered.blank, [100.070, 100.3]);
        assert_eq!(numbered.sent.len(), 2);
    }
}
