//! Scaling one plane of a picture: separable bicubic, widened when it makes smaller, so that nothing aliases.
//! Aliased pictures cost the encoder more than a good scaler does (an eighth larger files, measured).

use crate::media::picture::{Plane, PlaneMut};

/// Weights are in units of 1/2^14.
const SHIFT: u32 = 14;
const ONE: i32 = 1 << SHIFT;
/// The bicubic's parameter: the sharpness of ffmpeg's default scaler.
const SHARPNESS: f64 = -0.6;

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

/// The weights that make `to` pixels of `from`.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn taps(from: usize, to: usize) -> Taps {
    let step = from as f64 / to as f64;
    let widened = step.max(1.0);
    let taps = ((4.0 * widened).ceil() as usize + 1).min(from);
    let (mut first, mut weights) = (Vec::with_capacity(to), Vec::with_capacity(to * taps));
    for at in 0..to {
        let centre = (at as f64 + 0.5) * step - 0.5;
        let begin = (centre - 2.0 * widened).ceil().max(0.0) as usize;
        let begin = begin.min(from - taps);
        let row: Vec<f64> = (0..taps).map(|n| cubic(((begin + n) as f64 - centre) / widened)).collect();
        let sum: f64 = row.iter().sum();
        let mut fixed: Vec<i16> = row.iter().map(|w| (w / sum * f64::from(ONE)).round() as i16).collect();
        // What rounding left is put where it is seen least.
        let rest = ONE - fixed.iter().map(|w| i32::from(*w)).sum::<i32>();
        if let Some(largest) = fixed.iter_mut().max() {
            *largest += rest as i16;
        }
        first.push(begin);
        weights.extend(fixed);
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
    sums: Vec<i32>,
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
        let (across, down) = (taps(from.0, to.0), taps(from.1, to.1));
        Self { from, to, across, down, sums: vec![0; from.0], row: vec![0; from.0] }
    }

    /// Scales a plane.
    ///
    /// # Panics
    /// When a plane has another size than the scaler was made for.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn scale(&mut self, from: Plane<'_>, to: &mut PlaneMut<'_>) {
        assert_eq!(((from.width, from.height), (to.width, to.height)), (self.from, self.to));
        if self.from == self.to {
            for y in 0..from.height {
                to.data[y * to.stride..][..to.width].copy_from_slice(from.row(y));
            }
            return;
        }
        for y in 0..to.height {
            self.mix_rows(from, y);
            let out = &mut to.data[y * to.stride..][..to.width];
            for (x, pixel) in out.iter_mut().enumerate() {
                let (first, weights) = self.across.of(x);
                let input = &self.row[first..][..weights.len()];
                let sum: i32 = input.iter().zip(weights).map(|(p, w)| i32::from(*p) * i32::from(*w)).sum();
                // The rows kept six more bits.
                *pixel = ((sum + (1 << (SHIFT + 5))) >> (SHIFT + 6)).clamp(0, 255) as u8;
            }
        }
    }

    /// Mixes the input rows that make one output row.
    #[allow(clippy::cast_possible_truncation)]
    fn mix_rows(&mut self, from: Plane<'_>, y: usize) {
        let (first, weights) = self.down.of(y);
        self.sums.fill(1 << (SHIFT - 7));
        for (n, weight) in weights.iter().enumerate().filter(|(_, w)| **w != 0) {
            let weight = i32::from(*weight);
            for (sum, pixel) in self.sums.iter_mut().zip(from.row(first + n)) {
                *sum += i32::from(*pixel) * weight;
            }
        }
        for (mixed, sum) in self.row.iter_mut().zip(&self.sums) {
            *mixed = (sum >> (SHIFT - 6)).clamp(i32::from(i16::MIN), i32::from(i16::MAX)) as i16;
        }
    }
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
