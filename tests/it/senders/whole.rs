//! All cells of the matrix, several at once: `make senders`.

use std::sync::Arc;

use archiver_testkit::world::World;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::cell::Cell;
use super::events::Event;
use super::table::{SENDERS, Sender, Source};
use crate::BINARY;
use crate::support::rows::{Rows, target};

/// Cells of the kit's own publishers at once. Each has a composer that works as long as its session lasts.
const KIT_AT_ONCE: usize = 3;
/// Browsers at once: with less than a core a browser leaves pictures out.
const BROWSERS_AT_ONCE: usize = 1;

/// Which cell a row is of.
fn key(row: &Value) -> String {
    let text = |name: &str| row[name].as_str().unwrap_or_default();
    format!("{} x {}", text("sender"), text("event"))
}

/// The row of a cell.
fn row_of<'a>(rows: &'a Rows, sender: &Sender, event: Event) -> Option<&'a Value> {
    rows.get(&format!("{} x {}", sender.name, event.name()))
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
fn table(rows: &Rows, senders: &[&Sender], events: &[Event]) -> String {
    let mut text = format!("{:24}", "");
    events.iter().for_each(|event| text.push_str(&format!("{:>18}", event.name())));
    for sender in senders {
        text.push_str(&format!("\n{:24}", sender.name));
        for event in events {
            let row = row_of(rows, sender, *event);
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
    let mut rows = Rows::open("senders.jsonl", key);
    let mut world = World::start(BINARY, None, "").await.expect("world");
    world.start_worker().expect("worker");
    let mut cells = Vec::new();
    for event in &events {
        for sender in &senders {
            // A cell that failed is run again.
            if row_of(&rows, sender, *event).is_some_and(|row| row["verdict"] != "failed") {
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
    println!(
        "\nsent/decoded/shown pictures; beeps of senders without a picture\n{}\n",
        table(&rows, &senders, &events)
    );
    let chosen = senders.iter().flat_map(|sender| events.iter().filter_map(|event| row_of(&rows, sender, *event)));
    let failed = chosen.filter(|row| ["failed", "starved"].contains(&row["verdict"].as_str().unwrap_or_default()));
    let failed: Vec<&Value> = failed.collect();
    failed.iter().for_each(|row| println!("FAILED {}: {:#}", key(row), row["problems"]));
    assert!(failed.is_empty(), "{} cells failed", failed.len());
}
