//! Thumbnails of an archive, taken while it is drawn: one thumbnail, and a sheet of tiles from beginning to end with an
//! index (WebVTT with `#xywh`, as players take it) for seeking.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::geometry::Size;
use super::scale::Scaler;
use crate::media::plane::{Plane, PlaneMut};
use crate::media::still::{Image, jpeg};
use crate::media::{MediaError, Pipelines};
use crate::store::keys::{SPRITE, SPRITE_INDEX, THUMBNAIL};

/// Tiles in a row of the sheet.
const COLUMNS: usize = 10;
/// At this number of tiles, every second one is dropped, and from then on half as many are taken.
const TILES_MAX: usize = 100;
/// Pixels of a tile's longer side.
const TILE_SIDE: u32 = 160;
/// The thumbnail is the tile with the most streams among this number of first tiles.
const THUMBNAIL_TILES: u64 = 60;

/// Collects the thumbnails of one archive.
pub struct ThumbnailBuilder {
    frame: Size,
    rate: u32,
    /// Pictures from one tile to the next.
    every: u64,
    tiles: Vec<Image>,
    scalers: [Scaler; 2],
    /// How many streams the thumbnail shows.
    thumbnail: Option<(usize, Image)>,
}

fn pixels(pixels: u32) -> usize {
    usize::try_from(pixels).unwrap_or(0)
}

impl ThumbnailBuilder {
    /// Of pictures of this size, `rate` a second.
    #[must_use]
    pub fn new(frame: Size, rate: u32) -> Self {
        let longer = frame.width.max(frame.height).max(1);
        let side = |side: u32| pixels((side * TILE_SIDE / longer / 2).max(1) * 2);
        let (wide, high) = (side(frame.width), side(frame.height));
        let (width, height) = (pixels(frame.width), pixels(frame.height));
        let scalers =
            [Scaler::new((width, height), (wide, high)), Scaler::new((width / 2, height / 2), (wide / 2, high / 2))];
        Self { frame, rate: rate.max(1), every: rate.max(1).into(), tiles: Vec::new(), scalers, thumbnail: None }
    }

    /// Whether picture `n`, counted from 0, is one of them.
    #[must_use]
    pub fn wants(&self, n: u64) -> bool {
        n.is_multiple_of(self.every)
    }

