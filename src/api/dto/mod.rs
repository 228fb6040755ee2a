//! Requests and answers as the SDKs write and read them.
//!
//! A request is one type. Its `Deserialize` is what handlers parse, behind the lenient readers of [`lenient`]; its `ToSchema` or
//! `IntoParams` is what the OpenAPI document shows.

pub mod archive_extensions;
pub mod archives;
pub mod callbacks;
pub mod lenient;
pub mod path;
pub mod query;
pub mod response;
pub mod sessions;
