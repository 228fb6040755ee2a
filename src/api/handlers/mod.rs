//! One file for each kind of resource.

pub mod archive_extensions;
pub mod archives;
pub mod callbacks;
pub mod downloads;
pub mod join;
pub mod operator;
pub mod sessions;
