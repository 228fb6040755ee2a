//! Sessions as developers create them: their ids, what is asked of them, where their rooms are, and how clients get in. Pure.

pub mod access;
pub mod create;
pub mod geo;
pub mod id;
pub mod region;
pub mod room;
