//! `archiver` records routed video sessions without anyone pressing a button.
//!
//! The modules stand in the order of the media's way, from what all use to what uses all. A module imports only modules that stand
//! before it: `tests/it/architecture.rs` holds that order. (Blank lines keep rustfmt from sorting them.)

// The domain's types: ids, times, faults, media, archive options.
pub mod model;

// Supervision, retries, journals, metrics, logs, TLS.
pub mod runtime;

// Session events: the envelope, its reading, and the policy on it.
pub mod event;

// Object stores: S3 and a directory.
pub mod store;

// Configuration: file, environment, checks.
pub mod config;

// Jobs, archives, sessions, applications and notices in SQLite or PostgreSQL.
pub mod catalog;

// Events from and to RabbitMQ.
pub mod broker;

// A session's id, region, room and access.
pub mod session;

// Media routers: rooms, streams, subscriptions.
pub mod router;

// From RTP packets to frames. Pure.
pub mod rtp;

// The capture log: segments on disk and in the store.
pub mod recording;

// `PeerConnections` and the threads that write their media.
pub mod webrtc;

// GStreamer and libavcodec: decoding, encoding, muxing, MP4 files.
pub mod media;

// From a capture log to one picture and one sound.
pub mod compose;

// Building, delivering, deriving and deleting archives.
pub mod archive;

// Jobs: from an event to an archive.
pub mod job;

// Callbacks and events about archives.
pub mod notify;

// From who is in a router's rooms to session events.
pub mod bridge;

// Whether everything is recorded.
pub mod reconcile;

// Applications and the tokens of the SDKs.
pub mod auth;

// The REST API.
pub mod api;

// Wiring of processes.
pub mod app;

// The command line.
pub mod cli;
