#!/usr/bin/env bash
# Plants each bug of tests/sim/planted in a copy of the last commit, and runs the fleet's seeds until one breaks a promise. Each bug must be found
# within a thousand seeds, as a violation that its patch names. A line of JSON for each bug in target/planted.jsonl; bugs that were found on this
# commit are not planted again.
# Usage: planted.sh [BUG...]
set -euo pipefail
cd "$(dirname "$0")/../.."
seeds=${ARCHIVER_SEEDS:-1000}
commit=$(git rev-parse --short HEAD)
folder=$PWD/target/planted rows=$PWD/target/planted.jsonl
mkdir -p "$folder"
touch "$rows"
bugs=("$@")
[ ${#bugs[@]} -gt 0 ] || mapfile -t bugs < <(basename -s .patch -a tests/sim/planted/*.patch)
missed=0
for bug in "${bugs[@]}"; do
  if grep -q "\"commit\":\"$commit\",\"bug\":\"$bug\",\"found\":true" "$rows"; then
    echo "$bug: found before"
    continue
  fi
  git worktree remove --force "$folder/tree" 2>/dev/null || rm -rf "$folder/tree"
  git worktree prune
  git worktree add --quiet --detach "$folder/tree" "$commit"
  git -C "$folder/tree" apply "$PWD/tests/sim/planted/$bug.patch"
  log=$folder/$bug.log
  echo "$bug: building, then up to $seeds seeds; log in $log"
  export CARGO_TARGET_DIR="$folder/build"
  # A planted bug may leave something unused.
  unset RUSTC_WORKSPACE_WRAPPER
  if ! (cd "$folder/tree" && cargo test --locked --quiet -p archiver-sim --lib --no-run) >"$log" 2>&1; then
    echo "$bug: does not build; the end of $log:" >&2
    tail -20 "$log" >&2
    exit 1
  fi
  (
    cd "$folder/tree"
    ARCHIVER_SEEDS=$seeds ARCHIVER_STOP_AT_FIRST=1 cargo test --locked --quiet -p archiver-sim --lib -- --exact --nocapture \
      fleet::tests::whatever_happens_to_a_fleet_its_promises_hold
  ) >"$log" 2>&1 && status=0 || status=$?
  seed=$(sed -n 's/^seed \([0-9]*\):$/\1/p' "$log" | head -1)
  violation=$(sed -n 's/^  VIOLATION \([A-Za-z]*\).*/\1/p' "$log" | head -1)
  expected=$(sed -n 's/^Found as: //p' "tests/sim/planted/$bug.patch")
  if [ $status != 0 ] && [ -n "$seed" ] && [[ " $expected " == *" $violation "* ]]; then
    echo "$bug: found with seed $seed: $violation"
    echo "{\"commit\":\"$commit\",\"bug\":\"$bug\",\"found\":true,\"seed\":$seed,\"violation\":\"$violation\"}" >>"$rows"
  else
    echo "$bug: NOT found as one of: $expected${violation:+ (but $violation with seed $seed)}; the end of its log:" >&2
    tail -5 "$log" >&2
    echo "{\"commit\":\"$commit\",\"bug\":\"$bug\",\"found\":false}" >>"$rows"
    missed=$((missed + 1))
  fi
done
git worktree remove --force "$folder/tree" 2>/dev/null || true
exit $((missed > 0))
