//! `make demo`: a whole deployment on this machine, a session of half a minute, its archive, and a picture of it.
#![allow(missing_docs)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use archiver_testkit::chromium::{ChromiumOptions, ChromiumPublisher};
use archiver_testkit::content::{Content, contact_sheet};
use archiver_testkit::publisher::{Options, Publisher};
use archiver_testkit::world::{Downloaded, World};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

/// Files may be this much longer or shorter than their stream was live, in seconds.
const DURATION_TOLERANCE: f64 = 0.2;

/// The steps of the demo, a line each. On a terminal the last line shows what runs now, and for how long.
struct Steps {
    bar: ProgressBar,
}

impl Steps {
    fn start() -> Self {
        let bar = ProgressBar::new_spinner();
        bar.set_style(ProgressStyle::with_template("{spinner} {msg} ({elapsed})").expect("a valid template"));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar }
    }

    fn say(&self, text: &str) {
        self.bar.suspend(|| println!("{text}"));
    }

    /// The last line's text from now on.
    fn wait(&self, text: &'static str) {
        self.bar.set_message(text);
        self.bar.reset_elapsed();
    }
}

async fn until(start: Instant, seconds: u64) {
    tokio::time::sleep_until(tokio::time::Instant::from_std(start + Duration::from_secs(seconds))).await;
}

