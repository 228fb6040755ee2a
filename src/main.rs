//! The `archiver` command.

fn main() {}
