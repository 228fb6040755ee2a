//! The owner of a session is killed at a random moment. Another worker goes on, and the killed one's machine is back half a minute later.
//!
//! One kill in `make test`; `make takeovers` does a hundred, three at a time, with a line of JSON each.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use archiver_testkit::content::{AudioRun, Content, Part, SeenFrame, Timeline, percentile};
use archiver_testkit::publisher::{Options, Publisher, unix_seconds};
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::{Downloaded, Machine, World, gap_lengths};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::BINARY;
use crate::support::composed::begin;
use crate::support::databases;
use crate::support::rows::Rows;

const WORKERS: [&str; 3] = ["worker-2", "worker-3", "worker-4"];
/// With a code of 1 to 4 in their pictures, and a place of the composed picture each.
const PUBLISHERS: [&str; 4] = ["alice", "bob", "carol", "dave"];
/// How many seeds run side by side.
const SIDE_BY_SIDE: usize = 3;
/// From the kill until its machine is back.
const BACK_AFTER: Duration = Duration::from_secs(30);
/// What a killed worker had not on its disk yet, in seconds.
const UNWRITTEN_MAX: f64 = 1.0;
/// What is told of a gap may be so much longer or shorter than the gap, in seconds.
const TOLD_WITHIN: f64 = 0.1;
/// From the kill to the next owner's first picture, in seconds: 99 of 100.
const TAKEOVER_P99: f64 = 5.0;
/// So many rounds have a 99th percentile worth looking at.
const ROUNDS_MIN: u64 = 20;
/// Pictures of the composed file that are further apart than this, in seconds, have a hole between them.
const COMPOSED_HOLE: f64 = 0.3;

