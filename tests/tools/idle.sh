#!/usr/bin/env bash
# Runs a command at the lowest priority, so that tests beside it have the machine. `nice` alone does not do that: where the kernel
# groups processes by session (/proc/sys/kernel/sched_autogroup_enabled), a nice process shares the processors evenly with those of
# every other session. So the command gets a session of its own, and the session the lowest priority.
# Usage: idle.sh COMMAND...
set -euo pipefail
setsid --wait bash -c '
  [ ! -w /proc/self/autogroup ] || echo 19 > /proc/self/autogroup || true
  exec nice -n 19 ionice -c 3 "$@"
' idle "$@" &
# A session of its own does not hear Ctrl-C. `setsid --wait` forks unless it leads its group: then its child leads the session.
trap 'pkill -TERM -s "$(pgrep -P $! || echo $!)"; exit 130' INT TERM
wait $!
