//! The candidates of an offer, which are needed before `str0m` reads it.

use std::net::{IpAddr, SocketAddr};

/// Candidates of one offer that are looked at, and of one connection that are added later.
pub(super) const CANDIDATES_MAX: usize = 64;

/// The UDP address of one `candidate` attribute (RFC 8839 section 5.1), if it is one with an IP address.
pub(super) fn candidate(line: &str) -> Option<SocketAddr> {
    let attribute = line.strip_prefix("a=").unwrap_or(line);
    let mut fields = attribute.strip_prefix("candidate:")?.split_ascii_whitespace().skip(2);
    if !fields.next()?.eq_ignore_ascii_case("udp") {
        return None;
    }
    let ip: IpAddr = fields.nth(1)?.parse().ok()?;
    Some(SocketAddr::new(ip, fields.next()?.parse().ok()?))
}

/// The addresses of an offer's UDP candidates. The media sections of one offer repeat each other's.
pub(super) fn candidates(offer: &str) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for address in offer.lines().filter(|line| line.starts_with("a=")).filter_map(candidate) {
        if found.len() < CANDIDATES_MAX && !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

/// One line with its UDP candidate's address replaced, if it has one.
pub(super) fn map_candidate(line: &str, map: &dyn Fn(SocketAddr) -> SocketAddr) -> String {
    let Some(to) = candidate(line).map(map) else { return line.to_owned() };
    let fields = line.split_ascii_whitespace().enumerate().map(|(at, field)| match at {
        4 => to.ip().to_string(),
        5 => to.port().to_string(),
        _ => field.to_owned(),
    });
    fields.collect::<Vec<_>>().join(" ")
}

/// The same offer with every UDP candidate's address replaced.
pub(super) fn map_candidates(offer: &str, map: &dyn Fn(SocketAddr) -> SocketAddr) -> String {
    let mut mapped = String::with_capacity(offer.len());
    for line in offer.lines() {
        mapped.push_str(&map_candidate(line, map));
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
    fn udp_candidates_with_an_address_are_found_once() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("address");
        assert_eq!(candidates(OFFER), [address("10.211.0.1:40001")]);
        let more = format!("{OFFER}{OFFER}a=candidate:4 1 udp 1 2001:db8::1 7 typ host\r\n");
        assert_eq!(candidates(&more), [address("10.211.0.1:40001"), address("[2001:db8::1]:7")]);
        assert_eq!(candidates("v=0\r\na=candidate:\r\na=candidate:1 1 udp\r\n"), []);
        let many: String = (1..200).map(|port| format!("a=candidate:1 1 udp 1 10.0.0.1 {port} typ host\r\n")).collect();
        assert_eq!(candidates(&many).len(), CANDIDATES_MAX);
    }

    #[test]
    fn a_candidate_that_comes_later_is_mapped_as_those_of_the_offer() {
        let to = |_| "127.0.0.1:7".parse().expect("address");
        let mapped = map_candidate("candidate:1 1 udp 2015363327 10.211.0.1 40001 typ host", &to);
        assert_eq!(mapped, "candidate:1 1 udp 2015363327 127.0.0.1 7 typ host");
        assert_eq!(map_candidate("nonsense", &to), "nonsense");
    }

    #[test]
    fn only_udp_addresses_are_mapped() {
        let mapped = map_candidates(OFFER, &|_| "127.0.0.1:7".parse().expect("address"));
        assert!(mapped.contains("a=candidate:1 1 udp 2015363327 127.0.0.1 7 typ host\r\n"), "{mapped}");
        assert!(mapped.contains("tcp 1 10.211.0.1 9") && mapped.contains("x.local 5"), "{mapped}");
    }
}