/// When a stream's media was live, in seconds.
struct Live {
    id: &'static str,
    what: &'static str,
    seconds: f64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let out = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/demo");
    std::fs::remove_dir_all(&out).unwrap_or_default();
    std::fs::create_dir_all(&out)?;
    let steps = Steps::start();
    steps.say("starting RabbitMQ, Janus, an S3 server and the archiver");
    steps.wait("this takes about 10 s");
    let mut world = World::start_private(env!("CARGO_BIN_EXE_archiver"), None, "").await?;
    world.start_worker()?;
    let room = "demo-session";
    world.janus.create_room(room, json!({})).await?;
    let mut started = world.started(room);
    started["data"]["archive"] = json!({ "outputMode": "both", "name": "Demo" });
    world.publish(&started)?;
    steps.say("session.started is published; nobody presses a button from here on");
    steps.say("starting Chromium");
    let chrome = ChromiumOptions {
        display: "Chromium".to_owned(),
        code: 1,
        ..ChromiumOptions::new(&world.janus, room, "chromium")
    };
    let mut chrome = ChromiumPublisher::start(&chrome).await.context("Chromium")?;
    let start = Instant::now();
    steps.wait("a session of 30 s is recorded");
    steps.say("  0 s  a headless Chromium publishes three simulcast layers and sound");
    let early =
        Publisher::start(Options { code: 2, display: "Early".to_owned(), ..Options::new(&world.janus, room, "early") })
            .await?;
    steps.say("  0 s  early: VP8 and Opus, will leave");
    let voice = Options { video: None, display: "Voice".to_owned(), ..Options::new(&world.janus, room, "voice") };
    let voice = Publisher::start(voice).await?;
    steps.say("  0 s  voice: sound only");
    until(start, 10).await;
    let late =
        Publisher::start(Options { code: 3, display: "Late".to_owned(), ..Options::new(&world.janus, room, "late") })
            .await?;
    steps.say(" 10 s  late joins");
    until(start, 15).await;
    let early = early.leave().await?;
    steps.say(" 15 s  early leaves");
    until(start, 30).await;
    let truth = chrome.truth().await?;
    let (late, voice) = (late.leave().await?, voice.leave().await?);
    chrome.leave().await?;
    let ended = world.ended(room);
    world.publish(&ended)?;
    let end = Instant::now();
    steps.say(" 30 s  all leave, session.ended is published");
    steps.wait("the archive is finalized");
    let archive = world.archive(room, "available").await;
    let available = end.elapsed();
    steps.say("the archive is available; downloading and checking its files");
    steps.wait("every file is decoded");
    let archive = world.download(&archive)?;
    copy(&archive.dir, &out)?;
    let span = |frames: &[(u32, f64)]| frames.last().map_or(0.0, |l| l.1) - frames.first().map_or(0.0, |f| f.1);
    let live = [
        Live { id: "chromium", what: "browser, simulcast", seconds: span(&truth.frames) },
        Live { id: "early", what: "leaves at 15 s", seconds: span(&early.timeline().frames) },
        Live { id: "late", what: "joins at 10 s", seconds: span(&late.timeline().frames) },
        Live { id: "voice", what: "sound only", seconds: f64::from(u32::try_from(voice.audio_packets)?) * 0.02 },
    ];
    let rows = table(&archive, &live, &steps)?;
    let composed = composed(&archive, &steps)?;
    let mp4 = ("archive.mp4".to_owned(), archive.dir.join("archive.mp4"));
    let streams = live.iter().flat_map(|l| archive.files(l.id).into_iter().map(|f| (l.id.to_owned(), f)));
    let files: Vec<(String, PathBuf)> = std::iter::once(mp4).chain(streams).collect();
    let sheet: Vec<(String, &Path)> = files.iter().map(|(name, path)| (name.clone(), path.as_path())).collect();
    contact_sheet(&sheet, &out.join("contact-sheet.png"))?;
    let figures =
        json!({ "endToAvailableMs": u64::try_from(available.as_millis())?, "composed": composed, "streams": rows });
    std::fs::write(out.join("figures.json"), serde_json::to_vec_pretty(&figures)?)?;
    steps.say(&format!("\nsession end to archive available: {} ms", available.as_millis()));
    steps.say(&format!("files:         {}", out.display()));
    steps.say(&format!("contact sheet: {}", out.join("contact-sheet.png").display()));
    steps.wait("the servers stop");
    ensure!(world.stop_worker(), "the worker did not stop cleanly:\n{}", world.log());
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for entry in std::fs::read_dir(from)?.flatten() {
        if entry.path().is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Looks at the composed file: it decodes, and lasts as long as the session.
fn composed(archive: &Downloaded, steps: &Steps) -> Result<Value> {
    let content = Content::read(&archive.dir.join("archive.mp4"))?;
    ensure!(content.errors.is_empty(), "archive.mp4: {:?}", content.errors);
    let (entry, session) = (&archive.manifest["composed"], archive.manifest["durationS"].as_f64().unwrap_or(0.0));
    let rate = entry["rate"].as_f64().context("no rate")?;
    let lasts = content.frames.len() as f64 / rate;
    let size = format!("{}x{}", entry["width"], entry["height"]);
    steps.say(&format!(
        "\narchive.mp4: {size} at {rate} pictures a second, {lasts:.2} s of a session of {session:.2} s"
    ));
    ensure!(entry["errors"] == json!([]), "not all could be decoded: {}", entry["errors"]);
    ensure!((lasts - session).abs() <= 1.0 / rate + 0.001, "it is not as long as the session");
    Ok(json!({ "size": size, "rate": rate, "durationS": lasts, "sessionS": session }))
}

fn table(archive: &Downloaded, live: &[Live], steps: &Steps) -> Result<Vec<Value>> {
    steps.say(&format!(
        "\n{:<10} {:<20} {:<12} {:>8} {:>8} {:>8} {:>6}  file",
        "stream", "", "codecs", "live s", "file s", "frames", "gaps"
    ));
    let mut rows = Vec::new();
    for stream in live {
        let files = archive.files(stream.id);
        ensure!(files.len() == 1, "{} has {} files", stream.id, files.len());
        let content = Content::read(&files[0])?;
        ensure!(content.errors.is_empty(), "{}: {:?}", stream.id, content.errors);
        let span = content.video_span().or(content.audio_span()).context("an empty file")?;
        let tracks = archive.stream(stream.id).and_then(|s| s["tracks"].as_array()).context("no tracks")?;
        let codec = |t: &Value| t["codecs"][0].as_str().unwrap_or("?").to_owned();
        let codecs = tracks.iter().map(codec).collect::<Vec<_>>().join("+");
        let gaps: usize = tracks.iter().filter_map(|t| t["gaps"].as_array()).map(Vec::len).sum();
        let (lasts, name) = (span.1 - span.0, files[0].file_name().unwrap_or_default().to_string_lossy().into_owned());
        steps.say(&format!(
            "{:<10} {:<20} {codecs:<12} {:>8.2} {lasts:>8.2} {:>8} {gaps:>6}  {name}",
            stream.id,
            stream.what,
            stream.seconds,
            content.frames.len()
        ));
        // The browser's pictures begin when its page begins to draw, a little before it is connected.
        let tolerance = if stream.id == "chromium" { 1.0 } else { DURATION_TOLERANCE };
        ensure!(
            (lasts - stream.seconds).abs() <= tolerance,
            "{} was live {:.2} s, its file lasts {lasts:.2} s",
            stream.id,
            stream.seconds
        );
        rows.push(json!({ "stream": stream.id, "codecs": codecs, "liveS": stream.seconds, "fileS": lasts, "frames": content.frames.len(), "gaps": gaps, "file": name }));
    }
    Ok(rows)
}
