//! Scaling to exactly half the width and height: the most frequent scaling there is (four streams of one size in a frame of
//! that size), and one whose weights are the same for all pixels. Each input row is read once: it is halved across, and waits
//! among the last eight until the output row is made that they are mixed to.

use super::kernel::{Kernel, Plain, WINDOW};
use super::weights::{SMALL_WEIGHT_BITS, Taps};
use crate::media::plane::{Plane, PlaneMut};

/// An output pixel's window begins so many pixels before its first one.
const BEFORE: usize = WINDOW / 2 - 1;
/// Bits of a weight across behind the binary point.
const ACROSS_BITS: u32 = 7;
/// Output pixels at either end of a row whose window goes beyond it.
const ENDS: usize = 2;
/// Smaller planes have too many edges for it.
const SMALLEST: usize = 32;

/// Halves planes of one size.
#[derive(Debug)]
pub(super) struct Half {
    across: [[i8; 2]; WINDOW / 2],
    down: [i16; WINDOW],
    /// The last input rows, halved across: row `n` at `n` modulo their number.
    rows: Vec<i16>,
    width: usize,
}

impl Half {
    /// None where planes do not become half as large both ways.
    pub fn new(from: (usize, usize), to: (usize, usize)) -> Option<Self> {
        if from != (2 * to.0, 2 * to.1) || to.0 < SMALLEST || to.1 < SMALLEST {
            return None;
        }
        // Far from the edges all are alike.
        let middle = |length: usize, bits: u32| {
            let taps = Taps::new(2 * length, length, 2, bits);
            let (first, weights) = taps.of(length / 2);
            debug_assert_eq!(first + BEFORE, 2 * (length / 2));
            weights.first_chunk::<WINDOW>().copied()
        };
        let weights = middle(to.0, ACROSS_BITS)?;
        let mut across = [[0; 2]; WINDOW / 2];
        for (weight, exact) in across.as_flattened_mut().iter_mut().zip(weights) {
            *weight = i8::try_from(exact).ok()?;
        }
        Some(Self { across, down: middle(to.1, SMALL_WEIGHT_BITS)?, rows: vec![0; WINDOW * to.0], width: to.0 })
    }

    #[inline(always)]
    pub fn scale(&mut self, kernel: impl Kernel, from: Plane<'_>, to: &mut PlaneMut<'_>) {
        let (width, last, mut ready) = (self.width, from.height - 1, 0);
        for y in 0..to.height {
            let end = (2 * y + WINDOW - BEFORE).min(from.height);
            for n in ready..end {
                let row = &mut self.rows[n % WINDOW * width..][..width];
                halve_row(kernel, &from.row(n)[..2 * width], &self.across, row);
            }
            ready = end;
            let rows: [&[i16]; WINDOW] = std::array::from_fn(|k| {
                let n = (2 * y + k).saturating_sub(BEFORE).min(last);
                &self.rows[n % WINDOW * width..][..width]
            });
            kernel.halve_down(rows, &self.down, &mut to.data[y * to.stride..][..width]);
        }
    }
}

/// Halves a row. Its first and its last pixel go on beyond it.
#[inline(always)]
fn halve_row(kernel: impl Kernel, row: &[u8], weights: &[[i8; 2]; WINDOW / 2], out: &mut [i16]) {
    let (length, last) = (out.len(), row.len() - 1);
    for x in [0, 1, length - 2, length - 1] {
        let window: [u8; WINDOW] = std::array::from_fn(|k| row[(2 * x + k).saturating_sub(BEFORE).min(last)]);
        Plain.halve_across(&window, weights, &mut out[x..=x]);
    }
    kernel.halve_across(&row[2 * ENDS - BEFORE..], weights, &mut out[ENDS..length - ENDS]);
}
