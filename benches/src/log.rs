//! What it costs to ship a capture log, and to restore it: the same in the fourth hour as in the first minute, and as much a bundle for a long log
//! as for a short one.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use archiver::model::cancellable::Cancellable;
use archiver::model::ids::{Epoch, SessionId, StreamId, TrackId, TrackKind};
use archiver::model::media::{Codec, Frame, TrackFormat};
use archiver::model::time::MediaTime;
use archiver::recording::restore::restore;
use archiver::recording::spool::Spool;
use archiver::recording::upload::Shipper;
use archiver::recording::{LogOptions, TrackLog};
use archiver::store::dir::DirStore;
use archiver::store::keys::Keys;
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

const TRACKS: usize = 4;
/// A segment's length.
const SEGMENT: i64 = 5;
/// Frames a second: with parts of half a second, as many lines of the index as a real track has.
const FRAMES: i64 = 4;
/// Segments a minute.
const MINUTE: usize = 12;

/// CPU time in milliseconds.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Length of the log, in minutes.
    minutes: usize,
    /// To ship the last minute of it.
    ship_minute_ms: f64,
    /// To restore all of it on another machine, a bundle.
    restore_bundle_ms: f64,
    /// To restore all of it, a megabyte of the log.
    restore_mb_ms: f64,
}

/// CPU time of this process.
fn cpu() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into())
}

fn tracks(dir: &Path) -> Result<Vec<TrackLog>> {
    let (session, spool): (SessionId, _) = ("s".parse()?, Arc::new(Spool::open(dir, 8 << 30, 70)?));
    let open = |n: usize| {
        let track = TrackId { stream: StreamId::of_router(&session, &n.to_string()), kind: TrackKind::Audio };
        let (mut log, _) = TrackLog::open(dir, track, Epoch(1), LogOptions::default(), Arc::clone(&spool))?;
        log.format(&TrackFormat { codec: Codec::Pcmu, width: 0, height: 0, channels: 1, codec_private: Vec::new() })?;
        anyhow::Ok(log)
    };
    (0..TRACKS).map(open).collect()
}

/// Writes a segment of a track, and seals it.
fn segment(log: &mut TrackLog, number: usize) -> Result<()> {
    let from = i64::try_from(number)? * SEGMENT * 1000;
    for n in 0..SEGMENT * FRAMES {
        let pts = MediaTime::from_millis(from + n * 1000 / FRAMES);
        log.frame(&Frame { pts, duration: None, keyframe: true, data: vec![7; 2000].into() })?;
        log.tick(pts)?;
    }
    log.seal()?.context("a segment")?.sync()?;
    Ok(())
}

/// Ships a log of some length while it is written, and restores it.
async fn log(minutes: usize) -> Result<Row> {
    let (here, there, bucket) = (tempfile::tempdir()?, tempfile::tempdir()?, tempfile::tempdir()?);
    let (store, cancel) = (DirStore::open(bucket.path())?, CancellationToken::new());
    let keys = Keys::new("app".parse()?, "2f6f2d9a-8d1c-4b1e-9c41-0b8a7d1f4c11".parse()?);
    let mut logs = tracks(here.path())?;
    let mut shipper = Shipper::new(keys.clone(), here.path().to_owned(), Epoch(1));
    let (segments, mut shipping) = (minutes * MINUTE, Duration::ZERO);
    for number in 0..segments {
        logs.iter_mut().try_for_each(|log| segment(log, number))?;
        let before = cpu()?;
        ensure!(matches!(shipper.ship(&store, &cancel).await?, Cancellable::Done(1..)), "nothing was shipped");
        if number + MINUTE >= segments {
            shipping += cpu()? - before;
        }
    }
    let (before, began) = (cpu()?, Instant::now());
    ensure!(
        restore(&store, &keys, there.path(), None, &cancel).await? == Cancellable::Done(segments),
        "not all came back"
    );
    let restoring = (cpu()? - before).as_secs_f64() * 1e3;
    println!("a log of {minutes} minutes is restored in {:.1} s", began.elapsed().as_secs_f64());
    let bytes = segments * TRACKS * usize::try_from(SEGMENT * FRAMES)? * 2000;
    #[allow(clippy::cast_precision_loss)]
    let row = Row {
        minutes,
        ship_minute_ms: shipping.as_secs_f64() * 1e3,
        restore_bundle_ms: restoring / segments as f64,
        restore_mb_ms: restoring / (bytes as f64 / 1e6),
    };
    Ok(row)
}

/// Compares logs of some lengths, in minutes.
pub async fn measure(lengths: &[usize]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for minutes in lengths.iter().filter(|minutes| **minutes > 0) {
        rows.push(log(*minutes).await?);
    }
    println!("\ncapture logs of {TRACKS} tracks, CPU in ms: to ship the last minute, to restore a bundle, and a MB");
    for row in &rows {
        let Row { minutes, ship_minute_ms, restore_bundle_ms, restore_mb_ms } = row;
        println!("{minutes:>5} min {ship_minute_ms:>10.1} {restore_bundle_ms:>10.2} {restore_mb_ms:>10.2}");
    }
    Ok(rows)
}
