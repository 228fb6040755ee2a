//! Scaling one plane of a picture: separable bicubic, widened when it makes smaller, so that nothing aliases.
//! Aliased pictures cost the encoder more than a good scaler does (an eighth larger files, measured). What becomes a quarter
//! or less is halved by the mean of four pixels first: what that aliases lies beyond what is left of the picture.

use pulp::{Arch, Simd, WithSimd};

use crate::media::picture::{Plane, PlaneMut};

/// Bits of weights behind the binary point: as many as 16 bits hold with the largest weight.
const WEIGHT_BITS: u32 = 14;
/// Of weights that are all below one, as where a picture becomes smaller.
const SMALL_WEIGHT_BITS: u32 = 15;
/// Of weights that are all below a half, as where it becomes half as large.
const HALF_WEIGHT_BITS: u32 = 16;
/// From here on a picture becomes smaller by enough for that.
const SMALLER: f64 = 1.1;
/// The bicubic's parameter: the sharpness of ffmpeg's default scaler.
const SHARPNESS: f64 = -0.6;
/// Weights across are read so many at a time.
const LANES: usize = 8;
/// Pixels enter with so many bits behind the binary point. Of each product with a weight the upper 16 bits are kept.
const PIXEL_BITS: u32 = 7;
/// What becomes smaller by so much is halved first.
const QUARTER: usize = 4;
/// Pixels that the even and the odd half of a row each go on for beyond both of its ends.
const BESIDE: usize = 2;

/// Which input pixels make an output pixel, along one axis.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Taps {
    /// The first input pixel of each output pixel.
    first: Vec<usize>,
    /// `taps` weights for each output pixel, whose sum is one.
    weights: Vec<i16>,
    taps: usize,
    /// Bits of a weight behind the binary point.
    bits: u32,
}

impl Taps {
    fn of(&self, at: usize) -> (usize, &[i16]) {
        (self.first[at], &self.weights[at * self.taps..][..self.taps])
    }
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

/// The weights that make `to` pixels of `from`, as many for each as a multiple of `round`: where there are less, the rest is
/// zero, and may stand for pixels behind the last one.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn taps(from: usize, to: usize, round: usize, bits: u32) -> Taps {
    let one = 1 << bits;
    let step = from as f64 / to as f64;
    let widened = step.max(1.0);
    let rows: Vec<(usize, Vec<i16>)> = (0..to)
        .map(|at| {
            let centre = (at as f64 + 0.5) * step - 0.5;
            let begin = ((centre - 2.0 * widened).floor() + 1.0).max(0.0) as usize;
            let end = ((centre + 2.0 * widened).ceil() as usize).clamp(begin + 1, from);
            let row: Vec<f64> = (begin..end).map(|n| cubic((n as f64 - centre) / widened)).collect();
            let sum: f64 = row.iter().sum();
            let mut fixed: Vec<i16> = row.iter().map(|w| (w / sum * f64::from(one)).round() as i16).collect();
            // What rounding left is put where it is seen least.
            let rest = one - fixed.iter().map(|w| i32::from(*w)).sum::<i32>();
            if let Some(largest) = fixed.iter_mut().max() {
                *largest += rest as i16;
            }
            (begin, fixed)
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
    Taps { first, weights, taps, bits }
}

/// Scales planes of one size to another.
#[derive(Debug)]
pub struct Scaler {
    from: (usize, usize),
    to: (usize, usize),
    /// Each half as large as the one before.
    means: Vec<Means>,
    across: Taps,
    down: Taps,
    row: Vec<i16>,
    /// The even and the odd pixels of a row, with some beside them.
    halves: [Vec<i16>; 2],
    arch: Arch,
}

impl Scaler {
    /// Width and height in pixels; none may be zero.
    ///
    /// # Panics
    /// When one is zero.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn new(from: (usize, usize), to: (usize, usize)) -> Self {
        assert!(from.0 > 0 && from.1 > 0 && to.0 > 0 && to.1 > 0, "a plane has pixels");
        let (whole, mut from, mut means) = (from, from, Vec::new());
        while from.0 >= QUARTER * to.0 && from.1 >= QUARTER * to.1 && from.0 % 2 == 0 && from.1 % 2 == 0 {
            from = (from.0 / 2, from.1 / 2);
            means.push(Means { data: vec![0; from.0 * from.1], width: from.0, height: from.1 });
        }
        let bits = |from: usize, to: usize| {
            if from as f64 > to as f64 * SMALLER { SMALL_WEIGHT_BITS } else { WEIGHT_BITS }
        };
        let across = match is_half(from.0, to.0) {
            true => taps(from.0, to.0, LANES, HALF_WEIGHT_BITS),
            false => taps(from.0, to.0, LANES, bits(from.0, to.0)),
        };
        let down = taps(from.1, to.1, 1, bits(from.1, to.1));
        // Weights that are zero reach behind the last pixel.
        let row = vec![0; from.0 + across.taps];
        let halves = [0, 1].map(|_| vec![0; to.0 + 2 * BESIDE]);
        Self { from: whole, to, means, across, down, row, halves, arch: Arch::new() }
    }

    /// Width and height of what comes out.
    #[must_use]
    pub const fn to(&self) -> (usize, usize) {
        self.to
    }

    /// Scales a plane.
    ///
    /// # Panics
    /// When a plane has another size than the scaler was made for.
    pub fn scale(&mut self, from: Plane<'_>, to: &mut PlaneMut<'_>) {
        assert_eq!(((from.width, from.height), (to.width, to.height)), (self.from, self.to));
        if self.from == self.to {
            for y in 0..from.height {
                to.data[y * to.stride..][..to.width].copy_from_slice(from.row(y));
            }
            return;
        }
        let Self { means, across, down, row, halves, arch, .. } = self;
        let mut from = from;
        for means in means {
            arch.dispatch(Averaging { from, to: &mut *means });
            from = means.plane();
        }
        arch.dispatch(Scaling { from, to, across, down, row, halves });
    }
}

/// A plane between: each pixel is the mean of four.
#[derive(Debug)]
struct Means {
    data: Vec<u8>,
    width: usize,
    height: usize,
}

impl Means {
    fn plane(&self) -> Plane<'_> {
        Plane { data: &self.data, stride: self.width, width: self.width, height: self.height }
    }
}

