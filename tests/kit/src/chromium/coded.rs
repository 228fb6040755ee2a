//! Which pictures a browser's encoder coded: it may leave some out of those that were drawn.
//!
//! A coded picture has an RTP time, which is the browser's time of the picture plus a number that is each source's own (RFC 3550
//! section 5.1). The number is found by what must be so: no picture is coded before its time, and one of many is coded at once.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use crate::content::Timeline;

/// RTP time of pictures, in Hz.
const CLOCK: f64 = 90_000.0;
/// Two layers of one picture are this near to each other, in seconds. Pictures are 33 ms apart, but for a browser's first two.
const SAME_PICTURE: f64 = 0.012;

/// A picture that was coded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CodedPicture {
    /// The browser's time of it, in seconds since 1970, some milliseconds late.
    pub at: f64,
    /// Whether a layer of the simulcast left it out.
    pub partial: bool,
}

/// What a browser sent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SentByBrowser {
    /// The pictures that were drawn, and the beeps that were played.
    pub drawn: Timeline,
    /// The pictures that were coded, in any layer, in order.
    pub coded: Vec<CodedPicture>,
    /// Packets of sound.
    pub audio_packets: u64,
}

#[derive(Deserialize)]
struct Reported {
    frames: Vec<(u32, f64)>,
    beeps: Vec<(u32, f64)>,
    /// Source, RTP time, when coded in seconds since 1970.
    coded: Vec<(u32, u32, f64)>,
    /// Packets of sound.
    packets: u64,
}

/// Reads what the page says.
pub(super) fn read(value: Value) -> Result<SentByBrowser> {
    let Reported { frames, beeps, coded, packets } = serde_json::from_value(value)?;
    let mut sources: BTreeMap<u32, Vec<(f64, f64)>> = BTreeMap::new();
    for (source, rtp, at) in coded {
        let list = sources.entry(source).or_default();
        // The time goes round at 32 bits.
        let before = list.last().map_or(f64::from(rtp) / CLOCK, |last| last.0);
        let round = f64::from(u32::MAX) + 1.0;
        let ticks = (f64::from(rtp) - before * CLOCK).rem_euclid(round);
        let ticks = if ticks > round / 2.0 { ticks - round } else { ticks };
        list.push((before + ticks / CLOCK, at));
    }
    let layers = sources.len();
    let of_source = |(source, list)| times(list).into_iter().map(move |at| (at, source));
    let mut all: Vec<(f64, u32)> = sources.into_iter().flat_map(of_source).collect();
    all.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    // Two pictures of one source are two, however near to each other.
    let mut pictures: Vec<(f64, Vec<u32>)> = Vec::new();
    for (at, source) in all {
        match pictures.last_mut() {
            Some((first, of)) if at - *first < SAME_PICTURE && !of.contains(&source) => of.push(source),
            _ => pictures.push((at, vec![source])),
        }
    }
    let coded = pictures.into_iter().map(|(at, of)| CodedPicture { at, partial: of.len() < layers }).collect();
    Ok(SentByBrowser { drawn: Timeline { frames, beeps }, coded, audio_packets: packets })
}

/// The times of a source's pictures. The layers of one picture in one source have one time.
fn times(list: Vec<(f64, f64)>) -> Vec<f64> {
    let zero = list.iter().map(|(rtp, at)| rtp - at).max_by(f64::total_cmp).unwrap_or_default();
    let mut times: Vec<f64> = list.into_iter().map(|(rtp, _)| rtp - zero).collect();
    times.dedup_by(|b, a| (*b - *a).abs() < 1.0 / CLOCK);
    times
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Two layers of ten pictures. The lower one leaves two out, the higher one is two layers in one source. Each is coded some
    /// milliseconds after its time.
    #[test]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn pictures_are_coded_at_their_rtp_times() {
        let at = |n: u32| 1000.0 + f64::from(n) / 30.0;
        // A source's time goes round at its third picture.
        let rtp = |n: u32, base: f64| (base + (at(n) - 1000.0) * CLOCK).rem_euclid(4_294_967_296.0) as u32;
        let mut coded = Vec::new();
        for n in 0..10 {
            let coded_at = at(n) + 0.004 + f64::from(n % 3) * 0.011;
            if ![4, 5].contains(&n) {
                coded.push(json!([7, rtp(n, 4_294_961_295.0), coded_at]));
            }
            coded.push(json!([8, rtp(n, 9.0), coded_at]));
            coded.push(json!([8, rtp(n, 9.0), coded_at + 0.001]));
        }
        let all =
            read(json!({ "frames": [], "beeps": [[1, 1000.5]], "coded": coded, "packets": 7 })).expect("pictures");
        assert_eq!(all.coded.len(), 10);
        for (n, picture) in (0..).zip(&all.coded) {
            assert_eq!(picture.partial, [4, 5].contains(&n), "{n}");
            assert!((picture.at - at(n) - 0.004).abs() < 0.001, "{n}: {}", picture.at);
        }
        assert_eq!((all.drawn.beeps, all.audio_packets), (vec![(1, 1000.5)], 7));
    }

    /// The first picture of a camera may come right before the second one.
    #[test]
    fn two_pictures_of_one_source_are_two_however_near_to_each_other() {
        let coded = [(7, 90_000, 1.0), (7, 90_990, 1.011), (7, 94_000, 1.045)];
        let all = read(json!({ "frames": [], "beeps": [], "coded": coded, "packets": 0 })).expect("pictures");
        assert_eq!(all.coded.iter().map(|picture| picture.partial).collect::<Vec<_>>(), [false; 3]);
    }
}
