//! Keeps mixed audio within its range: the sum of many streams may be too loud.

/// The largest absolute value of a sample.
const CEILING: f32 = 0.98;
/// After something loud it becomes as loud as before within about a second: by this share of the rest with each sample.
const RELEASE: f32 = 1.0 / 9_600.0;

/// A gain that falls at once and rises slowly, so that loud sound is not torn off at its peaks.
#[derive(Debug)]
pub struct Limiter {
    gain: f32,
}

impl Limiter {
    /// One that lets everything through as it is.
    #[must_use]
    pub const fn new() -> Self {
        Self { gain: 1.0 }
    }

    /// Limits samples, left and right in turn. What was never too loud stays exactly as it is.
    pub fn limit(&mut self, samples: &mut [f32]) {
        for pair in samples.as_chunks_mut::<2>().0 {
            let peak = pair[0].abs().max(pair[1].abs());
            if self.gain < 1.0 {
                self.gain += (1.0 - self.gain) * RELEASE;
                // Nobody hears the rest.
                if self.gain > 0.9999 {
                    self.gain = 1.0;
                }
            }
            if peak * self.gain > CEILING {
                self.gain = CEILING / peak;
            }
            if self.gain < 1.0 {
                pair.iter_mut().for_each(|sample| *sample *= self.gain);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many samples of a tone.
    fn tone(loudness: f32, samples: usize) -> Vec<f32> {
        (0..samples).flat_map(|n| [(n as f32 * 0.1).sin() * loudness; 2]).collect()
    }

    fn peak(samples: &[f32]) -> f32 {
        samples.iter().fold(0.0, |peak, sample| sample.abs().max(peak))
    }

    #[test]
    fn what_is_not_too_loud_stays_as_it_is() {
        let mut limiter = Limiter::new();
        let mut samples = tone(0.97, 4800);
        limiter.limit(&mut samples);
        assert_eq!(samples, tone(0.97, 4800));
    }

    #[test]
    fn what_is_too_loud_keeps_its_shape_below_the_ceiling_and_the_rest_recovers() {
        let mut limiter = Limiter::new();
        let mut loud = tone(3.0, 4800);
        limiter.limit(&mut loud);
        assert!(peak(&loud) <= CEILING + 1e-6);
        // A torn-off tone would be at its peak for most of the time.
        let near = loud.iter().filter(|sample| sample.abs() > 0.95 * CEILING).count();
        assert!(near < loud.len() / 4, "{near} of {} samples are at the ceiling", loud.len());
        let mut after = tone(0.5, 2 * 48_000);
        limiter.limit(&mut after);
        assert!(peak(&after[..960]) < 0.3 && peak(&after[2 * 90_000..]) > 0.49);
    }
}
