#!/usr/bin/env bash
# Runs each test of the modules in which servers and workers fail several times, one after the other: a test that passes once may have been
# lucky. Each run is a line of JSON in target/faults.jsonl. A run that is interrupted goes on; what failed is run again.
# Usage: with-servers faults.sh [FILTER]   FILTER: part of the tests' names; FAULTS_ROUNDS: how often (5).
set -euo pipefail
# nextest takes Ctrl-C for itself.
trap 'exit 130' INT TERM
cd "$(dirname "$0")/../.."
rounds=${FAULTS_ROUNDS:-5}
rows=${CARGO_TARGET_DIR:-target}/faults.jsonl
commit=$(git rev-parse --short HEAD)
# What was changed since, files that git does not know included.
changed=$(git diff HEAD; git ls-files --others --exclude-standard -z | xargs -0 -r sha1sum)
[ -z "$changed" ] || commit=$commit+$(sha1sum <<<"$changed" | cut -c1-8)
modules='^(faults|takeover|standstill|drain|rolling|waiting|incomplete|broker|partitions)::'
listed=$(cargo nextest list --locked --workspace --message-format oneline -E "test(/$modules/)")
tests=$(sed -n 's/^archiver::it //p' <<<"$listed" | grep -F -- "${1:-}") || { echo "faults: no test's name has '${1:-}' in it" >&2; exit 1; }
count=$(($(wc -l <<<"$tests") * rounds))
touch "$rows"
number=0 failed=0
for round in $(seq "$rounds"); do
  for test in $tests; do
    number=$((number + 1))
    if grep -qF "{\"commit\":\"$commit\",\"test\":\"$test\",\"round\":$round,\"ok\":true" "$rows"; then continue; fi
    begun=$SECONDS log=${CARGO_TARGET_DIR:-target}/faults-${test//:/-}-$round.log
    cargo nextest run --locked --workspace -E "test(=$test)" >"$log" 2>&1 && ok=true || ok=false
    echo "{\"commit\":\"$commit\",\"test\":\"$test\",\"round\":$round,\"ok\":$ok,\"seconds\":$((SECONDS - begun))}" >>"$rows"
    if $ok; then
      rm "$log"
      echo "$number/$count $test, round $round: ok, $((SECONDS - begun)) s"
    else
      failed=$((failed + 1))
      echo "$number/$count $test, round $round: FAILED, $((SECONDS - begun)) s; see $log" >&2
    fi
  done
done
exit $((failed > 0))
