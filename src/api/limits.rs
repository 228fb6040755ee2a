//! Rate limits: requests a second of one application, of one session's clients, and of one address without a valid token.

use std::net::IpAddr;
use std::num::NonZeroU32;

use axum::http::StatusCode;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::error::ApiError;
use crate::model::ids::{ApplicationId, SessionId};

/// The counters of all limits. [`Limits::forget`] removes those that are idle.
pub struct Limits {
    applications: DefaultKeyedRateLimiter<ApplicationId>,
    unauthenticated: DefaultKeyedRateLimiter<IpAddr>,
    sessions: DefaultKeyedRateLimiter<SessionId>,
}

impl Limits {
    /// Limits of `per_second` requests, with bursts of twice as many.
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        let rate = NonZeroU32::new(per_second).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(rate).allow_burst(rate.saturating_mul(nonzero(2)));
        Self {
            applications: RateLimiter::keyed(quota),
            unauthenticated: RateLimiter::keyed(quota),
            sessions: RateLimiter::keyed(quota),
        }
    }

    /// Counts a request of an application.
    ///
    /// # Errors
    /// 429 above the limit.
    pub fn application(&self, application: &ApplicationId) -> Result<(), ApiError> {
        self.applications.check_key(application).map_err(|_| too_many())
    }

    /// Counts a client that joins a session. Clients must not use up the limit of their application.
    ///
    /// # Errors
    /// 429 above the limit.
    pub fn client(&self, session: &SessionId) -> Result<(), ApiError> {
        self.sessions.check_key(session).map_err(|_| too_many())
    }

    /// Counts a request without a valid token.
    ///
    /// # Errors
    /// 429 above the limit.
    pub fn unauthenticated(&self, address: IpAddr) -> Result<(), ApiError> {
        self.unauthenticated.check_key(&address).map_err(|_| too_many())
    }

    /// Removes idle counters, so that memory stays bounded.
    pub fn forget(&self) {
        self.applications.retain_recent();
        self.unauthenticated.retain_recent();
        self.sessions.retain_recent();
    }
}

const fn nonzero(number: u32) -> NonZeroU32 {
    match NonZeroU32::new(number) {
        Some(number) => number,
        None => NonZeroU32::MIN,
    }
}

fn too_many() -> ApiError {
    ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too many requests: wait a second, and send fewer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_the_rate_may_come_at_once_and_others_are_not_touched() {
        let limits = Limits::new(5);
        let (a, b) = ("a".parse().expect("id"), "b".parse().expect("id"));
        let let_in = (0..50).filter(|_| limits.application(&a).is_ok()).count();
        assert!((10..=12).contains(&let_in), "{let_in}");
        assert!(limits.application(&b).is_ok());
    }
}
