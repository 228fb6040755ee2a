//! When a notification is sent again, and which addresses callbacks may connect to. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::catalog::{Disposition, NoticeRow, NoticeTarget};
use crate::model::network::Network;
use crate::model::time::Wallclock;

/// Back-off after the first failure; doubles with each further one (Vonage's rule since 2024).
pub const BACKOFF_MIN: Duration = Duration::from_secs(5);
/// The longest back-off.
pub const BACKOFF_MAX: Duration = Duration::from_secs(15 * 60);
/// Attempts are made for this long, counted from the first one. Then the callback is kept as undelivered.
pub const ATTEMPTS_FOR: Duration = Duration::from_secs(24 * 3600);

/// When a callback is sent again after `failed` failures, if its first attempt was at `first`. `None` when it is given up.
#[must_use]
pub fn next_attempt(first: Wallclock, failed: u32, now: Wallclock) -> Option<Wallclock> {
    let doubled = BACKOFF_MIN.saturating_mul(1_u32.checked_shl(failed.saturating_sub(1)).unwrap_or(u32::MAX));
    let next = now + doubled.min(BACKOFF_MAX);
    (next.since(first) <= ATTEMPTS_FOR).then_some(next)
}

/// Back-off before an event is published again; doubles with each failure. Reconnecting to the broker has a back-off of its own: this
/// one only slows down attempts with an event that the broker refuses.
pub const EVENT_BACKOFF_MIN: Duration = Duration::from_secs(1);
/// The longest back-off of an event.
pub const EVENT_BACKOFF_MAX: Duration = Duration::from_secs(30);

/// The result of one attempt to deliver a notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempt {
    /// The receiver took it.
    Delivered,
    /// It failed and may be tried again; with the error.
    Failed(String),
    /// No further attempt can succeed, with the reason: the receiver is gone, or the catalog is damaged.
    Undeliverable(String),
}

/// Decides what follows an attempt that ended at `now`. Callbacks are given up after a day; events never, because the broker is
/// part of the deployment.
#[must_use]
pub fn disposition(notice: &NoticeRow, attempt: &Attempt, now: Wallclock) -> Disposition {
    match (attempt, notice.target) {
        (Attempt::Delivered, _) => Disposition::Delivered,
        (Attempt::Undeliverable(_), _) => Disposition::Undelivered,
        (Attempt::Failed(_), NoticeTarget::Callback) => {
            next_attempt(notice.first_at.unwrap_or(now), notice.failures.saturating_add(1), now)
                .map_or(Disposition::Undelivered, Disposition::Again)
        }
        (Attempt::Failed(_), NoticeTarget::Event) => {
            let doubled = EVENT_BACKOFF_MIN.saturating_mul(1_u32.checked_shl(notice.failures).unwrap_or(u32::MAX));
            Disposition::Again(now + doubled.min(EVENT_BACKOFF_MAX))
        }
    }
}

/// Whether callbacks may connect to an address: it is public, or in a network that the configuration allows. Checked when a URL is
/// set, and again for the address that is connected to, because the name may resolve to another one by then.
#[must_use]
pub fn may_connect(address: IpAddr, allowed: &[Network]) -> bool {
    let address = embedded_ipv4_or_self(address);
    allowed.iter().any(|network| network.contains(address))
        || match address {
            IpAddr::V4(v4) => is_public_v4(v4),
            IpAddr::V6(v6) => is_public_v6(v6),
        }
}

/// The IPv4 address that an IPv6 address embeds, else the address itself: ::ffff:0:0/96 (RFC 4291), 64:ff9b::/96 (RFC 6052),
/// 2002::/16 (RFC 3056).
fn embedded_ipv4_or_self(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let s = v6.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match s {
        [0, 0, 0, 0, 0, 0xffff | 0, high, low] if (high, low) != (0, 0) && (high, low) != (0, 1) => {
            v4(high, low).into()
        }
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low).into(),
        [0x2002, high, low, ..] => v4(high, low).into(),
        _ => address,
    }
}

