//! Beeps: when they begin, and which second their pitch tells.

use super::SeenBeep;
use super::ffmpeg::Sound;
use crate::publisher::media::{BEEP, LOOP_SECONDS, PITCH, PITCH_STEP};

/// Silence before a beep, in seconds; shorter ones are part of it.
const QUIET: f64 = 0.05;
/// Part of the loudest sample of the file that is no silence.
const LOUD: f64 = 0.15;
/// Part of a beep's power that must be at its pitch.
const PURE: f64 = 0.4;

/// The beeps of a file.
#[derive(Debug, Default)]
pub struct Beeps {
    /// Those that begin behind silence.
    pub whole: Vec<SeenBeep>,
    /// Those at the start of a run: they may have begun earlier.
    pub cut: Vec<SeenBeep>,
}

/// All beeps, by the time of their first loud sample.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub fn beeps(runs: &[Sound]) -> Beeps {
    let peak = runs.iter().flat_map(|r| &r.samples).map(|s| s.unsigned_abs()).max().unwrap_or(0);
    let loud = (f64::from(peak.max(2000)) * LOUD) as u16;
    let mut beeps = Beeps::default();
    for run in runs {
        let rate = f64::from(run.rate);
        let samples = |seconds: f64| (seconds * rate) as usize;
        let mut last_loud = None;
        for (n, _) in run.samples.iter().enumerate().filter(|(_, s)| s.unsigned_abs() > loud) {
            let silence = n - last_loud.map_or(0, |l: usize| l + 1);
            let is_first = last_loud.replace(n).is_none();
            // The edges are soft after a lossy codec, so the pitch is read in the middle.
            let middle = n + samples(BEEP * 0.1)..n + samples(BEEP * 0.9);
            let is_cut = is_first && silence < samples(QUIET);
            if (silence < samples(QUIET) && !is_cut) || middle.end > run.samples.len() {
                continue;
            }
            if let Some(second) = second(&run.samples[middle], rate) {
                let list = if is_cut { &mut beeps.cut } else { &mut beeps.whole };
                list.push(SeenBeep { at: run.from + n as f64 / rate, second });
            }
        }
    }
    beeps
}

/// Which of all pitches is in these samples, if one is clearly.
fn second(samples: &[i16], rate: f64) -> Option<u32> {
    let total: f64 = samples.iter().map(|s| f64::from(*s).powi(2)).sum();
    let power = |second: u32| {
        let pitch = PITCH + PITCH_STEP * f64::from(second);
        let (mut cosine, mut sine) = (0.0, 0.0);
        for (n, sample) in (0_u32..).zip(samples) {
            let angle = std::f64::consts::TAU * pitch * f64::from(n) / rate;
            cosine += f64::from(*sample) * angle.cos();
            sine += f64::from(*sample) * angle.sin();
        }
        // A pure tone of n samples and total power p gives n * p / 2 here.
        2.0 * (cosine.powi(2) + sine.powi(2)) / (f64::from(u32::try_from(samples.len()).unwrap_or(1)) * total.max(1.0))
    };
    let best = (0..LOOP_SECONDS).map(|s| (power(s), s)).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 > PURE).then_some(best.1)
}
