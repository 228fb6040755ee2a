//! Sessions as developers create them: ids, placement, rooms, and the access of clients. Pure, but for ids that are random.

pub mod access;
pub mod geo;
pub mod id;
pub mod identity;
pub mod region;
pub mod room;