/// What one kill came to.
#[derive(Debug, Default)]
struct Round {
    /// Whether the session ended before the machine was back.
    ended_first: bool,
    /// From the kill to each publisher's next picture in the file, in seconds.
    takeovers: Vec<f64>,
    /// The longest time before the kill of which a picture is missing, in seconds.
    lost_before: f64,
    /// The largest difference between what is missing of a track and what is told, in seconds.
    told_off: f64,
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_session_whose_worker_is_killed_at_a_random_moment_only_the_takeover_is_missing() {
    let long = std::env::var("ARCHIVER_TAKEOVERS").ok().map(|text| text.parse().expect("a number"));
    let rounds: u64 = long.unwrap_or(1);
    let mut rows = long.map(|_| Rows::open("takeovers.jsonl", |row| row["seed"].to_string()));
    // A round that failed is run again.
    let is_done = |seed: &u64| {
        rows.as_ref().and_then(|rows| rows.get(&seed.to_string())).is_some_and(|row| row["error"].is_null())
    };
    let mut waiting: Vec<u64> = (1..=rounds).rev().filter(|seed| !is_done(seed)).collect();
    let (mut running, mut done) = (JoinSet::new(), Vec::new());
    loop {
        while running.len() < SIDE_BY_SIDE
            && let Some(seed) = waiting.pop()
        {
            running.spawn(row(seed));
        }
        let Some(row) = running.join_next().await else { break };
        let row = row.expect("a round's panic is its own");
        println!("{row}");
        match &mut rows {
            Some(rows) => rows.add(row),
            None => done.push(row),
        }
    }
    let rows: Vec<&Value> = rows.as_ref().map_or(done.iter().collect(), |rows| rows.values().collect());
    let failed = rows.iter().filter(|row| !row["error"].is_null()).count();
    let takeovers = rows.iter().filter_map(|row| row["takeoversS"].as_array()).flatten().filter_map(Value::as_f64);
    let takeovers: Vec<f64> = takeovers.collect();
    let [half, p99] = [50.0, 99.0].map(|percent| percentile(&takeovers, percent).unwrap_or(0.0));
    println!("{} kills, {failed} failed; takeover: median {half:.2} s, p99 {p99:.2} s", rows.len());
    assert_eq!(failed, 0, "rounds failed");
    assert!(rounds < ROUNDS_MIN || p99 <= TAKEOVER_P99, "{p99:.2} s");
}

/// What comes of a seed, as a row.
async fn row(seed: u64) -> Value {
    match tokio::spawn(round(seed)).await {
        Ok(Round { ended_first, takeovers, lost_before, told_off }) => json!({
            "seed": seed, "endedFirst": ended_first, "takeoversS": takeovers, "lostBeforeS": lost_before, "toldOffS": told_off,
        }),
        Err(panic) => json!({ "seed": seed, "error": panic.to_string() }),
    }
}

/// A session of four publishers whose owner is killed, and its archive.
async fn round(seed: u64) -> Round {
    let mut random = StdRng::seed_from_u64(seed);
    let session = format!("killed-{seed}");
    let database = databases::with_tables();
    let mut world = World::start(BINARY, Some(&database.url()), "").await.expect("world");
    for worker in WORKERS {
        world.start_another(&Machine::new(worker)).expect("worker");
        takes_jobs(&world, worker).await;
    }
    begin(&mut world, &session, json!({ "outputMode": "both", "resolution": "640x480" })).await;
    let mut publishers = Vec::new();
    for (code, name) in (1..).zip(PUBLISHERS) {
        let options = Options { code, ..Options::new(&world.janus, &session, name) };
        publishers.push(Publisher::start(options).await.expect("publisher"));
    }
    let owner = wait_for("all tracks in a spool", || async {
        WORKERS.into_iter().find(|worker| tracks_of(&world, worker) == 2 * PUBLISHERS.len())
    })
    .await;
    publishers[0].pictures_pass(random.random_range(30..=300)).await;
    let killed = Instant::now();
    world.kill_another(owner);
    let ended_first = random.random_bool(0.5);
    if ended_first {
        publishers[0].pictures_pass(random.random_range(30 * 6..=30 * 18)).await;
        let ended = world.ended(&session);
        world.publish(&ended).expect("publish");
    }
    tokio::time::sleep(BACK_AFTER.saturating_sub(killed.elapsed())).await;
    world.start_another(&Machine::new(owner)).expect("worker");
    if !ended_first {
        publishers[0].pictures_pass(random.random_range(30..=30 * 8)).await;
        let ended = world.ended(&session);
        world.publish(&ended).expect("publish");
    }
    wait_for("nothing to be left to do", || async { is_all_done(&world, &session).then_some(()) }).await;
    let row = world.archive(&session, "available").await;
    let truths: Vec<Timeline> = publishers.into_iter().map(|publisher| publisher.crash().timeline()).collect();
    let archive = world.download(&row).expect("download");
    let killed_at = unix_seconds(killed);
    let mut round = Round { ended_first, ..Round::default() };
    for (name, truth) in PUBLISHERS.iter().zip(&truths) {
        individual(&archive, name, truth, killed_at, &mut round);
    }
    composed(&archive, &truths, killed_at, &round);
    round
}

async fn takes_jobs(world: &World, worker: &str) {
    wait_for(&format!("{worker} to take jobs"), || async {
        world.log_of(worker).contains("source=Events").then_some(())
    })
    .await;
}

/// How many tracks the spool of a worker has.
fn tracks_of(world: &World, worker: &str) -> usize {
    let archives = std::fs::read_dir(world.data_of(worker).join("spool")).into_iter().flatten().flatten();
    archives.map(|archive| std::fs::read_dir(archive.path().join("tracks")).map_or(0, Iterator::count)).sum()
}

/// The archive is made, nobody has a job, and no disk has a log.
fn is_all_done(world: &World, session: &str) -> bool {
    let has_log = |worker: &&str| {
        let mut archives = std::fs::read_dir(world.data_of(worker).join("spool")).into_iter().flatten().flatten();
        archives.any(|archive| archive.path().join("job.json").exists())
    };
    let is_idle = || {
        let list = world.json(&["jobs", "list", "--json"]).ok()?;
        Some(list["jobs"].as_array()?.is_empty() && list["parked"].as_array().is_none_or(Vec::is_empty))
    };
    let is_made = || world.archives(session).is_ok_and(|archives| archives.iter().all(|a| a["status"] == "available"));
    !WORKERS.iter().any(has_log) && is_made() && is_idle() == Some(true)
}

/// The file of a publisher lacks the takeover alone, which is told.
fn individual(archive: &Downloaded, name: &str, truth: &Timeline, killed_at: f64, round: &mut Round) {
    let [file] = archive.files(name).try_into().expect("one file");
    let content = Content::read(&file).expect("file");
    assert_eq!(content.errors, Vec::<String>::new(), "{name}");
    let matched = content.against(truth);
    assert_eq!(matched.strange, 0, "{name}: pictures that were never sent, come twice, or out of order");
    let late = matched.sound_after_picture();
    assert!(!late.is_empty() && late.iter().all(|late| late.abs() < 0.06), "{name}: {late:?}");
    let holes = matched.holes();
    let [(from, to)] = holes[..] else { panic!("{name}: {holes:?}, killed at {killed_at}") };
    assert!(from <= killed_at + 0.1 && to > killed_at, "{name}: {from} to {to}, killed at {killed_at}");
    round.takeovers.push(to - killed_at);
    round.lost_before = round.lost_before.max(killed_at - from);
    assert!(killed_at - from <= UNWRITTEN_MAX, "{name}: {:.2} s before the kill are missing", killed_at - from);
    for (kind, missing) in [("video", to - from), ("audio", silence(&content.audio))] {
        let track = archive.track(name, kind).expect("track");
        let told: f64 = gap_lengths(track, "worker").iter().sum();
        round.told_off = round.told_off.max((missing - told).abs());
        assert!((missing - told).abs() <= TOLD_WITHIN, "{name}: {missing:.3} s of {kind}, told {told:.3} s: {track}");
        let others = track["gaps"].as_array().expect("gaps").iter().filter(|gap| gap["cause"] != "worker");
        assert_eq!(others.count(), 0, "{name}: {kind}: nothing else is missing: {track}");
    }
    assert_eq!(archive.manifest["complete"], false, "{name}: {}", archive.manifest);
}

/// Between the first and the last sound, in seconds.
fn silence(runs: &[AudioRun]) -> f64 {
    runs.windows(2).map(|pair| pair[1].from - pair[0].to).sum()
}

/// The composed picture shows each publisher in its place, and lacks no more than the files.
fn composed(archive: &Downloaded, truths: &[Timeline], killed_at: f64, round: &Round) {
    let file = archive.dir.join("archive.mp4");
    let joined = (PUBLISHERS.iter()).filter_map(|name| archive.stream(name)?["streamId"].as_str());
    let joined: Vec<&str> = joined.collect();
    let files = archive.manifest["files"].as_array().expect("files");
    let starts = files.iter().filter(|file| joined.iter().any(|stream| file["streamId"] == *stream));
    let all_at = starts.filter_map(|file| file["startMs"].as_f64()).fold(0.0, f64::max);
    let start = archive.manifest["composed"]["startMs"].as_f64().expect("start");
    let from = (all_at - start) / 1000.0 + 0.2;
    let mut codes = BTreeSet::new();
    for n in 0..4 {
        let part = Part { x: 320 * (n % 2), y: 240 * (n / 2), width: 320, height: 240 };
        let content = Content::read_part(&file, Some(part)).expect("file");
        assert_eq!(content.errors, Vec::<String>::new());
        let mine: Vec<&SeenFrame> = content.frames.iter().filter(|frame| frame.pts > from).collect();
        // A worker that comes late finds all of them at once, in any order.
        let count = |code: u16| mine.iter().filter(|frame| frame.code == Some(code)).count();
        let code = (1..=4).max_by_key(|code| count(*code)).expect("four publishers");
        assert!(codes.insert(code), "publisher {code} has two places");
        let sent = truths[usize::from(code) - 1].first_frames();
        let (shown, others): (Vec<&SeenFrame>, Vec<&SeenFrame>) =
            mine.into_iter().partition(|frame| frame.code == Some(code));
        let sent_at = |frame: &SeenFrame| sent.get(&u32::from(frame.number?)).copied();
        let shown: Vec<(f64, f64)> = shown.into_iter().filter_map(|frame| Some((frame.pts, sent_at(frame)?))).collect();
        let holes: Vec<_> = shown.windows(2).filter(|pair| pair[1].1 - pair[0].1 > COMPOSED_HOLE).collect();
        // A picture without a successor goes after two seconds.
        let is_in_hole = |frame: &SeenFrame| holes.iter().any(|pair| (pair[0].0..pair[1].0).contains(&frame.pts));
        let others: Vec<_> = others.into_iter().filter(|frame| !is_in_hole(frame)).collect();
        assert!(others.len() <= 3, "place {n} shows something else in {} pictures: {:?}", others.len(), others.first());
        assert!(shown.len() > 100, "place {n} shows {} pictures", shown.len());
        for (from, to) in holes.into_iter().map(|pair| (pair[0].1, pair[1].1)) {
            let takeover = round.takeovers.iter().copied().fold(0.0, f64::max);
            let is_takeover = from > killed_at - UNWRITTEN_MAX - 0.1 && to < killed_at + takeover + 0.1;
            assert!(is_takeover, "place {n} lacks {from} to {to}, killed at {killed_at}");
        }
    }
}
