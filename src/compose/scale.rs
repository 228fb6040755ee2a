//! Scaling one plane of a picture: separable bicubic, widened when it makes smaller, so that nothing aliases.
//! Aliased pictures cost the encoder more than a good scaler does (an eighth larger files, measured). What becomes a quarter
//! or less is halved by the mean of four pixels first: what that aliases lies beyond what is left of the picture.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod half;
mod kernel;
mod weights;

use half::Half;
use kernel::{Kernel, Pair, Plain, mix_rows};
use weights::{Down, PAIRS_MAX, RowPair, Taps};

use crate::media::plane::{Plane, PlaneMut};

/// Bits behind the binary point of a pixel of which pairs of rows were mixed.
const PAIRED_BITS: u32 = 7;
/// What becomes smaller by so much is halved first.
const QUARTER: usize = 4;
/// A row's last pixel goes on behind it, beside the weights that are zero: as many as are read at once.
const BEHIND: usize = 64;

/// Scales planes of one size to another.
#[derive(Debug)]
pub struct Scaler {
    from: (usize, usize),
    to: (usize, usize),
    /// Each half as large as the one before.
    means: Vec<Means>,
    /// Then in one way,
    half: Option<Half>,
    /// or in the other.
    across: Taps,
    down: Down,
    /// One row, mixed of several, with some pixels beside it.
    row: Vec<i16>,
}

impl Scaler {
    /// Width and height in pixels; none may be zero.
    ///
    /// # Panics
    /// When one is zero.
    #[must_use]
    pub fn new(from: (usize, usize), to: (usize, usize)) -> Self {
        assert!(from.0 > 0 && from.1 > 0 && to.0 > 0 && to.1 > 0, "a plane has pixels");
        let (whole, mut from, mut means) = (from, from, Vec::new());
        while from.0 >= QUARTER * to.0 && from.1 >= QUARTER * to.1 && from.0 % 2 == 0 && from.1 % 2 == 0 {
            from = (from.0 / 2, from.1 / 2);
            means.push(Means { data: vec![0; from.0 * from.1], width: from.0, height: from.1 });
        }
        let half = Half::new(from, to);
        let (across, down) = (Taps::across(from.0, to.0), Down::new(from.1, to.1));
        let row = vec![0; from.0 + across.taps + BEHIND];
        Self { from: whole, to, means, half, across, down, row }
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
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V3::try_new() {
            simd.vectorize(Scaling { kernel: simd, scaler: self, from, to });
            return;
        }
        self.scale_by(Plain, from, to);
    }

    #[inline(always)]
    fn scale_by(&mut self, kernel: impl Kernel, from: Plane<'_>, to: &mut PlaneMut<'_>) {
        let Self { means, half, across, down, row, .. } = self;
        let mut from = from;
        for means in means {
            for (y, out) in means.data.chunks_exact_mut(means.width).enumerate() {
                kernel.mean(from.row(2 * y), from.row(2 * y + 1), out);
            }
            from = means.plane();
        }
        if let Some(half) = half {
            return half.scale(kernel, from, to);
        }
        for y in 0..to.height {
            let row_bits = match down {
                Down::Pairs { rows } => mix_pairs(kernel, from, &rows[y], &mut row[..from.width]),
                Down::Rows(taps) => mix_rows(from, taps, y, &mut row[..from.width]),
            };
            let last = row[from.width - 1];
            row[from.width..].fill(last);
            let (out, bits) = (&mut to.data[y * to.stride..][..to.width], across.bits + row_bits);
            kernel.mix_pixels(row, across, bits, out);
        }
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

/// One plane's scaling, to be compiled for the processor it runs on. Everything in it must be inlined.
#[cfg(target_arch = "x86_64")]
struct Scaling<'a, 'b, K> {
    kernel: K,
    scaler: &'a mut Scaler,
    from: Plane<'a>,
    to: &'a mut PlaneMut<'b>,
}

#[cfg(target_arch = "x86_64")]
impl<K: Kernel> pulp::NullaryFnOnce for Scaling<'_, '_, K> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.scaler.scale_by(self.kernel, self.from, self.to);
    }
}

/// Mixes the input rows that make one output row, in pairs. Returns the bits behind its binary points.
#[inline(always)]
fn mix_pairs(kernel: impl Kernel, from: Plane<'_>, pairs: &[RowPair], out: &mut [i16]) -> u32 {
    let last = from.height - 1;
    let mut rows = [Pair::default(); PAIRS_MAX];
    for (row, pair) in rows.iter_mut().zip(pairs) {
        // Weights that are zero stand for rows behind the last one.
        let of = |y: usize| from.row(y.min(last));
        *row = Pair { rows: [of(pair.first), of(pair.first + 1)], weights: pair.weights };
    }
    kernel.mix_pairs(&rows[..pairs.len()], out);
    PAIRED_BITS
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

    /// Noise, with edges from black to white in it: what overshoots.
    fn noise(from: (usize, usize)) -> Vec<u8> {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..from.0 * from.1).map(|n| if n / 5 % 3 == 0 { next() } else { [0, 255][n / 7 % 2] }).collect()
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn every_processor_makes_the_same_picture() {
        if pulp::x86::V3::try_new().is_none() {
            // Then there is only one way to make it here.
            return;
        }
        for from in [(1280, 720), (854, 480), (321, 241), (97, 61), (64, 48), (5, 3)] {
            let data = noise(from);
            let plane = Plane { data: &data, stride: from.0, width: from.0, height: from.1 };
            for to in
                [(640, 360), (427, 240), (320, 180), (213, 120), (77, 33), (33, 77), (1281, 721), (1, 1), (160, 120)]
            {
                let mut plain = vec![0; to.0 * to.1];
                let mut target = PlaneMut { data: &mut plain, stride: to.0, width: to.0, height: to.1 };
                Scaler::new(from, to).scale_by(Plain, plane, &mut target);
                assert!(scaled(&data, from, to) == plain, "{from:?} {to:?}");
            }
        }
    }

    #[test]
    fn what_overshoots_is_cut_off_and_does_not_turn_over() {
        for (from, to) in [((96, 96), (48, 48)), ((96, 96), (64, 64)), ((96, 96), (33, 33)), ((48, 48), (96, 96))] {
            let (wide, high) = from;
            let data: Vec<u8> = (0..wide * high).map(|n| if n / wide < high / 2 { 0 } else { 255 }).collect();
            let out = scaled(&data, from, to);
            let (near, far) = (to.1 / 2 - to.1 / 16, to.1 / 2 + to.1 / 16);
            assert!(out[..near * to.0].iter().all(|p| *p < 40), "{from:?} {to:?}");
            assert!(out[far * to.0..].iter().all(|p| *p > 215), "{from:?} {to:?}");
        }
    }
}
