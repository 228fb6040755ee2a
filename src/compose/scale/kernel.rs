//! The loops of scaling that touch every pixel, written plainly. A processor's own instructions may stand in for
//! them ([`super::avx2`]); what comes out is the same to the bit.

use super::weights::{PAIRS_MAX, Taps};
use crate::media::plane::Plane;

/// Where rows are mixed one by one, pixels enter with so many bits behind the binary point. Of each product with a weight the
/// upper 16 bits are kept.
pub(super) const PIXEL_BITS: u32 = 7;
/// Pixels that a pixel of half the size is made of, along one axis.
pub(super) const WINDOW: usize = 8;

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

    /// Mixes [`WINDOW`] pixels for each output pixel, two further on each time: what is taken away first, and what leaves the
    /// range of 16 bits is cut off. The row goes on for a window behind the last output pixel's first one.
    #[inline(always)]
    fn halve_across(self, row: &[u8], weights: &[[i8; 2]; WINDOW / 2], out: &mut [i16]) {
        halve_across(row, weights, 0, out);
    }

    /// Mixes rows of which each pixel has seven bits behind the binary point. Each product is rounded.
    #[inline(always)]
    fn halve_down(self, rows: [&[i16]; WINDOW], weights: &[i16; WINDOW], out: &mut [u8]) {
        halve_down(rows, weights, 0, out);
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

/// The pairs of a window in the order in which they are added: those at its ends take away.
pub(super) const PAIR_ORDER: [usize; WINDOW / 2] = [0, 3, 1, 2];
/// The rows of a window in the order in which they are added: those at its ends take away.
pub(super) const ROW_ORDER: [usize; WINDOW] = [0, 1, 6, 7, 2, 5, 3, 4];
/// Half of what the bits behind the binary point can tell.
pub(super) const HALF_BIT: i16 = 1 << (PIXEL_BITS - 1);

/// Mixes the output pixels from `begin` on.
#[inline(always)]
pub(super) fn halve_across(row: &[u8], weights: &[[i8; 2]; WINDOW / 2], begin: usize, out: &mut [i16]) {
    for (x, pixel) in out.iter_mut().enumerate() {
        let window = row[2 * (begin + x)..].as_chunks::<2>().0;
        let part = |n: usize| {
            let ([a, b], [v, w]) = (window[n], weights[n]);
            i16::from(a) * i16::from(v) + i16::from(b) * i16::from(w)
        };
        *pixel = PAIR_ORDER.iter().fold(0, |sum: i16, n| sum.saturating_add(part(*n)));
    }
}

/// Mixes the output pixels from `begin` on.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub(super) fn halve_down(rows: [&[i16]; WINDOW], weights: &[i16; WINDOW], begin: usize, out: &mut [u8]) {
    for (x, pixel) in out.iter_mut().enumerate() {
        let part = |n: usize| ((i32::from(rows[n][begin + x]) * i32::from(weights[n]) + (1 << 14)) >> 15) as i16;
        let sum = ROW_ORDER.iter().fold(HALF_BIT, |sum: i16, n| sum.saturating_add(part(*n)));
        *pixel = (sum >> PIXEL_BITS).clamp(0, 255) as u8;
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

/// Mixes the input rows that make output row `y`. Returns the bits behind its binary points.
#[inline(always)]
pub(super) fn mix_rows(from: Plane<'_>, down: &Taps, y: usize, out: &mut [i16]) -> u32 {
    let (first, weights) = down.of(y);
    let part = |pixel: u8, weight: i16| upper(i16::from(pixel) << PIXEL_BITS, weight);
    // Each product is cut off: half a unit too low.
    out.fill(i16::try_from(weights.len() / 2).unwrap_or(0));
    let last = from.height - 1;
    let (fours, rest) = weights.as_chunks::<4>();
    for (n, w) in fours.iter().enumerate() {
        let [a, b, c, d] = [0, 1, 2, 3].map(|k| &from.row((first + 4 * n + k).min(last))[..out.len()]);
        for x in 0..out.len() {
            let (one, two) =
                (part(a[x], w[0]).wrapping_add(part(b[x], w[1])), part(c[x], w[2]).wrapping_add(part(d[x], w[3])));
            out[x] = out[x].wrapping_add(one).wrapping_add(two);
        }
    }
    for (n, w) in rest.iter().enumerate() {
        let a = &from.row((first + 4 * fours.len() + n).min(last))[..out.len()];
        for x in 0..out.len() {
            out[x] = out[x].wrapping_add(part(a[x], *w));
        }
    }
    PIXEL_BITS + down.bits - 16
}

/// The upper half of a product.
#[inline(always)]
#[allow(clippy::cast_possible_truncation)]
fn upper(a: i16, b: i16) -> i16 {
    ((i32::from(a) * i32::from(b)) >> 16) as i16
}
