//! Rectangles of a picture, in whole pixels. All edges are even: the chroma of I420 has half the resolution.

/// Width and height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Size {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
}

impl Size {
    /// A size.
    #[must_use]
    pub const fn new(width: u32, height: u32) -> Self {
        Self { width, height }
    }

    /// Whether it is higher than wide.
    #[must_use]
    pub const fn is_portrait(self) -> bool {
        self.height > self.width
    }

    const fn is_empty(self) -> bool {
        self.width == 0 || self.height == 0
    }
}

/// A part of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rect {
    /// Its left edge.
    pub x: u32,
    /// Its upper edge.
    pub y: u32,
    /// Its width.
    pub width: u32,
    /// Its height.
    pub height: u32,
}

impl Rect {
    /// All of a picture.
    #[must_use]
    pub const fn whole(size: Size) -> Self {
        Self { x: 0, y: 0, width: size.width, height: size.height }
    }

    /// The part between fractions `from` and `to` of a frame, each as (horizontal, vertical) numerators of `of`.
    /// Neighbours that share a fraction share an edge.
    #[must_use]
    pub fn between(frame: Size, from: (u32, u32), to: (u32, u32), of: (u32, u32)) -> Self {
        let edge = |length: u32, n: u32, of: u32| even(u64::from(length) * u64::from(n) / u64::from(of.max(1)));
        let (left, right) = (edge(frame.width, from.0, of.0), edge(frame.width, to.0, of.0));
        let (top, bottom) = (edge(frame.height, from.1, of.1), edge(frame.height, to.1, of.1));
        Self { x: left, y: top, width: right.saturating_sub(left), height: bottom.saturating_sub(top) }
    }

    /// Whether two have a pixel in common.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.x < other.x + other.width
            && other.x < self.x + self.width
            && self.y < other.y + other.height
            && other.y < self.y + self.height
    }

    /// Whether it lies in a picture.
    #[must_use]
    pub const fn is_in(self, frame: Size) -> bool {
        self.x + self.width <= frame.width && self.y + self.height <= frame.height
    }

    /// The largest part with the shape of `natural`, centred.
    #[must_use]
    pub fn contain(self, natural: Size) -> Self {
        if natural.is_empty() {
            return self;
        }
        let (wide, high) = (u64::from(natural.width), u64::from(natural.height));
        let (room_wide, room_high) = (u64::from(self.width), u64::from(self.height));
        let (width, height) = if room_wide * high <= room_high * wide {
            (self.width, nearest_even(room_wide * high, wide).clamp(2, self.height.max(2)))
        } else {
            (nearest_even(room_high * wide, high).clamp(2, self.width.max(2)), self.height)
        };
        let (x, y) = (
            even(u64::from(self.width.saturating_sub(width)) / 2),
            even(u64::from(self.height.saturating_sub(height)) / 2),
        );
        Self { x: self.x + x, y: self.y + y, width, height }
    }

    /// The largest part of a picture of size `natural` that has this shape, centred: what `cover` shows of it.
    #[must_use]
    pub fn covered(self, natural: Size) -> Self {
        Self::whole(Size::new(natural.width & !1, natural.height & !1)).contain(Size::new(self.width, self.height))
    }
}

