//! Bodies and queries of requests, and bodies of answers, as the SDKs write and read them.

pub mod document;
pub mod request;
pub mod response;
