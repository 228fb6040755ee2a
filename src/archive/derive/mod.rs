//! Archives that are made of another archive: a clip of its file, or a new composition of its segments.

pub mod clip;
pub mod queue;
pub mod recompose;
mod workspace;

pub use workspace::RemakeError;
