//! The loops of scaling that touch every pixel, written plainly. A processor's own instructions may stand in for
//! them ([`super::avx2`]); what comes out is the same to the bit.

use super::weights::{LANES, PAIRS_MAX, Taps};

/// Two rows of the input, and their weights.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pair<'a> {
    pub rows: [&'a [u8]; 2],
    pub weights: [i8; 2],
}

/// What pictures are scaled with.
pub(super) trait Kernel: Copy {
    /// The mean of two by two pixels.
    #[inline(always)]
    fn mean(self, above: &[u8], below: &[u8], out: &mut [u8]) {
        mean(above, below, out);
    }

    /// Mixes pairs of rows, in their order. What leaves the range of 16 bits is cut off.
    #[inline(always)]
    fn mix_pairs(self, pairs: &[Pair<'_>], out: &mut [i16]) {
        mix_pairs(pairs, 0, out);
    }

    /// Mixes eight pixels of a row for each output pixel, two further on each time.
    #[inline(always)]
    fn halve(self, row: &[i16], weights: &[i16; LANES], bits: u32, out: &mut [u8]) {
        for (x, pixel) in out.iter_mut().enumerate() {
            *pixel = rounded(product(&row[2 * x..][..LANES], weights), bits);
        }
    }

    /// Mixes pixels of a row.
    #[inline(always)]
    fn mix_pixels(self, row: &[i16], across: &Taps, bits: u32, out: &mut [u8]) {
        mix_pixels(row, across, 0, bits, out);
    }
}

/// The plain loops.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plain;

impl Kernel for Plain {}

#[inline(always)]
#[allow(clippy::cast_possible_truncation)]
pub(super) fn mean(above: &[u8], below: &[u8], out: &mut [u8]) {
    let (above, below) = (above.as_chunks::<2>().0, below.as_chunks::<2>().0);
    for ((out, above), below) in out.iter_mut().zip(above).zip(below) {
        let sum = above.iter().chain(below).map(|pixel| u16::from(*pixel)).sum::<u16>();
        *out = ((sum + 2) >> 2) as u8;
    }
}

/// Mixes the pixels from `begin` on.
#[inline(always)]
pub(super) fn mix_pairs(pairs: &[Pair<'_>], begin: usize, out: &mut [i16]) {
    debug_assert!(pairs.len() <= PAIRS_MAX);
    out.fill(0);
    for pair in pairs {
        let [a, b] = pair.rows.map(|row| &row[begin..][..out.len()]);
        let [v, w] = pair.weights.map(i16::from);
        for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
            *out = out.saturating_add((i16::from(*a) * v).saturating_add(i16::from(*b) * w));
        }
    }
}

/// Mixes the output pixels from `begin` on.
#[inline(always)]
pub(super) fn mix_pixels(row: &[i16], across: &Taps, begin: usize, bits: u32, out: &mut [u8]) {
    for (x, pixel) in out.iter_mut().enumerate() {
        let (first, weights) = across.of(begin + x);
        *pixel = rounded(product(&row[first..][..weights.len()], weights), bits);
    }
}

#[inline(always)]
fn product(row: &[i16], weights: &[i16]) -> i32 {
    row.iter().zip(weights).map(|(pixel, weight)| i32::from(*pixel) * i32::from(*weight)).sum()
}

#[inline(always)]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn rounded(sum: i32, bits: u32) -> u8 {
    ((sum + (1 << (bits - 1))) >> bits).clamp(0, 255) as u8
}
