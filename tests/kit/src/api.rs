//! The REST API from outside: applications and their keys, tokens, certificates, requests byte by byte.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::wait::{deadline, wait_for};
use crate::world::World;

/// An application that the API knows.
#[derive(Debug, Clone)]
pub struct Application {
    /// A UUID, or a number.
    pub id: String,
    /// The private key (PEM), or the secret.
    pub key: String,
}

/// Runs `openssl`, and returns what it wrote.
fn openssl(dir: &Path, arguments: &[&str]) -> Result<Vec<u8>> {
    let out = Command::new("openssl").args(arguments).current_dir(dir).output().context("openssl")?;
    ensure!(out.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(out.stdout)
}

/// A new RSA key of 2048 bits, as Vonage's dashboard makes them: private and public (PEM).
///
/// # Errors
/// When openssl cannot be run.
pub fn rsa_key() -> Result<(String, String)> {
    let dir = tempfile::tempdir()?;
    openssl(dir.path(), &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "private.pem"])?;
    let public = openssl(dir.path(), &["pkey", "-in", "private.pem", "-pubout"])?;
    Ok((std::fs::read_to_string(dir.path().join("private.pem"))?, String::from_utf8(public)?))
}

impl Application {
    /// A unified application with a key of its own, made known by the operators' command.
    ///
    /// # Errors
    /// When the command fails.
    pub fn unified(world: &World, id: &str) -> Result<Self> {
        let (private, public) = rsa_key()?;
        let file = world.scratch().join(format!("{id}.pem"));
        std::fs::write(&file, public)?;
        world.json(&["apps", "add", "--unified", "--id", id, "--public-key", &file.to_string_lossy(), "--json"])?;
        Ok(Self { id: id.to_owned(), key: private })
    }

    /// A legacy project, made known by the operators' command.
    ///
    /// # Errors
    /// When the command fails.
    pub fn legacy(world: &World, id: &str, secret: &str) -> Result<Self> {
        world.json(&["apps", "add", "--legacy", "--id", id, "--secret", secret, "--json"])?;
        Ok(Self { id: id.to_owned(), key: secret.to_owned() })
    }

    /// Whether it signs with an RSA key.
    #[must_use]
    pub fn is_unified(&self) -> bool {
        self.key.starts_with("-----BEGIN")
    }

    /// A token for a request, as `@vonage/video` or `opentok` for node make it.
    ///
    /// # Panics
    /// When the key is none.
    #[must_use]
    pub fn token(&self) -> String {
        let (iat, exp) = (now(), now() + 300);
        if self.is_unified() {
            let claims =
                json!({ "application_id": self.id, "iat": iat, "exp": exp, "jti": uuid::Uuid::new_v4().to_string() });
            return signed(&json!({ "alg": "RS256", "typ": "JWT" }), &claims, &self.key);
        }
        let claims = json!({ "iss": self.id, "ist": "project", "iat": iat, "exp": exp });
        signed(&json!({ "alg": "HS256", "typ": "JWT" }), &claims, &self.key)
    }
}

/// Seconds since 1970.
///
/// # Panics
/// Before 1970.
#[must_use]
#[allow(clippy::disallowed_methods)]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// A token with exactly this header and these claims, signed as the header says: RS256 with a private key (PEM), HS256 with
/// a secret.
///
/// # Panics
/// When the key is none.
#[must_use]
pub fn signed(header: &Value, claims: &Value, key: &str) -> String {
    signed_text(&header.to_string(), &claims.to_string(), key)
}

/// The same with header and claims as they stand, byte by byte.
///
/// # Panics
/// When the header is not JSON, or the key none.
#[must_use]
pub fn signed_text(header: &str, claims: &str, key: &str) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let header: Value = serde_json::from_str(header).expect("a JOSE header");
    let (key, algorithm) = match header["alg"].as_str() {
        Some("RS256") => (EncodingKey::from_rsa_pem(key.as_bytes()).expect("a private key"), Algorithm::RS256),
        _ => (EncodingKey::from_secret(key.as_bytes()), Algorithm::HS256),
    };
    let signature = crypto::sign(message.as_bytes(), &key, algorithm).expect("a signature");
    format!("{message}.{signature}")
}

/// A certificate for loopback, and the authority that has signed it (PEM files).
#[derive(Debug, Clone)]
pub struct Certificate {
    /// What clients trust.
    pub authority: PathBuf,
    /// What the service shows.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Certificate {
    /// A new one, in this folder.
    ///
    /// # Errors
    /// When openssl cannot be run.
    pub fn new(dir: &Path) -> Result<Self> {
        let new = ["req", "-newkey", "rsa:2048", "-nodes", "-days", "2"];
        let authority = [
            "-x509",
            "-subj",
            "/CN=authority",
            "-addext",
            "keyUsage=critical,keyCertSign",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ];
        openssl(dir, &[&new[..], &authority].concat())?;
        openssl(dir, &[&new[..], &["-subj", "/CN=archiver", "-keyout", "api.key", "-out", "api.csr"]].concat())?;
        std::fs::write(dir.join("api.ext"), "subjectAltName = IP:127.0.0.1\nbasicConstraints = CA:FALSE\n")?;
        let sign =
            ["x509", "-req", "-in", "api.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"];
        openssl(dir, &[&sign[..], &["-extfile", "api.ext", "-out", "api.pem"]].concat())?;
        Ok(Self { authority: dir.join("ca.pem"), certificate: dir.join("api.pem"), key: dir.join("api.key") })
    }
}

/// An answer of an HTTP server.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: String,
}

impl Answer {
    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("{}: {}", self.status, self.body))
    }
}

/// Sends these bytes, which are one request, and reads the answer to it.
///
/// # Errors
/// When there is no answer, or none that is HTTP.
pub async fn exchange(address: SocketAddr, request: &[u8]) -> Result<Answer> {
    tokio::time::timeout(deadline(), async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request).await?;
        let mut bytes = Vec::new();
        loop {
            if let Some(answer) = read(&bytes)? {
                return Ok(answer);
            }
            if stream.read_buf(&mut bytes).await? == 0 {
                bail!("the connection ends after {:?}", String::from_utf8_lossy(&bytes));
            }
        }
    })
    .await
    .context("no answer")?
}

/// An answer, if it is whole.
fn read(bytes: &[u8]) -> Result<Option<Answer>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end])?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status")?.parse()?;
    let header = |line: &str| line.split_once(':').map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()));
    let headers: Vec<(String, String)> = lines.filter_map(header).collect();
    let answer = Answer { status, headers, body: String::new() };
    let length: usize = answer.header("content-length").map_or(Ok(0), str::parse)?;
    ensure!(answer.header("transfer-encoding").is_none(), "in chunks: {head}");
    let body = &bytes[end + 4..];
    if body.len() < length {
        return Ok(None);
    }
    Ok(Some(Answer { body: String::from_utf8(body[..length].to_vec())?, ..answer }))
}

/// Sends a request without TLS.
///
/// # Errors
/// When there is no answer.
pub async fn send(address: SocketAddr, line: &str, headers: &[(&str, &str)], body: &str) -> Result<Answer> {
    let mut request = format!("{line} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    exchange(address, format!("{request}\r\n{body}").as_bytes()).await
}

/// Waits until the API takes connections.
///
/// # Panics
/// When it does not.
pub async fn ready(address: SocketAddr) {
    wait_for(&format!("the API at {address}"), || async { TcpStream::connect(address).await.ok() }).await;
}
