//! When a token is valid: `exp`, `iat` and `nbf` (RFC 7519, section 4.1) of request tokens and client tokens. Pure.
//!
//! The rules are those of Vonage, whose SDKs for Java and .NET set no `exp`. All limits tolerate [`SKEW`].
//!
//! ```text
//! claims          ends at            refused when it ends later than
//! iat, exp        exp                iat + maximum
//! iat             iat + default      -
//! exp             exp                now + maximum
//! none            refused            -
//! ```

use std::time::Duration;

use serde_json::{Map, Value};

use crate::model::time::Wallclock;

/// Clocks of two machines may differ by this.
pub const SKEW: Duration = Duration::from_secs(60);

/// Why a token is not valid, or not now. The texts go to the client that sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ValidityError {
    /// A time of the token is not a number, or an infinite one.
    #[error("the token's `{0}` is not a number of seconds since 1970")]
    NotSeconds(&'static str),
    /// Nothing says when the token ends.
    #[error("the token has no `exp` and no `iat`: set at least one of them")]
    NoExpiry,
    /// The token ended at its `exp`.
    #[error("the token has expired: create a new one; if it is new, check the clock of the machine that created it")]
    Expired,
    /// The token has no `exp`, and its default lifetime is over.
    #[error("the token has no `exp` and is older than {}: create a new one, or set `exp`", words(*.0))]
    TooOld(Duration),
    /// The token was issued, or becomes valid, in the future.
    #[error("the token is not valid yet: check `iat`, `nbf` and the clock of the machine that created it")]
    NotYetValid,
    /// The token ends later than its kind may.
    #[error("the token lasts too long: set `exp`, in seconds since 1970, to at most {} after `iat`", words(*.0))]
    LifetimeTooLong(Duration),
}

/// How long tokens of one kind may be valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// Without `exp`, counted from `iat`.
    pub default: Duration,
    /// With `exp`, counted from `iat`; without `iat`, from now.
    pub max: Duration,
}

/// The times that a token states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Times {
    /// `iat`.
    pub issued_at: Option<Wallclock>,
    /// `nbf`.
    pub not_before: Option<Wallclock>,
    /// `exp`.
    pub expires_at: Option<Wallclock>,
}

/// When a token is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    times: Times,
    lifetime: Lifetime,
    expires_at: Wallclock,
}

impl Validity {
    /// From the times of a token, and the limits for its kind.
    ///
    /// # Errors
    /// [`ValidityError::NoExpiry`].
    pub fn new(times: Times, lifetime: Lifetime) -> Result<Self, ValidityError> {
        let default = times.issued_at.map(|issued_at| issued_at + lifetime.default);
        let expires_at = times.expires_at.or(default).ok_or(ValidityError::NoExpiry)?;
        Ok(Self { times, lifetime, expires_at })
    }

    /// When the token ends.
    pub const fn expires_at(&self) -> Wallclock {
        self.expires_at
    }

    /// Whether the token is valid now.
    ///
    /// # Errors
    /// See [`ValidityError`].
    pub fn check(&self, now: Wallclock) -> Result<(), ValidityError> {
        let Times { issued_at, not_before, expires_at } = self.times;
        if now > self.expires_at + SKEW {
            let too_old = ValidityError::TooOld(self.lifetime.default);
            return Err(if expires_at.is_some() { ValidityError::Expired } else { too_old });
        }
        if [issued_at, not_before].into_iter().flatten().any(|start| start > now + SKEW) {
            return Err(ValidityError::NotYetValid);
        }
        if self.expires_at > issued_at.unwrap_or(now) + self.lifetime.max + SKEW {
            return Err(ValidityError::LifetimeTooLong(self.lifetime.max));
        }
        Ok(())
    }
}

/// A time of a token as the first of these claims states it. A claim that is `null` is absent.
///
/// # Errors
/// When that claim is not a number: SDKs send numbers, and a guess about anything else could make a token last longer.
pub fn claimed(claims: &Map<String, Value>, names: &[&'static str]) -> Result<Option<Wallclock>, ValidityError> {
    let stated = names.iter().find_map(|name| claims.get(*name).filter(|value| !value.is_null()).map(|v| (*name, v)));
    let Some((name, value)) = stated else { return Ok(None) };
    value.as_f64().and_then(instant).map(Some).ok_or(ValidityError::NotSeconds(name))
}

/// Seconds since 1970 as an instant. What is outside of its range becomes the nearest end of it.
#[allow(clippy::cast_possible_truncation)]
pub fn instant(seconds: f64) -> Option<Wallclock> {
    // The cast saturates.
    seconds.is_finite().then_some(Wallclock((seconds * 1e6) as i64))
}

/// `15 minutes`, `24 hours`, `30 days`.
fn words(duration: Duration) -> String {
    let minutes = duration.as_secs() / 60;
    match minutes {
        m if m >= 48 * 60 => format!("{} days", m / (24 * 60)),
        m if m >= 60 => format!("{} hours", m / 60),
        m => format!("{m} minutes"),
    }
}

#[cfg(test)]
#[path = "validity_tests.rs"]
mod tests;
