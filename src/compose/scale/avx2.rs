//! Scaling by the instructions that x86 processors have had since 2013. The compiler does not find all of them by
//! itself: the plain loops took three times as long (measured with 1280x720 to 640x360).

use std::arch::x86_64::{__m128i, __m256i};

use pulp::cast;
use pulp::x86::V3;

use super::kernel::{
    HALF_BIT, Kernel, PAIR_ORDER, PIXEL_BITS, Pair, ROW_ORDER, WINDOW, halve_across, halve_down, mean, mix_pairs,
    mix_pixels,
};
use super::weights::{LANES, PAIRS_MAX, Taps};

/// Pixels of 8 bits that are mixed at once.
const WIDE: usize = 32;
/// Output pixels that are made at once of a row of 16 bits.
const OUT: usize = 16;
/// Output pixels whose sums are put together.
const SUMS: usize = 4;

/// To be called where these instructions may be used only ([`V3::vectorize`]).
impl Kernel for V3 {
    #[inline(always)]
    fn mean(self, above: &[u8], below: &[u8], out: &mut [u8]) {
        let done = out.len() - out.len() % WIDE;
        let [a, b] = [above, below].map(|row| row.as_chunks::<{ 2 * WIDE }>().0);
        for ((out, a), b) in out.as_chunks_mut::<WIDE>().0.iter_mut().zip(a).zip(b) {
            let [[a, c], [b, d]]: [[__m256i; 2]; 2] = [cast(*a), cast(*b)];
            let means = self.avx2._mm256_packus_epi16(means(self, a, b), means(self, c, d));
            *out = cast(self.avx2._mm256_permute4x64_epi64::<0b11_01_10_00>(means));
        }
        mean(&above[2 * done..], &below[2 * done..], &mut out[done..]);
    }

