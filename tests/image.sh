#!/usr/bin/env bash
# Builds the image of the Dockerfile without an image registry, and runs `make demo` with the worker in it.
#
# The two base images are taken from buildah's storage where they are; else they are made here: Debian by
# debootstrap, and Rust by adding this machine's toolchain to it. What is made stays in target/image.
# Needs root. `IMAGE` names the result (archiver:latest).
set -euo pipefail
cd "$(dirname "$0")/.."
image=${IMAGE:-archiver:latest}
work=$PWD/target/image
mkdir -p "$work"
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=${STORAGE_DRIVER:-vfs}
export CONTAINERS_STORAGE_CONF=$work/storage.conf
cat >"$CONTAINERS_STORAGE_CONF" <<CONF
[storage]
driver = "$STORAGE_DRIVER"
graphroot = "$work/storage"
runroot = "$work/run"
CONF

have() { buildah images -q "localhost/$1" >/dev/null 2>&1; }

# This machine's package sources and certificates, for a build behind a proxy or a mirror.
host_settings() {
  cp -L /etc/resolv.conf /etc/hosts "$1/etc/"
  rm -rf "$1/etc/apt/sources.list" "$1"/etc/apt/sources.list.d/*
  cp /etc/apt/sources.list "$1/etc/apt/" 2>/dev/null || true
  cp /etc/apt/sources.list.d/debian.sources "$1/etc/apt/sources.list.d/" 2>/dev/null || true
  cp /etc/apt/apt.conf.d/99* "$1/etc/apt/apt.conf.d/" 2>/dev/null || true
  mkdir -p "$1/etc/ssl/certs"
  cp -L /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/"
}

if ! have debian:bookworm-slim; then
  mirror=$(awk '/^URIs:/ {print $2; exit} /^deb / {for (i = 2; i <= NF; i++) if ($i ~ /^http/) {print $i; exit}}' \
    /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null)
  echo "making debian:bookworm-slim with debootstrap"
  rm -rf "$work/debian"
  debootstrap --variant=minbase bookworm "$work/debian" "$mirror" >"$work/debootstrap.log" || { tail "$work/debootstrap.log"; exit 1; }
  host_settings "$work/debian"
  base=$(buildah from scratch)
  buildah add -q "$base" "$work/debian" / >/dev/null
  buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$base"
  buildah commit -q --rm "$base" localhost/debian:bookworm-slim >/dev/null
  rm -rf "$work/debian"
fi
if ! have rust:1.95-bookworm; then
  echo "making rust:1.95-bookworm from this machine's toolchain, $(rustc --version)"
  base=$(buildah from --pull-never localhost/debian:bookworm-slim)
  buildah run --network host "$base" -- sh -c 'apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev >/dev/null'
  buildah add -q "$base" "$(rustc --print sysroot)" /usr/local >/dev/null
  buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    --env SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt "$base"
  buildah commit -q --rm "$base" localhost/rust:1.95-bookworm >/dev/null
fi
echo "building $image"
buildah build --pull-never --network host --layers -t "$image" . >"$work/build.log" 2>&1 || { tail -40 "$work/build.log"; exit 1; }
container=$(buildah from --pull-never "localhost/$image")
trap 'buildah rm "$container" >/dev/null' EXIT
user=$(buildah run "$container" -- id -un)
[ "$user" = archiver ] || { echo "the image runs as $user, not as archiver"; exit 1; }
buildah run "$container" -- archiver --version
tests/tools/build.sh "the demo" cargo test --locked --workspace --test demo --no-run
ARCHIVER_IMAGE=$container cargo test --locked --quiet --workspace --test demo
du -sh "$(buildah mount "$container")" | awk '{print "image: " $1}'
buildah umount "$container" >/dev/null
