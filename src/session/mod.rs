//! Sessions as developers create them: ids, creation options, placement, rooms, and the access of clients. Pure.

pub mod access;
pub mod create;
pub mod geo;
pub mod id;
pub mod region;
pub mod room;
