//! Addresses and ports of a test's own.
//!
//! Janus gathers no candidates on loopback interfaces, so it needs another address. Each [`TestNet`] is a
//! veth pair (a dummy interface is not in every kernel) with one address of 10.211.0.0/16 that only this machine can reach; it goes with its handle.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::Command;

use anyhow::{Result, bail};

/// An address of a test's own.
#[derive(Debug)]
pub struct TestNet {
    interface: String,
    ip: Ipv4Addr,
}

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip").args(arguments).output().is_ok_and(|out| out.status.success())
}

impl TestNet {
    /// Makes an interface with a free address.
    ///
    /// # Errors
    /// Without the right to make interfaces (root, or `unshare -Urn`).
    pub fn new() -> Result<Self> {
        for _ in 0..50 {
            let (b, c) = (rand::random_range(1..=250_u8), rand::random_range(1..=250_u8));
            let interface = format!("arch{b}x{c}");
            // The name is taken by whoever else has the address.
            if !ip(&["link", "add", &interface, "type", "veth", "peer", "name", &format!("{interface}p")]) {
                continue;
            }
            let net = Self { interface, ip: Ipv4Addr::new(10, 211, b, c) };
            if ip(&["addr", "add", &format!("{}/32", net.ip), "dev", &net.interface])
                && ip(&["link", "set", &net.interface, "up"])
                && ip(&["link", "set", &format!("{}p", net.interface), "up"])
            {
                return Ok(net);
            }
        }
        bail!("no network interface can be made: run as root, or under `unshare -Urn`")
    }

    /// The address.
    #[must_use]
    pub const fn ip(&self) -> IpAddr {
        IpAddr::V4(self.ip)
    }

    /// The interface's name.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }
}

impl Drop for TestNet {
    fn drop(&mut self) {
        ip(&["link", "del", &self.interface]);
    }
}

/// Ports below the range that the kernel gives to outgoing connections: one that is free now is not taken by
/// chance before a server binds it.
const PORTS: std::ops::Range<u16> = 10_000..30_000;

/// A free TCP port.
///
/// # Errors
/// When none can be bound.
pub fn free_port(ip: IpAddr) -> Result<u16> {
    for _ in 0..200 {
        let port = rand::random_range(PORTS);
        if TcpListener::bind(SocketAddr::new(ip, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port at {ip}")
}

/// A UDP port that was free a moment ago.
///
/// # Errors
/// When the address cannot be bound.
pub fn free_udp_port(ip: IpAddr) -> Result<u16> {
    Ok(UdpSocket::bind(SocketAddr::new(ip, 0))?.local_addr()?.port())
}