    /// Takes picture `n`, which shows so many streams.
    pub fn add(&mut self, n: u64, streams: usize, planes: &[PlaneMut<'_>; 3]) {
        let (width, height) = (pixels(self.frame.width), pixels(self.frame.height));
        let (wide, high) = self.scalers[0].to();
        let mut tile = Image::new(wide, high);
        let source = |n: usize| {
            let (plane, half) = (&planes[n], if n == 0 { 1 } else { 2 });
            Plane { data: plane.data, stride: plane.stride, width: width / half, height: height / half }
        };
        for n in 0..3 {
            self.scalers[n.min(1)].scale(source(n), &mut tile.plane_mut(n));
        }
        self.tiles.push(tile);
        let early = n < THUMBNAIL_TILES * u64::from(self.rate);
        if early && self.thumbnail.as_ref().is_none_or(|(shown, _)| streams > *shown) {
            let mut whole = Image::new(width, height);
            for n in 0..3 {
                let (from, to) = (source(n), whole.plane_mut(n));
                for y in 0..to.height {
                    to.data[y * to.stride..][..to.width].copy_from_slice(from.row(y));
                }
            }
            self.thumbnail = Some((streams, whole));
        }
        if self.tiles.len() >= TILES_MAX {
            let mut number = 0_usize;
            self.tiles.retain(|_| {
                number += 1;
                number % 2 == 1
            });
            self.every *= 2;
        }
    }

    /// Writes the pictures beside an archive of so many pictures.
    ///
    /// # Errors
    /// When they cannot be encoded or written. What an earlier composer left is gone then.
    pub fn write(&self, archive: &Path, pictures: u64, pipelines: &Pipelines) -> Result<(), MediaError> {
        let write = |path: &Path, bytes: Vec<u8>| {
            let failed = |e: std::io::Error| MediaError::Element { element: "still".to_owned(), what: e.to_string() };
            std::fs::write(path, bytes).map_err(failed)
        };
        let [thumbnail, sprite, index] = paths(archive);
        let Some((sheet, (_, first))) = self.sheet().zip(self.thumbnail.as_ref()) else { return Ok(()) };
        write(&thumbnail, jpeg(first, pipelines)?)?;
        write(&sprite, jpeg(&sheet, pipelines)?)?;
        write(&index, self.index(pictures).into_bytes())
    }

    fn sheet(&self) -> Option<Image> {
        let (wide, high) = self.scalers[0].to();
        let (columns, rows) = (self.tiles.len().min(COLUMNS), self.tiles.len().div_ceil(COLUMNS));
        let mut sheet = (rows > 0).then(|| Image::new(columns * wide, rows * high))?;
        for (n, tile) in self.tiles.iter().enumerate() {
            sheet.copy(tile, n % COLUMNS * wide, n / COLUMNS * high);
        }
        Some(sheet)
    }

    fn index(&self, pictures: u64) -> String {
        let (wide, high) = self.scalers[0].to();
        let mut text = "WEBVTT\n".to_owned();
        for (n, at) in (0..self.tiles.len()).zip((0..).step_by(usize::try_from(self.every).unwrap_or(1))) {
            let (from, to) = (self.time(at), self.time((at + self.every).min(pictures.max(at + 1))));
            let (left, top) = (n % COLUMNS * wide, n / COLUMNS * high);
            // Writing into a text does not fail.
            write!(text, "\n{from} --> {to}\n{SPRITE}#xywh={left},{top},{wide},{high}\n").unwrap_or_default();
        }
        text
    }

    fn time(&self, picture: u64) -> String {
        let ms = picture * 1000 / u64::from(self.rate);
        format!("{:02}:{:02}:{:02}.{:03}", ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000)
    }
}

/// Where the thumbnail, the sheet and its index of an archive are.
#[must_use]
pub fn paths(archive: &Path) -> [PathBuf; 3] {
    [THUMBNAIL, SPRITE, SPRITE_INDEX].map(|name| archive.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pictures of one colour each.
    fn taken(seconds: u64) -> ThumbnailBuilder {
        let mut stills = ThumbnailBuilder::new(Size::new(64, 48), 30);
        for n in 0..seconds * 30 {
            if stills.wants(n) {
                let mut picture = Image::new(64, 48);
                picture.plane_mut(0).data.fill(u8::try_from(16 + n / 30 % 200).expect("luma"));
                stills.add(n, usize::from(n >= 90), &picture.planes_mut());
            }
        }
        stills
    }

    #[test]
    fn tiles_are_taken_from_beginning_to_end_and_never_too_many() {
        for (seconds, tiles, every) in [(1, 1, 30), (12, 12, 30), (99, 99, 30), (100, 50, 60), (7200, 57, 3840)] {
            let stills = taken(seconds);
            assert_eq!((stills.tiles.len(), stills.every), (tiles, every), "{seconds} s");
            for (n, tile) in stills.tiles.iter().enumerate() {
                let second = n as u64 * every / 30;
                let luma = tile.plane(0).row(10)[10];
                assert!(u64::from(luma).abs_diff(16 + second % 200) <= 1, "{seconds} s: tile {n} is of another time");
            }
        }
    }

    #[test]
    fn the_index_says_where_the_tile_of_each_moment_is() {
        let stills = taken(12);
        let index = stills.index(12 * 30 - 15);
        assert!(index.starts_with("WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nsprite.jpg#xywh=0,0,160,120\n"), "{index}");
        assert!(index.ends_with("00:00:11.000 --> 00:00:11.500\nsprite.jpg#xywh=160,120,160,120\n"), "{index}");
        let sheet = stills.sheet().expect("a sheet");
        assert_eq!((sheet.width, sheet.height), (1600, 240));
    }

    #[test]
    fn the_thumbnail_shows_the_most_people_of_the_beginning() {
        let (shown, thumbnail) = taken(200).thumbnail.expect("a thumbnail");
        assert_eq!((shown, thumbnail.plane(0).row(0)[0]), (1, 19));
    }
}
