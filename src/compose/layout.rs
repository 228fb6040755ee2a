//! Where each stream is drawn: a pure function of the layout, the frame and the streams in their order.
//!
//! Vonage's published geometry (its layout guide, and the figures in it) where it is known. `bestFit` is better than the
//! published one: it takes the grid in which the streams' frames become largest, and centres a short row and the block of
//! rows. Without a stream of the class that a layout requests, the first stream takes its place.

use super::geometry::{Rect, Size};
use crate::model::layout::{Layout, LayoutType};

/// Streams with video in one picture (Vonage's limit).
pub const VIDEO_STREAMS_MAX: usize = 16;

/// How a picture fills its cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Fit {
    /// All of it is seen, with bars where its shape is another.
    #[default]
    Contain,
    /// The cell is full, and what does not fit is cut.
    Cover,
}

/// A stream as the layout sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LayoutStream {
    /// The size of its picture.
    pub size: Option<(u32, u32)>,
    /// Whether it is a screen.
    pub screen: bool,
    /// Its layout classes.
    pub classes: Vec<String>,
}

impl LayoutStream {
    fn has(&self, class: &str) -> bool {
        self.classes.iter().any(|c| c == class)
    }

    fn size(&self) -> Size {
        self.size.map_or(Size::new(16, 9), |(width, height)| Size::new(width.max(1), height.max(1)))
    }
}

/// The part of a stream's place that lies outside of the frame, in pixels on each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Crop {
    /// At the left edge.
    pub left: u32,
    /// At the upper edge.
    pub top: u32,
    /// At the right edge.
    pub right: u32,
    /// At the lower edge.
    pub bottom: u32,
}

/// A stream's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cell {
    /// The stream's index.
    pub stream: usize,
    /// Its part of the frame.
    pub area: Rect,
    /// The part of its place outside of the frame.
    pub crop: Crop,
    /// How the picture fills it.
    pub fit: Fit,
    /// Later ones are drawn over earlier ones.
    pub z: i32,
}

/// Places streams, which come in the order of their priority. Those that have no room have no cell.
#[must_use]
pub fn place(layout: &Layout, frame: Size, streams: &[LayoutStream]) -> Vec<Cell> {
    let streams = &streams[..streams.len().min(VIDEO_STREAMS_MAX)];
    let screen = streams.iter().position(|s| s.screen);
    match (layout.kind, layout.screenshare_type, screen) {
        (LayoutType::BestFit, Some(LayoutType::BestFit), Some(_)) => {
            let screens = (0..streams.len()).filter(|n| streams[*n].screen);
            best_fit(frame, streams, &screens.collect::<Vec<_>>())
        }
        (LayoutType::BestFit, Some(kind), Some(screen)) => with_main(kind, frame, streams, Some(screen)),
        (kind, _, _) => with_main(kind, frame, streams, None),
    }
}

/// A layout whose main stream is known, or is found by its class.
fn with_main(kind: LayoutType, frame: Size, streams: &[LayoutStream], main: Option<usize>) -> Vec<Cell> {
    let of_class = |class: &str| main.or_else(|| streams.iter().position(|s| s.has(class))).unwrap_or(0);
    let all = || (0..streams.len()).collect::<Vec<_>>();
    match kind {
        LayoutType::Pip => pip(frame, streams.len(), of_class("full")),
        LayoutType::VerticalPresentation => presentation(frame, streams.len(), of_class("focus"), true),
        LayoutType::HorizontalPresentation => presentation(frame, streams.len(), of_class("focus"), false),
        // Without its style sheet, which `custom` reads.
        LayoutType::BestFit | LayoutType::Custom => best_fit(frame, streams, &all()),
    }
}

fn cell(stream: usize, area: Rect) -> Cell {
    Cell { stream, area, crop: Crop::default(), fit: Fit::Contain, z: 0 }
}

/// The grid in which the pictures have the largest area in all. Where two are about as good, a wide frame has the
/// longer rows and a high one the shorter.
fn best_fit(frame: Size, streams: &[LayoutStream], which: &[usize]) -> Vec<Cell> {
    let n = which.len();
    let shown_area = |columns: usize| -> u64 {
        let cell = Rect::whole(Size::new(part(frame.width, columns), part(frame.height, n.div_ceil(columns))));
        which.iter().map(|s| cell.contain(streams[*s].size())).map(|r| u64::from(r.width) * u64::from(r.height)).sum()
    };
    let areas: Vec<(usize, u64)> = (1..=n).map(|columns| (columns, shown_area(columns))).collect();
    let largest = areas.iter().map(|(_, area)| *area).max().unwrap_or(0);
    let mut good = areas.iter().filter(|(_, area)| area * 100 >= largest * 98).map(|(columns, _)| *columns);
    let Some(columns) = (if frame.is_portrait() { good.next() } else { good.next_back() }) else {
        return Vec::new();
    };
    let rows = n.div_ceil(columns);
    let place = |(at, stream): (usize, &usize)| {
        let (row, column) = (at / columns, at % columns);
        let in_row = if row + 1 == rows { n - row * columns } else { columns };
        // In half columns, so that a short row can stand in the middle.
        let first = (columns - in_row) + 2 * column;
        let (columns, rows) = (count(2 * columns), count(rows));
        let (from, to) = ((count(first), count(row)), (count(first + 2), count(row + 1)));
        cell(*stream, Rect::between(frame, from, to, (columns, rows)))
    };
    which.iter().enumerate().map(place).collect()
}

/// One stream fills the frame, the next one is in the corner: a fifth, a tenth away from the right and upper edge.
fn pip(frame: Size, streams: usize, main: usize) -> Vec<Cell> {
    let corner = (0..streams).find(|n| *n != main);
    let corner = corner.map(|n| Cell { z: 1, ..cell(n, Rect::between(frame, (7, 1), (9, 3), (10, 10))) });
    let main = (streams > 0).then(|| cell(main, Rect::whole(frame)));
    main.into_iter().chain(corner).collect()
}

/// One stream has four fifths of the frame; as many others as Vonage shows are in a column at its left, or in a row
/// below it.
fn presentation(frame: Size, streams: usize, main: usize, vertical: bool) -> Vec<Cell> {
    let others = side_max(frame, vertical);
    let mut cells = Vec::new();
    if streams > 0 {
        let (from, to) = if vertical { ((1, 0), (5, 1)) } else { ((0, 0), (1, 4)) };
        let of = if vertical { (5, 1) } else { (1, 5) };
        cells.push(cell(main, Rect::between(frame, from, to, of)));
    }
    for (at, stream) in (0..streams).filter(|n| *n != main).take(others).enumerate() {
        let (at, of) = (count(at), count(others));
        let area = if vertical {
            Rect::between(frame, (0, at), (1, at + 1), (5, of))
        } else {
            Rect::between(frame, (at, 4), (at + 1, 5), (of, 5))
        };
        cells.push(cell(stream, area));
    }
    cells
}

/// How many streams stand beside the one in focus.
const fn side_max(frame: Size, vertical: bool) -> usize {
    let large = frame.width * frame.height >= 1920 * 1080;
    match (vertical, frame.is_portrait(), large) {
        (true, true, true) => 10,
        (true, true, false) => 8,
        (false, true, _) => 3,
        (_, false, true) => 7,
        (_, false, false) => 5,
    }
}

fn part(length: u32, of: usize) -> u32 {
    length / count(of).max(1)
}

/// At most sixteen streams.
fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "layout_goldens.rs"]
mod goldens;
#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
