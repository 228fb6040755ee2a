//! Notices to developers of each change of status.

pub mod rules;
