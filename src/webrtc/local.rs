//! From which of our addresses the router's candidates are reached.

use std::io;
use std::net::{IpAddr, SocketAddr};

use super::socket::Socket;

/// Our addresses that ICE may use, and the router's that none of them reaches.
#[derive(Debug, Default)]
pub(super) struct Routes {
    /// Distinct, in the order of the router's candidates.
    pub local: Vec<SocketAddr>,
    unreachable: Vec<(SocketAddr, io::Error)>,
}

impl Routes {
    /// Looks for the route to each of the router's addresses. Without any, the address of the socket or `advertise` must do; a socket
    /// that is bound to all addresses then has none yet.
    pub fn find(socket: &Socket, advertise: Option<IpAddr>, remotes: &[SocketAddr]) -> Self {
        let mut routes = Self::default();
        for remote in remotes {
            match socket.local_for(*remote) {
                Ok(local) => routes.add(advertised(local, advertise)),
                Err(error) => routes.unreachable.push((*remote, error)),
            }
        }
        if remotes.is_empty() {
            let local = socket.local();
            match advertise {
                Some(ip) => routes.add(SocketAddr::new(ip, local.port())),
                None if !local.ip().is_unspecified() => routes.add(local),
                None => {}
            }
        }
        routes
    }

    fn add(&mut self, local: SocketAddr) {
        if !self.local.contains(&local) {
            self.local.push(local);
        }
    }

    /// Says in the log what cannot be reached: as a warning if nothing can.
    pub fn log(&self, socket: &Socket) {
        for (remote, error) in &self.unreachable {
            let (bind, remote) = (socket.local(), remote.ip());
            if self.local.is_empty() {
                tracing::warn!(
                    "no media from the media router's address {remote}: [media] bind = {bind} cannot reach it: {error}"
                );
            } else {
                tracing::debug!(
                    "the media router's address {remote} is not used: [media] bind = {bind} cannot reach it: {error}"
                );
            }
        }
    }
}

/// The address as routers see it: `advertise` stands for those of its own family.
pub(super) fn advertised(local: SocketAddr, advertise: Option<IpAddr>) -> SocketAddr {
    match advertise {
        Some(ip) if ip.is_ipv4() == local.is_ipv4() => SocketAddr::new(ip, local.port()),
        _ => local,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(bind: &str, advertise: Option<&str>, remotes: &[&str]) -> (Vec<String>, usize) {
        let socket = Socket::bind(bind.parse().expect("address"), 1 << 16).expect("socket");
        let remotes: Vec<SocketAddr> = remotes.iter().map(|remote| remote.parse().expect("address")).collect();
        let routes = Routes::find(&socket, advertise.map(|ip| ip.parse().expect("address")), &remotes);
        assert!(routes.local.iter().all(|local| local.port() == socket.local().port()), "{routes:?}");
        (routes.local.iter().map(|local| local.ip().to_string()).collect(), routes.unreachable.len())
    }

    fn to(ips: &[&str]) -> Vec<String> {
        ips.iter().map(|ip| (*ip).to_owned()).collect()
    }

    #[test]
    fn each_route_gives_one_address() {
        let both = ["127.0.0.1:1", "127.0.0.1:2", "[::1]:1"];
        assert_eq!(find("0.0.0.0:0", None, &both), (to(&["127.0.0.1"]), 1));
        assert_eq!(find("[::]:0", None, &both), (to(&["127.0.0.1", "::1"]), 0));
        assert_eq!(find("127.0.0.1:0", None, &both), (to(&["127.0.0.1"]), 1));
        assert_eq!(find("[::1]:0", None, &both), (to(&["::1"]), 2));
        assert_eq!(find("0.0.0.0:0", None, &["[::1]:1"]), (to(&[]), 1));
    }

    #[test]
    fn what_is_advertised_stands_for_its_own_family() {
        let both = ["127.0.0.1:1", "[::1]:1"];
        assert_eq!(find("0.0.0.0:0", Some("203.0.113.1"), &both), (to(&["203.0.113.1"]), 1));
        assert_eq!(find("[::]:0", Some("203.0.113.1"), &both), (to(&["203.0.113.1", "::1"]), 0));
        assert_eq!(find("[::]:0", Some("2001:db8::1"), &both), (to(&["127.0.0.1", "2001:db8::1"]), 0));
    }

    #[test]
    fn without_candidates_the_known_address_must_do() {
        assert_eq!(find("127.0.0.1:0", None, &[]), (to(&["127.0.0.1"]), 0));
        assert_eq!(find("0.0.0.0:0", Some("203.0.113.1"), &[]), (to(&["203.0.113.1"]), 0));
        assert_eq!(find("0.0.0.0:0", None, &[]), (to(&[]), 0));
    }
}
