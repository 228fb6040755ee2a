//! Few threads for many publishers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::rtc::DrivenConnection;

/// Publishers of one thread.
const EACH_MAX: usize = 25;
/// The thread looks at its sockets so often.
const TICK_MAX: Duration = Duration::from_millis(5);
/// And sleeps at least so long, so that what is due almost together is sent together.
const TICK_MIN: Duration = Duration::from_millis(2);

struct MediaThread {
    jobs: Sender<DrivenConnection>,
    load: Arc<AtomicUsize>,
}

static DRIVERS: LazyLock<Mutex<Vec<MediaThread>>> = LazyLock::new(Mutex::default);

/// Gives a publisher to a thread that has room.
///
/// # Errors
/// When no thread can be started.
pub(super) fn drive(running: DrivenConnection) -> Result<()> {
    let mut drivers = DRIVERS.lock().unwrap_or_else(PoisonError::into_inner);
    let free = drivers.iter().position(|d| d.load.load(Ordering::Relaxed) < EACH_MAX);
    let at = match free {
        Some(at) => at,
        None => {
            // One message a publisher, and each is taken at once.
            let (jobs, queue) = channel();
            let load = Arc::new(AtomicUsize::new(0));
            let counter = Arc::clone(&load);
            std::thread::Builder::new().name("publishers".to_owned()).spawn(move || run(&queue, &counter))?;
            drivers.push(MediaThread { jobs, load });
            drivers.len() - 1
        }
    };
    drivers[at].load.fetch_add(1, Ordering::Relaxed);
    drivers[at].jobs.send(running).ok().context("the publishers' thread panicked")
}

fn run(queue: &Receiver<DrivenConnection>, load: &AtomicUsize) {
    let mut publishers: Vec<DrivenConnection> = Vec::new();
    loop {
        if publishers.is_empty() {
            // The sender is static, so this ends with the process only.
            let Ok(first) = queue.recv() else { return };
            publishers.push(first);
        }
        publishers.extend(queue.try_iter());
        let mut wake = Instant::now() + TICK_MAX;
        publishers.retain_mut(|publisher| match publisher.drive() {
            Some(at) => {
                wake = wake.min(at);
                true
            }
            None => {
                load.fetch_sub(1, Ordering::Relaxed);
                false
            }
        });
        std::thread::sleep(wake.saturating_duration_since(Instant::now()).max(TICK_MIN));
    }
}