/// To be compiled for the processor it runs on.
struct Averaging<'a> {
    from: Plane<'a>,
    to: &'a mut Means,
}

impl WithSimd for Averaging<'_> {
    type Output = ();

    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)]
    fn with_simd<S: Simd>(self, _: S) {
        for (y, out) in self.to.data.chunks_exact_mut(self.to.width).enumerate() {
            let [above, below] = [2 * y, 2 * y + 1].map(|y| self.from.row(y).as_chunks::<2>().0);
            for ((out, above), below) in out.iter_mut().zip(above).zip(below) {
                let sum = above.iter().chain(below).map(|pixel| u16::from(*pixel)).sum::<u16>();
                *out = ((sum + 2) >> 2) as u8;
            }
        }
    }
}

/// Whether each output pixel is the middle of two, with enough beside them.
const fn is_half(from: usize, to: usize) -> bool {
    from == 2 * to && to > 2 * LANES
}

/// One plane's scaling, to be compiled for the processor it runs on. Everything in it must be inlined.
struct Scaling<'a, 'b> {
    from: Plane<'a>,
    to: &'a mut PlaneMut<'b>,
    across: &'a Taps,
    down: &'a Taps,
    row: &'a mut [i16],
    halves: &'a mut [Vec<i16>; 2],
}

impl WithSimd for Scaling<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { from, to, across, down, row, halves } = self;
        let row_bits = PIXEL_BITS + down.bits - 16;
        let half = is_half(from.width, to.width);
        for y in 0..to.height {
            let (first, weights) = down.of(y);
            mix_rows(from, first, weights, &mut row[..from.width]);
            let out = &mut to.data[y * to.stride..][..to.width];
            if half {
                halve(&row[..from.width], across, halves, row_bits, out);
            } else if across.taps == LANES {
                mix_eight(row, across, row_bits, out);
            } else {
                mix_many(row, across, row_bits, out);
            }
        }
    }
}

/// The upper half of a product.
#[inline(always)]
#[allow(clippy::cast_possible_truncation)]
fn upper(a: i16, b: i16) -> i16 {
    ((i32::from(a) * i32::from(b)) >> 16) as i16
}

/// Mixes the input rows that make one output row.
#[inline(always)]
fn mix_rows(from: Plane<'_>, first: usize, weights: &[i16], out: &mut [i16]) {
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
}

/// Halves a row: the even pixels and the odd ones apart, so that neighbours in the output use neighbours in each. Beside the
/// row its first and last pixels go on.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn halve(row: &[i16], across: &Taps, halves: &mut [Vec<i16>; 2], row_bits: u32, out: &mut [u8]) {
    let [even, odd] = halves;
    let n = out.len();
    let (pairs, _) = row.as_chunks::<2>();
    for ((even, odd), pair) in even[BESIDE..].iter_mut().zip(&mut odd[BESIDE..]).zip(pairs) {
        (*even, *odd) = (pair[0], pair[1]);
    }
    for half in [&mut *even, &mut *odd] {
        half[..BESIDE].fill(row[0]);
        half[BESIDE + n..].fill(row[row.len() - 1]);
    }
    // Far from the edges all weights are the same.
    let (_, w) = across.of(n / 2);
    // In the order of the weights: three pixels before the pair, the pair, three behind it.
    let (before, last) = ([&odd[..n], &even[1..=n], &odd[1..=n]], [&even[3..], &odd[3..], &even[4..]].map(|h| &h[..n]));
    let pair = [&even[2..][..n], &odd[2..][..n]];
    let shift = row_bits + across.bits - 16;
    // Each of the eight products is cut off: half a unit too low.
    let rounding = (1 << (shift - 1)) + 4;
    for x in 0..n {
        let left = upper(before[0][x], w[0]).wrapping_add(upper(before[1][x], w[1]));
        let left = left.wrapping_add(upper(before[2][x], w[2])).wrapping_add(upper(pair[0][x], w[3]));
        let right = upper(pair[1][x], w[4]).wrapping_add(upper(last[0][x], w[5]));
        let right = right.wrapping_add(upper(last[1][x], w[6])).wrapping_add(upper(last[2][x], w[7]));
        out[x] = (left.wrapping_add(right).wrapping_add(rounding) >> shift).clamp(0, 255) as u8;
    }
}

