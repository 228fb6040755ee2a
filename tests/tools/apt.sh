#!/usr/bin/env bash
# Installs those of the named Debian packages that are missing, and shows how far it is: one line that changes on a
# terminal, a line for each quarter elsewhere. Says nothing when all are installed.
# No service of a package is started on the machine (policy-rc.d): the tests start their own.
set -euo pipefail
missing=()
for package; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
root=()
[ "$(id -u)" = 0 ] || root=(sudo)

log=$(mktemp)
policy=/usr/sbin/policy-rc.d
[ ! -e $policy ] || policy=
finish() {
  rm -f "$log"
  [ -z "$policy" ] || "${root[@]}" rm -f "$policy"
}
trap finish EXIT

# Reads the status lines of an apt command; keeps all else for when it fails.
progress() { # COMMAND
  local line phase percent text shown=
  while IFS= read -r line; do
    if [[ $line =~ ^(dl|pm)status:.*:([0-9]+)(\.[0-9]+)?:(.*)$ ]]; then
      case $1-${BASH_REMATCH[1]} in
        update-*) phase='reading the package lists' ;;
        *-dl) phase=downloading ;;
        *) phase=installing ;;
      esac
      percent=${BASH_REMATCH[2]} text=${BASH_REMATCH[4]}
      if [ -t 1 ]; then
        printf '\r\033[K  %s: %3d %%  %.50s' "$phase" "$percent" "$text"
      elif [ "$phase $((percent / 25))" != "$shown" ]; then
        shown="$phase $((percent / 25))"
        echo "  $phase: $percent %"
      fi
    else
      printf '%s\n' "$line" >>"$log"
    fi
  done
  [ ! -t 1 ] || printf '\r\033[K'
}

run_apt() {
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o APT::Status-Fd=1 "$@" 2>&1 </dev/null | progress "$1" || {
    tail -n 20 "$log"
    return 1
  } >&2
}

echo "installing Debian packages, and those that they need: ${missing[*]}"
[ -z "$policy" ] || printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee "$policy" >/dev/null
[ -z "$policy" ] || "${root[@]}" chmod +x "$policy"
run_apt update
run_apt install -y --no-install-recommends "${missing[@]}"
echo "installed in $SECONDS s"
