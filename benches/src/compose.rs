//! What composing costs, against ffmpeg doing the same composition, and against decoding and encoding alone.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use archiver::compose::geometry::{Rect, Size};
use archiver::compose::layout::{LayoutStream, place};
use archiver::model::ids::{Epoch, StreamId, TrackId, TrackKind};
use archiver::model::layout::Layout;
use archiver::model::media::{Codec, Frame, TrackFormat};
use archiver::model::time::MediaTime;
use archiver::recording::spool::Spool;
use archiver::recording::{LogOptions, TrackLog};
use nix::sys::resource::{UsageWho, getrusage};
use serde::Serialize;

use crate::process::median;

/// Every input.
pub const INPUT: Size = Size::new(1280, 720);
const RATE: u32 = 30;
/// As the fragment `compose-video` has it.
const X264: [&str; 8] = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "23", "-g", "60"];
/// As the fragment `compose-audio` has it: with its own choice, ffmpeg would take twice as long for its sound, and what is
/// compared would not be composing.
const AAC: [&str; 8] = ["-c:a", "aac", "-aac_coder", "fast", "-b:a", "128k", "-ac", "2"];

/// One comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Streams of 1280x720 in VP8, with Opus.
    pub streams: usize,
    /// The composed picture.
    pub size: String,
    /// CPU seconds for each second of media: ours, ffmpeg's, and of decoding and encoding alone.
    pub ours: f64,
    pub ffmpeg: f64,
    pub limit: f64,
    /// Likeness of our picture to ffmpeg's.
    pub ssim: f64,
    /// Size of our file to ffmpeg's.
    pub bytes: f64,
    /// Resident memory of the composer, MB, at its highest.
    pub memory_mb: f64,
}

/// CPU seconds of a command, and its memory in MB.
fn run(command: &mut Command) -> Result<(f64, f64)> {
    let used = || -> Result<f64> {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
        Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
    };
    let before = used()?;
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let status = format!("/proc/{}/status", child.id());
    let mut highest: f64 = 0.0;
    while child.try_wait()?.is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:")).and_then(|l| l.split_whitespace().next());
        highest = highest.max(line.and_then(|kib| kib.parse().ok()).unwrap_or(0.0) * 1024.0 / 1e6);
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok((used()? - before, highest))
}

fn ffmpeg() -> Command {
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-y"]);
    ffmpeg
}

/// A stream's media, encoded as a browser would.
pub struct Input {
    webm: PathBuf,
    ivf: PathBuf,
    ogg: PathBuf,
}

