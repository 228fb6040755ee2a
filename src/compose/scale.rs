//! Scaling one plane of a picture: separable bicubic, widened when it makes smaller, so that nothing aliases.
//! Aliased pictures cost the encoder more than a good scaler does (an eighth larger files, measured).

use pulp::{Arch, Simd, WithSimd};

use crate::media::picture::{Plane, PlaneMut};

/// Weights are in units of 1/2^14.
const SHIFT: u32 = 14;
const ONE: i32 = 1 << SHIFT;
/// The bicubic's parameter: the sharpness of ffmpeg's default scaler.
const SHARPNESS: f64 = -0.6;
/// Weights across are read so many at a time.
const LANES: usize = 8;
/// Bits of a mixed row behind the binary point: pixels enter with 7, and the upper half of each product with a weight,
/// 16 bits, is kept.
const ROW_BITS: u32 = 7 + SHIFT - 16;

/// Which input pixels make an output pixel, along one axis.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Taps {
    /// The first input pixel of each output pixel.
    first: Vec<usize>,
    /// `taps` weights for each output pixel, whose sum is one.
    weights: Vec<i16>,
    taps: usize,
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
fn taps(from: usize, to: usize, round: usize) -> Taps {
    let step = from as f64 / to as f64;
    let widened = step.max(1.0);
    let rows: Vec<(usize, Vec<i16>)> = (0..to)
        .map(|at| {
            let centre = (at as f64 + 0.5) * step - 0.5;
            let begin = ((centre - 2.0 * widened).floor() + 1.0).max(0.0) as usize;
            let end = ((centre + 2.0 * widened).ceil() as usize).clamp(begin + 1, from);
            let row: Vec<f64> = (begin..end).map(|n| cubic((n as f64 - centre) / widened)).collect();
            let sum: f64 = row.iter().sum();
            let mut fixed: Vec<i16> = row.iter().map(|w| (w / sum * f64::from(ONE)).round() as i16).collect();
            // What rounding left is put where it is seen least.
            let rest = ONE - fixed.iter().map(|w| i32::from(*w)).sum::<i32>();
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
    Taps { first, weights, taps }
}

/// Scales planes of one size to another.
#[derive(Debug)]
pub struct Scaler {
    from: (usize, usize),
    to: (usize, usize),
    across: Taps,
    down: Taps,
    row: Vec<i16>,
    arch: Arch,
}

impl Scaler {
    /// Width and height in pixels; none may be zero.
    ///
    /// # Panics
    /// When one is zero.
    #[must_use]
    pub fn new(from: (usize, usize), to: (usize, usize)) -> Self {
        assert!(from.0 > 0 && from.1 > 0 && to.0 > 0 && to.1 > 0, "a plane has pixels");
        let (across, down) = (taps(from.0, to.0, LANES), taps(from.1, to.1, 1));
        // Weights that are zero reach behind the last pixel.
        let row = vec![0; from.0 + across.taps];
        Self { from, to, across, down, row, arch: Arch::new() }
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
        self.arch.dispatch(Scaling { from, to, across: &self.across, down: &self.down, row: &mut self.row });
    }
}

/// One plane's scaling, to be compiled for the processor it runs on. Everything in it must be inlined.
struct Scaling<'a, 'b> {
    from: Plane<'a>,
    to: &'a mut PlaneMut<'b>,
    across: &'a Taps,
    down: &'a Taps,
    row: &'a mut [i16],
}

impl WithSimd for Scaling<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { from, to, across, down, row } = self;
        for y in 0..to.height {
            let (first, weights) = down.of(y);
            mix_rows(from, first, weights, &mut row[..from.width]);
            let out = &mut to.data[y * to.stride..][..to.width];
            if across.taps == LANES { mix_eight(row, across, out) } else { mix_many(row, across, out) }
        }
    }
}

/// Mixes the input rows that make one output row.
#[inline(always)]
fn mix_rows(from: Plane<'_>, first: usize, weights: &[i16], out: &mut [i16]) {
    let part = |pixel: u8, weight: i16| ((i32::from(i16::from(pixel) << 7) * i32::from(weight)) >> 16) as i16;
    // Each product is cut off: half a unit too low.
    out.fill(i16::try_from(weights.len() / 2).unwrap_or(0));
    let last = from.height - 1;
    let (fours, rest) = weights.as_chunks::<4>();
    for (n, w) in fours.iter().enumerate() {
        let [a, b, c, d] = [0, 1, 2, 3].map(|k| &from.row((first + 4 * n + k).min(last))[..out.len()]);
        for x in 0..out.len() {
            let (one, two) = (part(a[x], w[0]).wrapping_add(part(b[x], w[1])), part(c[x], w[2]).wrapping_add(part(d[x], w[3])));
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

/// Mixes pixels of a row, eight for each output pixel.
#[inline(always)]
fn mix_eight(row: &[i16], across: &Taps, out: &mut [u8]) {
    let (weights, _) = across.weights.as_chunks::<LANES>();
    for ((pixel, first), weights) in out.iter_mut().zip(&across.first).zip(weights) {
        let (input, _) = row[*first..].as_chunks::<LANES>();
        *pixel = rounded(product([0; 4], &input[0], weights));
    }
}

/// Mixes pixels of a row, more than eight for each output pixel.
#[inline(always)]
fn mix_many(row: &[i16], across: &Taps, out: &mut [u8]) {
    for ((pixel, first), weights) in out.iter_mut().zip(&across.first).zip(across.weights.chunks_exact(across.taps)) {
        let (input, weights) = (row[*first..][..across.taps].as_chunks::<LANES>().0, weights.as_chunks::<LANES>().0);
        let sums = input.iter().zip(weights).fold([0; 4], |sums, (input, weights)| product(sums, input, weights));
        *pixel = rounded(sums);
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
fn rounded(sums: [i32; 4]) -> u8 {
    let sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    ((sum + (1 << (SHIFT + ROW_BITS - 1))) >> (SHIFT + ROW_BITS)).clamp(0, 255) as u8
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
            for (from, to) in [((64, 36), (32, 18)), ((64, 36), (21, 13)), ((3, 2), (64, 36)), ((640, 2), (2, 480))] {
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
        let halves: Vec<u8> = (0..64 * 8).map(|n| if n % 64 < 32 { 20 } else { 200 }).collect();
        let out = scaled(&halves, (64, 8), (16, 2));
        assert!(out[..6].iter().all(|p| p.abs_diff(20) <= 2) && out[10..16].iter().all(|p| p.abs_diff(200) <= 2));
        let stripes: Vec<u8> = (0..64 * 8).map(|n| if n % 2 == 0 { 0 } else { 200 }).collect();
        let out = scaled(&stripes, (64, 8), (16, 8));
        assert!(out.iter().all(|p| p.abs_diff(100) < 14), "{out:?}");
    }
}
