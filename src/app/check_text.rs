//! The words of `archiver check`.

use crate::model::fault::{HasFault, chain};

/// What was found, or the error with its fault's advice.
pub(super) fn result_text<T, E: HasFault>(
    result: Result<T, E>,
    text: impl FnOnce(T) -> String,
) -> Result<String, String> {
    result.map(text).map_err(|e| format!("{}; {}", chain(&e), e.fault().kind.advice()))
}