/// The visible part of a picture, and its place, when its part `source` is drawn into `target` and only `window` is visible.
/// All edges are even.
#[must_use]
pub fn visible_part(source: Rect, target: Rect, window: Rect) -> Option<(Rect, Rect)> {
    let end = |at: u32, length: u32| at.saturating_add(length);
    let (left, top) = (target.x.max(window.x), target.y.max(window.y));
    let right = end(target.x, target.width).min(end(window.x, window.width));
    let bottom = end(target.y, target.height).min(end(window.y, window.height));
    if left >= right || top >= bottom {
        return None;
    }
    // A place in the target, as one in the source.
    let back = |at: u32, from: u32, length: u32, source: u32| {
        even(u64::from(at - from) * u64::from(source) / u64::from(length.max(1)))
    };
    let (x0, x1) =
        (back(left, target.x, target.width, source.width), back(right, target.x, target.width, source.width));
    let (y0, y1) =
        (back(top, target.y, target.height, source.height), back(bottom, target.y, target.height, source.height));
    // Of very little at least two pixels are seen.
    let span = |from: u32, to: u32, length: u32| {
        let from = from.min(even(length.saturating_sub(2).into()));
        (from, to.max(from + 2).min(length.max(from + 2)) - from)
    };
    let whole =
        (left, right, top, bottom) == (target.x, end(target.x, target.width), target.y, end(target.y, target.height));
    if whole {
        return Some((source, target));
    }
    let ((x, width), (y, height)) = (span(x0, x1, source.width), span(y0, y1, source.height));
    let part = Rect { x: source.x + x, y: source.y + y, width, height };
    Some((part, Rect { x: left, y: top, width: right - left, height: bottom - top }))
}

/// The largest even number that is not larger.
fn even(n: u64) -> u32 {
    u32::try_from(n & !1).unwrap_or(u32::MAX - 1)
}

/// The even number nearest to a quotient.
fn nearest_even(dividend: u64, divisor: u64) -> u32 {
    even((dividend + divisor) / divisor.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_keeps_its_shape_in_the_middle_of_its_room() {
        let room = Rect { x: 0, y: 0, width: 640, height: 480 };
        for (natural, expected) in [
            (Size::new(1280, 720), Rect { x: 0, y: 60, width: 640, height: 360 }),
            (Size::new(640, 480), room),
            (Size::new(720, 1280), Rect { x: 184, y: 0, width: 270, height: 480 }),
            (Size::new(0, 0), room),
            (Size::new(10_000, 1), Rect { x: 0, y: 238, width: 640, height: 2 }),
        ] {
            assert_eq!(room.contain(natural), expected, "{natural:?}");
        }
        // What covers the room is cut, not drawn larger.
        assert_eq!(room.covered(Size::new(1280, 720)), Rect { x: 160, y: 0, width: 960, height: 720 });
    }

    #[test]
    fn what_lies_outside_of_a_window_is_cut_and_not_made_smaller() {
        let rect = |x, y, width, height| Rect { x, y, width, height };
        let (source, target) = (rect(10, 20, 1280, 720), rect(100, 100, 640, 360));
        for (name, window, expected) in [
            ("all of it", rect(0, 0, 800, 800), Some((source, target))),
            ("its left half", rect(0, 0, 420, 800), Some((rect(10, 20, 640, 720), rect(100, 100, 320, 360)))),
            (
                "its lower right quarter",
                rect(420, 280, 800, 800),
                Some((rect(650, 380, 640, 360), rect(420, 280, 320, 180))),
            ),
            ("nothing", rect(0, 0, 100, 800), None),
            ("two pixels", rect(738, 458, 10, 10), Some((rect(1286, 736, 4, 4), rect(738, 458, 2, 2)))),
        ] {
            assert_eq!(visible_part(source, target, window), expected, "{name}");
        }
        // A picture that is drawn far larger than it is.
        let large = visible_part(rect(0, 0, 16, 8), rect(0, 0, 100_000, 50_000), rect(40_000, 20_000, 640, 480));
        assert_eq!(large, Some((rect(6, 2, 2, 2), rect(40_000, 20_000, 640, 480))));
    }

    #[test]
    fn thirds_of_a_width_that_is_none_of_three_meet_without_a_gap() {
        let frame = Size::new(640, 480);
        let thirds: Vec<Rect> = (0..3).map(|n| Rect::between(frame, (n, 0), (n + 1, 1), (3, 1))).collect();
        assert_eq!(thirds.iter().map(|r| (r.x, r.width)).collect::<Vec<_>>(), [(0, 212), (212, 214), (426, 214)]);
    }
}
