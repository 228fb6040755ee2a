//! `make bench`: what archiver costs and how fast it is, as ratios to a GStreamer recorder measured in the same
//! run. Prints a table and writes `target/bench.json`.
#![allow(missing_docs)]

mod api;
mod capture;
mod compose;
mod ends;
mod log;
mod process;
mod times;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use archiver::compose::geometry::Size;
use archiver_testkit::world::World;
use capture::Row;
use clap::Parser;
use process::percentile;
use serde_json::json;

/// Measures archiver against a GStreamer recorder.
#[derive(Parser)]
struct Arguments {
    /// Numbers of streams, each with picture and sound.
    #[arg(long, env = "BENCH_STREAMS", value_delimiter = ',', default_value = "1,10,50")]
    streams: Vec<usize>,
    /// Seconds that CPU is measured for, each time.
    #[arg(long, env = "BENCH_SECONDS", default_value_t = 20)]
    seconds: u64,
    /// How often each is measured; the median counts.
    #[arg(long, env = "BENCH_REPEAT", default_value_t = 3)]
    repeat: usize,
    /// Sessions whose first media is waited for.
    #[arg(long, env = "BENCH_SESSIONS", default_value_t = 40)]
    sessions: usize,
    /// Lengths of the sessions whose end is measured, in seconds.
    #[arg(long, env = "BENCH_LENGTHS", value_delimiter = ',', default_value = "60,60,60,600")]
    lengths: Vec<u64>,
    /// Composed pictures: streams and size.
    #[arg(
        long,
        env = "BENCH_COMPOSE",
        value_delimiter = ',',
        default_value = "2@1280x720,4@1280x720,9@1280x720,2@640x480,4@640x480,9@640x480"
    )]
    compose: Vec<String>,
    /// Seconds of media that are composed.
    #[arg(long, env = "BENCH_COMPOSE_SECONDS", default_value_t = 20)]
    compose_seconds: u64,
    /// Lengths of the composed sessions whose end is measured, in seconds. An hour (3600) is measured with
    /// `BENCH_ENDS=3600`: it takes a quarter of one.
    #[arg(long, env = "BENCH_ENDS", value_delimiter = ',', default_value = "60,60,60,60,60")]
    ends: Vec<u64>,
    /// Seconds that each question to the API is asked for.
    #[arg(long, env = "BENCH_API_SECONDS", default_value_t = 15)]
    api_seconds: u64,
    /// Lengths of capture logs that are shipped and restored, in minutes; 0: none.
    #[arg(long, env = "BENCH_LOGS", value_delimiter = ',', default_value = "1,240")]
    logs: Vec<usize>,
    /// Only the shipping and restoring of capture logs is measured.
    #[arg(long)]
    logs_only: bool,
    /// Only the API is measured.
    #[arg(long)]
    api_only: bool,
    /// Only composing is measured.
    #[arg(long)]
    compose_only: bool,
    /// Only the ends of composed sessions are measured.
    #[arg(long)]
    ends_only: bool,
}

/// A composition: `4@1280x720`.
fn composition(text: &str) -> Result<(usize, Size)> {
    let read = || {
        let (streams, size) = text.split_once('@')?;
        let (width, height) = size.split_once('x')?;
        Some((streams.parse().ok()?, Size::new(width.parse().ok()?, height.parse().ok()?)))
    };
    read().with_context(|| format!("{text} is no composition, such as 4@1280x720"))
}

/// Compares composing, when nothing else runs.
fn composing(arguments: &Arguments, archiver: &Path) -> Result<serde_json::Value> {
    let mut rows = Vec::new();
    for text in arguments.compose.iter().filter(|text| !text.is_empty()) {
        let (streams, size) = composition(text)?;
        rows.push(compose::measure(archiver, streams, size, arguments.compose_seconds, arguments.repeat)?);
    }
    if rows.is_empty() {
        return Ok(json!(null));
    }
    compose::print(&rows);
    let three = compose::side_by_side(archiver, 3, arguments.compose_seconds)?;
    println!("three sessions of four 1280x720 streams side by side: {three:.2} s for each second of media");
    Ok(json!({ "rows": rows, "three_sessions_s_per_s": three }))
}

/// The programs beside this one.
fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(path.is_file(), "{} is not built; run `make bench`", path.display());
    Ok(path)
}

