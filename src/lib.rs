//! `archiver` records routed video sessions without anyone pressing a button.
//!
//! The modules stand in the order of the way of the media; `README.md` has the promise and the picture.

pub mod api;
pub mod app;
pub mod archive;
pub mod auth;
pub mod bridge;
pub mod broker;
pub mod catalog;
pub mod cli;
pub mod compose;
pub mod config;
pub mod event;
pub mod job;
pub mod media;
pub mod model;
pub mod notify;
pub mod recording;
pub mod router;
pub mod rtp;
pub mod runtime;
pub mod session;
pub mod store;
pub mod webrtc;
