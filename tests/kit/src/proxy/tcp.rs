//! Connections that are cut, refused or silent.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;

use super::{TICK, locked};

/// What a [`TcpProxy`] does with bytes and connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum TcpMode {
    /// They pass.
    Forward,
    /// Connections stay and are accepted, but nothing passes: a host that vanished. What was sent meanwhile
    /// passes when forwarding resumes.
    BlackHole,
    /// Connections are reset, new ones too: a process that died.
    Refuse,
}

/// A TCP port in front of a server, to cut it off without touching it.
#[derive(Debug)]
pub struct TcpProxy {
    address: SocketAddr,
    shared: Arc<TcpShared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct TcpShared {
    stop: AtomicBool,
    mode: AtomicU8,
    /// Grows with each cut; a connection of an earlier one is reset.
    cut: AtomicU64,
    target: Mutex<SocketAddr>,
    accepted: AtomicU64,
}

impl TcpProxy {
    /// Listens on a free port of `ip` for connections to `target`.
    ///
    /// # Errors
    /// When the port cannot be bound.
    pub fn start(ip: IpAddr, target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(SocketAddr::new(ip, 0))?;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(TcpShared {
            stop: AtomicBool::new(false),
            mode: AtomicU8::new(TcpMode::Forward as u8),
            cut: AtomicU64::new(0),
            target: Mutex::new(target),
            accepted: AtomicU64::new(0),
        });
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("tcp proxy".to_owned()).spawn(move || accept(&listener, &shared))?
        };
        Ok(Self { address, shared, thread: Some(thread) })
    }

    /// Where to connect instead of the server.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what happens to bytes and connections.
    pub fn set(&self, mode: TcpMode) {
        self.shared.mode.store(mode as u8, Ordering::Relaxed);
        if mode == TcpMode::Refuse {
            self.cut();
        }
    }

    /// Resets all connections; new ones are handled as the mode says.
    pub fn cut(&self) {
        self.shared.cut.fetch_add(1, Ordering::Relaxed);
    }

    /// New connections go there.
    pub fn set_target(&self, target: SocketAddr) {
        *locked(&self.shared.target) = target;
    }

    /// Connections accepted so far, refused ones too.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.cut();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap_or_default();
        }
    }
}

impl TcpShared {
    fn mode(&self) -> TcpMode {
        match self.mode.load(Ordering::Relaxed) {
            0 => TcpMode::Forward,
            1 => TcpMode::BlackHole,
            _ => TcpMode::Refuse,
        }
    }
}

fn reset(stream: &TcpStream) {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap_or_default();
}

fn accept(listener: &TcpListener, shared: &Arc<TcpShared>) {
    let mut copies: Vec<JoinHandle<()>> = Vec::new();
    while !shared.stop.load(Ordering::Relaxed) {
        copies.retain(|copy| !copy.is_finished());
        let Ok((client, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        if shared.mode() == TcpMode::Refuse {
            reset(&client);
            continue;
        }
        let shared = Arc::clone(shared);
        let connection = std::thread::Builder::new().name("tcp proxy".to_owned());
        copies.extend(connection.spawn(move || connect_and_copy(&client, &shared)));
    }
    for copy in copies {
        copy.join().unwrap_or_default();
    }
}

fn connect_and_copy(client: &TcpStream, shared: &TcpShared) {
    let cut = shared.cut.load(Ordering::Relaxed);
    while shared.mode() == TcpMode::BlackHole && shared.cut.load(Ordering::Relaxed) == cut {
        std::thread::sleep(Duration::from_millis(10));
    }
    let target = *locked(&shared.target);
    let Ok(server) = TcpStream::connect_timeout(&target, Duration::from_secs(5)) else {
        reset(client);
        return;
    };
    for stream in [client, &server] {
        // Accepted sockets may inherit the listener's mode on some systems.
        stream.set_nonblocking(false).unwrap_or_default();
        stream.set_nodelay(true).unwrap_or_default();
        stream.set_read_timeout(Some(TICK)).unwrap_or_default();
        stream.set_write_timeout(Some(TICK)).unwrap_or_default();
    }
    std::thread::scope(|scope| {
        scope.spawn(|| copy(client, &server, shared, cut));
        copy(&server, client, shared, cut);
    });
}

/// Copies until one side ends, the proxy ends, or the connection is cut.
fn copy(mut from: &TcpStream, mut to: &TcpStream, shared: &TcpShared, cut: u64) {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    let mut buffer = vec![0; 65_536];
    let (mut start, mut end) = (0, 0);
    loop {
        if shared.cut.load(Ordering::Relaxed) != cut {
            for stream in [from, to] {
                reset(stream);
                stream.shutdown(Shutdown::Both).unwrap_or_default();
            }
            return;
        }
        if shared.mode() == TcpMode::BlackHole {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        }
        let done = if start == end {
            (start, end) = (0, 0);
            from.read(&mut buffer).map(|n| end = n).map(|()| end)
        } else {
            to.write(&buffer[start..end]).inspect(|n| start += n)
        };
        match done {
            Ok(0) => {
                to.shutdown(Shutdown::Write).unwrap_or_default();
                return;
            }
            Err(e) if !matches!(e.kind(), Interrupted | TimedOut | WouldBlock) => {
                to.shutdown(Shutdown::Both).unwrap_or_default();
                from.shutdown(Shutdown::Both).unwrap_or_default();
                return;
            }
            Ok(_) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo_tcp() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listener");
        let at = listener.local_addr().expect("address");
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut buffer = [0; 1000];
                    while let Ok(n) = stream.read(&mut buffer) {
                        if n == 0 || stream.write_all(&buffer[..n]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        at
    }

    fn ask(stream: &mut TcpStream, text: &str) -> std::io::Result<String> {
        stream.write_all(text.as_bytes())?;
        let mut answer = vec![0; text.len()];
        stream.read_exact(&mut answer)?;
        Ok(String::from_utf8(answer).expect("text"))
    }

    #[test]
    fn tcp_passes_stalls_resumes_and_is_cut() {
        let proxy = TcpProxy::start("127.0.0.1".parse().expect("ip"), echo_tcp()).expect("proxy");
        let connect = || {
            let stream = TcpStream::connect(proxy.address()).expect("connect");
            stream.set_read_timeout(Some(Duration::from_millis(150))).expect("timeout");
            stream
        };
        let mut stream = connect();
        assert_eq!(ask(&mut stream, "one").expect("answer"), "one");
        proxy.set(TcpMode::BlackHole);
        std::thread::sleep(TICK * 2);
        assert!(ask(&mut stream, "two").is_err());
        let mut second = connect();
        assert!(ask(&mut second, "2nd").is_err());
        proxy.set(TcpMode::Forward);
        let mut late = [0; 3];
        stream.read_exact(&mut late).expect("what was held back");
        assert_eq!(&late, b"two");
        second.read_exact(&mut late).expect("what was held back");
        proxy.set(TcpMode::Refuse);
        std::thread::sleep(TICK * 3);
        assert!(ask(&mut stream, "three").is_err());
        assert!(ask(&mut connect(), "x").is_err());
        proxy.set(TcpMode::Forward);
        assert_eq!(ask(&mut connect(), "four").expect("answer"), "four");
        assert_eq!(proxy.accepted(), 4);
    }
}