/// Mixes pixels of a row, eight for each output pixel.
#[inline(always)]
fn mix_eight(row: &[i16], across: &Taps, row_bits: u32, out: &mut [u8]) {
    let (weights, _) = across.weights.as_chunks::<LANES>();
    for ((pixel, first), weights) in out.iter_mut().zip(&across.first).zip(weights) {
        let (input, _) = row[*first..].as_chunks::<LANES>();
        *pixel = rounded(product([0; 4], &input[0], weights), across.bits + row_bits);
    }
}

/// Mixes pixels of a row, more than eight for each output pixel.
#[inline(always)]
fn mix_many(row: &[i16], across: &Taps, row_bits: u32, out: &mut [u8]) {
    for ((pixel, first), weights) in out.iter_mut().zip(&across.first).zip(across.weights.chunks_exact(across.taps)) {
        let (input, weights) = (row[*first..][..across.taps].as_chunks::<LANES>().0, weights.as_chunks::<LANES>().0);
        let sums = input.iter().zip(weights).fold([0; 4], |sums, (input, weights)| product(sums, input, weights));
        *pixel = rounded(sums, across.bits + row_bits);
    }
}

/// Neighbours are added in pairs: processors have an instruction for it.
#[inline(always)]
fn product(mut sums: [i32; 4], input: &[i16; LANES], weights: &[i16; LANES]) -> [i32; 4] {
    for (n, sum) in sums.iter_mut().enumerate() {
        let part = |at: usize| i32::from(input[at]) * i32::from(weights[at]);
        *sum += part(2 * n) + part(2 * n + 1);
    }
    sums
}

#[inline(always)]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn rounded(sums: [i32; 4], bits: u32) -> u8 {
    let sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    ((sum + (1 << (bits - 1))) >> bits).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scaled(data: &[u8], from: (usize, usize), to: (usize, usize)) -> Vec<u8> {
        let mut out = vec![0; to.0 * to.1];
        let plane = Plane { data, stride: from.0, width: from.0, height: from.1 };
        let mut target = PlaneMut { data: &mut out, stride: to.0, width: to.0, height: to.1 };
        Scaler::new(from, to).scale(plane, &mut target);
        out
    }

    #[test]
    fn an_even_surface_stays_even_at_every_size() {
        for value in [0, 16, 128, 235, 255] {
            for (from, to) in [
                ((64, 36), (32, 18)),
                ((1280, 720), (640, 360)),
                ((1280, 72), (213, 12)),
                ((1280, 720), (100, 60)),
                ((64, 36), (21, 13)),
                ((3, 2), (64, 36)),
                ((640, 2), (2, 480)),
            ] {
                let out = scaled(&vec![value; from.0 * from.1], from, to);
                assert!(out.iter().all(|p| *p == value), "{value} {from:?} {to:?}: {out:?}");
            }
        }
    }

    #[test]
    fn the_same_size_is_the_same_picture() {
        let picture: Vec<u8> = (0..64 * 36).map(|n| (n * 7 % 251) as u8).collect();
        assert_eq!(scaled(&picture, (64, 36), (64, 36)), picture);
    }

    #[test]
    fn an_edge_stays_where_it_is_and_what_is_too_fine_becomes_grey() {
        let wide: Vec<u8> = (0..64 * 8).map(|n| if n % 64 < 32 { 20 } else { 200 }).collect();
        let half = scaled(&wide, (64, 8), (32, 4));
        assert!(half[..13].iter().all(|p| p.abs_diff(20) <= 1) && half[19..32].iter().all(|p| p.abs_diff(200) <= 1));
        let halves: Vec<u8> = (0..64 * 8).map(|n| if n % 64 < 32 { 20 } else { 200 }).collect();
        let out = scaled(&halves, (64, 8), (16, 2));
        assert!(out[..6].iter().all(|p| p.abs_diff(20) <= 2) && out[10..16].iter().all(|p| p.abs_diff(200) <= 2));
        let stripes: Vec<u8> = (0..64 * 8).map(|n| if n % 2 == 0 { 0 } else { 200 }).collect();
        let out = scaled(&stripes, (64, 8), (16, 8));
        assert!(out.iter().all(|p| p.abs_diff(100) < 14), "{out:?}");
    }
}
