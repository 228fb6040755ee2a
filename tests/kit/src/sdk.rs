//! The server SDKs of Vonage and `OpenTok`, as processes that do what they are told.
//!
//! `tests/sdk` holds a program for each, and the lock files of what they need; `install.sh` there installs it once into the
//! user's cache. All take the same commands, in the words of the wire, and call their SDK's own method for it.

use std::path::{Path, PathBuf};
use std::process::{Command as Run, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::wait::deadline;

/// An SDK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sdk {
    /// npm `@vonage/video`.
    VonageNode,
    /// PyPI `vonage`. It speaks https only.
    VonagePython,
    /// npm `opentok`; with a private key as its secret it speaks as a unified application does.
    OpentokNode,
    /// PyPI `opentok`.
    OpentokPython,
}

/// What an SDK made of an answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct SdkError {
    /// Its class.
    pub kind: String,
    /// The HTTP status, where the SDK tells it.
    pub status: Option<u16>,
    /// Its text.
    pub message: String,
}

/// Where an SDK sends its requests, and as whom.
#[derive(Debug, Clone)]
pub struct Account {
    /// `http://…` or `https://…`, without a slash at its end.
    pub url: String,
    /// The application's UUID, or the project's number.
    pub id: String,
    /// The private key (PEM), or the secret.
    pub key: String,
    /// The authority that has signed the service's certificate (PEM).
    pub authority: Option<PathBuf>,
}

/// Where the programs are.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk")
}

/// The folder with `node_modules` and `venv`, as the lock files have it; installed when it is not there yet.
///
/// # Errors
/// When npm or pip cannot be run, or their registries not be reached.
pub fn modules() -> Result<PathBuf> {
    let out = Run::new(sources().join("install.sh")).output().context("tests/sdk/install.sh")?;
    if !out.status.success() {
        bail!("tests/sdk/install.sh: {}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(PathBuf::from(String::from_utf8(out.stdout)?.trim()))
}

/// An SDK that runs until it is dropped.
#[derive(Debug)]
pub struct Driver {
    _process: Child,
    stdin: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    log: tempfile::NamedTempFile,
}

impl Driver {
    /// Starts an SDK's program.
    ///
    /// # Errors
    /// When it cannot be installed or started.
    pub async fn start(sdk: Sdk, account: &Account) -> Result<Self> {
        let modules = tokio::task::spawn_blocking(modules).await??;
        let (sources, python) = (sources(), modules.join("venv/bin/python"));
        let node = |name: &str| {
            let mut command = Command::new("node");
            command.arg(sources.join(name)).arg(&modules);
            command
        };
        let python = |name: &str| {
            let mut command = Command::new(&python);
            command.arg("-B").arg(sources.join(name));
            command
        };
        let mut command = match sdk {
            Sdk::VonageNode => node("vonage-video.mjs"),
            Sdk::OpentokNode => node("opentok.mjs"),
            Sdk::VonagePython => python("vonage_unified.py"),
            Sdk::OpentokPython => python("opentok_legacy.py"),
        };
        if let Some(authority) = &account.authority {
            command.env("NODE_EXTRA_CA_CERTS", authority).env("REQUESTS_CA_BUNDLE", authority);
        }
        let log = tempfile::NamedTempFile::new()?;
        let mut process = command
            .arg(json!({ "url": account.url, "id": account.id, "key": account.key }).to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log.reopen()?)
            .kill_on_drop(true)
            .spawn()
            .context("an SDK's program cannot be started; `make setup` installs what it needs")?;
        let stdin = process.stdin.take().context("no stdin")?;
        let stdout = process.stdout.take().context("no stdout")?;
        Ok(Self { _process: process, stdin, answers: BufReader::new(stdout).lines(), log })
    }

    /// Calls a method.
    ///
    /// # Errors
    /// When the program has ended or hangs; what the SDK says is in the result.
    #[allow(clippy::needless_pass_by_value)]
    pub async fn call(&mut self, call: &str, args: Value) -> Result<Result<Value, SdkError>> {
        self.stdin.write_all(format!("{}\n", json!({ "call": call, "args": args })).as_bytes()).await?;
        let line = tokio::time::timeout(deadline(), self.answers.next_line()).await;
        let line = line.with_context(|| format!("{call} {args} hangs"))??;
        let line = line.with_context(|| format!("{call} {args} ended the program: {}", self.log()))?;
        let mut answer: Value = serde_json::from_str(&line)?;
        if answer["error"].is_object() {
            return Ok(Err(serde_json::from_value(answer["error"].take())?));
        }
        Ok(Ok(answer["ok"].take()))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap_or_default()
    }
}
