//! Reading headers bit by bit.

use super::PayloadError;

/// Reads the most significant bit first.
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Bits<'a> {
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bits that were read.
    pub const fn position(&self) -> usize {
        self.at
    }

    pub fn bit(&mut self) -> Result<bool, PayloadError> {
        let byte = self.bytes.get(self.at / 8).ok_or(PayloadError::Short)?;
        let bit = byte >> (7 - self.at % 8) & 1;
        self.at += 1;
        Ok(bit == 1)
    }

    /// `count` bits, at most 32.
    pub fn take(&mut self, count: u32) -> Result<u32, PayloadError> {
        let mut value = 0;
        for _ in 0..count {
            value = value << 1 | u32::from(self.bit()?);
        }
        Ok(value)
    }

    /// Unsigned Exp-Golomb (ITU-T H.264 section 9.1); also AV1's `uvlc`.
    pub fn golomb(&mut self) -> Result<u32, PayloadError> {
        let mut zeros = 0;
        while !self.bit()? {
            zeros += 1;
            if zeros > 31 {
                return Err(PayloadError::Invalid);
            }
        }
        Ok((1_u32 << zeros) - 1 + self.take(zeros)?)
    }

    /// Signed Exp-Golomb.
    pub fn signed_golomb(&mut self) -> Result<i64, PayloadError> {
        let code = i64::from(self.golomb()?);
        Ok(if code % 2 == 0 { -code / 2 } else { code / 2 + 1 })
    }
}
