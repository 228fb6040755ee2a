//! Servers end with their test process, also when that is killed by a signal and cannot run its destructors.
//!
//! A small shell, the *warden*, reads the process ids of the servers from a pipe. The pipe closes when the test process
//! ends, however it ends; then the warden kills the servers that are left, with their children.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// Lines are `+ <process id>` and `- <process id>`.
const SCRIPT: &str = r#"
tree() {
  echo "$1"
  for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do tree "$child"; done
}
pids=' '
while read -r change pid; do
  case "$change$pids" in
    +*) pids="$pids$pid " ;;
    -*" $pid "*) pids="${pids%% $pid *} ${pids#* $pid }" ;;
  esac
done
for pid in $pids; do kill -KILL $(tree "$pid") 2>/dev/null; done
"#;

/// The pipe to this process's warden, once there is one.
static PIPE: Mutex<Option<ChildStdin>> = Mutex::new(None);

/// Makes a process end with this one.
pub(crate) fn add(pid: u32) {
    send('+', pid);
}

/// A process has ended, or another program ends it.
pub(crate) fn remove(pid: u32) {
    send('-', pid);
}

// The warden outlives this process: nobody here can wait for it.
#[allow(clippy::zombie_processes)]
fn send(change: char, pid: u32) {
    let mut pipe = PIPE.lock().unwrap_or_else(PoisonError::into_inner);
    let pipe = pipe.get_or_insert_with(|| {
        let mut warden = start();
        warden.stdin.take().expect("its input is a pipe")
    });
    writeln!(pipe, "{change} {pid}").expect("the warden lives as long as this process");
}

fn start() -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", SCRIPT, "archiver-test-warden"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // In a process group of its own, it survives what ends the tests' group.
    command.process_group(0).spawn().expect("every system has a shell")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::time::{Duration, Instant};

    fn sleeper() -> Child {
        Command::new("sh").args(["-c", "sleep 600; true"]).spawn().expect("sh")
    }

    fn child_of(pid: u32) -> Option<String> {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        Some(children.split_whitespace().next()?.to_owned())
    }

    #[test]
    fn what_is_left_when_the_pipe_closes_is_killed_with_its_children() {
        let (mut warden, mut left, mut removed) = (start(), sleeper(), sleeper());
        let until = Instant::now() + Duration::from_secs(60);
        let grandchild = loop {
            assert!(Instant::now() < until, "the sleeper does not start");
            if let Some(child) = child_of(left.id()) {
                break child;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut pipe = warden.stdin.take().expect("pipe");
        writeln!(pipe, "+ {}\n+ {}\n- {}\n- 1", left.id(), removed.id(), removed.id()).expect("written");
        drop(pipe);
        assert!(warden.wait().is_ok());
        assert_eq!(left.wait().expect("ended").signal(), Some(9));
        while std::fs::read_to_string(format!("/proc/{grandchild}/cmdline")).is_ok_and(|text| text.contains("sleep")) {
            assert!(Instant::now() < until, "the child of the one that was left lives");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(removed.try_wait().expect("state").is_none(), "one that was removed is not the warden's");
        let child = child_of(removed.id()).expect("sleep");
        removed.kill().expect("killed");
        removed.wait().expect("ended");
        Command::new("kill").arg(child).status().expect("kill");
    }
}
