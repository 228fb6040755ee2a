//! The table of the rules: each limit one second inside and one second outside, with skew.

use proptest::prelude::*;
use serde_json::json;

use super::ValidityError::{Expired, LifetimeTooLong, NoExpiry, NotSeconds, NotYetValid, TooOld};
use super::*;

const NOW: i64 = 1_800_000_000;
const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const REQUEST: Lifetime = Lifetime { default: Duration::from_secs(15 * 60), max: Duration::from_secs(24 * 3600) };
const CLIENT: Lifetime = Lifetime { default: Duration::from_secs(24 * 3600), max: Duration::from_secs(30 * 24 * 3600) };

/// `iat`, `nbf` and `exp` in seconds after [`NOW`].
fn check(lifetime: Lifetime, [iat, nbf, exp]: [Option<i64>; 3]) -> Result<(), ValidityError> {
    let at = |seconds: i64| Wallclock((NOW + seconds) * 1_000_000);
    let times = Times { issued_at: iat.map(at), not_before: nbf.map(at), expires_at: exp.map(at) };
    Validity::new(times, lifetime)?.check(at(0))
}

#[test]
fn each_limit_holds_to_the_second() {
    let too_old = |of: Lifetime| Err(TooOld(of.default));
    let too_long = |of: Lifetime| Err(LifetimeTooLong(of.max));
    let (default, max) = (|of: Lifetime| of.default.as_secs() as i64, |of: Lifetime| of.max.as_secs() as i64);
    for of in [REQUEST, CLIENT] {
        let rows = [
            // Neither exp nor iat.
            ([None, None, None], Err(NoExpiry)),
            ([None, Some(0), None], Err(NoExpiry)),
            // Without exp: from iat to iat + the default.
            ([Some(MINUTE), None, None], Ok(())),
            ([Some(MINUTE + 1), None, None], Err(NotYetValid)),
            ([Some(0), None, None], Ok(())),
            ([Some(-default(of)), None, None], Ok(())),
            ([Some(-default(of) - MINUTE), None, None], Ok(())),
            ([Some(-default(of) - MINUTE - 1), None, None], too_old(of)),
            // With exp: until exp.
            ([Some(-HOUR), None, Some(-MINUTE)], Ok(())),
            ([Some(-HOUR), None, Some(-MINUTE - 1)], Err(Expired)),
            // With exp: iat + the maximum at most, however little of it is left.
            ([Some(0), None, Some(max(of) + MINUTE)], Ok(())),
            ([Some(0), None, Some(max(of) + MINUTE + 1)], too_long(of)),
            ([Some(HOUR - max(of) - MINUTE), None, Some(HOUR)], Ok(())),
            ([Some(HOUR - max(of) - MINUTE - 1), None, Some(HOUR)], too_long(of)),
            ([Some(-1000 * DAY), None, Some(HOUR)], too_long(of)),
            // With exp and a future iat.
            ([Some(MINUTE), None, Some(HOUR)], Ok(())),
            ([Some(MINUTE + 1), None, Some(HOUR)], Err(NotYetValid)),
            // With exp, without iat: now + the maximum at most.
            ([None, None, Some(max(of) + MINUTE)], Ok(())),
            ([None, None, Some(max(of) + MINUTE + 1)], too_long(of)),
            ([None, None, Some(-MINUTE)], Ok(())),
            ([None, None, Some(-MINUTE - 1)], Err(Expired)),
            // Not before nbf.
            ([Some(0), Some(MINUTE), None], Ok(())),
            ([Some(0), Some(MINUTE + 1), None], Err(NotYetValid)),
            ([None, Some(MINUTE), Some(HOUR)], Ok(())),
            ([None, Some(MINUTE + 1), Some(HOUR)], Err(NotYetValid)),
        ];
        for (times, expected) in rows {
            assert_eq!(check(of, times), expected, "[iat, nbf, exp] = {times:?}, {of:?}");
        }
    }
}

#[test]
fn a_time_is_a_finite_number_of_seconds() {
    let rows = [
        (json!(null), Ok(None)),
        (json!(1_800_000_000), Ok(Some(Wallclock(1_800_000_000_000_000)))),
        (json!(1_800_000_000.25), Ok(Some(Wallclock(1_800_000_000_250_000)))),
        (json!(0), Ok(Some(Wallclock(0)))),
        (json!(-1), Ok(Some(Wallclock(-1_000_000)))),
        (json!(u64::MAX), Ok(Some(Wallclock(i64::MAX)))),
        (json!(1e300), Ok(Some(Wallclock(i64::MAX)))),
        (json!(-1e300), Ok(Some(Wallclock(i64::MIN)))),
        (json!("1800000000"), Err(NotSeconds("exp"))),
        (json!(""), Err(NotSeconds("exp"))),
        (json!(true), Err(NotSeconds("exp"))),
        (json!([1_800_000_000]), Err(NotSeconds("exp"))),
        (json!({}), Err(NotSeconds("exp"))),
    ];
    for (value, expected) in rows {
        let claims = Map::from_iter([("exp".to_owned(), value.clone())]);
        assert_eq!(claimed(&claims, &["exp"]), expected, "exp = {value}");
    }
    for seconds in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(instant(seconds), None, "{seconds}");
    }
    assert_eq!(claimed(&Map::new(), &["exp"]), Ok(None), "absent");
}

