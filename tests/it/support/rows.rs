//! The results of a long run: a line of JSON each, in a file in Cargo's folder. A run that was interrupted goes on.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::BINARY;

/// Cargo's folder.
pub fn target() -> &'static Path {
    Path::new(BINARY).ancestors().nth(2).expect("target/debug/archiver")
}

/// The commit, and what was changed since.
fn commit() -> String {
    let git = |arguments: &[&str]| Command::new("git").args(arguments).output().expect("git").stdout;
    let head = String::from_utf8(git(&["rev-parse", "--short=12", "HEAD"])).expect("text").trim().to_owned();
    let changed = git(&["diff", "HEAD"]);
    if changed.is_empty() {
        return head;
    }
    let mut hasher = DefaultHasher::new();
    changed.hash(&mut hasher);
    format!("{head}+{:08x}", hasher.finish() as u32)
}

/// The rows of this commit. Of several with one key, the last counts.
pub struct Rows {
    path: PathBuf,
    commit: String,
    key: fn(&Value) -> String,
    rows: BTreeMap<String, Value>,
}

impl Rows {
    /// Opens a file of rows, such as `senders.jsonl`, and drops those of other commits; with `FRESH` in the environment all of them. `key`
    /// tells which row it is.
    pub fn open(name: &str, key: fn(&Value) -> String) -> Self {
        let (path, commit) = (target().join(name), commit());
        let is_fresh = std::env::var_os("FRESH").is_some_and(|fresh| !fresh.is_empty());
        let before = std::fs::read_to_string(&path).ok().filter(|_| !is_fresh).unwrap_or_default();
        let rows = before.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let rows = rows.filter(|row| row["commit"] == commit.as_str());
        let rows: BTreeMap<String, Value> = rows.map(|row| (key(&row), row)).collect();
        let text: String = rows.values().map(|row| format!("{row}\n")).collect();
        std::fs::write(&path, text).expect("the file of rows");
        Self { path, commit, key, rows }
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.rows.get(key)
    }

    pub fn values(&self) -> impl Iterator<Item = &Value> {
        self.rows.values()
    }

    pub fn add(&mut self, mut row: Value) {
        row["commit"] = json!(self.commit);
        let mut file = std::fs::OpenOptions::new().append(true).open(&self.path).expect("the file of rows");
        writeln!(file, "{row}").expect("a row");
        self.rows.insert((self.key)(&row), row);
    }
}
