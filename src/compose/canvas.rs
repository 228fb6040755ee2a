//! Drawing pictures into their cells. A canvas comes back with what was drawn on it before: only what differs is
//! drawn again.

use std::collections::HashMap;

use super::geometry::{Rect, Size, visible_part};
use super::layout::{Cell, Fit};
use super::scale::Scaler;
use crate::media::MediaError;
use crate::media::decode::DecodedFrame;
use crate::media::encode::Feeder;
use crate::media::plane::{Plane, PlaneMut};
use crate::model::ids::StreamId;

/// Black in BT.601's limited range: luma and chroma.
const BLACK: [u8; 3] = [16, 128, 128];

/// The place of a stream's picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// Whose picture.
    pub stream: StreamId,
    /// Where it is drawn.
    pub cell: Cell,
    /// The picture's size.
    pub size: (u32, u32),
}

/// Gives the streams' frames.
pub trait FrameSource {
    /// The newest picture of a stream, and its number. It is drawn at once, while the processor still has it at hand.
    ///
    /// # Errors
    /// When it cannot be decoded by what there is.
    fn newest(&mut self, stream: StreamId) -> Result<Option<(&DecodedFrame, u64)>, MediaError>;
}

/// The tiles on a canvas, each with its frame's number.
type Drawn = Vec<(Tile, u64)>;

impl Tile {
    /// The part of the stream's frame that is drawn, and its place on the canvas.
    fn parts(&self) -> Option<(Rect, Rect)> {
        let (natural, Cell { area, crop, .. }) = (Size::new(self.size.0, self.size.1), self.cell);
        // All of its place, by its own corner.
        let place = Rect::whole(Size::new(area.width + crop.left + crop.right, area.height + crop.top + crop.bottom));
        let (source, target) = match self.cell.fit {
            Fit::Contain => (Rect::whole(natural), place.contain(natural)),
            Fit::Cover => (place.covered(natural), place),
        };
        let window = Rect { x: crop.left, y: crop.top, ..area };
        let (source, target) = visible_part(source, target, window)?;
        Some((source, Rect { x: target.x - crop.left + area.x, y: target.y - crop.top + area.y, ..target }))
    }
}

/// The canvases of one file.
pub struct Canvases {
    frame: Size,
    /// The content of each, by its number.
    drawn: Vec<Option<Drawn>>,
    scalers: HashMap<[usize; 4], Scaler>,
}

impl Canvases {
    /// Canvases of a size.
    #[must_use]
    pub fn new(frame: Size) -> Self {
        Self { frame, drawn: Vec::new(), scalers: HashMap::new() }
    }

    /// Draws tiles, in the order of their depth, on a canvas that is free. `None` when a picture has become another size
    /// than its tile was made for: then they should be made anew.
    ///
    /// # Errors
    /// When there is no canvas, or a picture cannot be decoded or read.
    pub fn draw(
        &mut self,
        feeder: &mut Feeder,
        tiles: &[Tile],
        pictures: &mut impl FrameSource,
    ) -> Result<Option<usize>, MediaError> {
        let canvas = feeder.take_canvas()?;
        if self.drawn.len() <= canvas {
            self.drawn.resize_with(canvas + 1, || None);
        }
        let before = self.drawn[canvas].take();
        let before = before.filter(|drawn| drawn.iter().map(|(tile, _)| tile).eq(tiles));
        let (frame, scalers) = (self.frame, &mut self.scalers);
        let mut drawn = Ok(None);
        feeder.draw(canvas, |mut planes| {
            if before.is_none() {
                clear(&mut planes, frame);
            }
            drawn = draw_all(scalers, &mut planes, tiles, before, pictures);
        })?;
        self.drawn[canvas] = drawn?;
        Ok(self.drawn[canvas].is_some().then_some(canvas))
    }
}

/// Draws what differs from `before`. `None` when a picture has another size than its tile.
fn draw_all(
    scalers: &mut HashMap<[usize; 4], Scaler>,
    planes: &mut [PlaneMut<'_>; 3],
    tiles: &[Tile],
    before: Option<Drawn>,
    pictures: &mut impl FrameSource,
) -> Result<Option<Drawn>, MediaError> {
    let mut before = before;
    // What lies over another one must be drawn again with it.
    if tiles.iter().any(|tile| tile.cell.z != 0) {
        for (tile, number) in before.iter().flatten() {
            if pictures.newest(tile.stream)?.is_none_or(|(_, newest)| newest != *number) {
                before = None;
                break;
            }
        }
    }
    let mut order: Vec<usize> = (0..tiles.len()).collect();
    order.sort_by_key(|n| tiles[*n].cell.z);
    let mut drawn: Drawn = tiles.iter().map(|tile| (*tile, 0)).collect();
    for n in order {
        let Some((picture, number)) = pictures.newest(tiles[n].stream)? else { return Ok(None) };
        if picture.size() != tiles[n].size {
            return Ok(None);
        }
        drawn[n].1 = number;
        if before.as_ref().is_none_or(|before| before[n].1 != number) {
            draw(scalers, planes, &tiles[n], picture)?;
        }
    }
    Ok(Some(drawn))
}

fn clear(planes: &mut [PlaneMut<'_>; 3], frame: Size) {
    for (n, plane) in planes.iter_mut().enumerate() {
        let (width, height) = if n == 0 { (frame.width, frame.height) } else { (frame.width / 2, frame.height / 2) };
        for y in 0..height as usize {
            plane.data[y * plane.stride..][..width as usize].fill(BLACK[n]);
        }
    }
}

fn draw(
    scalers: &mut HashMap<[usize; 4], Scaler>,
    planes: &mut [PlaneMut<'_>; 3],
    tile: &Tile,
    picture: &DecodedFrame,
) -> Result<(), MediaError> {
    let Some((from, to)) = tile.parts() else { return Ok(()) };
    for (n, plane) in planes.iter_mut().enumerate() {
        picture.with_plane(n, |source| draw_plane(scalers, plane, source, n > 0, (from, to)))?;
    }
    Ok(())
}

fn draw_plane(
    scalers: &mut HashMap<[usize; 4], Scaler>,
    plane: &mut PlaneMut<'_>,
    source: Plane<'_>,
    chroma: bool,
    (from, to): (Rect, Rect),
) {
    let shift = u32::from(chroma);
    // The chroma of an odd width has a column more than half of it.
    let (width, height) = ((from.width + shift) >> shift, (from.height + shift) >> shift);
    let (left, top) = (from.x >> shift, from.y >> shift);
    let width = (width as usize).min(source.width.saturating_sub(left as usize));
    let height = (height as usize).min(source.height.saturating_sub(top as usize));
    let (wide, high) = ((to.width >> shift) as usize, (to.height >> shift) as usize);
    if width == 0 || height == 0 || wide == 0 || high == 0 {
        return;
    }
    let source: Plane<'_> = source.part(left as usize, top as usize, width, height);
    let at = (to.y >> shift) as usize * plane.stride + (to.x >> shift) as usize;
    let mut target = PlaneMut { data: &mut plane.data[at..], stride: plane.stride, width: wide, height: high };
    let key = [width, height, wide, high];
    let scaler = scalers.entry(key).or_insert_with(|| Scaler::new((width, height), (wide, high)));
    scaler.scale(source, &mut target);
}
