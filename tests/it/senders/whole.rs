//! All cells of the matrix, several at once: `make senders`.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use archiver_testkit::world::World;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::cell::Cell;
use super::events::Event;
use super::table::{SENDERS, Sender, Source};
use crate::BINARY;

/// Cells of the kit's own publishers at once. Each has a composer that works as long as its session lasts.
const KIT_AT_ONCE: usize = 3;
/// Browsers at once: with less than a core a browser leaves pictures out.
const BROWSERS_AT_ONCE: usize = 1;

/// Cargo's folder.
fn target() -> &'static Path {
    Path::new(BINARY).ancestors().nth(2).expect("target/debug/archiver")
}

/// The commit, and what was changed since.
fn commit() -> String {
    let git = |arguments: &[&str]| Command::new("git").args(arguments).output().expect("git").stdout;
    let head = String::from_utf8(git(&["rev-parse", "--short=12", "HEAD"])).expect("text").trim().to_owned();
    let changed = git(&["diff", "HEAD"]);
    if changed.is_empty() {
        return head;
    }
    let mut hasher = DefaultHasher::new();
    changed.hash(&mut hasher);
    format!("{head}+{:08x}", hasher.finish() as u32)
}

/// The rows so far.
struct Rows {
    path: PathBuf,
    commit: String,
    rows: Mutex<BTreeMap<(String, String), Value>>,
}

impl Rows {
    /// Opens the file of rows, and reads those of this commit.
    fn open() -> Self {
        let commit = commit();
        let path = target().join("senders.jsonl");
        let is_fresh = std::env::var_os("FRESH").is_some_and(|fresh| !fresh.is_empty());
        let before = std::fs::read_to_string(&path).ok().filter(|_| !is_fresh).unwrap_or_default();
        let mut rows = BTreeMap::new();
        for row in before.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            if row["commit"] == commit.as_str() {
                rows.insert(key(&row), row);
            }
        }
        let text: String = rows.values().map(|row| format!("{row}\n")).collect();
        std::fs::write(&path, text).expect("the file of rows");
        Self { path, commit, rows: Mutex::new(rows) }
    }

    /// Whether a cell is done: one that failed is run again.
    fn has(&self, sender: &Sender, event: Event) -> bool {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let row = rows.get(&(sender.name.to_owned(), event.name().to_owned()));
        row.is_some_and(|row| row["verdict"] != "failed")
    }

    fn add(&self, mut row: Value) {
        row["commit"] = json!(self.commit);
        let mut file = std::fs::OpenOptions::new().append(true).open(&self.path).expect("the file of rows");
        writeln!(file, "{row}").expect("a row");
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).insert(key(&row), row);
    }
}

fn key(row: &Value) -> (String, String) {
    let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
    (text("sender"), text("event"))
}

/// The senders and events that the environment names, all without one.
fn chosen() -> (Vec<&'static Sender>, Vec<Event>) {
    let words = |name: &str| -> Vec<String> {
        let text = std::env::var(name).unwrap_or_default();
        text.split([',', ' ']).filter(|word| !word.is_empty()).map(str::to_owned).collect()
    };
    let (senders, events) = (words("SENDERS"), words("EVENTS"));
    let is_in =
        |words: &[String], name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    let senders: Vec<_> = SENDERS.iter().filter(|sender| is_in(&senders, sender.name)).collect();
    let events: Vec<_> = Event::ALL.into_iter().filter(|event| is_in(&events, event.name())).collect();
    assert!(!senders.is_empty() && !events.is_empty(), "no cell has these names");
    (senders, events)
}

