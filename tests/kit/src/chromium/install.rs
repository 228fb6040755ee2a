//! npm's packages, installed once into the build folder.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Where the scripts and the lock file are.
pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("chromium")
}

/// The folder whose `node_modules` holds what the lock file names; installed when it is not there yet.
///
/// # Errors
/// When npm cannot be run or its registry not be reached.
pub fn modules() -> Result<PathBuf> {
    let sources = sources();
    let lock = std::fs::read(sources.join("package-lock.json"))?;
    let mut hasher = DefaultHasher::new();
    lock.hash(&mut hasher);
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/testkit");
    std::fs::create_dir_all(&base)?;
    let folder = base.join(format!("chromium-{:016x}", hasher.finish()));
    // Tests of other processes may want the same; the lock goes with the file handle.
    let guard = std::fs::File::create(base.join("chromium.lock"))?;
    guard.lock()?;
    let done = folder.join("done");
    if !done.exists() {
        std::fs::create_dir_all(&folder)?;
        for name in ["package.json", "package-lock.json"] {
            std::fs::copy(sources.join(name), folder.join(name))?;
        }
        let out = Command::new("npm")
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
            .current_dir(&folder)
            .output()
            .context("npm cannot be started; `make setup` installs it")?;
        if !out.status.success() {
            bail!("npm ci: {}", String::from_utf8_lossy(&out.stderr));
        }
        std::fs::write(done, "")?;
    }
    Ok(folder)
}
