//! Private servers, publishers and media checks for archiver's tests, demo and benches.
//!
//! Every server is an instance of its own: free ports, its own data folder, an address of its own; it is
//! ended by its process id when its handle is dropped. Nothing here depends on `archiver`.

pub mod api;
pub mod child;
pub mod chromium;
pub mod content;
pub mod janus;
pub mod liar;
pub mod net;
pub mod postgres;
pub mod proxy;
pub mod publisher;
pub mod rabbitmq;
pub mod s3;
pub mod s3_others;
pub mod sdk;
pub mod wait;
pub mod world;
