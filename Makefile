# The commands of this project. Each installs what it needs first; all work on a fresh Debian 12 machine
# with a Rust toolchain and root or sudo.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
CARGO ?= cargo
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/archiver

# To build; to run; to test with real servers.
PACKAGES := pkg-config gcc libc6-dev libssl-dev libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev libgstreamer-plugins-bad1.0-dev \
  libavcodec-dev libavformat-dev libavutil-dev libswresample-dev libswscale-dev \
  gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly gstreamer1.0-libav \
  janus libjs-janus-gateway rabbitmq-server postgresql chromium ffmpeg gstreamer1.0-tools gstreamer1.0-nice \
  iproute2 procps openssl faketime python3-venv

GARAGE := $(CACHE)/garage/bin/garage

# The tools of tests/tools, which 'setup' installs.
export PATH := $(shell tests/tools/install.sh --folder)/bin:$(PATH)

# Builds the tests before the servers start; then the servers live while the tests run.
BUILD_TESTS = tests/tools/build.sh "archiver and its tests" $(CARGO) build --locked --workspace --tests --bin archiver --bin with-servers
# What failed stands at the end, without a page of backtrace below; `make test RUST_BACKTRACE=1` shows that too.
RUST_BACKTRACE := 0
NEXTEST = RUST_BACKTRACE=$(RUST_BACKTRACE) $${CARGO_TARGET_DIR:-target}/debug/with-servers $(CARGO) nextest run --locked --workspace

.PHONY: help setup demo test bench guards lint audit kills takeovers outages hostile soak senders faults simulate planted fuzz garage image clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## install what is missing: Debian packages, the tools of lint and test, npm and PyPI packages of the tests
	@tests/tools/apt.sh $(PACKAGES) $$(command -v node >/dev/null && command -v npm >/dev/null || echo nodejs npm)
	@tests/tools/install.sh >/dev/null
	@tests/sdk/install.sh >/dev/null

guards: setup ## spelling, licences and sources of dependencies, formatting: what needs no build
	typos
	cargo-deny --locked --workspace check --allow license-exception-not-encountered licenses bans sources
	cargo-deny --locked --manifest-path tests/fuzz/Cargo.toml --config deny.toml check licenses bans sources
	$(CARGO) fmt --all --check

lint: guards ## the guards, clippy and documentation, all warnings denied
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --quiet

audit: setup ## known vulnerabilities of dependencies; needs a network for the advisory database
	@cargo-deny fetch db || { echo "audit: the advisory database cannot be reached from here; nothing was checked" >&2; exit 1; }
	cargo-deny --locked --workspace check advisories
	cargo-deny --locked --manifest-path tests/fuzz/Cargo.toml --config deny.toml check advisories

test: setup ## all tests, with real RabbitMQ, Janus, PostgreSQL, S3 servers and Chromium; times in target/nextest/*/junit.xml
	@[ -x "$(GARAGE)" ] || [ -n "$${ARCHIVER_GARAGE:-}" ] || echo "note: the S3 contract runs without garage; 'make garage' builds it once (some minutes)"
	@$(BUILD_TESTS)
	$(NEXTEST) $(TEST_ARGS)

demo: setup ## a session of half a minute on private servers; files and a contact sheet in target/demo
	@tests/tools/build.sh "archiver and the demo" $(CARGO) test --locked --workspace --test demo --no-run
	@$(CARGO) test --locked --quiet --workspace --test demo

bench: ## cost and speed against a GStreamer recorder, in about 20 minutes; figures in target/bench.json
	@$(MAKE) --no-print-directory setup PACKAGES="$(PACKAGES) hey"
	$(CARGO) build --locked --release --workspace --bins
	$${CARGO_TARGET_DIR:-target}/release/bench $(BENCH_ARGS)

kills: setup ## twenty kills of the worker in one session
	@$(BUILD_TESTS)
	ARCHIVER_KILLS=20 $(NEXTEST) --profile long -E 'test(/^faults::.*killed/)'

