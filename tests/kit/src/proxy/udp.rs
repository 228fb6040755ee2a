//! Loss, delay, reordering and duplication of datagrams.

use std::collections::{BTreeMap, BinaryHeap};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{TICK, locked};
use crate::net::TestNet;

/// How bad one direction of the network is. Probabilities are 0..=1, of each datagram by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Path {
    /// Probability of a loss.
    pub loss: f64,
    /// Every datagram takes so long.
    pub delay: Duration,
    /// Probability that a datagram takes `reorder_by` longer, so that later ones overtake it.
    pub reorder: f64,
    /// How much longer.
    pub reorder_by: Duration,
    /// Probability that a datagram comes twice.
    pub duplicate: f64,
}

/// Both directions of the network.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Conditions {
    /// From the client to the server.
    pub up: Path,
    /// From the server to the client.
    pub down: Path,
}

impl Conditions {
    /// Loss in both directions and a round trip time, half of it each way.
    #[must_use]
    pub fn lossy(loss: f64, round_trip: Duration) -> Self {
        let path = Path { loss, delay: round_trip / 2, ..Path::default() };
        Self { up: path, down: path }
    }

    /// Loss on the way to the client only.
    #[must_use]
    pub fn lossy_down(loss: f64, round_trip: Duration) -> Self {
        let mut conditions = Self::lossy(loss, round_trip);
        conditions.up.loss = 0.0;
        conditions
    }
}

/// What one direction did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Datagrams that came in.
    pub received: u64,
    /// Of them, dropped.
    pub dropped: u64,
    /// Of them, sent twice.
    pub duplicated: u64,
    /// Of them, held back.
    pub reordered: u64,
    /// By SSRC of RTP packets (RTCP is not counted): received, dropped. Retransmissions have SSRCs of their own.
    pub rtp: BTreeMap<u32, (u64, u64)>,
}

/// A bad network for UDP between a client and any number of remote addresses.
///
/// The client must know the remote side only by [`UdpProxy::map`], and must tell it nothing but
/// [`UdpProxy::ip`] as its own address; else ICE finds the short way around the proxy.
#[derive(Debug)]
pub struct UdpProxy {
    nowhere: TestNet,
    shared: Arc<UdpShared>,
    pairs: Mutex<BTreeMap<SocketAddr, (SocketAddr, JoinHandle<()>)>>,
    seed: u64,
}

#[derive(Debug)]
struct UdpShared {
    stop: AtomicBool,
    black_hole: AtomicBool,
    conditions: Mutex<Conditions>,
    up: Mutex<Counts>,
    down: Mutex<Counts>,
}

impl UdpProxy {
    /// The same seed makes the same decisions for the same datagrams.
    ///
    /// # Errors
    /// Without the right to make interfaces.
    pub fn start(conditions: Conditions, seed: u64) -> Result<Self> {
        let shared = UdpShared {
            stop: AtomicBool::new(false),
            black_hole: AtomicBool::new(false),
            conditions: Mutex::new(conditions),
            up: Mutex::default(),
            down: Mutex::default(),
        };
        Ok(Self { nowhere: TestNet::new()?, shared: Arc::new(shared), pairs: Mutex::default(), seed })
    }

    /// The address to give to the remote side as the client's own; nobody is there.
    #[must_use]
    pub const fn ip(&self) -> IpAddr {
        self.nowhere.ip()
    }

    /// The address that stands for `remote`, which must be on this machine; made when asked for first. It has the
    /// same IP address, for Janus binds its sockets to the interface of its address and reaches no other one.
    ///
    /// # Panics
    /// When no socket can be had.
    #[must_use]
    pub fn map(&self, remote: SocketAddr) -> SocketAddr {
        let mut pairs = locked(&self.pairs);
        if let Some((local, _)) = pairs.get(&remote) {
            return *local;
        }
        let socket = UdpSocket::bind(SocketAddr::new(remote.ip(), 0)).expect("a socket");
        let local = socket.local_addr().expect("a bound socket has an address");
        let mut pair = UdpPair {
            socket,
            remote,
            client: None,
            shared: Arc::clone(&self.shared),
            random: [0, 1].map(|direction| {
                StdRng::seed_from_u64(self.seed.wrapping_mul(1000).wrapping_add(2 * pairs.len() as u64 + direction))
            }),
            queue: BinaryHeap::new(),
            order: 0,
        };
        let thread = std::thread::Builder::new().name("udp proxy".to_owned()).spawn(move || pair.run());
        pairs.insert(remote, (local, thread.expect("a thread")));
        local
    }

