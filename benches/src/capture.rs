//! CPU, memory and threads of capturing, ours and the peer's, of the same publishers in one run.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use archiver_testkit::child::Server;
use archiver_testkit::janus::API_SECRET;
use archiver_testkit::publisher::{Options, Publisher};
use archiver_testkit::world::World;
use serde::Serialize;
use serde_json::json;

use crate::process::{Cost, median, watch};

const ROOM: &str = "bench";
/// From the last stream's first media to the begin of the measurement.
const SETTLE: Duration = Duration::from_secs(5);
/// Pictures and packets of sound that a publisher sends in a second.
const SENT: [(&str, f64); 2] = [("v", 30.0), ("a", 50.0)];
/// The part of it that must be in a file: a recorder that lost more had less to do.
const COMPLETE: f64 = 0.97;

/// What was measured at one number of streams; medians.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Streams, each with picture and sound.
    pub streams: usize,
    /// Our worker.
    pub ours: Cost,
    /// The GStreamer recorder.
    pub peer: Cost,
    /// All runs, ours and the peer's in turns.
    pub runs: Vec<(Cost, Cost)>,
}

impl Row {
    /// Our CPU as a share of the peer's.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.ours.cpu / self.peer.cpu
    }
}

fn middle(costs: &[Cost]) -> Cost {
    let of = |get: fn(&Cost) -> f64| median(&costs.iter().map(get).collect::<Vec<_>>());
    let threads = costs.iter().map(|c| c.threads).max().unwrap_or(0);
    Cost { cpu: of(|c| c.cpu), memory_mb: of(|c| c.memory_mb), threads }
}

/// The times of a file's pictures, or of its sound, as ffprobe reads them packet by packet: neither the header
/// of a file that was cut off nor its length tells what is missing within.
fn times(file: &Path, kind: &str) -> Result<Vec<f64>> {
    let out = Command::new("ffprobe")
        .args(["-v", "error", "-select_streams", kind, "-show_entries", "packet=pts_time", "-of", "csv=p=0"])
        .arg(file)
        .output()?;
    let text = String::from_utf8_lossy(&out.stdout);
    Ok(text.lines().filter_map(|line| line.trim_end_matches(',').parse().ok()).collect())
}

/// What the publishers may take of a core, so that there is one for what is measured.
const PUBLISHERS_MAX: f64 = 0.9;

/// Both write all that was measured, or the comparison is void.
fn complete(who: &str, files: &[std::path::PathBuf], streams: usize, window: Duration) -> Result<()> {
    ensure!(files.len() == streams, "{who}: {} files of {streams} streams", files.len());
    for file in files {
        for (kind, rate) in SENT {
            let times = times(file, kind)?;
            let long = times.last().zip(times.first()).map_or(0.0, |(last, first)| last - first);
            let about = || format!("{who}: {} of {kind} in {long:.1} s of {}", times.len(), file.display());
            ensure!(long >= window.as_secs_f64(), "too short: {}", about());
            #[allow(clippy::cast_precision_loss)]
            let part = times.len() as f64 / (long * rate);
            ensure!(part >= COMPLETE, "incomplete: {}", about());
        }
    }
    Ok(())
}

async fn ours(world: &mut World, run: usize, streams: usize, window: Duration) -> Result<Cost> {
    world.start_worker()?;
    let session = format!("{ROOM}-{streams}-{run}");
    let mut started = world.started(&session);
    started["data"]["router"]["room"] = json!(ROOM);
    world.publish(&started)?;
    world.recording(2 * streams).await;
    tokio::time::sleep(SETTLE).await;
    let worker = world.worker_pid().context("a worker")?;
    let (cost, publishers) = tokio::join!(watch(worker, window), watch(std::process::id(), window));
    let (cost, publishers) = (cost?, publishers?.cpu);
    ensure!(
        publishers < PUBLISHERS_MAX,
        "{streams} publishers take {publishers:.2} of a core: too much beside a worker"
    );
    let ended = world.ended(&session);
    world.publish(&ended)?;
    let archive = world.archive(&session, "available").await;
    let archive = world.download(&archive)?;
    let list = archive.manifest["files"].as_array().context("files")?;
    let files: Vec<_> = list.iter().filter_map(|f| f["name"].as_str()).map(|name| archive.dir.join(name)).collect();
    complete("archiver", &files, streams, window)?;
    std::fs::remove_dir_all(&archive.dir)?;
    ensure!(world.stop_worker(), "{}", world.log());
    Ok(cost)
}

async fn peer(world: &World, binary: &Path, run: usize, streams: usize, window: Duration) -> Result<Cost> {
    let out = world.scratch().join(format!("peer-{streams}-{run}"));
    std::fs::create_dir(&out)?;
    let mut command = Command::new(binary);
    command.args(["--janus", &world.janus.url(), "--secret", API_SECRET, "--room", ROOM]);
    command.args(["--streams", &streams.to_string(), "--out"]).arg(&out);
    let mut recorder = Server::start("peer", world.scratch(), &mut command)?;
    let recorded = |e: std::fs::DirEntry| {
        let webm = e.path().extension().is_some_and(|x| x == "webm");
        webm && e.metadata().is_ok_and(|m| m.len() > 20_000)
    };
    let until = Instant::now() + Duration::from_secs(90);
    while std::fs::read_dir(&out)?.flatten().filter_map(|e| recorded(e).then_some(())).count() < streams {
        ensure!(recorder.runs() && Instant::now() < until, "the peer does not record: {}", recorder.log_tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(SETTLE).await;
    let cost = watch(recorder.pid(), window).await?;
    ensure!(recorder.stop(Duration::from_secs(60)), "the peer failed: {}", recorder.log_tail());
    let files: Vec<_> = std::fs::read_dir(&out)?.flatten().map(|e| e.path()).collect();
    complete("the peer", &files, streams, window)?;
    std::fs::remove_dir_all(&out)?;
    Ok(cost)
}

/// Measures at each number of streams, in turns.
///
/// # Errors
/// When a server or a recorder fails, or media is missing in a file.
pub async fn measure(
    world: &mut World,
    binary: &Path,
    counts: &[usize],
    repeat: usize,
    window: Duration,
) -> Result<Vec<Row>> {
    world.janus.create_room(ROOM, json!({ "videocodec": "vp8", "audiocodec": "opus", "publishers": 200 })).await?;
    let (mut publishers, mut rows) = (Vec::new(), Vec::new());
    for streams in counts.iter().copied() {
        while publishers.len() < streams {
            let id = format!("p{}", publishers.len());
            publishers.push(Publisher::start(Options::new(&world.janus, ROOM, &id)).await?);
        }
        let mut runs = Vec::new();
        for run in 0..repeat {
            eprintln!("capture: {streams} streams, run {} of {repeat}", run + 1);
            // Who comes first changes, so that a slow drift of the machine harms neither.
            runs.push(if run % 2 == 0 {
                let first = ours(world, run, streams, window).await?;
                (first, peer(world, binary, run, streams, window).await?)
            } else {
                let first = peer(world, binary, run, streams, window).await?;
                (ours(world, run, streams, window).await?, first)
            });
        }
        let (all_ours, all_peers): (Vec<_>, Vec<_>) = runs.iter().copied().unzip();
        rows.push(Row { streams, ours: middle(&all_ours), peer: middle(&all_peers), runs });
    }
    for publisher in publishers {
        publisher.leave().await?;
    }
    Ok(rows)
}
