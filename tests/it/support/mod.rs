//! What several modules share and the kit cannot have, because it needs types of `archiver`.

pub mod api;
pub mod archives;
pub mod catalogs;
pub mod coded;
pub mod composed;
pub mod databases;
pub mod fragments;
pub mod h264;
pub mod logs;
pub mod matroska;
pub mod recorded;
pub mod room_events;
pub mod rows;
pub mod sdk_errors;
pub mod strict;