/// Moving, textured, a little noisy pictures, and a tone.
pub fn input(dir: &Path, n: usize, seconds: u64) -> Result<Input> {
    let named = |end: &str| dir.join(format!("{n}.{end}"));
    let (webm, ivf, ogg) = (named("webm"), named("ivf"), named("ogg"));
    let picture = format!(
        "testsrc2=s={}x{}:r={RATE}:d={seconds},hue=h={},gblur=sigma=2,noise=alls=6:allf=t:all_seed={n}",
        INPUT.width,
        INPUT.height,
        n * 40
    );
    let sound = format!("sine=f={}:r=48000:d={seconds}", 300 + 100 * n);
    let mut encode = ffmpeg();
    encode.args(["-f", "lavfi", "-i", &picture, "-f", "lavfi", "-i", &sound, "-pix_fmt", "yuv420p"]);
    encode.args(["-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "1500k", "-g", "300"]);
    encode.args(["-auto-alt-ref", "0", "-lag-in-frames", "0", "-c:a", "libopus", "-b:a", "48k"]).arg(&webm);
    run(&mut encode)?;
    run(ffmpeg().arg("-i").arg(&webm).args(["-map", "0:v", "-c", "copy"]).arg(&ivf))?;
    run(ffmpeg().arg("-i").arg(&webm).args(["-map", "0:a", "-c", "copy"]).arg(&ogg))?;
    Ok(Input { webm, ivf, ogg })
}

/// Frames of an IVF file.
fn ivf_frames(path: &Path) -> Result<Vec<Vec<u8>>> {
    let bytes = std::fs::read(path)?;
    let (mut at, mut frames) = (32, Vec::new());
    while let Some(header) = bytes.get(at..at + 12) {
        let len = u32::from_le_bytes(header[..4].try_into()?) as usize;
        frames.push(bytes.get(at + 12..at + 12 + len).context("a torn IVF file")?.to_vec());
        at += 12 + len;
    }
    Ok(frames)
}

/// Packets of an Ogg file with one stream (RFC 3533 section 6).
fn ogg_packets(path: &Path) -> Result<Vec<Vec<u8>>> {
    let bytes = std::fs::read(path)?;
    let (mut at, mut packets, mut packet) = (0, Vec::new(), Vec::new());
    while at + 27 <= bytes.len() {
        let lacing = bytes[at + 27..].get(..usize::from(bytes[at + 26])).context("a torn Ogg file")?;
        at += 27 + lacing.len();
        for len in lacing {
            packet.extend_from_slice(bytes.get(at..at + usize::from(*len)).context("a torn Ogg file")?);
            at += usize::from(*len);
            if *len < 255 {
                packets.push(std::mem::take(&mut packet));
            }
        }
    }
    Ok(packets)
}

/// Writes inputs into a capture log, again and again, as if they had come from a router.
pub fn write_log(archive: &Path, streams: &[StreamId], inputs: &[Input], times: u64) -> Result<()> {
    let spool = Arc::new(Spool::open(archive.parent().context("a folder above")?, 1 << 40, 70)?);
    for (n, (stream, input)) in (0_i64..).zip(streams.iter().zip(inputs)) {
        let open = |kind| {
            let (epoch, options) = (Epoch(1), LogOptions::default());
            TrackLog::open(archive, TrackId { stream: *stream, kind }, epoch, options, Arc::clone(&spool))
        };
        let codec_private = Vec::new();
        let (mut video, _) = open(TrackKind::Video)?;
        let (width, height) = (INPUT.width, INPUT.height);
        video.format(&TrackFormat { codec: Codec::Vp8, width, height, channels: 0, codec_private })?;
        let pictures = ivf_frames(&input.ivf)?;
        let span = i64::try_from(pictures.len())? * 1_000_000_000 / i64::from(RATE);
        // One a little behind the other: that is their order in the picture.
        let begin = |time: u64| i64::try_from(time).map(|time| 100_000 * n + time * span);
        for time in 0..times {
            for (at, data) in (0_i64..).zip(&pictures) {
                let keyframe = data.first().is_some_and(|byte| byte & 1 == 0);
                let pts = MediaTime(begin(time)? + at * 1_000_000_000 / i64::from(RATE));
                video.frame(&Frame { pts, duration: None, keyframe, data: data.clone().into() })?;
            }
            video.seal()?;
        }
        let (mut audio, mut packets) = (open(TrackKind::Audio)?.0, ogg_packets(&input.ogg)?.into_iter());
        let (head, _tags) = (packets.next().context("no OpusHead")?, packets.next());
        let format = TrackFormat { codec: Codec::Opus, width: 0, height: 0, channels: 1, codec_private: head };
        audio.format(&format)?;
        let packets: Vec<Vec<u8>> = packets.take(usize::try_from(span / 20_000_000)?).collect();
        for time in 0..times {
            for (at, data) in (0_i64..).zip(&packets) {
                let pts = MediaTime(begin(time)? + at * 20_000_000);
                audio.frame(&Frame { pts, duration: Some(20_000_000), keyframe: true, data: data.clone().into() })?;
            }
            audio.seal()?;
        }
    }
    Ok(())
}

/// The log of a session that does not go on.
fn log(dir: &Path, inputs: &[Input]) -> Result<()> {
    let session = "bench".parse()?;
    let streams: Vec<StreamId> = (0..inputs.len()).map(|n| StreamId::of_router(&session, &n.to_string())).collect();
    write_log(&dir.join("archive"), &streams, inputs, 1)
}

/// Where our layout draws each picture.
fn pictures(streams: usize, frame: Size) -> Vec<Rect> {
    let shown = LayoutStream { size: Some((INPUT.width, INPUT.height)), ..LayoutStream::default() };
    let cells = place(&Layout::default(), frame, &vec![shown; streams]);
    cells.iter().map(|cell| cell.area.contain(INPUT)).collect()
}

/// The same picture as ours, by ffmpeg's filters.
fn filters(rects: &[Rect], frame: Size) -> String {
    let (left, top) = (rects.iter().map(|r| r.x).min().unwrap_or(0), rects.iter().map(|r| r.y).min().unwrap_or(0));
    let mut text = String::new();
    for (n, rect) in rects.iter().enumerate() {
        text += &format!("[{n}:v]scale={}:{}[v{n}];", rect.width, rect.height);
    }
    let inputs: String = (0..rects.len()).map(|n| format!("[v{n}]")).collect();
    let places: Vec<String> = rects.iter().map(|r| format!("{}_{}", r.x - left, r.y - top)).collect();
    text += &format!("{inputs}xstack=inputs={}:fill=black:layout={}", rects.len(), places.join("|"));
    text + &format!(",pad={}:{}:{left}:{top}:black[v]", frame.width, frame.height)
}

struct Paths<'a> {
    dir: &'a Path,
    archiver: &'a Path,
    inputs: &'a [Input],
    frame: Size,
}

impl Paths<'_> {
    fn ours(&self, out: &Path) -> Result<(f64, f64)> {
        let size = format!("{}x{}", self.frame.width, self.frame.height);
        let log = self.dir.join("archive");
        run(Command::new(self.archiver).arg("compose").arg(log).arg("--out").arg(out).args(["--resolution", &size]))
    }

    fn decoders(&self) -> Command {
        let mut command = ffmpeg();
        for input in self.inputs {
            command.args(["-threads", "1", "-i"]).arg(&input.webm);
        }
        command
    }

    fn ffmpeg(&self, out: &Path) -> Result<f64> {
        let sounds: String = (0..self.inputs.len()).map(|n| format!("[{n}:a]")).collect();
        let picture = filters(&pictures(self.inputs.len(), self.frame), self.frame);
        let mix = format!("{picture};{sounds}amix=inputs={}:normalize=0[a]", self.inputs.len());
        let mut command = self.decoders();
        command.args(["-filter_complex", &mix, "-map", "[v]", "-map", "[a]"]).args(X264);
        Ok(run(command.args(AAC).arg(out))?.0)
    }

    /// The composed pictures, not encoded.
    fn raw(&self, out: &Path) -> Result<()> {
        let picture = filters(&pictures(self.inputs.len(), self.frame), self.frame);
        run(self.decoders().args(["-filter_complex", &picture, "-map", "[v]"]).arg(out)).map(drop)
    }

    fn limit(&self, raw: &Path) -> Result<f64> {
        let mut decode = self.decoders();
        for n in 0..self.inputs.len() {
            decode.args(["-map", &format!("{n}:v"), "-f", "null", "-"]);
        }
        let encode = run(ffmpeg().arg("-i").arg(raw).args(X264).args(["-f", "null", "-"]))?.0;
        Ok(run(&mut decode)?.0 + encode)
    }
}

