//! How long it takes: from the event to media on disk, and from the session's end to the archive.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use archiver::broker::{Broker, BrokerConfig, ENDED_KEY, Publisher as Events, RabbitBroker, STARTED_KEY};
use archiver::catalog::{self, ArchiveFilter, ArchiveRow, ArchiveStatus, SharedCatalog};
use archiver_testkit::publisher::{Options, Publisher};
use archiver_testkit::world::World;
use serde_json::{Value, json};

/// Sessions whose first media is waited for, a room each, before a room is used again.
const ROOMS: usize = 4;
/// Publishers of a session whose end is measured.
const STREAMS: usize = 4;

/// An archive that takes longer is none.
const AVAILABLE_MAX: Duration = Duration::from_secs(120);

/// The region of the test kit's worker.
const REGION: &str = "eu";

pub async fn events(world: &World) -> Result<Box<dyn Events>> {
    let config = BrokerConfig::new(world.rabbit.url().into(), REGION.parse()?);
    Ok(RabbitBroker::new(config).publisher().await?)
}

async fn publish(events: &dyn Events, event: &Value, key: &str) -> Result<()> {
    events.publish(&format!("{key}.{REGION}"), event.to_string().as_bytes(), &BTreeMap::new()).await?;
    Ok(())
}

/// The worker's catalog.
pub async fn catalog(world: &World) -> Result<SharedCatalog> {
    Ok(catalog::open(&format!("sqlite:{}", world.data().join("catalog.sqlite").display())).await?)
}

/// Ends a session. Returns the seconds from handing `session.ended` to the broker until the catalog says available, asked
/// every 5 ms, and what it says.
///
/// # Errors
/// When the session is not archived.
pub async fn end(
    world: &mut World,
    events: &dyn Events,
    catalog: &SharedCatalog,
    session: &str,
) -> Result<(f64, ArchiveRow)> {
    let status = Some(ArchiveStatus::Available);
    let filter = ArchiveFilter { session: Some(session.parse()?), status, count: 1, ..ArchiveFilter::default() };
    let ended = world.ended(session);
    let start = Instant::now();
    publish(events, &ended, ENDED_KEY).await?;
    loop {
        // A disk that is slow for a while is a part of what is measured.
        if let Some(row) = catalog.archives(&filter).await.ok().and_then(|(mut rows, _)| rows.pop()) {
            return Ok((start.elapsed().as_secs_f64(), row));
        }
        ensure!(start.elapsed() < AVAILABLE_MAX, "{session} is not archived: {}", world.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether an archive's index has a part, which is on disk before it is indexed.
fn has_media(archive: &Path) -> bool {
    let Ok(tracks) = std::fs::read_dir(archive.join("tracks")) else { return false };
    tracks.flatten().any(|track| {
        let index = std::fs::read_to_string(track.path().join("index.jsonl")).unwrap_or_default();
        index.lines().any(|line| line.contains("\"is\":\"part\""))
    })
}

/// Seconds from handing `session.started` to the broker until the first part of the session is on disk and
/// indexed; one value a session.
///
/// # Errors
/// When a session is not recorded.
pub async fn first_media(world: &mut World, sessions: usize) -> Result<Vec<f64>> {
    world.start_worker()?;
    let (events, mut publishers) = (events(world).await?, Vec::new());
    for n in 0..ROOMS {
        let room = format!("first-{n}");
        world.janus.create_room(&room, json!({})).await?;
        publishers.push(Publisher::start(Options::new(&world.janus, &room, "p")).await?);
    }
    // The worker is up when it is ready, and the publishers send.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (spool, mut times) = (world.data().join("spool"), Vec::new());
    for n in 0..sessions {
        let session = format!("first-media-{n}");
        let mut event = world.started(&session);
        event["data"]["router"]["room"] = json!(format!("first-{}", n % ROOMS));
        let known: Vec<_> =
            std::fs::read_dir(&spool).map(|d| d.flatten().map(|e| e.path()).collect()).unwrap_or_default();
        let start = Instant::now();
        publish(events.as_ref(), &event, STARTED_KEY).await?;
        loop {
            ensure!(start.elapsed() < Duration::from_secs(20), "session {n} is not recorded: {}", world.log());
            let now = std::fs::read_dir(&spool).map(|d| d.flatten().map(|e| e.path()).collect::<Vec<_>>());
            if now.is_ok_and(|now| now.iter().any(|path| !known.contains(path) && has_media(path))) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        times.push(start.elapsed().as_secs_f64());
        publish(events.as_ref(), &world.ended(&session), ENDED_KEY).await?;
        world.archive(&session, "available").await;
    }
    events.close().await;
    ensure!(world.stop_worker(), "{}", world.log());
    Ok(times)
}

/// Seconds from handing `session.ended` to the broker until the catalog says available, for one session of each
/// length, all running side by side and ending one after the other.
///
/// # Errors
/// When a session is not archived.
pub async fn end_to_available(world: &mut World, lengths: &[Duration]) -> Result<Vec<(Duration, f64)>> {
    world.start_worker()?;
    let events = events(world).await?;
    let mut publishers = Vec::new();
    let longest = lengths.iter().max().copied().context("no lengths")?;
    let begin = Instant::now();
    let mut order: Vec<_> = lengths.iter().copied().enumerate().collect();
    // The longest begins first, and all end near each other.
    order.sort_by_key(|(_, length)| std::cmp::Reverse(*length));
    for (n, length) in &order {
        tokio::time::sleep_until(tokio::time::Instant::from_std(begin + (longest - *length))).await;
        let session = format!("ends-{n}");
        world.janus.create_room(&session, json!({})).await?;
        for p in 0..STREAMS {
            publishers.push(Publisher::start(Options::new(&world.janus, &session, &format!("p{p}"))).await?);
        }
        publish(events.as_ref(), &world.started(&session), STARTED_KEY).await?;
    }
    tokio::time::sleep_until(tokio::time::Instant::from_std(begin + longest)).await;
    let catalog = catalog(world).await?;
    let mut times = Vec::new();
    for (n, length) in order {
        times.push((length, end(world, events.as_ref(), &catalog, &format!("ends-{n}")).await?.0));
    }
    events.close().await;
    ensure!(world.stop_worker(), "{}", world.log());
    Ok(times)
}
