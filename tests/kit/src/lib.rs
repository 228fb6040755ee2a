//! Private servers, publishers and media checks for archiver's tests, demo and benches.
//!
//! A test that breaks a server has a server of its own, with free ports, a data folder and an address; the server is ended by its
//! process id when its handle is dropped. All other tests share servers ([`shared`]). Nothing here depends on `archiver`.

pub mod api;
pub mod child;
pub mod chromium;
pub mod content;
pub mod janus;
pub mod machine;
pub mod net;
pub mod postgres;
pub mod proxy;
pub mod publisher;
pub mod rabbitmq;
pub mod s3;
pub mod s3_others;
pub mod scripted_janus;
pub mod sdk;
pub mod sdk_tokens;
pub mod shared;
pub mod wait;
mod warden;
pub mod world;
