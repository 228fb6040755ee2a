//! Decoding by ffmpeg, with the time stamps it saw.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::Part;
use crate::publisher::media::{COLUMNS, ROWS};

/// Pictures are scaled to so many pixels a cell, in both directions.
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

/// A hole is one of more than so many seconds; container time stamps are rounded to milliseconds.
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

/// Runs ffmpeg; returns its output, what its filters tell, and its errors.
fn decode(path: &Path, arguments: &[&str]) -> Result<(Vec<u8>, Vec<String>, Vec<String>)> {
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
    let told = log.lines().filter(|l| l.starts_with("[Parsed_") && l.contains("pts_time:")).map(str::to_owned);
    Ok((out, told.collect(), errors))
}

/// What follows `name` in a line, up to the next blank.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_once(name)?.1.split_ascii_whitespace().next()
}

/// Time stamp, size and whether it is a keyframe.
pub type PictureInfo = (f64, (u32, u32), bool);

/// All pictures, or a part of them, in grey, `COLUMNS * CELL` by `ROWS * CELL` pixels each.
pub fn pictures(path: &Path, part: Option<Part>) -> Result<(Vec<u8>, Vec<PictureInfo>, Vec<String>)> {
    let crop = part.map(|p| format!("crop={}:{}:{}:{},", p.width, p.height, p.x, p.y)).unwrap_or_default();
    let filter = format!("{crop}showinfo=checksum=0,scale={}:{}:flags=area,format=gray", COLUMNS * CELL, ROWS * CELL);
    let (out, told, errors) = decode(
        path,
        &["-map", "0:v:0", "-fps_mode", "passthrough", "-enc_time_base", "-1", "-vf", &filter, "-f", "rawvideo"],
    )?;
    let info = told.iter().map(|line| {
        let pts = field(line, "pts_time:")?.parse().ok()?;
        let (width, height) = field(line, " s:")?.split_once('x')?;
        Some((pts, (width.parse().ok()?, height.parse().ok()?), field(line, "iskey:")? == "1"))
    });
    Ok((out, info.collect::<Option<_>>().context("ffmpeg's showinfo is not understood")?, errors))
}

/// The sound, in runs without holes.
#[allow(clippy::cast_precision_loss)]
pub fn sound(path: &Path) -> Result<(Vec<Sound>, Vec<String>)> {
    let filter = "aformat=sample_fmts=s16:channel_layouts=mono,ashowinfo";
    let (out, told, errors) = decode(path, &["-map", "0:a:0", "-af", filter, "-f", "s16le"])?;
    let mut samples = out.chunks_exact(2).map(|b| i16::from_le_bytes([b[0], b[1]]));
    let mut runs: Vec<Sound> = Vec::new();
    for line in &told {
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