    /// Changes the network.
    pub fn set(&self, conditions: Conditions) {
        *locked(&self.shared.conditions) = conditions;
    }

    /// Drops everything in both directions, or no more.
    pub fn black_hole(&self, on: bool) {
        self.shared.black_hole.store(on, Ordering::Relaxed);
    }

    /// What went from the client to the remote side.
    #[must_use]
    pub fn up(&self) -> Counts {
        locked(&self.shared.up).clone()
    }

    /// What went from the remote side to the client.
    #[must_use]
    pub fn down(&self) -> Counts {
        locked(&self.shared.down).clone()
    }
}

impl Drop for UdpProxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for (_, (_, thread)) in std::mem::take(&mut *locked(&self.pairs)) {
            thread.join().unwrap_or_default();
        }
    }
}

/// A datagram on its way; the heap gives the earliest first.
#[derive(PartialEq, Eq)]
struct InFlight {
    due: Instant,
    order: u64,
    to: SocketAddr,
    data: Vec<u8>,
}

impl Ord for InFlight {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.due, other.order).cmp(&(self.due, self.order))
    }
}

impl PartialOrd for InFlight {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

struct UdpPair {
    socket: UdpSocket,
    remote: SocketAddr,
    client: Option<SocketAddr>,
    shared: Arc<UdpShared>,
    /// One for each direction, so that the decisions for one do not depend on what the other carries.
    random: [StdRng; 2],
    queue: BinaryHeap<InFlight>,
    order: u64,
}

impl UdpPair {
    fn run(&mut self) {
        let mut buffer = vec![0; 65_536];
        while !self.shared.stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            while self.queue.peek().is_some_and(|next| next.due <= now) {
                let Some(next) = self.queue.pop() else { break };
                // What the kernel does not take is lost, as on any network.
                self.socket.send_to(&next.data, next.to).map(drop).unwrap_or_default();
            }
            let wait = self.queue.peek().map_or(TICK, |next| next.due.saturating_duration_since(now).min(TICK));
            self.socket.set_read_timeout(Some(wait.max(Duration::from_micros(500)))).unwrap_or_default();
            if let Ok((len, from)) = self.socket.recv_from(&mut buffer) {
                self.take(from, &buffer[..len]);
            }
        }
    }

    fn take(&mut self, from: SocketAddr, data: &[u8]) {
        let conditions = *locked(&self.shared.conditions);
        let down = from == self.remote;
        if !down {
            self.client = Some(from);
        }
        let (path, counts) = if down { (conditions.down, &self.shared.down) } else { (conditions.up, &self.shared.up) };
        let random = &mut self.random[usize::from(down)];
        let [lost, twice, late] = [path.loss, path.duplicate, path.reorder].map(|p| random.random_bool(p));
        let lost = lost || self.shared.black_hole.load(Ordering::Relaxed);
        {
            let mut counts = locked(counts);
            counts.received += 1;
            counts.dropped += u64::from(lost);
            counts.duplicated += u64::from(twice && !lost);
            counts.reordered += u64::from(late && !lost);
            if let Some(ssrc) = rtp_ssrc(data) {
                let (received, dropped) = counts.rtp.entry(ssrc).or_default();
                *received += 1;
                *dropped += u64::from(lost);
            }
        }
        let Some(to) = (if down { self.client } else { Some(self.remote) }) else { return };
        if lost {
            return;
        }
        let due = Instant::now() + path.delay + if late { path.reorder_by } else { Duration::ZERO };
        for _ in 0..=u8::from(twice) {
            self.order += 1;
            self.queue.push(InFlight { due, order: self.order, to, data: data.to_vec() });
        }
    }
}