#[test]
fn the_first_claim_that_is_not_null_counts() {
    let (one, two) = (Ok(Some(Wallclock(1_000_000))), Ok(Some(Wallclock(2_000_000))));
    let rows = [
        (json!({ "exp": 1, "expire_time": 2 }), one),
        (json!({ "exp": 1, "expire_time": "nonsense" }), one),
        (json!({ "exp": null, "expire_time": 2 }), two),
        (json!({ "expire_time": 2 }), two),
        (json!({ "expire_time": "2" }), Err(NotSeconds("expire_time"))),
        (json!({ "exp": "1", "expire_time": 2 }), Err(NotSeconds("exp"))),
    ];
    for (claims, expected) in rows {
        let claims = claims.as_object().expect("claims");
        assert_eq!(claimed(claims, &["exp", "expire_time"]), expected, "{claims:?}");
    }
}

#[test]
fn numbers_out_of_range_make_no_token_valid() {
    let claims = |iat: f64, exp: Option<f64>| Times {
        issued_at: instant(iat),
        not_before: None,
        expires_at: exp.and_then(instant),
    };
    let now = Wallclock(NOW * 1_000_000);
    let rows = [
        (claims(-1e300, None), TooOld(REQUEST.default)),
        (claims(1e300, None), NotYetValid),
        (claims(1e300, Some(1e300)), NotYetValid),
        (claims(-1e300, Some(1e300)), LifetimeTooLong(REQUEST.max)),
        (claims(NOW as f64, Some(1e300)), LifetimeTooLong(REQUEST.max)),
        (claims(NOW as f64, Some(-1e300)), Expired),
        // Milliseconds instead of seconds.
        (claims(NOW as f64 * 1e3, None), NotYetValid),
        (claims(NOW as f64, Some((NOW + HOUR) as f64 * 1e3)), LifetimeTooLong(REQUEST.max)),
    ];
    for (times, expected) in rows {
        let checked = Validity::new(times, REQUEST).and_then(|validity| validity.check(now));
        assert_eq!(checked, Err(expected), "{times:?}");
    }
}

#[test]
fn an_error_says_what_to_do() {
    let rows = [
        (NotSeconds("exp"), "the token's `exp` is not a number of seconds since 1970"),
        (NoExpiry, "the token has no `exp` and no `iat`: set at least one of them"),
        (
            TooOld(REQUEST.default),
            "the token has no `exp` and is older than 15 minutes: create a new one, or set `exp`",
        ),
        (TooOld(CLIENT.default), "the token has no `exp` and is older than 24 hours: create a new one, or set `exp`"),
        (
            LifetimeTooLong(REQUEST.max),
            "the token lasts too long: set `exp`, in seconds since 1970, to at most 24 hours after `iat`",
        ),
        (
            LifetimeTooLong(CLIENT.max),
            "the token lasts too long: set `exp`, in seconds since 1970, to at most 30 days after `iat`",
        ),
    ];
    for (error, expected) in rows {
        assert_eq!(error.to_string(), expected);
    }
}

proptest! {
    #[test]
    fn no_token_is_valid_outside_of_its_limits(
        iat in proptest::option::of(any::<f64>()),
        nbf in proptest::option::of(any::<f64>()),
        exp in proptest::option::of(any::<f64>()),
        near in [-40 * DAY..40 * DAY, -40 * DAY..40 * DAY, -40 * DAY..40 * DAY],
        is_near in any::<[bool; 3]>(),
        now in NOW - DAY..NOW + DAY,
    ) {
        // Half of the times are near now: random floats almost never are.
        let time = |at: usize, any: Option<f64>| {
            any.map(|any| if is_near[at] { (NOW + near[at]) as f64 } else { any }).and_then(instant)
        };
        let times = Times { issued_at: time(0, iat), not_before: time(1, nbf), expires_at: time(2, exp) };
        let now = Wallclock(now * 1_000_000);
        if let Ok(validity) = Validity::new(times, REQUEST) && validity.check(now).is_ok() {
            prop_assert!(now <= validity.expires_at() + SKEW, "{times:?} is valid at {now}");
            prop_assert!(times.not_before.is_none_or(|start| start <= now + SKEW), "{times:?} is valid at {now}");
            let from = times.issued_at.unwrap_or(now);
            prop_assert!(from <= now + SKEW, "{times:?} is valid at {now}");
            prop_assert!(now <= from + REQUEST.max + SKEW + SKEW, "{times:?} is valid at {now}");
        }
    }
}
