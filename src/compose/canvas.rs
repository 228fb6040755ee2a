//! Drawing pictures into their cells. A canvas comes back with what was drawn on it before: only what differs is
//! drawn again.

use std::collections::HashMap;

use super::geometry::{Rect, Size, seen};
use super::layout::{Cell, Fit};
use super::scale::Scaler;
use crate::ids::StreamId;
use crate::media::MediaError;
use crate::media::decode::Picture;
use crate::media::encode::Feeder;
use crate::media::picture::{Plane, PlaneMut};

/// Black in BT.601's limited range: luma and chroma.
const BLACK: [u8; 3] = [16, 128, 128];

/// A picture in a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// Whose picture.
    pub stream: StreamId,
    /// Which of its pictures.
    pub number: u64,
    /// Its place.
    pub cell: Cell,
    /// Its size.
    pub size: (u32, u32),
}

impl Tile {
    /// What of the picture is drawn, and where.
    fn parts(&self) -> Option<(Rect, Rect)> {
        let (natural, Cell { area, cut, .. }) = (Size::new(self.size.0, self.size.1), self.cell);
        // All of its place, by its own corner.
        let place = Rect::whole(Size::new(area.width + cut.left + cut.right, area.height + cut.top + cut.bottom));
        let (source, target) = match self.cell.fit {
            Fit::Contain => (Rect::whole(natural), place.contain(natural)),
            Fit::Cover => (place.covered(natural), place),
        };
        let window = Rect { x: cut.left, y: cut.top, ..area };
        let (source, target) = seen(source, target, window)?;
        Some((source, Rect { x: target.x - cut.left + area.x, y: target.y - cut.top + area.y, ..target }))
    }

    /// Whether it covers the same pixels, whatever the picture.
    fn same_place(&self, other: &Self) -> bool {
        (self.stream, self.cell, self.size) == (other.stream, other.cell, other.size)
    }
}

/// The canvases of one file.
pub struct Canvases {
    frame: Size,
    /// What is on each, by its number.
    drawn: Vec<Option<Vec<Tile>>>,
    scalers: HashMap<[usize; 4], Scaler>,
}

impl Canvases {
    /// Canvases of a size.
    #[must_use]
    pub fn new(frame: Size) -> Self {
        Self { frame, drawn: Vec::new(), scalers: HashMap::new() }
    }

    /// Draws tiles, in the order of their depth, on a canvas that is free.
    ///
    /// # Errors
    /// When there is none, or a picture cannot be read.
    pub fn draw(&mut self, feeder: &mut Feeder, tiles: &[(Tile, &Picture)]) -> Result<usize, MediaError> {
        let canvas = feeder.canvas()?;
        if self.drawn.len() <= canvas {
            self.drawn.resize_with(canvas + 1, || None);
        }
        let before = self.drawn[canvas].take();
        let same_places = before.as_ref().is_some_and(|drawn| {
            drawn.len() == tiles.len() && drawn.iter().zip(tiles).all(|(a, (b, _))| a.same_place(b))
        });
        // What lies over another one must be drawn again with it.
        let flat = tiles.iter().all(|(tile, _)| tile.cell.z == 0);
        let changed: Vec<bool> = match &before {
            Some(drawn) if same_places => {
                let differs: Vec<bool> = drawn.iter().zip(tiles).map(|(a, (b, _))| a != b).collect();
                if flat { differs } else { vec![differs.contains(&true); tiles.len()] }
            }
            _ => vec![true; tiles.len()],
        };
        let mut order: Vec<usize> = (0..tiles.len()).filter(|n| changed[*n]).collect();
        order.sort_by_key(|n| tiles[*n].0.cell.z);
        let mut result = Ok(());
        if !same_places || !order.is_empty() {
            let (frame, scalers) = (self.frame, &mut self.scalers);
            feeder.draw(canvas, |mut planes| {
                if !same_places {
                    clear(&mut planes, frame);
                }
                result = order.iter().try_for_each(|n| draw(scalers, &mut planes, &tiles[*n].0, tiles[*n].1));
            })?;
        }
        result?;
        self.drawn[canvas] = Some(tiles.iter().map(|(tile, _)| *tile).collect());
        Ok(canvas)
    }
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
    picture: &Picture,
) -> Result<(), MediaError> {
    let Some((from, to)) = tile.parts() else { return Ok(()) };
    for (n, plane) in (0..).zip(planes.iter_mut()) {
        let shift = u32::from(n > 0);
        let source = picture.plane(n)?;
        // The chroma of an odd width has a column more than half of it.
        let (width, height) = ((from.width + shift) >> shift, (from.height + shift) >> shift);
        let (left, top) = (from.x >> shift, from.y >> shift);
        let width = (width as usize).min(source.width.saturating_sub(left as usize));
        let height = (height as usize).min(source.height.saturating_sub(top as usize));
        let (wide, high) = ((to.width >> shift) as usize, (to.height >> shift) as usize);
        if width == 0 || height == 0 || wide == 0 || high == 0 {
            continue;
        }
        let source: Plane<'_> = source.part(left as usize, top as usize, width, height);
        let at = (to.y >> shift) as usize * plane.stride + (to.x >> shift) as usize;
        let mut target = PlaneMut { data: &mut plane.data[at..], stride: plane.stride, width: wide, height: high };
        let key = [width, height, wide, high];
        let scaler = scalers.entry(key).or_insert_with(|| Scaler::new((width, height), (wide, high)));
        scaler.scale(source, &mut target);
    }
    Ok(())
}
