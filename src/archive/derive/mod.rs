//! Derived archives: a clip of another archive's file, or a new composition of its segments.

pub mod clip;
pub mod queue;
pub mod recompose;
mod workspace;

pub use workspace::{Derivation, DeriveError};