takeovers: setup ## a hundred sessions whose worker is killed at a random moment, and whose machine comes back (ARCHIVER_TAKEOVERS; FRESH=1: all again)
	@$(BUILD_TESTS)
	ARCHIVER_TAKEOVERS=$${ARCHIVER_TAKEOVERS:-100} FRESH="$(FRESH)" $(NEXTEST) --profile long --no-capture -E 'test(/^kills::/)'

faults: setup ## the tests in which servers and workers fail, five times each (FAULTS_ROUNDS; FAULTS: part of their names)
	@$(BUILD_TESTS)
	$${CARGO_TARGET_DIR:-target}/debug/with-servers tests/tools/faults.sh "$(FAULTS)"

outages: setup ## outages of a minute instead of seconds
	@$(BUILD_TESTS)
	ARCHIVER_OUTAGE=60 $(NEXTEST) --profile long -E 'test(/^faults::.*away/)'

hostile: setup ## ten thousand odd requests to the API (ARCHIVER_REQUESTS)
	@$(BUILD_TESTS)
	ARCHIVER_REQUESTS=$${ARCHIVER_REQUESTS:-10000} $(NEXTEST) --profile long -E 'test(/^hostile_api::/)'

soak: setup ## session after session for an hour (ARCHIVER_SOAK seconds), by one worker that must not grow
	@$(BUILD_TESTS)
	ARCHIVER_SOAK=$${ARCHIVER_SOAK:-3600} $(NEXTEST) --profile long -E 'test(/^soak::/)'

senders: setup ## the matrix of senders and what happens to them, in about an hour (SENDERS, EVENTS: parts of names; FRESH=1: all again)
	@$(BUILD_TESTS)
	SENDERS="$(SENDERS)" EVENTS="$(EVENTS)" FRESH="$(FRESH)" $(NEXTEST) --profile long --no-capture --run-ignored only -E 'test(/^senders::whole::/)'

simulate: setup ## a fleet in simulated time, under the faults of 10,000 seeds (ARCHIVER_SEEDS; ARCHIVER_SEED: one, with its log)
	@$(BUILD_TESTS)
	ARCHIVER_SEEDS=$${ARCHIVER_SEEDS:-10000} ARCHIVER_ROWS=$(CURDIR)/target/simulate.jsonl ARCHIVER_COMMIT="$$(git rev-parse --short HEAD)+$$(git diff HEAD | sha1sum | cut -c1-8)" \
	  $(CARGO) nextest run --locked --workspace --profile long --no-capture -E 'test(/^fleet::tests::whatever/)'

planted: setup ## seven bugs, planted one by one: the fleet in simulated time must find each within 1,000 seeds (BUGS: some of them)
	tests/tools/planted.sh $(BUGS)

fuzz: setup ## each fuzz target for ten minutes (FUZZ_SECONDS)
	command -v cargo-fuzz >/dev/null || $(CARGO) install cargo-fuzz --locked
	for target in events index webrtc_input movie; do \
	  mkdir -p tests/fuzz/corpus/$$target; seeds=tests/fuzz/seeds/$$target; \
	  [ $$target = events ] && seeds=fixtures/events/valid; \
	  RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=target/fuzz $(CARGO) fuzz run --fuzz-dir tests/fuzz --sanitizer none $$target \
	    tests/fuzz/corpus/$$target $$seeds -- -max_total_time=$${FUZZ_SECONDS:-600} -max_len=66000; \
	done

garage: ## build the S3 server garage once, for the store's contract tests
	@[ -x "$(GARAGE)" ] || $(MAKE) --no-print-directory setup PACKAGES="$(PACKAGES) libsodium-dev libzstd-dev"
	@[ -x "$(GARAGE)" ] || CARGO_PROFILE_DEV_DEBUG=0 $(CARGO) install garage --version 2.5.0 --locked --debug \
	  --no-default-features --features lmdb,system-libs --root $(CACHE)/garage --target-dir $(CACHE)/garage/target
	@rm -rf $(CACHE)/garage/target

image: setup ## build the image without a registry, and run the demo with the worker in it
	@tests/tools/apt.sh buildah debootstrap crun
	$(SUDO) env PATH="$$PATH" tests/image.sh

clean: ## remove what was built
	$(CARGO) clean
