//! The matrix of senders: what real senders send, whatever happens to them, is in the archive, or the archive says what it lacks.
//!
//! ```text
//! table ─ sender ┐            ┌ what was sent ──────────┐
//!                ├─ cell ─ play                          ├ evidence ─ verdict: problems
//! events ─ event ┘            └ archive: what is in it ─┘
//! ```
//!
//! A short form runs with `make test`; `make senders` runs all cells.

mod archive;
mod cell;
mod events;
mod numbering;
mod table;
mod verdict;
mod whole;

use crate::BINARY;

use archiver_testkit::world::World;

use cell::Cell;
use events::Event;
use table::SENDERS;

/// Runs of a cell whose sender sent late what was due, because the machine is busy.
const TRIES: u32 = 5;

/// Runs one cell, which must pass.
async fn passes(sender: &str, event: Event) {
    let sender = SENDERS.iter().find(|one| one.name == sender).expect("a sender of the table");
    for left in (0..TRIES).rev() {
        let mut world = World::start(BINARY, None, "").await.expect("world");
        world.start_worker().expect("worker");
        let row = Cell::new(&mut world, sender, event).run(&world, None).await.expect("a verdict");
        println!("{}", row.0);
        if row.0["verdict"] != "starved" || left == 0 {
            assert_eq!(row.0["verdict"], "ok", "{:#}", row.0);
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h264_with_b_frames_goes_on() {
    passes("h264-b-frames", Event::Steady).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h264_of_high_profile_goes_on() {
    passes("h264-high", Event::Steady).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_of_an_odd_size_is_muted() {
    passes("odd-size", Event::Mute).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sound_with_pauses_ends_with_its_sender() {
    passes("opus-dtx", Event::Crash).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_a_second_goes_on() {
    passes("vp8-1fps", Event::Steady).await;
}
