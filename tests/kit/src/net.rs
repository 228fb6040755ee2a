//! Addresses and ports of a test's own.
//!
//! Janus gathers no candidates on loopback interfaces, so it needs another address. Each [`TestNet`] is a
//! veth pair (a dummy interface is not in every kernel) with one address of 10.211.0.0/16 that only this machine can reach; it goes with its handle.

use std::fs::File;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// An address of a test's own.
#[derive(Debug)]
pub struct TestNet {
    interface: String,
    ip: Ipv4Addr,
    /// Says that the interface's test lives; released when its process ends, however it does.
    lock: Option<File>,
}

/// Where the locks on interfaces and ports are.
fn locks(of: &str) -> Result<PathBuf> {
    let folder = std::env::temp_dir().join("archiver-tests").join(of);
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Removes interfaces whose test was killed.
fn sweep(locks: &Path) -> Result<()> {
    for entry in std::fs::read_dir(locks)?.flatten() {
        // Gone already: another test sweeps too.
        let Ok(lock) = File::open(entry.path()) else { continue };
        if lock.try_lock().is_ok() {
            ip(&["link", "del", &entry.file_name().to_string_lossy()]);
            std::fs::remove_file(entry.path()).unwrap_or_default();
        }
    }
    Ok(())
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
        let locks = locks("interfaces")?;
        sweep(&locks)?;
        for _ in 0..50 {
            let (b, c) = (rand::random_range(1..=250_u8), rand::random_range(1..=250_u8));
            let interface = format!("arch{b}x{c}");
            let lock = File::create(locks.join(&interface))?;
            if lock.try_lock().is_err() {
                continue;
            }
            // The name is taken by whoever else has the address.
            if !ip(&["link", "add", &interface, "type", "veth", "peer", "name", &format!("{interface}p")]) {
                continue;
            }
            let net = Self { interface, ip: Ipv4Addr::new(10, 211, b, c), lock: Some(lock) };
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

    /// Its IPv6 address, once [`Self::add_ipv6`] has given it to the interface.
    #[must_use]
    pub const fn ipv6(&self) -> IpAddr {
        let [_, _, b, c] = self.ip.octets();
        IpAddr::V6(Ipv6Addr::new(0xfd11, 0x211, b as u16, c as u16, 0, 0, 0, 1))
    }

    /// Gives the interface an IPv6 address, too.
    ///
    /// # Errors
    /// When the kernel has no IPv6.
    pub fn add_ipv6(&self) -> Result<()> {
        // Without detection of duplicates, which takes a second or two, the address can be bound at once.
        let added = ip(&["-6", "addr", "add", &format!("{}/128", self.ipv6()), "dev", &self.interface, "nodad"]);
        if added { Ok(()) } else { bail!("{} cannot be given to {}", self.ipv6(), self.interface) }
    }

    /// Gives the interface up: it outlives its handle. Returns its name, and the lock that must be held while it is used.
    pub(crate) fn into_parts(mut self) -> (String, File) {
        let lock = self.lock.take().expect("the lock is taken only here");
        (self.interface.clone(), lock)
    }

    /// The interface's name.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }
}

impl Drop for TestNet {
    fn drop(&mut self) {
        if self.lock.is_none() {
            return;
        }
        ip(&["link", "del", &self.interface]);
        if let Ok(locks) = locks("interfaces") {
            std::fs::remove_file(locks.join(&self.interface)).unwrap_or_default();
        }
    }
}

/// Ports below the range that the kernel gives to outgoing connections: one that is free now is not taken by
/// chance before a server binds it. Browsers refuse to load from port 10080 (the Fetch standard's bad ports), and from none above it.
const PORTS: std::ops::Range<u16> = 10_081..30_000;

/// Locks on the ports that this process was given. A server may bind its port seconds later, and a stopped one
/// must find it again, so that a look whether a port is free is not enough: with the forty ports of a few
/// deployments side by side, one test run in twenty-five would give one of them twice.
static GIVEN: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// A free TCP port that no other test on this machine is given while this process lives.
///
/// # Errors
/// When none can be bound, or the folder of locks cannot be written.
pub fn free_port(ip: IpAddr) -> Result<u16> {
    let locks = locks("ports")?;
    for _ in 0..200 {
        let port = rand::random_range(PORTS);
        let lock = File::create(locks.join(port.to_string()))?;
        if lock.try_lock().is_err() {
            continue;
        }
        if TcpListener::bind(SocketAddr::new(ip, port)).is_ok() {
            GIVEN.lock().unwrap_or_else(PoisonError::into_inner).push(lock);
            return Ok(port);
        }
    }
    bail!("no free port at {ip}")
}

/// Listens at an address that [`free_port`] gave.
///
/// A process that starts another one holds copies of all its sockets in the child until that one's `exec`, those
/// that only looked whether a port is free too: "in use" may pass within milliseconds.
///
/// # Errors
/// When it is still in use after two seconds.
pub async fn listen(address: SocketAddr) -> Result<tokio::net::TcpListener> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match tokio::net::TcpListener::bind(address).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            other => return other.with_context(|| format!("cannot listen at {address}")),
        }
    }
}

/// A UDP port that was free a moment ago.
///
/// # Errors
/// When the address cannot be bound.
pub fn free_udp_port(ip: IpAddr) -> Result<u16> {
    Ok(UdpSocket::bind(SocketAddr::new(ip, 0))?.local_addr()?.port())
}
