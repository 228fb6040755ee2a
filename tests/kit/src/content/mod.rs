//! What is really in a finished file: decoded by ffmpeg, and held against what was sent.
//!
//! ```text
//! file ─ffmpeg─► pictures ─cells─► numbers ┐
//!      └ffmpeg─► samples ──beeps─► seconds ┴─ Content ─ against(Timeline) ─► Matched: missing, order, sync
//! ```

mod ffmpeg;
mod matching;
mod sheet;
mod tone;

use std::path::Path;

use anyhow::Result;

pub use matching::{Matched, Pair, Timeline, apart, percentile};
pub use sheet::contact_sheet;

use crate::publisher::media::{COLUMNS, ROWS};

/// A part of a picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Its left edge.
    pub x: u32,
    /// Its upper edge.
    pub y: u32,
    /// Its width.
    pub width: u32,
    /// Its height.
    pub height: u32,
}

/// A decoded picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SeenFrame {
    /// When it is shown, in seconds of the file's time.
    pub pts: f64,
    /// The number in its cells; none when they cannot be read.
    pub number: Option<u16>,
    /// The publisher's code in its cells.
    pub code: Option<u16>,
    /// Width and height in pixels.
    pub size: (u32, u32),
    /// Whether a decoder can begin here.
    pub keyframe: bool,
}

/// A beep that was heard.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SeenBeep {
    /// When it begins, in seconds of the file's time.
    pub at: f64,
    /// The second that its pitch tells.
    pub second: u32,
}

/// A run of sound without a hole in its time stamps, in seconds of the file's time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AudioRun {
    /// Its first sample.
    pub from: f64,
    /// After its last sample.
    pub to: f64,
}

/// What a file holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Content {
    /// The pictures in the order of the file; empty without video.
    pub frames: Vec<SeenFrame>,
    /// The beeps in the order of the file; empty without audio.
    pub beeps: Vec<SeenBeep>,
    /// Beeps with which sound begins, at first or behind a hole: they may have begun earlier.
    pub cut_beeps: Vec<SeenBeep>,
    /// Where there is sound.
    pub audio: Vec<AudioRun>,
    /// What ffmpeg had to complain about: nothing, in a good file.
    pub errors: Vec<String>,
}

impl Content {
    /// Decodes a file of any kind that ffmpeg knows.
    ///
    /// # Errors
    /// When ffmpeg cannot be run. What it finds wrong with the file is in [`Content::errors`].
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_part(path, None)
    }

    /// The same, but looks at a part of the picture only.
    ///
    /// # Errors
    /// When ffmpeg cannot be run.
    pub fn read_part(path: &Path, part: Option<Part>) -> Result<Self> {
        let mut content = Self::default();
        let kinds = ffmpeg::kinds(path)?;
        if kinds.is_empty() {
            content.errors.push("no tracks".to_owned());
        }
        if kinds.iter().any(|k| k == "video") {
            let ffmpeg::Pictures { data, info, errors } = ffmpeg::pictures(path, part)?;
            content.errors.extend(errors);
            let side = (COLUMNS * ffmpeg::CELL * ROWS * ffmpeg::CELL) as usize;
            if data.len() != info.len() * side {
                content.errors.push(format!("{} pictures for {} time stamps", data.len() / side, info.len()));
            }
            content.frames = std::iter::zip(data.chunks_exact(side), info)
                .map(|(picture, ffmpeg::PictureInfo { pts, size, keyframe })| {
                    let row = |n| read_row(picture, n);
                    SeenFrame { pts, number: row(0), code: row(2), size, keyframe }
                })
                .collect();
        }
        if kinds.iter().any(|k| k == "audio") {
            let (sound, errors) = ffmpeg::sound(path)?;
            content.errors.extend(errors);
            content.audio = sound.iter().map(|run| AudioRun { from: run.from, to: run.to() }).collect();
            let tone::Beeps { whole, cut } = tone::beeps(&sound);
            (content.beeps, content.cut_beeps) = (whole, cut);
        }
        Ok(content)
    }

    /// Numbers of pictures in file order, unreadable ones left out.
    pub fn numbers(&self) -> impl Iterator<Item = u16> {
        self.frames.iter().filter_map(|f| f.number)
    }

    /// Pictures whose cells cannot be read.
    #[must_use]
    pub fn unreadable(&self) -> usize {
        self.frames.iter().filter(|f| f.number.is_none()).count()
    }

    /// Time stamp of the first and of the last picture.
    #[must_use]
    pub fn video_span(&self) -> Option<(f64, f64)> {
        Some((self.frames.first()?.pts, self.frames.last()?.pts))
    }

    /// Start of the first and end of the last sound.
    #[must_use]
    pub fn audio_span(&self) -> Option<(f64, f64)> {
        Some((self.audio.first()?.from, self.audio.last()?.to))
    }

    /// Whether the time stamps of all pictures grow.
    #[must_use]
    pub fn in_order(&self) -> bool {
        self.frames.windows(2).all(|w| w[0].pts < w[1].pts)
    }
}

/// Reads a row of cells and its complement in the next one, from a picture of `CELL` x `CELL` pixels a cell.
/// None where a cell does not stand out from its complement, as in a picture without cells.
fn read_row(picture: &[u8], row: u32) -> Option<u16> {
    let middle = |row: u32, column: u32| -> i32 {
        let (cell, width) = (ffmpeg::CELL, COLUMNS * ffmpeg::CELL);
        let pixels = [(1, 1), (1, 2), (2, 1), (2, 2)];
        pixels.iter().map(|(y, x)| i32::from(picture[((row * cell + y) * width + column * cell + x) as usize])).sum()
    };
    (0..COLUMNS).try_fold(0, |bits, column| {
        let difference = middle(row, column) - middle(row + 1, column);
        (difference.abs() > 4 * 60).then_some(bits | u16::from(difference > 0) << column)
    })
}

#[cfg(test)]
mod tests;
