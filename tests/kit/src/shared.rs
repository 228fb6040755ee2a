//! One RabbitMQ, one PostgreSQL and one Janus for all tests of a checkout that run at the same time.
//!
//! A RabbitMQ node costs five CPU seconds to start, a PostgreSQL cluster one. Tests that do not break a server therefore share it: each
//! has its own virtual host, its own database and its own rooms.
//!
//! The first process that needs a server starts all three, under a lock file. Each process that uses them holds a shared
//! lock on `users` until it ends, however it ends. A small shell, the *keeper*, waits for the exclusive lock on that file,
//! and then stops the servers by their process ids. The program `with-servers` holds the shared lock while a command
//! runs, so that the servers live from the first test to the last.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::janus::Janus;
use crate::postgres::Postgres;
use crate::rabbitmq::RabbitMq;

/// Names the file with the servers' addresses for the commands that `with-servers` runs.
pub const ADDRESSES: &str = "ARCHIVER_TEST_SERVERS";

/// The keeper stops the servers within this.
const STOP_MAX: Duration = Duration::from_secs(30);

/// Where the shared servers are.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Addresses {
    /// RabbitMQ's AMQP port.
    pub amqp: SocketAddr,
    /// RabbitMQ's management API, which makes virtual hosts.
    pub management: SocketAddr,
    /// PostgreSQL.
    pub postgres: SocketAddr,
    /// The WebSocket of Janus; media is at the same address.
    pub janus: SocketAddr,
}

/// FNV-1a: a short name for a text, the same in every process.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The folder of this checkout's servers. Two checkouts have two.
pub(crate) fn folder() -> Result<PathBuf> {
    let hash = fnv(Path::new(env!("CARGO_MANIFEST_DIR")).as_os_str().as_encoded_bytes());
    let folder = std::env::temp_dir().join("archiver-tests").join(format!("servers-{hash:016x}"));
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn locked(path: &Path) -> Result<File> {
    let file = File::create(path)?;
    file.lock()?;
    Ok(file)
}

/// The servers' addresses; starts the servers if no process has.
///
/// # Errors
/// When a server cannot be started.
pub fn addresses() -> Result<&'static Addresses> {
    static FOUND: OnceLock<Addresses> = OnceLock::new();
    static STARTING: Mutex<()> = Mutex::new(());
    let _one = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = FOUND.get() {
        return Ok(found);
    }
    let found = match std::env::var_os(ADDRESSES) {
        Some(file) => read(Path::new(&file))?,
        None => Lease::take()?.hold_until_exit(),
    };
    Ok(FOUND.get_or_init(|| found))
}

