//! Decoding by ffmpeg, with the time stamps it saw.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::Part;
use crate::publisher::media::{COLUMNS, ROWS};

/// Pixels of a cell in the scaled pictures, in both directions.
pub const CELL: u32 = 4;

/// Sound without a hole.
#[derive(Debug, Clone, PartialEq)]
pub struct Sound {
    /// Time of the first sample in seconds.
    pub from: f64,
    /// Samples a second.
    pub rate: u32,
    /// The samples, mono.
    pub samples: Vec<i16>,
}

impl Sound {
    /// Time after the last sample.
    #[allow(clippy::cast_precision_loss)]
    pub fn to(&self) -> f64 {
        self.from + self.samples.len() as f64 / f64::from(self.rate)
    }
}

/// Shortest hole, in seconds. Time stamps of containers are rounded to milliseconds.
const HOLE: f64 = 0.004;

/// The kinds of the file's tracks: "video", "audio".
pub fn kinds(path: &Path) -> Result<Vec<String>> {
    let out = Command::new("ffprobe")
        .args(["-v", "error", "-show_entries", "stream=codec_type", "-of", "csv=p=0"])
        .arg(path)
        .output()
        .context("ffprobe cannot be started; `make setup` installs it")?;
    Ok(String::from_utf8_lossy(&out.stdout).lines().map(|l| l.trim_end_matches(',').to_owned()).collect())
}

/// What ffmpeg writes for a file.
struct Decoded {
    data: Vec<u8>,
    /// The lines of the filters `showinfo` and `ashowinfo`, one a frame.
    frame_lines: Vec<String>,
    errors: Vec<String>,
}

/// Runs ffmpeg.
fn decode(path: &Path, arguments: &[&str]) -> Result<Decoded> {
    if !path.is_file() {
        bail!("{} is not there", path.display());
    }
    let mut child = Command::new("ffmpeg")
        .args(["-hide_banner", "-nostats", "-nostdin", "-loglevel", "repeat+level+info", "-xerror", "-copyts", "-i"])
        .arg(path)
        .args(arguments)
        .arg("pipe:1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("ffmpeg cannot be started; `make setup` installs it")?;
    let mut stderr = child.stderr.take().context("no stderr")?;
    let log = std::thread::spawn(move || {
        let mut log = Vec::new();
        stderr.read_to_end(&mut log).map(|_| log)
    });
    let mut out = Vec::new();
    child.stdout.take().context("no stdout")?.read_to_end(&mut out)?;
    let status = child.wait()?;
    let log = log.join().ok().context("the reader panicked")??;
    let log = String::from_utf8_lossy(&log);
    let is_error = |line: &&str| line.contains("[error]") || line.contains("[fatal]") || line.contains("[panic]");
    let mut errors: Vec<String> = log.lines().filter(is_error).map(str::to_owned).collect();
    if !status.success() && errors.is_empty() {
        errors.push(format!("ffmpeg ended with {status}"));
    }
    let frame_lines = log.lines().filter(|l| l.starts_with("[Parsed_") && l.contains("pts_time:"));
    Ok(Decoded { data: out, frame_lines: frame_lines.map(str::to_owned).collect(), errors })
}

/// What follows `name` in a line, up to the next blank.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_once(name)?.1.split_ascii_whitespace().next()
}

/// A picture's time stamp in seconds, size and whether it is a keyframe.
pub struct PictureInfo {
    pub pts: f64,
    pub size: (u32, u32),
    pub keyframe: bool,
}

/// The pictures of a file, in grey, `COLUMNS * CELL` by `ROWS * CELL` pixels each.
pub struct Pictures {
    pub data: Vec<u8>,
    pub info: Vec<PictureInfo>,
    pub errors: Vec<String>,
}

/// Decodes all pictures, or a part of each.
pub fn pictures(path: &Path, part: Option<Part>) -> Result<Pictures> {
    let crop = part.map(|p| format!("crop={}:{}:{}:{},", p.width, p.height, p.x, p.y)).unwrap_or_default();
    let filter = format!("{crop}showinfo=checksum=0,scale={}:{}:flags=area,format=gray", COLUMNS * CELL, ROWS * CELL);
    let Decoded { data, frame_lines, errors } = decode(
        path,
        &["-map", "0:v:0", "-fps_mode", "passthrough", "-enc_time_base", "-1", "-vf", &filter, "-f", "rawvideo"],
    )?;
    let info = frame_lines.iter().map(|line| {
        let pts = field(line, "pts_time:")?.parse().ok()?;
        let (width, height) = field(line, " s:")?.split_once('x')?;
        let size = (width.parse().ok()?, height.parse().ok()?);
        Some(PictureInfo { pts, size, keyframe: field(line, "iskey:")? == "1" })
    });
    let info = info.collect::<Option<_>>().context("ffmpeg's showinfo is not understood")?;
    Ok(Pictures { data, info, errors })
}

/// The sound, in runs without holes.
#[allow(clippy::cast_precision_loss)]
pub fn sound(path: &Path) -> Result<(Vec<Sound>, Vec<String>)> {
    let filter = "aformat=sample_fmts=s16:channel_layouts=mono,ashowinfo";
    let Decoded { data, frame_lines, errors } = decode(path, &["-map", "0:a:0", "-af", filter, "-f", "s16le"])?;
    let mut samples = data.chunks_exact(2).map(|b| i16::from_le_bytes([b[0], b[1]]));
    let mut runs: Vec<Sound> = Vec::new();
    for line in &frame_lines {
        let parsed = (|| {
            Some((
                field(line, "pts_time:")?.parse::<f64>().ok()?,
                field(line, "rate:")?.parse::<u32>().ok()?,
                field(line, "nb_samples:")?.parse::<usize>().ok()?,
            ))
        })();
        let (pts, rate, count) = parsed.context("ffmpeg's ashowinfo is not understood")?;
        match runs.last_mut() {
            Some(run) if (run.to() - pts).abs() < HOLE && run.rate == rate => {
                run.samples.extend(samples.by_ref().take(count));
            }
            _ => runs.push(Sound { from: pts, rate, samples: samples.by_ref().take(count).collect() }),
        }
    }
    Ok((runs, errors))
}
