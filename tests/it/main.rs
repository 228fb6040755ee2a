//! The integration tests: one binary, a module for each behaviour.
//!
//! The tests run against real servers. Tests that do not break a server share one RabbitMQ, one PostgreSQL and one Janus
//! (`archiver_testkit::shared`); a test that kills or freezes a server starts its own.
#![allow(missing_docs, clippy::disallowed_methods, clippy::needless_pass_by_value, clippy::unwrap_used)]

mod api;
mod api_auth;
mod api_errors;
mod architecture;
mod b_frames;
mod bridge;
mod broker;
mod callbacks;
mod capture;
mod catalog;
mod check;
mod clip;
mod commands;
mod compose;
mod compose_damaged;
mod content;
mod drain;
mod encrypted;
mod faults;
mod hostile;
mod hostile_api;
mod incomplete;
mod individual;
mod janus;
mod kills;
mod last_pictures;
mod links;
mod parked;
mod partitions;
mod pipelines;
mod program;
mod readme;
mod reconcile;
mod rolling;
mod router;
mod router_inputs;
mod sdk_quirks;
mod sdks;
mod senders;
mod session;
mod soak;
mod standstill;
mod store;
mod support;
mod takeover;
mod verify;
mod waiting;

/// The program under test.
const BINARY: &str = env!("CARGO_BIN_EXE_archiver");