/// Whether the address is in none of the special-purpose networks of RFC 6890 and its successors.
fn is_public_v4(address: Ipv4Addr) -> bool {
    const SPECIAL: &[(Ipv4Addr, u8)] = &[
        (Ipv4Addr::new(0, 0, 0, 0), 8),
        (Ipv4Addr::new(10, 0, 0, 0), 8),
        (Ipv4Addr::new(100, 64, 0, 0), 10),
        (Ipv4Addr::new(127, 0, 0, 0), 8),
        (Ipv4Addr::new(169, 254, 0, 0), 16),
        (Ipv4Addr::new(172, 16, 0, 0), 12),
        (Ipv4Addr::new(192, 0, 0, 0), 24),
        (Ipv4Addr::new(192, 0, 2, 0), 24),
        (Ipv4Addr::new(192, 88, 99, 0), 24),
        (Ipv4Addr::new(192, 168, 0, 0), 16),
        (Ipv4Addr::new(198, 18, 0, 0), 15),
        (Ipv4Addr::new(198, 51, 100, 0), 24),
        (Ipv4Addr::new(203, 0, 113, 0), 24),
        (Ipv4Addr::new(224, 0, 0, 0), 3),
    ];
    !SPECIAL.iter().any(|(base, bits)| Network::new((*base).into(), *bits).contains(IpAddr::V4(address)))
}

/// Global unicast (2000::/3), except the ranges for documentation (2001:db8::/32, 3fff::/20) and for protocol assignments (2001::/23).
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    a & 0xe000 == 0x2000 && !(a == 0x2001 && (b == 0x0db8 || b < 0x0200)) && !(a == 0x3fff && b < 0x1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_from_five_seconds_to_a_quarter_of_an_hour_for_a_day() {
        let (first, mut now, mut pauses) = (Wallclock(0), Wallclock(0), Vec::new());
        for failed in 1.. {
            let Some(next) = next_attempt(first, failed, now) else { break };
            pauses.push(next.since(now).as_secs());
            now = next;
        }
        assert_eq!(pauses[..9], [5, 10, 20, 40, 80, 160, 320, 640, 900]);
        assert!(pauses[9..].iter().all(|pause| *pause == 900));
        let day: u64 = pauses.iter().sum();
        assert!((24 * 3600 - 900..=24 * 3600).contains(&day), "{day}");
    }

    #[test]
    fn callbacks_go_to_the_public_net_and_where_the_configuration_allows() {
        for (address, may) in [
            ("93.184.216.34", true),
            ("2606:2800:220:1::1", true),
            ("127.0.0.1", false),
            ("0.0.0.0", false),
            ("10.1.2.3", false),
            ("172.31.255.255", false),
            ("172.32.0.1", true),
            ("192.168.1.1", false),
            ("169.254.169.254", false),
            ("100.64.0.1", false),
            ("198.19.0.1", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("::", false),
            ("::1", false),
            ("fe80::1", false),
            ("fd00::1", false),
            ("ff02::1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:93.184.216.34", true),
            ("64:ff9b::a9fe:a9fe", false),
            ("2002:7f00:1::", false),
            ("2001:db8::1", false),
            ("2001::1", false),
        ] {
            assert_eq!(may_connect(address.parse().expect(address), &[]), may, "{address}");
        }
        let allowed = ["10.1.0.0/16".parse().expect("network"), "fd00::/8".parse().expect("network")];
        for (address, may) in [("10.1.255.1", true), ("10.2.0.1", false), ("fd12::1", true), ("fe80::1", false)] {
            assert_eq!(may_connect(address.parse().expect(address), &allowed), may, "{address}");
        }
        for bad in ["10.0.0.0", "10.0.0.0/33", "fd00::/129", "x/8", ""] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }
}
