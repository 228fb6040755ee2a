#!/usr/bin/env bash
# build.sh WHAT COMMAND…: runs a command of cargo that builds, and shows how far it is: cargo's bar on a terminal, a line
# each half minute elsewhere. Warnings and errors are shown, cargo's line for each crate is not.
set -euo pipefail
echo "building $1 (the first time about 500 crates, 6 to 10 minutes on two cores)"
shift

took() { echo "$((SECONDS / 60)) min $((SECONDS % 60)) s"; }

# Reads cargo's lines.
progress() {
  local line='' crates=0 last=archiver said=0 status
  while true; do
    status=0
    IFS= read -r -t 10 line || status=$?
    # Above 128: nothing was written for so long. Else the end.
    [ $status = 0 ] || [ $status -gt 128 ] || break
    if [ $status = 0 ]; then
      case $line in
        ' '*'Compiling '* | ' '*'Checking '*)
          crates=$((crates + 1))
          last=${line#*ing }
          last=${last%% *}
          ;;
        ' '*'Downloaded '* | ' '*'Executable '* | ' '*'Finished '*) ;;
        *) printf '%s\n' "$line" ;;
      esac
    fi
    if [ $((SECONDS - said)) -ge 30 ]; then
      said=$SECONDS
      echo "  $(took): $crates crates, now $last"
    fi
  done
}

if [ -t 2 ]; then
  # Cargo leaves out its bar, too, when it is quiet, unless told otherwise.
  CARGO_TERM_QUIET=true CARGO_TERM_PROGRESS_WHEN=always CARGO_TERM_PROGRESS_WIDTH=$(tput cols 2>/dev/null || echo 80) "$@"
else
  "$@" 2>&1 | progress
fi
echo "built in $(took)"