fn print_capture(rows: &[Row]) {
    println!("\ncapture, CPU of a core a stream (picture and sound, written to disk), memory and threads in all");
    println!(
        "{:>8} {:>12} {:>12} {:>8}   {:>22} {:>16}",
        "streams", "archiver", "webrtcbin", "ratio", "MB ours / peer", "threads"
    );
    for row in rows {
        #[allow(clippy::cast_precision_loss)]
        let per_stream = |cpu: f64| format!("{:.3} %", cpu * 100.0 / row.streams as f64);
        println!(
            "{:>8} {:>12} {:>12} {:>8.3}   {:>22} {:>16}",
            row.streams,
            per_stream(row.ours.cpu),
            per_stream(row.peer.cpu),
            row.ratio(),
            format!("{:.1} / {:.1}", row.ours.memory_mb, row.peer.memory_mb),
            format!("{} / {}", row.ours.threads, row.peer.threads),
        );
    }
}

/// MB that each further stream costs: ours and the peer's.
fn further_stream(rows: &[Row]) -> Option<(f64, f64)> {
    let (first, last) = (rows.first()?, rows.last()?);
    #[allow(clippy::cast_precision_loss)]
    let more = last.streams.checked_sub(first.streams).filter(|more| *more > 0)? as f64;
    Some(((last.ours.memory_mb - first.ours.memory_mb) / more, (last.peer.memory_mb - first.peer.memory_mb) / more))
}

/// Writes figures into the target folder.
fn write(name: &str, figures: &serde_json::Value) -> Result<()> {
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target").join(name);
    std::fs::write(&out, serde_json::to_vec_pretty(figures)?).with_context(|| out.display().to_string())?;
    println!("figures: target/{name}");
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let (archiver, peer) = (program("archiver")?, program("webrtcbin-recorder")?);
    if arguments.compose_only {
        return write("bench-compose.json", &composing(&arguments, &archiver)?);
    }
    if arguments.logs_only {
        return write("bench-logs.json", &json!(log::measure(&arguments.logs).await?));
    }
    if arguments.api_only {
        return write("bench-api.json", &json!(api::measure(&archiver, arguments.api_seconds)?));
    }
    let asked = if arguments.ends_only { Vec::new() } else { api::measure(&archiver, arguments.api_seconds)? };
    let compose = if arguments.ends_only { json!(null) } else { composing(&arguments, &archiver)? };
    let logs = if arguments.ends_only { Vec::new() } else { log::measure(&arguments.logs).await? };
    let archiver = archiver.to_str().context("a path in UTF-8")?;
    let composed_ends = ends::composed(archiver, &arguments.ends).await?;
    if arguments.ends_only {
        return write("bench-ends.json", &json!(composed_ends));
    }
    // The long session goes on while the rest is measured, with a worker, a router and a broker of its own.
    let mut long = World::start_private(archiver, None, "").await?;
    let lengths: Vec<_> = arguments.lengths.iter().map(|s| Duration::from_secs(*s)).collect();
    let ends = async { times::end_to_available(&mut long, &lengths).await };
    let measured = async {
        let mut world = World::start_private(archiver, None, "").await?;
        let window = Duration::from_secs(arguments.seconds);
        let rows = capture::measure(&mut world, &peer, &arguments.streams, arguments.repeat, window).await?;
        print_capture(&rows);
        let first = times::first_media(&mut world, arguments.sessions).await?;
        anyhow::Ok((rows, first))
    };
    let ((rows, first), ends) = tokio::try_join!(measured, ends)?;
    let further = further_stream(&rows);
    if let Some((ours, theirs)) = further {
        println!("memory of a further stream: {ours:.2} MB, webrtcbin {theirs:.2} MB, ratio {:.3}", ours / theirs);
    }
    let (half, most) = (percentile(&first, 50.0), percentile(&first, 95.0));
    println!(
        "session.started to first media on disk: p50 {:.0} ms, p95 {:.0} ms of {} sessions",
        half * 1e3,
        most * 1e3,
        first.len()
    );
    for (length, took) in &ends {
        println!("session end to available, {:>4} s with 4 streams: {:.0} ms", length.as_secs(), took * 1e3);
    }
    let ends: Vec<_> = ends.iter().map(|(l, t)| json!({ "length_s": l.as_secs(), "end_to_available_s": t })).collect();
    let figures = json!({
        "capture": rows.iter().map(|r| json!({ "row": r, "cpu_ratio": r.ratio() })).collect::<Vec<_>>(),
        "memory_further_stream_mb": further.map(|(ours, peer)| json!({ "ours": ours, "peer": peer })),
        "first_media_s": { "p50": half, "p95": most, "all": first },
        "sessions": ends,
        "compose": compose,
        "api": asked,
        "composed_sessions": composed_ends,
        "logs": logs,
    });
    write("bench.json", &figures)
}
