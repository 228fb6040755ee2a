//! The little that must be known of an offer before `str0m` reads it: where its candidates are, and which payloads it has.

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

/// RTP payload types are 7 bits (RFC 3550 section 5.1).
const PAYLOAD_TYPES_MAX: usize = 128;

/// One payload type of an offer: a codec with its format parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OfferedPayload<'a> {
    /// The mid of its m-line; empty if that has none.
    pub mid: &'a str,
    /// Its number, 0 to 127.
    pub pt: u8,
    /// The encoding's name (`H264`, `opus`, ...), as the offer spells it.
    pub codec: &'a str,
    /// What `a=fmtp` says; empty without.
    pub format: &'a str,
    /// The payload type of its retransmissions (RFC 4588), if there is one.
    pub rtx: Option<u8>,
}

/// The payload types of all m-lines (RFC 8866 sections 6.6 and 6.15), at most [`PAYLOAD_TYPES_MAX`].
pub(super) fn payloads(offer: &str) -> Vec<OfferedPayload<'_>> {
    let mut all = Vec::new();
    // Before the first m-line stands the session's part.
    for section in offer.split("\nm=").skip(1) {
        let values = |name: &'static str| section.lines().filter_map(move |line| line.strip_prefix(name));
        let numbered = |name| {
            values(name)
                .filter_map(|value| value.split_once(' '))
                .filter_map(|(pt, value)| Some((pt.parse::<u8>().ok()?, value.trim())))
        };
        let format = |pt: u8| numbered("a=fmtp:").find(|(of, _)| *of == pt).map_or("", |(_, format)| format);
        let repeats = |pt: u8| {
            let is_of = |format: &str| {
                format.split(';').any(|p| p.trim().strip_prefix("apt=").is_some_and(|of| of.parse() == Ok(pt)))
            };
            numbered("a=fmtp:").find(|(_, format)| is_of(format)).map(|(rtx, _)| rtx)
        };
        let mid = values("a=mid:").next().unwrap_or_default().trim();
        let found =
            numbered("a=rtpmap:").filter(|(pt, _)| usize::from(*pt) < PAYLOAD_TYPES_MAX).map(|(pt, encoding)| {
                let codec = encoding.split('/').next().unwrap_or_default();
                OfferedPayload { mid, pt, codec, format: format(pt), rtx: repeats(pt) }
            });
        all.extend(found.take(PAYLOAD_TYPES_MAX.saturating_sub(all.len())));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_have_their_m_line_format_and_retransmission() {
        let offer = "v=0\r\na=rtpmap:1 before/1\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111 9\r\na=mid:a\r\na=rtpmap:111 opus/48000/2\r\n\
            a=rtpmap:9 G722/8000\r\na=fmtp:111 useinbandfec=1\r\nm=video 9 UDP/TLS/RTP/SAVPF 96 97\r\na=rtpmap:96 H264/90000\r\n\
            a=fmtp:96 profile-level-id=640c1f;packetization-mode=1\r\na=rtpmap:97 rtx/90000\r\na=fmtp:97 apt=96\r\n\
            a=mid:v\r\na=rtpmap:200 many/1\r\na=rtpmap:x y/1\r\na=rtpmap:\r\n";
        let payload = |mid, pt, codec, format, rtx| OfferedPayload { mid, pt, codec, format, rtx };
        assert_eq!(
            payloads(offer),
            [
                payload("a", 111, "opus", "useinbandfec=1", None),
                payload("a", 9, "G722", "", None),
                payload("v", 96, "H264", "profile-level-id=640c1f;packetization-mode=1", Some(97)),
                payload("v", 97, "rtx", "apt=96", None),
            ]
        );
    }

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
