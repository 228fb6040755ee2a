#!/usr/bin/env bash
# build.sh WHAT COMMAND…: runs a command of cargo that builds, and shows how far it is: cargo's bar on a terminal, a line
# for each 50 crates elsewhere. Warnings and errors are shown, cargo's line for each crate is not.
set -euo pipefail
echo "building $1 (the first time about 500 crates, 6 to 10 minutes on two cores)"
shift

if [ -t 2 ]; then
  # Cargo leaves out its bar, too, when it is quiet, unless told otherwise.
  CARGO_TERM_QUIET=true CARGO_TERM_PROGRESS_WHEN=always CARGO_TERM_PROGRESS_WIDTH=$(tput cols 2>/dev/null || echo 80) "$@"
else
  crates=0
  "$@" 2>&1 | while IFS= read -r line; do
    case $line in
      ' '*'Compiling '* | ' '*'Checking '*)
        crates=$((crates + 1))
        [ $((crates % 50)) != 0 ] || echo "  $crates crates in $((SECONDS / 60)) min $((SECONDS % 60)) s"
        ;;
      ' '*'Downloaded '* | ' '*'Executable '* | ' '*'Finished '*) ;;
      *) printf '%s\n' "$line" ;;
    esac
  done
fi
echo "built in $((SECONDS / 60)) min $((SECONDS % 60)) s"
