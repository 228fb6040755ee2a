//! The domain's types, which every other module may use. This module imports none of them.

pub mod archive_options;
pub mod cancellable;
pub mod desired;
pub mod fault;
pub mod field_error;
pub mod ids;
pub mod intervals;
pub mod job_spec;
pub mod layout;
pub mod log_read;
pub mod media;
pub mod network;
pub mod session;
pub mod stylesheet;
pub mod time;
