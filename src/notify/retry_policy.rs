//! When a callback is tried again, and where it may go. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::catalog::{Disposition, NoticeRow, NoticeTarget};
use crate::model::network::Network;
use crate::model::time::Wallclock;

/// The first pause; each is twice the one before (Vonage's rule since 2024).
pub const PAUSE_MIN: Duration = Duration::from_secs(5);
/// The longest pause.
pub const PAUSE_MAX: Duration = Duration::from_secs(15 * 60);
/// From the first try on; then it is kept as undelivered.
pub const TRIES_LAST: Duration = Duration::from_secs(24 * 3600);

/// When a callback is tried again that has failed `failed` times, for the first time at `first`. `None` when it is given up.
#[must_use]
pub fn next_try(first: Wallclock, failed: u32, now: Wallclock) -> Option<Wallclock> {
    let doubled = PAUSE_MIN.saturating_mul(1_u32.checked_shl(failed.saturating_sub(1)).unwrap_or(u32::MAX));
    let next = now + doubled.min(PAUSE_MAX);
    (next.since(first) <= TRIES_LAST).then_some(next)
}

/// The first pause before an event is published again; each is twice the one before. The broker is one for all, and waited for
/// by itself: this only keeps one event that it refuses from being tried without end.
pub const EVENT_PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest.
pub const EVENT_PAUSE_MAX: Duration = Duration::from_secs(30);

/// What became of a try to tell something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tried {
    /// It was told.
    Delivered,
    /// It was not, in words.
    Failed(String),
    /// It cannot be told, and will not be by itself, in words: there is nobody to tell any more, or the catalog is damaged.
    Gone(String),
}

/// What happens to a notice after a try that ended at `now`. Callbacks are given up after a day; events never, for the broker
/// is part of the deployment and comes back.
#[must_use]
pub fn settle(notice: &NoticeRow, tried: &Tried, now: Wallclock) -> Disposition {
    match (tried, notice.target) {
        (Tried::Delivered, _) => Disposition::Delivered,
        (Tried::Gone(_), _) => Disposition::Undelivered,
        (Tried::Failed(_), NoticeTarget::Callback) => {
            next_try(notice.first_at.unwrap_or(now), notice.failures.saturating_add(1), now)
                .map_or(Disposition::Undelivered, Disposition::Again)
        }
        (Tried::Failed(_), NoticeTarget::Event) => {
            let doubled = EVENT_PAUSE_MIN.saturating_mul(1_u32.checked_shl(notice.failures).unwrap_or(u32::MAX));
            Disposition::Again(now + doubled.min(EVENT_PAUSE_MAX))
        }
    }
}

/// Whether a callback may go to an address: one on the public net, or in a network that the configuration names. It is asked when
/// an address is set, and again of the very address that is connected to: a name may mean another one by then.
#[must_use]
pub fn may_connect(address: IpAddr, allowed: &[Network]) -> bool {
    let address = plain(address);
    allowed.iter().any(|network| network.contains(address))
        || match address {
            IpAddr::V4(v4) => is_public_v4(v4),
            IpAddr::V6(v6) => is_public_v6(v6),
        }
}

/// An IPv4 address that an IPv6 address stands for is looked at as that: ::ffff:0:0/96 (RFC 4291), 64:ff9b::/96 (RFC 6052),
/// 2002::/16 (RFC 3056).
fn plain(address: IpAddr) -> IpAddr {
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

/// Not one of the special-purpose networks of RFC 6890 and its successors.
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

/// Global unicast (2000::/3) without what is for documentation (2001:db8::/32, 3fff::/20) and for protocols (2001::/23).
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
            let Some(next) = next_try(first, failed, now) else { break };
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
