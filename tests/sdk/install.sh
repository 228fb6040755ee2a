#!/usr/bin/env bash
# Installs what the lock files beside this name, npm's and PyPI's packages, into a folder of the user's cache, and prints
# the folder. Does nothing when it is there already: another lock has another folder.
set -euo pipefail
cd "$(dirname "$0")"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/archiver
folder=$cache/sdks-$(cat package-lock.json requirements.txt | sha256sum | cut -c1-16)
if [ ! -e "$folder/done" ]; then
  mkdir -p "$cache"
  # Tests of several processes may come at once; the lock goes with its file handle.
  exec 9>"$cache/sdks.lock"
  flock 9
  if [ ! -e "$folder/done" ]; then
    echo "installing the SDKs that the tests use: npm packages" >&2
    rm -rf "$folder"
    mkdir -p "$folder"
    cp package.json package-lock.json "$folder"
    (cd "$folder" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2)
    echo "installing the SDKs that the tests use: PyPI packages" >&2
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r requirements.txt >&2
    touch "$folder/done"
  fi
fi
echo "$folder"
