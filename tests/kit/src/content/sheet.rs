//! A picture of many files that a person can look at.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Pictures of each file.
const TILES: u32 = 6;
/// Width and height of each in pixels.
const TILE: (u32, u32) = (240, 180);
/// Height of a file's name.
const LABEL: u32 = 22;

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let out = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("{program} cannot be started; `make setup` installs it"))?;
    if !out.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// Writes a PNG with a row for each file: its label, and pictures at even distances over its length, or the wave of its
/// sound when it has no video.
///
/// # Errors
/// When a file cannot be decoded or the PNG not be written.
pub fn contact_sheet(files: &[(String, &Path)], png: &Path) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut rows = Vec::new();
    for (n, (label, file)) in files.iter().enumerate() {
        let row = dir.path().join(format!("{n}.png"));
        draw_row(label, file, &row, dir.path())?;
        rows.push(row.to_string_lossy().into_owned());
    }
    let mut arguments = vec!["-v", "error", "-y"];
    for row in &rows {
        arguments.extend(["-i", row]);
    }
    let stack = format!("vstack=inputs={}", rows.len());
    if rows.len() > 1 {
        arguments.extend(["-filter_complex", &stack]);
    }
    let png = png.to_string_lossy();
    arguments.push(&png);
    run("ffmpeg", &arguments).map(drop)
}

fn draw_row(label: &str, file: &Path, row: &Path, dir: &Path) -> Result<()> {
    let (file, row) = (file.to_string_lossy(), row.to_string_lossy());
    let probe = |what: &str| run("ffprobe", &["-v", "error", "-show_entries", what, "-of", "csv=p=0", &file]);
    let duration: f64 = probe("format=duration")?.parse().unwrap_or(1.0);
    let has_video = probe("stream=codec_type")?.lines().any(|l| l.starts_with("video"));
    // A file instead of an argument, so that nothing in the label is read as filter syntax.
    let text = dir.join("label.txt");
    std::fs::write(&text, label)?;
    let (width, height) = TILE;
    let tiles = if has_video {
        format!(
            "[0:v]scale={width}:{height}:force_original_aspect_ratio=decrease,pad={width}:{height}:(ow-iw)/2:(oh-ih)/2:black,\
             fps={TILES}/{:.3}:round=up,tile={TILES}x1:nb_frames={TILES}:color=black",
            duration.max(0.1)
        )
    } else {
        format!("[0:a]showwavespic=s={}x{height}:colors=0x3070c0", width * TILES)
    };
    let label = format!(
        "drawtext=textfile={}:fontsize=14:fontcolor=white:x=6:y=4",
        text.to_string_lossy().replace(['\\', ':', '\''], "_")
    );
    let pad = format!("format=rgb24,pad=iw:ih+{LABEL}:0:{LABEL}:0x202020");
    let draw = |filter: &str| {
        run("ffmpeg", &["-v", "error", "-y", "-i", &file, "-filter_complex", filter, "-frames:v", "1", &row])
    };
    // Without any font on the machine a sheet without labels is better than none.
    draw(&format!("{tiles},{pad},{label}")).or_else(|_| draw(&format!("{tiles},{pad}"))).map(drop)
}