/// Runs a cell beside others. A panic is this cell's alone.
async fn run(world: Arc<World>, cell: Cell, places: Arc<Semaphore>) -> Value {
    let _place = places.acquire_owned().await.expect("the semaphore stays open");
    let (sender, event) = (cell.sender.name, cell.event.name());
    let kept = target().join("senders").join(format!("{sender}-{event}"));
    let row = match tokio::spawn(async move { cell.run(&world, Some(&kept)).await }).await {
        Ok(Ok(row)) => row.0,
        Ok(Err(error)) => json!({ "verdict": "failed", "problems": [format!("{error:#}")] }),
        Err(panic) => json!({ "verdict": "failed", "problems": [panic.to_string()] }),
    };
    let mut row = row;
    (row["sender"], row["event"]) = (json!(sender), json!(event));
    row
}

/// A table of senders and events.
fn table(rows: &BTreeMap<(String, String), Value>, senders: &[&Sender], events: &[Event]) -> String {
    let mut text = format!("{:24}", "");
    events.iter().for_each(|event| text.push_str(&format!("{:>18}", event.name())));
    for sender in senders {
        text.push_str(&format!("\n{:24}", sender.name));
        for event in events {
            let row = rows.get(&(sender.name.to_owned(), event.name().to_owned()));
            let number = |row: &Value, name: &str| row[name].as_u64().unwrap_or(0);
            let cell = match row.map(|row| (row, row["verdict"].as_str().unwrap_or_default())) {
                None => "?".to_owned(),
                Some((_, "n/a")) => "n/a".to_owned(),
                Some((row, verdict)) => {
                    let numbers = ["sent", "decoded", "shown"].map(|name| number(row, name));
                    let sounds = ["beepsSent", "beepsHeard", "beepsComposed"].map(|name| number(row, name));
                    let [a, b, c] = if numbers[0] > 0 { numbers } else { sounds };
                    format!("{} {a}/{b}/{c}", if verdict == "ok" { "ok" } else { "FAIL" })
                }
            };
            text.push_str(&format!("{cell:>18}"));
        }
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "half an hour: `make senders`"]
async fn all_cells() {
    let (senders, events) = chosen();
    let rows = Rows::open();
    let mut world = World::start(BINARY, None, "").await.expect("world");
    world.start_worker().expect("worker");
    let mut cells = Vec::new();
    for event in &events {
        for sender in &senders {
            if rows.has(sender, *event) {
                continue;
            }
            if let Some(reason) = event.does_not_apply(sender) {
                rows.add(
                    json!({ "sender": sender.name, "event": event.name(), "verdict": "n/a", "problems": [reason] }),
                );
            } else {
                cells.push(Cell::new(&mut world, sender, *event));
            }
        }
    }
    let (world, count) = (Arc::new(world), cells.len());
    let kit = Arc::new(Semaphore::new(KIT_AT_ONCE));
    let browsers = Arc::new(Semaphore::new(BROWSERS_AT_ONCE));
    let mut running = tokio::task::JoinSet::new();
    for cell in cells {
        let places = if matches!(cell.sender.source, Source::Browser(..)) { &browsers } else { &kit };
        running.spawn(run(Arc::clone(&world), cell, Arc::clone(places)));
    }
    let mut done = 0;
    while let Some(row) = running.join_next().await {
        let row = row.expect("a cell's panic is its own");
        done += 1;
        println!("{done}/{count} {} {}: {} {}", row["sender"], row["event"], row["verdict"], row["problems"]);
        rows.add(row);
    }
    let rows = rows.rows.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!(
        "\nsent/decoded/shown pictures; beeps of senders without a picture\n{}\n",
        table(&rows, &senders, &events)
    );
    let chosen = |key: &(String, String)| {
        senders.iter().any(|sender| sender.name == key.0) && events.iter().any(|event| event.name() == key.1)
    };
    let failed: Vec<_> = rows
        .iter()
        .filter(|(key, row)| {
            chosen(key) && ["failed", "starved"].contains(&row["verdict"].as_str().unwrap_or_default())
        })
        .collect();
    for ((sender, event), row) in &failed {
        println!("FAILED {sender} x {event}: {:#}", row["problems"]);
    }
    assert!(failed.is_empty(), "{} cells failed", failed.len());
}
