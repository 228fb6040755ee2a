//! A field with a value that it cannot have.

/// A field of what was asked for, and what is wrong with its value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {what}")]
pub struct FieldError {
    /// Its path, such as `layout.stylesheet`.
    pub field: String,
    /// What is wrong: the end of a sentence that begins with the field.
    pub what: String,
}

impl FieldError {
    /// An error of a field.
    pub fn new(field: &str, what: impl Into<String>) -> Self {
        Self { field: field.to_owned(), what: what.into() }
    }

    /// The same error, told of the object that has this one in a field.
    #[must_use]
    pub fn within(self, outer: &str) -> Self {
        Self { field: format!("{outer}.{}", self.field), what: self.what }
    }
}
