//! Planes of video frames as plain memory, to read or to draw on.

/// A plane to read.
#[derive(Debug, Clone, Copy)]
pub struct Plane<'a> {
    /// Rows, `stride` bytes apart.
    pub data: &'a [u8],
    /// Bytes from one row to the next.
    pub stride: usize,
    /// Pixels of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl<'a> Plane<'a> {
    /// A row's pixels.
    #[must_use]
    pub fn row(&self, y: usize) -> &'a [u8] {
        &self.data[y * self.stride..][..self.width]
    }

    /// A part of it.
    #[must_use]
    pub fn part(&self, x: usize, y: usize, width: usize, height: usize) -> Self {
        Self { data: &self.data[y * self.stride + x..], stride: self.stride, width, height }
    }
}

/// A plane to write.
#[derive(Debug)]
pub struct PlaneMut<'a> {
    /// Rows, `stride` bytes apart.
    pub data: &'a mut [u8],
    /// Bytes from one row to the next.
    pub stride: usize,
    /// Pixels of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}
