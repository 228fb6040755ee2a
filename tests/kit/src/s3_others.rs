//! S3 servers of others, as processes: moto (PyPI) and garage (built once by `make garage`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::child::Server;
use crate::net::free_port;
use crate::s3::BUCKET;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const MOTO: &str = "moto[server]==5.2.5";

/// A running server of another make.
#[derive(Debug)]
pub struct OtherS3 {
    _server: Server,
    _dir: tempfile::TempDir,
    /// `http://…`.
    pub endpoint: String,
    /// The access key.
    pub access_key: String,
    /// The secret key.
    pub secret_key: String,
    /// The region that it wants.
    pub region: String,
}

fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache");
    std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("archiver")
}

fn ready(server: &mut Server, port: u16) -> Result<()> {
    server.wait_ready(|| TcpStream::connect(SocketAddr::new(LOOPBACK, port)).is_ok())
}

/// moto in a Python environment of its own, made when it is not there. It has no bucket yet.
///
/// # Errors
/// When it cannot be installed or started.
pub fn moto() -> Result<OtherS3> {
    let venv = cache().join("moto");
    let program = venv.join("bin/moto_server");
    if !program.is_file() {
        let made = Command::new("python3").args(["-m", "venv"]).arg(&venv).status()?;
        let installed = Command::new(venv.join("bin/pip")).args(["install", "--quiet", MOTO]).status()?;
        if !made.success() || !installed.success() {
            bail!("{MOTO} cannot be installed into {}", venv.display());
        }
    }
    let (dir, port) = (tempfile::tempdir()?, free_port(LOOPBACK)?);
    let mut command = Command::new(program);
    command.args(["-H", "127.0.0.1", "-p"]).arg(port.to_string());
    let mut server = Server::start("moto", dir.path(), &mut command)?;
    ready(&mut server, port)?;
    Ok(OtherS3 {
        _server: server,
        _dir: dir,
        endpoint: format!("http://127.0.0.1:{port}"),
        access_key: "key".to_owned(),
        secret_key: "secret".to_owned(),
        region: "us-east-1".to_owned(),
    })
}

/// garage, if it was built. Its bucket is there.
///
/// # Errors
/// When it cannot be started.
pub fn garage() -> Result<Option<OtherS3>> {
    let program = std::env::var_os("ARCHIVER_GARAGE").map_or_else(|| cache().join("garage/bin/garage"), PathBuf::from);
    if !Path::new(&program).is_file() {
        return Ok(None);
    }
    let dir = tempfile::tempdir()?;
    let (s3, rpc) = (free_port(LOOPBACK)?, free_port(LOOPBACK)?);
    let (key, secret) = (
        format!("GK{}", "31c2f218a2e44f485b94239e"),
        "b892c0665f0ada8a4755dae98baa3b133590e11dae3bcc1f9d769d67f16c3835".to_owned(),
    );
    let at = dir.path().display();
    let config = format!(
        "metadata_dir = \"{at}/meta\"\ndata_dir = \"{at}/data\"\ndb_engine = \"lmdb\"\nreplication_factor = 1\n\
         rpc_bind_addr = \"127.0.0.1:{rpc}\"\nrpc_public_addr = \"127.0.0.1:{rpc}\"\nrpc_secret = \"{}\"\n\
         [s3_api]\ns3_region = \"garage\"\napi_bind_addr = \"127.0.0.1:{s3}\"\nroot_domain = \".s3.test\"\n",
        "17a3".repeat(16)
    );
    let file = dir.path().join("garage.toml");
    std::fs::write(&file, config)?;
    let mut command = Command::new(program);
    command
        .arg("-c")
        .arg(&file)
        .args(["server", "--single-node", "--default-bucket"])
        .env("GARAGE_DEFAULT_ACCESS_KEY", &key)
        .env("GARAGE_DEFAULT_SECRET_KEY", &secret)
        .env("GARAGE_DEFAULT_BUCKET", BUCKET);
    let mut server = Server::start("garage", dir.path(), &mut command)?;
    ready(&mut server, s3).context("garage")?;
    let endpoint = format!("http://127.0.0.1:{s3}");
    Ok(Some(OtherS3 {
        _server: server,
        _dir: dir,
        endpoint,
        access_key: key,
        secret_key: secret,
        region: "garage".to_owned(),
    }))
}
