//! Databases of tests on the PostgreSQL that all tests share.

use std::process::Command;

use anyhow::ensure;
use archiver_testkit::postgres::Database;

use crate::BINARY;

/// A database without tables.
pub fn empty() -> Database {
    Database::empty().expect("a database")
}

/// A database with the program's tables: a copy of a template that the program itself has made.
pub fn with_tables() -> Database {
    let made = Database::new(|url| {
        let folder = tempfile::tempdir()?;
        let mut program = Command::new(BINARY);
        program.args(["apps", "list", "--json"]).current_dir(folder.path());
        let out =
            program.env("ARCHIVER__CATALOG__URL", url).env("ARCHIVER__WORKER__DATA_DIR", folder.path()).output()?;
        ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Ok(())
    });
    made.expect("a database")
}