/// How alike two files' pictures are.
fn ssim(a: &Path, b: &Path) -> Result<f64> {
    let output = Command::new("ffmpeg")
        .args(["-v", "info", "-i"])
        .arg(a)
        .arg("-i")
        .arg(b)
        .args(["-lavfi", "[0:v][1:v]ssim", "-f", "null", "-"])
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let all = text.rsplit("All:").next().and_then(|t| t.split_whitespace().next());
    all.and_then(|value| value.parse().ok()).with_context(|| format!("no SSIM in {text}"))
}

/// x264's options as a file tells them.
fn x264_options(file: &Path) -> Result<String> {
    let bytes = std::fs::read(file)?;
    let text = String::from_utf8_lossy(&bytes);
    let from = text.find("options: ").context("the file does not tell x264's options")?;
    Ok(text[from..].chars().take_while(|c| c.is_ascii_graphic() || *c == ' ').collect())
}

/// Measures a composition, `repeat` times in turn with the others.
pub fn measure(archiver: &Path, streams: usize, frame: Size, seconds: u64, repeat: usize) -> Result<Row> {
    let mut dir = tempfile::tempdir()?;
    // To look at what was compared.
    if std::env::var_os("BENCH_KEEP").is_some() {
        dir.disable_cleanup(true);
        println!("inputs, log and files stay in {}", dir.path().display());
    }
    let inputs: Vec<Input> = (0..streams).map(|n| input(dir.path(), n, seconds)).collect::<Result<_>>()?;
    log(dir.path(), &inputs)?;
    let paths = Paths { dir: dir.path(), archiver, inputs: &inputs, frame };
    let named = |name: &str| dir.path().join(name);
    let (mine, theirs, raw) = (named("ours.mp4"), named("ffmpeg.mp4"), named("raw.y4m"));
    paths.raw(&raw)?;
    let (mut ours, mut ffmpeg, mut limit, mut memory) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..repeat {
        let (cpu, highest) = paths.ours(&mine)?;
        ours.push(cpu / seconds as f64);
        memory.push(highest);
        ffmpeg.push(paths.ffmpeg(&theirs)? / seconds as f64);
        limit.push(paths.limit(&raw)? / seconds as f64);
    }
    let (a, b) = (x264_options(&mine)?, x264_options(&theirs)?);
    ensure!(a == b, "x264 has other options:\n{a}\n{b}");
    let bytes = |path: &Path| -> Result<f64> { Ok(std::fs::metadata(path)?.len() as f64) };
    Ok(Row {
        streams,
        size: format!("{}x{}", frame.width, frame.height),
        ours: median(&ours),
        ffmpeg: median(&ffmpeg),
        limit: median(&limit),
        ssim: ssim(&mine, &theirs)?,
        bytes: bytes(&mine)? / bytes(&theirs)?,
        memory_mb: median(&memory),
    })
}

