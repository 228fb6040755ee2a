//! Sessions as developers create them: their ids, and what is asked of them. Pure.

pub mod create;
pub mod id;