/// The SSRC of an RTP packet; none for RTCP (RFC 5761 section 4), STUN and DTLS.
fn rtp_ssrc(data: &[u8]) -> Option<u32> {
    if data.len() < 12 || data[0] >> 6 != 2 || (192..=223).contains(&data[1]) {
        return None;
    }
    Some(u32::from_be_bytes([data[8], data[9], data[10], data[11]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo_udp() -> (SocketAddr, Arc<AtomicBool>) {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("socket");
        socket.set_read_timeout(Some(TICK)).expect("timeout");
        let (at, stop) = (socket.local_addr().expect("address"), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut buffer = [0; 2000];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((n, from)) = socket.recv_from(&mut buffer) {
                    socket.send_to(&buffer[..n], from).expect("send");
                }
            }
        });
        (at, stop)
    }

    #[test]
    fn udp_is_lost_delayed_doubled_and_reordered_as_often_as_said() {
        let (remote, stop) = echo_udp();
        let down = Path {
            loss: 0.1,
            delay: Duration::from_millis(15),
            reorder: 0.05,
            reorder_by: Duration::from_millis(10),
            duplicate: 0.02,
        };
        let up = Path { delay: Duration::from_millis(15), ..Path::default() };
        let proxy = UdpProxy::start(Conditions { up, down }, 7).expect("proxy");
        let at = proxy.map(remote);
        assert_eq!(proxy.map(remote), at);
        let client = UdpSocket::bind(SocketAddr::new(remote.ip(), 0)).expect("socket");
        client.set_read_timeout(Some(Duration::from_millis(200))).expect("timeout");
        let mut seen = Vec::new();
        let mut first = None;
        let mut buffer = [0; 2000];
        for n in 0..2000_u32 {
            let mut packet = vec![0x80, 96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
            packet.extend_from_slice(&n.to_be_bytes());
            let sent = Instant::now();
            client.send_to(&packet, at).expect("send");
            if first.is_none() && client.recv_from(&mut buffer).is_ok() {
                first = Some(sent.elapsed());
            }
            std::thread::sleep(Duration::from_micros(300));
        }
        while let Ok((n, from)) = client.recv_from(&mut buffer) {
            assert_eq!((n, from), (16, at));
            seen.push(u32::from_be_bytes([buffer[12], buffer[13], buffer[14], buffer[15]]));
        }
        stop.store(true, Ordering::Relaxed);
        let (up, down) = (proxy.up(), proxy.down());
        assert_eq!((up.received, up.dropped, down.received), (2000, 0, 2000));
        assert!((140..260).contains(&down.dropped), "{down:?}");
        assert!((15..80).contains(&down.duplicated) && (50..160).contains(&down.reordered), "{down:?}");
        assert_eq!(down.rtp[&5], (2000, down.dropped));
        assert!(first.expect("an answer") >= Duration::from_millis(30), "{first:?}");
        assert!(seen.windows(2).any(|w| w[0] > w[1]), "nothing overtook");
    }

    #[test]
    fn udp_decisions_follow_from_the_seed() {
        let drops = |seed| {
            let (remote, stop) = echo_udp();
            let conditions = Conditions { up: Path { loss: 0.5, ..Path::default() }, ..Conditions::default() };
            let proxy = UdpProxy::start(conditions, seed).expect("proxy");
            let client = UdpSocket::bind(SocketAddr::new(remote.ip(), 0)).expect("socket");
            client.set_read_timeout(Some(Duration::from_millis(100))).expect("timeout");
            let at = proxy.map(remote);
            for n in 0..64_u8 {
                client.send_to(&[n], at).expect("send");
            }
            let mut seen = Vec::new();
            let mut buffer = [0; 16];
            while client.recv_from(&mut buffer).is_ok() {
                seen.push(buffer[0]);
            }
            stop.store(true, Ordering::Relaxed);
            seen.sort_unstable();
            seen
        };
        let (first, again, other) = (drops(1), drops(1), drops(2));
        assert!((16..48).contains(&first.len()), "{first:?}");
        assert_eq!(first, again);
        assert_ne!(first, other);
    }
}
