//! The one UDP socket of all peers: large receive buffer, many datagrams a system call, arrival times
//! from the kernel.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use quinn_udp::{BATCH_SIZE, RecvMeta, UdpSocketState};

use crate::model::time::Wallclock;

/// Largest datagram that is of use: RTP over a 1,500-byte path.
const DATAGRAM_BYTES_MAX: usize = 2048;

/// An arrival time older than this is not believed: the clock was set.
const AGE_MAX: Duration = Duration::from_secs(2);

pub(super) struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
    /// Of IPv6: IPv4 addresses are written as IPv6 ones to the kernel (RFC 4291 section 2.5.5.2).
    ipv6: bool,
}

/// Room for one batch of datagrams.
pub(super) struct Buffers {
    bytes: Vec<u8>,
    each: usize,
}

impl Socket {
    /// Binds; asks for `receive_buffer` bytes and warns when the kernel gives less.
    pub fn bind(bind: SocketAddr, receive_buffer: usize) -> io::Result<Self> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(bind), socket2::Type::DGRAM, None)?;
        if bind.is_ipv6() {
            // Whatever the machine's default is, all addresses are those of IPv4, too.
            socket.set_only_v6(false)?;
        }
        socket.bind(&bind.into())?;
        let socket = UdpSocket::from(socket);
        let state = UdpSocketState::new((&socket).into())?;
        state.set_recv_buffer_size((&socket).into(), receive_buffer)?;
        // Linux doubles the value for its own bookkeeping and tells the doubled one.
        let got = state.recv_buffer_size((&socket).into())? / 2;
        if got < receive_buffer {
            tracing::warn!(
                asked_bytes = receive_buffer,
                got_bytes = got,
                "the kernel limits the UDP receive buffer, keyframe bursts may be lost: raise net.core.rmem_max"
            );
        }
        let local = canonical(socket.local_addr()?);
        Ok(Self { socket, state, local, ipv6: bind.is_ipv6() })
    }

    /// Buffers that fit what the kernel may coalesce (GRO).
    pub fn buffers(&self) -> Buffers {
        let each = DATAGRAM_BYTES_MAX * self.state.gro_segments().max(1);
        Buffers { bytes: vec![0; each * BATCH_SIZE], each }
    }

    /// Where it is bound.
    pub const fn local(&self) -> SocketAddr {
        self.local
    }

    /// Receives what is there, at most one batch, and hands each datagram on: from, to, bytes, arrival.
    /// Returns whether there may be more.
    pub fn receive(
        &self,
        buffers: &mut Buffers,
        now: Instant,
        wallclock: Wallclock,
        mut each: impl FnMut(SocketAddr, SocketAddr, &[u8], Instant),
    ) -> io::Result<bool> {
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        let count = {
            let mut slices: Vec<IoSliceMut<'_>> =
                buffers.bytes.chunks_exact_mut(buffers.each).map(IoSliceMut::new).collect();
            match self.state.recv((&self.socket).into(), &mut slices, &mut metas) {
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                // An ICMP error of an earlier send says nothing of this socket.
                Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset) => {
                    return Ok(true);
                }
                Err(e) => return Err(e),
            }
        };
        for (meta, buffer) in metas.iter().take(count).zip(buffers.bytes.chunks_exact(buffers.each)) {
            let to = SocketAddr::new(meta.dst_ip.map_or(self.local.ip(), |ip| ip.to_canonical()), self.local.port());
            let arrived = arrival(meta.timestamp, now, wallclock);
            let bytes = &buffer[..meta.len.min(buffers.each)];
            for datagram in bytes.chunks(meta.stride.max(1)) {
                each(canonical(meta.addr), to, datagram, arrived);
            }
        }
        Ok(count == BATCH_SIZE)
    }

    /// Sends a datagram. What the kernel does not take is lost, as on any network.
    pub fn send(&self, to: SocketAddr, bytes: &[u8]) {
        let to = match to {
            SocketAddr::V4(v4) if self.ipv6 => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
            _ => to,
        };
        if let Err(error) = self.socket.send_to(bytes, to) {
            tracing::debug!(%error, "a datagram was not sent");
        }
    }

    /// The local address from which `to` is reached.
    pub fn local_for(&self, to: SocketAddr) -> io::Result<SocketAddr> {
        let everywhere = self.local.ip().is_unspecified();
        let both = everywhere && self.ipv6;
        if !both && self.local.is_ipv4() != to.is_ipv4() {
            let (own, other) = if self.local.is_ipv4() { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
            let why = format!("it is of {own}, and the other of {other}; \"[::]:port\" serves both");
            return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, why));
        }
        if !everywhere {
            return Ok(self.local);
        }
        let any = if to.is_ipv4() { IpAddr::from([0, 0, 0, 0]) } else { IpAddr::from([0_u16; 8]) };
        // Connecting a UDP socket sends nothing; it only makes the kernel choose a route.
        let probe = UdpSocket::bind(SocketAddr::new(any, 0))?;
        probe.connect(to)?;
        Ok(SocketAddr::new(probe.local_addr()?.ip(), self.local.port()))
    }
}

/// An IPv4 address that is written as an IPv6 one, as an IPv4 address.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn arrival(kernel: Option<Duration>, now: Instant, wallclock: Wallclock) -> Instant {
    let age = kernel.and_then(|t| {
        let at = Wallclock(i64::try_from(t.as_micros()).ok()?);
        Some(wallclock.since(at))
    });
    match age {
        Some(age) if age < AGE_MAX => now.checked_sub(age).unwrap_or(now),
        _ => now,
    }
}
