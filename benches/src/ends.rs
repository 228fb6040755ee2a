//! How long it takes from the end of a session to its composed archive, for short sessions and long ones alike. The
//! beginning of a session is put into its log, as if it had been captured: only its last seconds are live.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use archiver::model::ids::{SessionId, StreamId};
use archiver_testkit::publisher::{Options, Publisher};
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::World;
use serde::Serialize;
use serde_json::json;

use crate::compose::{INPUT, Input, input, write_log};

/// Streams of a session.
const STREAMS: usize = 2;
/// Media that is repeated until the session is long enough.
const LOOP_S: u64 = 20;
/// A composer that is so many seconds behind has caught up with the session.
const BEHIND: f64 = 5.0;

/// One session's end.
#[derive(Debug, Clone, Serialize)]
pub struct End {
    pub length_s: u64,
    pub end_to_available_s: f64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Seconds that it took to compose what was put into the log.
    pub caught_up_s: f64,
}

/// The sum and the number of what a histogram of the worker has been told.
fn told(world: &World, name: &str) -> Result<(f64, f64)> {
    let text = world.metrics()?;
    let value = |end: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}_{end} ")));
        line.and_then(|value| value.trim().parse::<f64>().ok()).unwrap_or(0.0)
    };
    Ok((value("sum"), value("count")))
}

/// Waits until the composer has made what is in the log.
async fn caught_up(world: &World, limit: Duration) -> Result<()> {
    let begin = Instant::now();
    // The worker is up, and the composer has looked at the log.
    tokio::time::sleep(Duration::from_secs(3)).await;
    loop {
        ensure!(begin.elapsed() < limit, "the composer does not catch up: {}", world.log());
        let before = told(world, "archiver_compose_behind").unwrap_or_default();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let after = told(world, "archiver_compose_behind").unwrap_or_default();
        let (sum, count) = (after.0 - before.0, after.1 - before.1);
        if count > 0.0 && sum / count < BEHIND {
            return Ok(());
        }
    }
}

/// One session of about `length_s`, composed at 1280x720 into a directory.
async fn end(world: &mut World, inputs: &[Input], n: usize, length_s: u64) -> Result<End> {
    let session = format!("composed-end-{n}");
    world.start_worker()?;
    world.janus.create_room(&session, json!({})).await?;
    let mut publishers = Vec::new();
    for p in 0..STREAMS {
        let id = format!("p{p}");
        let options = Options { size: (INPUT.width, INPUT.height), ..Options::new(&world.janus, &session, &id) };
        publishers.push(Publisher::start(options).await?);
    }
    let mut event = world.started(&session);
    event["data"]["archive"] = json!({ "outputMode": "composed", "resolution": "1280x720" });
    world.publish(&event)?;
    let row = world.archive(&session, "started").await;
    let dir: PathBuf = world.data().join("spool").join(row["archive"].as_str().context("no id")?);
    wait_for("media of all tracks", || async {
        (std::fs::read_dir(dir.join("tracks")).ok()?.count() == 2 * STREAMS).then_some(())
    })
    .await;
    world.kill_worker();
    std::fs::remove_dir_all(dir.join("tracks"))?;
    let id: SessionId = session.parse()?;
    let streams: Vec<StreamId> = (0..STREAMS).map(|p| StreamId::of_router(&id, &format!("p{p}"))).collect();
    write_log(&dir, &streams, inputs, length_s.div_ceil(LOOP_S))?;
    let earlier = (length_s * 1_000_000).to_string();
    world.sql("UPDATE jobs SET origin = origin - CAST(? AS INTEGER) WHERE session_id = ?", &[&earlier, &session])?;
    world.start_worker()?;
    let begin = Instant::now();
    caught_up(world, Duration::from_secs(60 + 2 * length_s)).await?;
    let caught_up_s = begin.elapsed().as_secs_f64();
    // What it has made is sent meanwhile.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (events, catalog) = (crate::times::events(world).await?, crate::times::catalog(world).await?);
    let (took, row) = crate::times::end(world, events.as_ref(), &catalog, &session).await?;
    events.close().await;
    // What went another way than it should.
    for line in world.log().lines().filter(|line| [" WARN ", " ERROR "].iter().any(|level| line.contains(level))) {
        println!("{line}");
    }
    ensure!(world.stop_worker(), "{}", world.log());
    Ok(End { length_s, end_to_available_s: took, bytes: u64::try_from(row.size)?, caught_up_s })
}

/// Measures the ends of sessions of these lengths, one after the other, with a directory as the store.
///
/// # Errors
/// When a session is not archived.
pub async fn composed(archiver: &str, lengths: &[u64]) -> Result<Vec<End>> {
    let mut world = World::start_private(archiver, None, "").await?;
    let (config, store) = (std::fs::read_to_string(world.config())?, world.scratch().join("store"));
    let (before, rest) = config.split_once("[store]").context("no store")?;
    let rest = rest.split_once("[[router]]").context("no router")?.1;
    let text = format!("{before}[store]\nkind = \"dir\"\npath = \"{}\"\n[[router]]{rest}", store.display());
    std::fs::write(world.config(), text)?;
    let folder = tempfile::tempdir()?;
    let inputs: Vec<Input> = (0..STREAMS).map(|n| input(folder.path(), n, LOOP_S)).collect::<Result<_>>()?;
    let mut ends = Vec::new();
    for (n, length) in lengths.iter().enumerate() {
        let end = end(&mut world, &inputs, n, *length).await?;
        println!(
            "session end to available, composed 1280x720, {:>4} s ({:.1} MB): {:.0} ms",
            end.length_s,
            end.bytes as f64 / 1e6,
            end.end_to_available_s * 1e3
        );
        tidy(&store)?;
        ends.push(end);
    }
    Ok(ends)
}

/// What was measured needs room no longer.
fn tidy(store: &Path) -> Result<()> {
    for entry in std::fs::read_dir(store)?.flatten() {
        if entry.path().is_dir() && !entry.file_name().to_string_lossy().starts_with('.') {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
