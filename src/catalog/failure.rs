//! What a database's error means: away for now, damaged, or in conflict.

use sqlx::error::{DatabaseError, Error};
use sqlx::migrate::MigrateError;

use super::CatalogError;

/// What kind of failure a database reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ErrorClass {
    Unavailable,
    Broken,
    Conflict,
}

/// The error of an operation.
pub(super) fn of(doing: &'static str, error: Error) -> CatalogError {
    let class = match &error {
        Error::Database(database) => classify(database.as_ref()),
        Error::ColumnDecode { .. }
        | Error::ColumnNotFound(_)
        | Error::ColumnIndexOutOfBounds { .. }
        | Error::Decode(_)
        | Error::Encode(_)
        | Error::TypeNotFound { .. } => ErrorClass::Broken,
        _ => ErrorClass::Unavailable,
    };
    let source = Box::new(error);
    match class {
        ErrorClass::Unavailable => CatalogError::Unavailable { doing, source },
        ErrorClass::Broken => CatalogError::Broken { doing, source },
        ErrorClass::Conflict => CatalogError::Conflict { doing, source },
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

fn classify(error: &dyn DatabaseError) -> ErrorClass {
    if error.is_unique_violation() || error.is_foreign_key_violation() || error.is_check_violation() {
        return ErrorClass::Conflict;
    }
    error.code().map_or(ErrorClass::Unavailable, |code| by_code(&code))
}

/// PostgreSQL has codes of five characters (its manual, appendix A), SQLite numbers whose low byte is the
/// primary code (sqlite.org/rescode.html).
fn by_code(code: &str) -> ErrorClass {
    if code.len() == 5 && !code.starts_with(|c: char| c.is_ascii_whitespace()) {
        return match &code[..2] {
            "23" => ErrorClass::Conflict,
            // A privilege that is missing can be granted.
            "42" if code == "42501" => ErrorClass::Unavailable,
            // Bad data, unknown tables or columns, damaged files.
            "22" | "42" | "XX" => ErrorClass::Broken,
            _ => ErrorClass::Unavailable,
        };
    }
    match code.parse::<i32>().map(|c| c & 0xff) {
        // CONSTRAINT
        Ok(19) => ErrorClass::Conflict,
        // ERROR (such as an unknown table), CORRUPT, TOOBIG, MISMATCH, NOTADB
        Ok(1 | 11 | 18 | 20 | 26) => ErrorClass::Broken,
        _ => ErrorClass::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_of_a_database_means_one_thing() {
        for (code, expected) in [
            ("57P01", ErrorClass::Unavailable),
            ("53300", ErrorClass::Unavailable),
            ("08006", ErrorClass::Unavailable),
            ("40001", ErrorClass::Unavailable),
            ("25006", ErrorClass::Unavailable),
            ("42501", ErrorClass::Unavailable),
            ("23505", ErrorClass::Conflict),
            ("42P01", ErrorClass::Broken),
            ("22021", ErrorClass::Broken),
            ("XX001", ErrorClass::Broken),
            // SQLite: BUSY, LOCKED, READONLY, IOERR, FULL, CANTOPEN
            ("5", ErrorClass::Unavailable),
            ("6", ErrorClass::Unavailable),
            ("8", ErrorClass::Unavailable),
            ("10", ErrorClass::Unavailable),
            ("13", ErrorClass::Unavailable),
            ("14", ErrorClass::Unavailable),
            ("2067", ErrorClass::Conflict),
            ("1555", ErrorClass::Conflict),
            ("1", ErrorClass::Broken),
            ("11", ErrorClass::Broken),
            ("26", ErrorClass::Broken),
            ("", ErrorClass::Unavailable),
        ] {
            assert_eq!(by_code(code), expected, "{code:?}");
        }
    }
}
