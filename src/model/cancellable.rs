//! The result of work that can be cancelled: cancellation is an outcome, not an error.

/// What work that can be cancelled came to.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancellable<T> {
    /// The work was done.
    Done(T),
    /// The work was cancelled before it was done.
    Cancelled,
}

impl<T> Cancellable<T> {
    /// Changes the result of work that was done.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Cancellable<U> {
        match self {
            Self::Done(value) => Cancellable::Done(change(value)),
            Self::Cancelled => Cancellable::Cancelled,
        }
    }

    /// The result of work that was done.
    #[must_use]
    pub fn done(self) -> Option<T> {
        match self {
            Self::Done(value) => Some(value),
            Self::Cancelled => None,
        }
    }
}