    #[inline(always)]
    fn mix_pairs(self, pairs: &[Pair<'_>], out: &mut [i16]) {
        match pairs {
            [a] => mix(self, [a], out),
            [a, b] => mix(self, [a, b], out),
            [a, b, c] => mix(self, [a, b, c], out),
            [a, b, c, d] => mix(self, [a, b, c, d], out),
            [a, b, c, d, e] => mix(self, [a, b, c, d, e], out),
            [a, b, c, d, e, f] => mix(self, [a, b, c, d, e, f], out),
            [a, b, c, d, e, f, g] => mix(self, [a, b, c, d, e, f, g], out),
            [a, b, c, d, e, f, g, h] => mix(self, [a, b, c, d, e, f, g, h], out),
            _ => unreachable!("an output row is made of one to {PAIRS_MAX} pairs"),
        }
        let done = out.len() - out.len() % WIDE;
        mix_pairs(pairs, done, &mut out[done..]);
    }

    #[inline(always)]
    fn halve_across(self, row: &[u8], weights: &[[i8; 2]; WINDOW / 2], out: &mut [i16]) {
        let pairs = weights.map(|pair| self.avx._mm256_set1_epi16(i16::from_ne_bytes(cast(pair))));
        let sixteen = |begin: usize| -> [i16; OUT] {
            let window = row[2 * begin..].first_chunk::<{ 2 * OUT + WINDOW - 2 }>().expect("a row goes on behind it");
            let mut sum = self.avx._mm256_setzero_si256();
            for k in PAIR_ORDER {
                let pixels = *window[2 * k..].first_chunk::<WIDE>().expect("inside the window");
                sum = self.avx2._mm256_adds_epi16(sum, self.avx2._mm256_maddubs_epi16(cast(pixels), pairs[k]));
            }
            cast(sum)
        };
        for (n, out) in out.as_chunks_mut::<OUT>().0.iter_mut().enumerate() {
            *out = sixteen(OUT * n);
        }
        // What is left is made together with some that were made before.
        match out.len().checked_sub(OUT) {
            Some(begin) => out[begin..].copy_from_slice(&sixteen(begin)),
            None => halve_across(row, weights, 0, out),
        }
    }

    #[inline(always)]
    fn halve_down(self, rows: [&[i16]; WINDOW], weights: &[i16; WINDOW], out: &mut [u8]) {
        let wide = weights.map(|weight| self.avx._mm256_set1_epi16(weight));
        let chunks = rows.map(|row| row.as_chunks::<OUT>().0.as_chunks::<2>().0);
        let done = out.len() - out.len() % WIDE;
        let half = self.avx._mm256_set1_epi16(HALF_BIT);
        for (x, out) in out.as_chunks_mut::<WIDE>().0.iter_mut().enumerate() {
            let mut sums = [half; 2];
            for k in ROW_ORDER {
                for (sum, pixels) in sums.iter_mut().zip(chunks[k][x]) {
                    *sum = self.avx2._mm256_adds_epi16(*sum, self.avx2._mm256_mulhrs_epi16(cast(pixels), wide[k]));
                }
            }
            let [low, high] = sums.map(|sum| self.avx2._mm256_srai_epi16::<{ PIXEL_BITS as i32 }>(sum));
            let pixels = self.avx2._mm256_packus_epi16(low, high);
            *out = cast(self.avx2._mm256_permute4x64_epi64::<0b11_01_10_00>(pixels));
        }
        halve_down(rows, weights, done, &mut out[done..]);
    }

    #[inline(always)]
    fn mix_pixels(self, row: &[i16], across: &Taps, bits: u32, out: &mut [u8]) {
        let done = out.len() - out.len() % SUMS;
        match across.taps / LANES {
            1 => mix_fours::<1>(self, row, across, bits, out),
            2 => mix_fours::<2>(self, row, across, bits, out),
            3 => mix_fours::<3>(self, row, across, bits, out),
            _ => return mix_pixels(row, across, 0, bits, out),
        }
        mix_pixels(row, across, done, bits, &mut out[done..]);
    }
}

/// Each lane the mean of two by two pixels.
#[inline(always)]
fn means(simd: V3, above: __m256i, below: __m256i) -> __m256i {
    let ones = simd.avx._mm256_set1_epi8(1);
    let [a, b] = [above, below].map(|row| simd.avx2._mm256_maddubs_epi16(row, ones));
    let sum = simd.avx2._mm256_add_epi16(simd.avx2._mm256_add_epi16(a, b), simd.avx._mm256_set1_epi16(2));
    simd.avx2._mm256_srli_epi16::<2>(sum)
}

/// Mixes as many pairs as are given, but for the last pixels of a row.
#[inline(always)]
fn mix<const N: usize>(simd: V3, pairs: [&Pair<'_>; N], out: &mut [i16]) {
    let out = out.as_chunks_mut::<WIDE>().0;
    let n = out.len();
    let rows = pairs.map(|pair| pair.rows.map(|row| &row.as_chunks::<WIDE>().0[..n]));
    let weights = pairs.map(|pair| simd.avx._mm256_set1_epi16(i16::from_ne_bytes(cast(pair.weights))));
    for (x, out) in out.iter_mut().enumerate() {
        let mut sums = [simd.avx._mm256_setzero_si256(); 2];
        for (rows, weights) in rows.iter().zip(weights) {
            let [a, b]: [__m256i; 2] = rows.map(|row| cast(row[x]));
            let mixed = [simd.avx2._mm256_unpacklo_epi8(a, b), simd.avx2._mm256_unpackhi_epi8(a, b)];
            for (sum, mixed) in sums.iter_mut().zip(mixed) {
                *sum = simd.avx2._mm256_adds_epi16(*sum, simd.avx2._mm256_maddubs_epi16(mixed, weights));
            }
        }
        // Unpacking had put each half of a register's pixels by itself.
        let [low, high] = sums;
        let first = simd.avx2._mm256_permute2x128_si256::<0x20>(low, high);
        *out = cast([first, simd.avx2._mm256_permute2x128_si256::<0x31>(low, high)]);
    }
}

/// Makes four output pixels at a time of `N` times [`LANES`] input pixels each, but for the last ones.
#[inline(always)]
fn mix_fours<const N: usize>(simd: V3, row: &[i16], across: &Taps, bits: u32, out: &mut [u8]) {
    let (rounding, shift) = (simd.sse2._mm_set1_epi32(1 << (bits - 1)), count(simd, bits));
    let weights = across.weights.as_chunks::<LANES>().0.as_chunks::<N>().0.as_chunks::<SUMS>().0;
    let firsts = across.first.as_chunks::<SUMS>().0;
    for ((out, firsts), weights) in out.as_chunks_mut::<SUMS>().0.iter_mut().zip(firsts).zip(weights) {
        let mut sums = [simd.sse2._mm_setzero_si128(); SUMS];
        for ((sum, first), weights) in sums.iter_mut().zip(firsts).zip(weights) {
            let (pixels, _) = row[*first..].as_chunks::<LANES>();
            let pixels = pixels.first_chunk::<N>().expect("a row goes on behind its last pixel");
            for (pixels, weights) in pixels.iter().zip(weights) {
                *sum = simd.sse2._mm_add_epi32(*sum, simd.sse2._mm_madd_epi16(cast(*pixels), cast(*weights)));
            }
        }
        let [a, b, c, d] = sums;
        let all = simd.ssse3._mm_hadd_epi32(simd.ssse3._mm_hadd_epi32(a, b), simd.ssse3._mm_hadd_epi32(c, d));
        let all = simd.sse2._mm_sra_epi32(simd.sse2._mm_add_epi32(all, rounding), shift);
        let words = simd.sse2._mm_packs_epi32(all, all);
        let pixels: [[u8; SUMS]; 4] = cast(simd.sse2._mm_packus_epi16(words, words));
        *out = pixels[0];
    }
}

/// Bits to shift by, as the instructions take it.
#[inline(always)]
fn count(simd: V3, bits: u32) -> __m128i {
    simd.sse2._mm_cvtsi32_si128(bits.cast_signed())
}