/// Composes sessions of four streams side by side. Returns how long it took for each second of media: more than 1 falls
/// behind.
pub fn side_by_side(archiver: &Path, sessions: usize, seconds: u64) -> Result<f64> {
    let dir = tempfile::tempdir()?;
    let inputs: Vec<Input> = (0..4).map(|n| input(dir.path(), n, seconds)).collect::<Result<_>>()?;
    log(dir.path(), &inputs)?;
    let start = Instant::now();
    let compose = |n: usize| {
        let mut command = Command::new(archiver);
        command.arg("compose").arg(dir.path().join("archive")).args(["--resolution", "1280x720"]);
        command
            .arg("--out")
            .arg(dir.path().join(format!("{n}.mp4")))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
    };
    let running: Vec<_> = (0..sessions).map(compose).collect::<std::io::Result<_>>()?;
    for mut child in running {
        ensure!(child.wait()?.success(), "a composer failed");
    }
    Ok(start.elapsed().as_secs_f64() / seconds as f64)
}

/// Prints the comparisons.
pub fn print(rows: &[Row]) {
    println!("\ncompose, CPU of a core for streams of 1280x720 in VP8 with Opus, to H.264 (veryfast) and AAC");
    println!(
        "{:>8} {:>10} {:>9} {:>9} {:>9} {:>9} {:>14} {:>8} {:>7} {:>8}",
        "streams", "picture", "archiver", "ffmpeg", "ratio", "limit", "ratio to limit", "SSIM", "bytes", "MB"
    );
    for row in rows {
        println!(
            "{:>8} {:>10} {:>9.3} {:>9.3} {:>9.3} {:>9.3} {:>14.3} {:>8.4} {:>7.2} {:>8.0}",
            row.streams,
            row.size,
            row.ours,
            row.ffmpeg,
            row.ours / row.ffmpeg,
            row.limit,
            row.ours / row.limit,
            row.ssim,
            row.bytes,
            row.memory_mb
        );
    }
}
