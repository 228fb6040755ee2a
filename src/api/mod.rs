//! The REST API that the SDKs of Vonage and `OpenTok` call.
//!
//! ```text
//! request ─► id, time limit, count ─► caller: token ─► application ─► rate ─► handler ─► catalog, store, router
//!                                          403            path's project?        │
//!                                                                                └─► wake-up: workers look at the catalog now
//! ```
//!
//! A change of a running archive is stored in the catalog, where it survives the worker that owns the job. The API calls no worker.

mod caller;
pub mod deletion_queue;
mod dto;
mod error;
mod extract;
mod handlers;
mod limits;
mod links;
mod middleware;
mod notice;
mod openapi;
mod rooms;
mod router;
mod server;
mod state;

pub use notice::NoticeBody;
pub use openapi::document;
pub use server::{ListenError, listen};
pub use state::{Api, LINKS_SECRET, Shared};