fn read(file: &Path) -> Result<Addresses> {
    let text = std::fs::read(file).with_context(|| format!("{} of {ADDRESSES} cannot be read", file.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

/// The right to use the servers. They run while any process has one.
#[derive(Debug)]
pub struct Lease {
    addresses: Addresses,
    folder: PathBuf,
    users: File,
}

impl Lease {
    /// Waits until no keeper is stopping the servers, and starts them if they do not run.
    ///
    /// # Errors
    /// When a server cannot be started.
    pub fn take() -> Result<Self> {
        let folder = folder()?;
        let users = File::create(folder.join("users"))?;
        users.lock_shared()?;
        let _starting = locked(&folder.join("starting"))?;
        let file = folder.join("addresses.json");
        let addresses = match read(&file) {
            Ok(addresses) if TcpStream::connect(addresses.amqp).is_ok() => addresses,
            _ => start(&folder)?,
        };
        Ok(Self { addresses, folder, users })
    }

    /// The file that [`ADDRESSES`] names.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.folder.join("addresses.json")
    }

    /// Keeps the lock for the life of this process.
    fn hold_until_exit(self) -> Addresses {
        static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());
        HELD.lock().unwrap_or_else(PoisonError::into_inner).push(self.users);
        self.addresses
    }

    /// Gives the lock back and, if no other process uses the servers, waits until the keeper has stopped them.
    ///
    /// # Errors
    /// When a server still runs after half a minute.
    pub fn release(self) -> Result<()> {
        let file = self.file();
        drop(self.users);
        let users = File::create(self.folder.join("users"))?;
        let until = Instant::now() + STOP_MAX;
        while file.exists() {
            if users.try_lock().is_err() && users.try_lock_shared().is_ok() {
                // Another process uses the servers. They stop when that process ends.
                return Ok(());
            }
            users.unlock()?;
            ensure!(Instant::now() < until, "the shared servers still run after {STOP_MAX:?}: see {}", file.display());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// Runs `make` once for all processes that use the servers, such as creating a template.
pub(crate) fn once(name: &str, make: impl FnOnce() -> Result<()>) -> Result<()> {
    let folder = folder()?;
    let _making = locked(&folder.join(name))?;
    // The servers' own file is the mark's content: other servers, another mark.
    let (mark, servers) = (folder.join(format!("{name}.done")), serde_json::to_string(addresses()?)?);
    if std::fs::read_to_string(&mark).is_ok_and(|of| of == servers) {
        return Ok(());
    }
    make()?;
    Ok(std::fs::write(mark, servers)?)
}

/// What the keeper needs to stop a server.
#[derive(Debug, Default)]
pub(crate) struct StopInfo {
    /// Ended with `SIGQUIT`.
    pub quit: Vec<u32>,
    /// Ended with `SIGKILL`, before the others.
    pub kill: Vec<u32>,
    /// Removed.
    pub folders: Vec<PathBuf>,
    /// A network interface, and the lock that says that its owner lives.
    pub interface: Option<(String, File)>,
}

fn start(folder: &Path) -> Result<Addresses> {
    let (rabbit, postgres) = (std::thread::spawn(RabbitMq::start_for_sharing), std::thread::spawn(Postgres::start));
    let janus = Janus::start()?;
    let joined = "starting a server does not panic";
    let (rabbit, postgres) = (rabbit.join().expect(joined)?, postgres.join().expect(joined)?);
    let addresses = Addresses {
        amqp: rabbit.address(),
        management: rabbit.management(),
        postgres: postgres.address(),
        janus: janus.address(),
    };
    keep(folder, &[rabbit.into_stop_info(), postgres.into_stop_info(), janus.into_stop_info()])?;
    // Renamed, so that nobody reads half of it.
    let new = folder.join("addresses.new");
    std::fs::write(&new, serde_json::to_vec_pretty(&addresses)?)?;
    std::fs::rename(new, folder.join("addresses.json"))?;
    Ok(addresses)
}

/// Stops the servers when the last user has gone. Their logs stay, in the folder `logs`.
const KEEPER: &str = r#"
exec 9>"$1/users"
flock --exclusive 9
kill -KILL $KILL 2>/dev/null
kill -QUIT $QUIT 2>/dev/null
for pid in $KILL $QUIT; do
  for _ in $(seq 200); do
    # A zombie has ended, and waits for its parent, which may live on.
    case $(cut -d' ' -f3 "/proc/$pid/stat" 2>/dev/null) in ''|Z) break ;; esac
    sleep 0.05
  done
done
for interface in $INTERFACES; do ip link del "$interface" 2>/dev/null; done
rm -rf "$1/logs"; mkdir "$1/logs"
for folder in $FOLDERS; do
  cp "$folder"/*.log "$folder"/log/*.log "$1/logs" 2>/dev/null
  rm -rf "$folder"
done
rm -f "$1/addresses.json"
"#;

fn keep(folder: &Path, servers: &[StopInfo; 3]) -> Result<()> {
    let all = |of: fn(&StopInfo) -> Vec<String>| servers.iter().flat_map(of).collect::<Vec<_>>().join(" ");
    let text = |pids: &[u32]| pids.iter().map(u32::to_string).collect::<Vec<_>>();
    // The keeper inherits the lock on the interface as its standard input, and so holds it when this process ends.
    let lock = servers.iter().find_map(|s| s.interface.as_ref()).context("Janus has an interface of its own")?;
    let mut command = Command::new("sh");
    command.args(["-c", KEEPER, "archiver-test-servers"]).arg(folder);
    command.env("KILL", servers.iter().flat_map(|s| text(&s.kill)).collect::<Vec<_>>().join(" "));
    command.env("QUIT", servers.iter().flat_map(|s| text(&s.quit)).collect::<Vec<_>>().join(" "));
    command.env("INTERFACES", &lock.0);
    command.env("FOLDERS", all(|s| s.folders.iter().map(|f| f.display().to_string()).collect()));
    command.stdin(Stdio::from(lock.1.try_clone()?)).stdout(Stdio::null()).stderr(Stdio::null());
    // In a process group of its own, the keeper survives Ctrl-C and then stops the servers.
    let mut keeper = command.process_group(0).spawn().context("sh")?;
    match keeper.try_wait()? {
        None => Ok(()),
        Some(status) => bail!("the keeper of the shared servers ended at once: {status}"),
    }
}
