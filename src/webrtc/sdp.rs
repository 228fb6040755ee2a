//! The candidates of an offer, which are needed before `str0m` reads it.

use std::net::{IpAddr, SocketAddr};

/// The UDP address of one `a=candidate` line (RFC 8839 section 5.1), if it is one with an IP address.
fn candidate(line: &str) -> Option<SocketAddr> {
    let mut fields = line.strip_prefix("a=candidate:")?.split_ascii_whitespace().skip(2);
    if !fields.next()?.eq_ignore_ascii_case("udp") {
        return None;
    }
    let ip: IpAddr = fields.nth(1)?.parse().ok()?;
    Some(SocketAddr::new(ip, fields.next()?.parse().ok()?))
}

/// The first UDP candidate of an offer.
pub(super) fn first_candidate(offer: &str) -> Option<SocketAddr> {
    offer.lines().find_map(candidate)
}

/// The same offer with every UDP candidate's address replaced.
pub(super) fn map_candidates(offer: &str, map: &dyn Fn(SocketAddr) -> SocketAddr) -> String {
    let mut mapped = String::with_capacity(offer.len());
    for line in offer.lines() {
        match candidate(line) {
            None => mapped.push_str(line),
            Some(address) => {
                let to = map(address);
                let fields = line.split_ascii_whitespace().enumerate().map(|(at, field)| match at {
                    4 => to.ip().to_string(),
                    5 => to.port().to_string(),
                    _ => field.to_owned(),
                });
                mapped.push_str(&fields.collect::<Vec<_>>().join(" "));
            }
        }
        mapped.push_str("\r\n");
    }
    mapped
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFER: &str = "v=0\r\na=candidate:1 1 udp 2015363327 10.211.0.1 40001 typ host\r\n\
        a=candidate:2 1 tcp 1 10.211.0.1 9 typ host\r\na=candidate:3 1 udp 1 x.local 5 typ host\r\n";

    #[test]
    fn the_first_udp_candidate_with_an_address_is_found() {
        assert_eq!(first_candidate(OFFER), Some("10.211.0.1:40001".parse().expect("address")));
        assert_eq!(first_candidate("v=0\r\na=candidate:\r\na=candidate:1 1 udp\r\n"), None);
    }

    #[test]
    fn only_udp_addresses_are_mapped() {
        let mapped = map_candidates(OFFER, &|_| "127.0.0.1:7".parse().expect("address"));
        assert!(mapped.contains("a=candidate:1 1 udp 2015363327 127.0.0.1 7 typ host\r\n"), "{mapped}");
        assert!(mapped.contains("tcp 1 10.211.0.1 9") && mapped.contains("x.local 5"), "{mapped}");
    }
}
