#!/usr/bin/env bash
# rustc-and-lints.sh RUSTC ARGUMENT…: a RUSTC_WORKSPACE_WRAPPER. Compiles a crate as cargo asks for, and holds it to clippy or, a library, to
# rustdoc, all warnings denied. Clippy sees a library's code together with its tests. `make lint` checks the same, and checks each dependency anew
# for that, which takes minutes on a clean clone; here the dependencies are those that were built.
set -euo pipefail
compile=("$@")
rustc=$1
shift
common=() clippy=() name='' emits='' is_lib='' is_test=''
while [ $# -gt 0 ]; do
  case $1 in
    --crate-name) name=$2 common+=("$1" "$2") && shift ;;
    --edition=* | --cfg=* | *.rs) common+=("$1") ;;
    --cfg | --check-cfg | -L | --extern) common+=("$1" "$2") && shift ;;
    --emit=*) emits=1 ;;
    --crate-type) [ "$2" = lib ] && is_lib=1; clippy+=("$1" "$2") && shift ;;
    --test) is_test=1 clippy+=("$1") ;;
    --warn=* | --deny=* | --allow=* | --forbid=*) clippy+=("$1") ;;
    # Where and how the crate is written.
    --out-dir | -C) shift ;;
    *) ;;
  esac
  shift
done
# Cargo also asks what the compiler can do.
[ -n "$emits" ] && [ "$name" != build_script_build ] || exec "${compile[@]}"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ -n "$is_lib" ] && [ -z "$is_test" ]; then
  rustdoc "${common[@]}" -D warnings --out-dir "$scratch/doc" &
else
  CLIPPY_ARGS=-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__ \
    clippy-driver "$rustc" "${common[@]}" "${clippy[@]}" --emit=metadata --out-dir "$scratch" &
fi
"${compile[@]}" -D warnings
wait $!
