//! What a database's error means: away for now, damaged, or in conflict.

use sqlx::error::{DatabaseError, Error};
use sqlx::migrate::MigrateError;

use super::CatalogError;

/// What kind of failure a database reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Unavailable,
    Broken,
    Conflict,
}

/// The error of an operation.
pub(super) fn of(doing: &'static str, error: Error) -> CatalogError {
    let meaning = match &error {
        Error::Database(told) => meaning(told.as_ref()),
        Error::ColumnDecode { .. }
        | Error::ColumnNotFound(_)
        | Error::ColumnIndexOutOfBounds { .. }
        | Error::Decode(_)
        | Error::Encode(_)
        | Error::TypeNotFound { .. } => Meaning::Broken,
        _ => Meaning::Unavailable,
    };
    let source = Box::new(error);
    match meaning {
        Meaning::Unavailable => CatalogError::Unavailable { doing, source },
        Meaning::Broken => CatalogError::Broken { doing, source },
        Meaning::Conflict => CatalogError::Conflict { doing, source },
    }
}

/// The error of a migration. One that was changed after it was applied, or that only a newer program knows, is no
/// passing failure.
pub(super) fn of_migration(doing: &'static str, error: MigrateError) -> CatalogError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => of(doing, error),
        other => CatalogError::Broken { doing, source: Box::new(other) },
    }
}

fn meaning(told: &dyn DatabaseError) -> Meaning {
    if told.is_unique_violation() || told.is_foreign_key_violation() || told.is_check_violation() {
        return Meaning::Conflict;
    }
    told.code().map_or(Meaning::Unavailable, |code| by_code(&code))
}

/// PostgreSQL has codes of five characters (its manual, appendix A), SQLite numbers whose low byte is the
/// primary code (sqlite.org/rescode.html).
fn by_code(code: &str) -> Meaning {
    if code.len() == 5 && !code.starts_with(|c: char| c.is_ascii_whitespace()) {
        return match &code[..2] {
            "23" => Meaning::Conflict,
            // A privilege that is missing can be granted.
            "42" if code == "42501" => Meaning::Unavailable,
            // Bad data, unknown tables or columns, damaged files.
            "22" | "42" | "XX" => Meaning::Broken,
            _ => Meaning::Unavailable,
        };
    }
    match code.parse::<i32>().map(|c| c & 0xff) {
        // CONSTRAINT
        Ok(19) => Meaning::Conflict,
        // ERROR (such as an unknown table), CORRUPT, TOOBIG, MISMATCH, NOTADB
        Ok(1 | 11 | 18 | 20 | 26) => Meaning::Broken,
        _ => Meaning::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_of_a_database_means_one_thing() {
        for (code, expected) in [
            ("57P01", Meaning::Unavailable),
            ("53300", Meaning::Unavailable),
            ("08006", Meaning::Unavailable),
            ("40001", Meaning::Unavailable),
            ("25006", Meaning::Unavailable),
            ("42501", Meaning::Unavailable),
            ("23505", Meaning::Conflict),
            ("42P01", Meaning::Broken),
            ("22021", Meaning::Broken),
            ("XX001", Meaning::Broken),
            // SQLite: BUSY, LOCKED, READONLY, IOERR, FULL, CANTOPEN
            ("5", Meaning::Unavailable),
            ("6", Meaning::Unavailable),
            ("8", Meaning::Unavailable),
            ("10", Meaning::Unavailable),
            ("13", Meaning::Unavailable),
            ("14", Meaning::Unavailable),
            ("2067", Meaning::Conflict),
            ("1555", Meaning::Conflict),
            ("1", Meaning::Broken),
            ("11", Meaning::Broken),
            ("26", Meaning::Broken),
            ("", Meaning::Unavailable),
        ] {
            assert_eq!(by_code(code), expected, "{code:?}");
        }
    }
}
