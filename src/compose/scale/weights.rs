//! How much of each input pixel an output pixel is made of.

/// Bits of weights behind the binary point: as many as 16 bits hold with the largest weight.
const WEIGHT_BITS: u32 = 14;
/// Of weights that are all below one, as where a picture becomes smaller.
pub(super) const SMALL_WEIGHT_BITS: u32 = 15;
/// Of weights of pairs of rows: as many as 8 bits hold with weights below one.
const PAIR_WEIGHT_BITS: u32 = 7;
/// From here on a picture becomes smaller by enough for that.
const SMALLER: f64 = 1.1;
/// The bicubic's parameter: the sharpness of ffmpeg's default scaler.
const SHARPNESS: f64 = -0.6;
/// Weights across are read so many at a time.
pub(super) const LANES: usize = 8;
/// Pairs of rows that make an output row, at most: with more of them 7 bits tell a weight too coarsely.
pub(super) const PAIRS_MAX: usize = 8;

/// Which input pixels make an output pixel, along one axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Taps {
    /// The first input pixel of each output pixel.
    pub first: Vec<usize>,
    /// `taps` weights for each output pixel, whose sum is one.
    pub weights: Vec<i16>,
    pub taps: usize,
    /// Bits of a weight behind the binary point.
    pub bits: u32,
}

impl Taps {
    /// Weights across: as many for each as a multiple of [`LANES`].
    pub fn across(from: usize, to: usize) -> Self {
        Self::new(from, to, LANES, bits(from, to))
    }

    /// The weights that make `to` pixels of `from`, as many for each as a multiple of `round`: where there are less, the rest
    /// is zero, and may stand for pixels behind the last one.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn new(from: usize, to: usize, round: usize, bits: u32) -> Self {
        let step = from as f64 / to as f64;
        let widened = step.max(1.0);
        let rows: Vec<(usize, Vec<i16>)> = (0..to)
            .map(|at| {
                let centre = (at as f64 + 0.5) * step - 0.5;
                let begin = ((centre - 2.0 * widened).floor() + 1.0).max(0.0) as usize;
                let end = ((centre + 2.0 * widened).ceil() as usize).clamp(begin + 1, from);
                let row: Vec<f64> = (begin..end).map(|n| cubic((n as f64 - centre) / widened)).collect();
                (begin, whole(&row, 1 << bits))
            })
            .collect();
        let most = rows.iter().map(|(_, row)| row.len()).max().unwrap_or(1);
        let taps = most.next_multiple_of(round);
        let (mut first, mut weights) = (Vec::with_capacity(to), Vec::with_capacity(to * taps));
        for (begin, mut row) in rows {
            row.resize(taps, 0);
            first.push(begin);
            weights.extend(row);
        }
        Self { first, weights, taps, bits }
    }

    pub fn of(&self, at: usize) -> (usize, &[i16]) {
        (self.first[at], &self.weights[at * self.taps..][..self.taps])
    }
}

/// How the rows of an output row are mixed.
#[derive(Debug)]
pub(super) enum Down {
    /// Two at a time, with small weights: where a picture becomes smaller.
    Pairs {
        /// For each output row.
        rows: Vec<Vec<RowPair>>,
    },
    /// One after the other.
    Rows(Taps),
}

/// Two neighbouring rows of the input.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowPair {
    /// The upper one.
    pub first: usize,
    /// Of both.
    pub weights: [i8; 2],
}

impl Down {
    pub fn new(from: usize, to: usize) -> Self {
        Self::pairs(from, to).unwrap_or_else(|| Self::Rows(Taps::new(from, to, 1, bits(from, to))))
    }

    /// None where weights are too large or too many for it.
    fn pairs(from: usize, to: usize) -> Option<Self> {
        if bits(from, to) != SMALL_WEIGHT_BITS {
            return None;
        }
        let taps = Taps::new(from, to, 2, PAIR_WEIGHT_BITS);
        if taps.taps > 2 * PAIRS_MAX {
            return None;
        }
        let row = |at: usize| {
            let (first, weights) = taps.of(at);
            let pair = |(n, weights): (usize, &[i16; 2])| {
                let [a, b] = weights.map(|weight| i8::try_from(weight).ok());
                Some(RowPair { first: first + 2 * n, weights: [a?, b?] })
            };
            let mut pairs = weights.as_chunks::<2>().0.iter().enumerate().map(pair).collect::<Option<Vec<_>>>()?;
            // What is taken away comes first: a sum that is cut off at the upper end of its range on the way would have
            // been beyond it at the end, too.
            pairs.sort_by_key(|pair| pair.weights.map(i16::from).iter().sum::<i16>());
            Some(pairs)
        };
        Some(Self::Pairs { rows: (0..to).map(row).collect::<Option<_>>()? })
    }
}

#[allow(clippy::cast_precision_loss)]
fn bits(from: usize, to: usize) -> u32 {
    if from as f64 > to as f64 * SMALLER { SMALL_WEIGHT_BITS } else { WEIGHT_BITS }
}

fn cubic(x: f64) -> f64 {
    let (x, a) = (x.abs(), SHARPNESS);
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    } else {
        0.0
    }
}

/// Weights as whole numbers with the sum `one`: all rounded down, and what is left goes to those that lost most.
#[allow(clippy::cast_possible_truncation)]
fn whole(weights: &[f64], one: i32) -> Vec<i16> {
    let sum: f64 = weights.iter().sum();
    let exact: Vec<f64> = weights.iter().map(|weight| weight / sum * f64::from(one)).collect();
    let mut fixed: Vec<i16> = exact.iter().map(|weight| weight.floor() as i16).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    let lost = |n: &usize| exact[*n] - exact[*n].floor();
    order.sort_by(|a, b| lost(b).total_cmp(&lost(a)));
    let left = one - fixed.iter().map(|weight| i32::from(*weight)).sum::<i32>();
    for n in order.into_iter().take(usize::try_from(left).unwrap_or(0)) {
        fixed[n] += 1;
    }
    fixed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_add_up_to_one() {
        for (from, to) in [(1280, 640), (1280, 427), (720, 240), (720, 719), (3, 64), (1081, 60), (2, 1), (1, 7)] {
            let taps = Taps::across(from, to);
            for at in 0..to {
                let sum: i32 = taps.of(at).1.iter().map(|w| i32::from(*w)).sum();
                assert_eq!(sum, 1 << taps.bits, "{from} to {to}, {at}");
            }
            if let Down::Pairs { rows } = Down::new(from, to) {
                for row in rows {
                    let sum: i32 = row.iter().flat_map(|pair| pair.weights).map(i32::from).sum();
                    assert_eq!(sum, 1 << PAIR_WEIGHT_BITS, "{from} to {to}: {row:?}");
                }
            }
        }
    }

    #[test]
    fn pairs_of_rows_are_for_what_becomes_smaller() {
        for (from, to, pairs) in [
            (720, 360, true),
            (720, 240, true),
            (720, 180, true),
            (720, 719, false),
            (360, 720, false),
            (1081, 60, false),
        ] {
            assert_eq!(matches!(Down::new(from, to), Down::Pairs { .. }), pairs, "{from} to {to}");
        }
    }
}
