//! What is random in a simulation comes from its seed: that of the standard library's hash tables, of tokio's `select!`, and of `rand`,
//! which spreads retries. All of them ask the system function `getrandom` for their first bytes, once a thread. This program has a
//! function of that name: on a thread that has a seed the bytes follow from it, on others the kernel gives them.
//!
//! Threads of the blocking pool all begin with the seed 0. Tokio counts the runtimes of a process, too, and mixes their number in: a seed repeats
//! where each run of it is a process of its own.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{c_uint, c_void};

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

thread_local! {
    static RANDOM: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// Runs `work` on a thread of its own, on which all that is random follows from the seed.
pub(super) fn with_seed<T: Send>(seed: u64, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let seeded = scope.spawn(move || {
            RANDOM.set(Some(StdRng::seed_from_u64(seed)));
            work()
        });
        seeded.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Gives a thread of a blocking pool its seed.
pub(super) fn seed_pool_thread() {
    RANDOM.with_borrow_mut(|random| {
        random.get_or_insert_with(|| StdRng::seed_from_u64(0));
    });
}

/// Stands for the system's function of this name: see its manual page, `getrandom(2)`. `build.rs` makes it known to libraries that look for
/// it by its name.
///
/// # Safety
/// `to` points to `len` bytes that may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(to: *mut c_void, len: usize, flags: c_uint) -> isize {
    let seeded = RANDOM.try_with(|random| {
        let mut random = random.try_borrow_mut().ok()?;
        if len > 0 {
            // SAFETY: the caller's promise.
            let bytes = unsafe { std::slice::from_raw_parts_mut(to.cast::<u8>(), len) };
            random.as_mut()?.fill_bytes(bytes);
        }
        isize::try_from(len).ok()
    });
    match seeded {
        Ok(Some(filled)) => filled,
        // SAFETY: the caller's promise.
        _ => isize::try_from(unsafe { libc::syscall(libc::SYS_getrandom, to, len, flags) }).unwrap_or(-1),
    }
}
