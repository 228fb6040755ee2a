//! Merges the file, files of secrets and the environment. Each key is parsed separately, so that all errors are reported, not only
//! the first.

use std::collections::BTreeMap;
use std::io::Read;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::sections::{ROUTER_ROOM, SECRETS};
use super::{ConfigErrors, RoomSection};
use crate::model::ids::RoomId;

/// Largest file of a secret, in bytes.
const SECRET_BYTES_MAX: u64 = 64 << 10;
/// Prefix of environment variables.
const PREFIX: &str = "ARCHIVER__";
/// Longest part of a value in a message, in characters.
const VALUE_CHARS_MAX: usize = 80;

/// A value before parsing. The environment and files of secrets have strings only.
#[derive(Debug, Clone)]
struct RawValue {
    value: Value,
    untyped: bool,
}

/// The keys of a section.
type Fields = BTreeMap<String, RawValue>;

/// File and environment, without the sections that were taken.
pub(super) struct Source {
    file: Table,
    /// By section, then key; the section of a router is `router__<name>`.
    environment: BTreeMap<String, BTreeMap<String, String>>,
}

impl Source {
    /// Parses a file. An error names the line but does not quote it, because it may contain a secret.
    pub(super) fn new(
        text: &str,
        environment: &BTreeMap<String, String>,
        errors: &mut Vec<String>,
    ) -> Result<Self, ConfigErrors> {
        let file = text.parse::<Table>().map_err(|e| {
            let before = &text[..e.span().map_or(0, |span| span.start).min(text.len())];
            let line = before.matches('\n').count() + 1;
            ConfigErrors(vec![format!("line {line} is not TOML: {}", first_line(e.message()))])
        })?;
        let mut by_section: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for (name, value) in environment {
            let Some(path) = name.strip_prefix(PREFIX) else { continue };
            let path = path.to_lowercase();
            let (section, key) = match path.rsplit_once("__") {
                Some((section, key)) if !section.is_empty() && !key.is_empty() => (section, key),
                _ => {
                    errors.push(format!("{name}: is not of the form {PREFIX}SECTION__KEY"));
                    continue;
                }
            };
            by_section.entry(section.to_owned()).or_default().insert(key.to_owned(), value.clone());
        }
        Ok(Self { file, environment: by_section })
    }

    /// Takes a section.
    pub(super) fn take<T: DeserializeOwned + Default>(&mut self, name: &str, errors: &mut Vec<String>) -> T {
        let fields = match self.file.remove(name) {
            None => Table::new(),
            Some(Value::Table(fields)) => fields,
            Some(_) => {
                errors.push(format!("{name}: is not a section"));
                Table::new()
            }
        };
        let environment = self.environment.remove(name).unwrap_or_default();
        let raw = with_secret_files(name, name, with_environment(fields, environment, name), errors);
        keep_valid::<T>(name, name, raw, &Table::new(), errors).try_into().unwrap_or_default()
    }

    /// Takes all sections of a list, such as routers, which have names. `ARCHIVER__ROUTER__<NAME>__<KEY>` overrides a key of the
    /// router with this name; characters of the name other than letters and digits are written `_`. `base` has the required keys with
    /// valid values.
    pub(super) fn take_list<T: DeserializeOwned>(
        &mut self,
        section: &'static str,
        base: &[(&str, &str)],
        errors: &mut Vec<String>,
    ) -> Vec<T> {
        let list = match self.file.remove(section) {
            None => Vec::new(),
            Some(Value::Array(list)) => list,
            Some(_) => {
                errors.push(format!("{section}: is not a list: write [[{section}]]"));
                Vec::new()
            }
        };
        let mut found = Vec::new();
        for (n, fields) in list.into_iter().enumerate() {
            let Value::Table(fields) = fields else {
                errors.push(format!("{section}[{n}]: is not a section: write [[{section}]]"));
                continue;
            };
            let name = fields.get("name").and_then(Value::as_str).unwrap_or_default();
            let label = if name.is_empty() { format!("{section}[{n}]") } else { format!("{section} {name}") };
            let in_environment: String =
                name.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
            let environment = self.environment.remove(&format!("{section}__{in_environment}")).unwrap_or_default();
            let mut raw = with_secret_files(section, &label, with_environment(fields, environment, section), errors);
            if section == "router" {
                check_rooms(&label, &mut raw, errors);
            }
            for (needed, _) in base {
                if !raw.contains_key(*needed) {
                    errors.push(format!("{label}.{needed}: is missing"));
                }
            }
            let base = base.iter().map(|(k, v)| ((*k).to_owned(), Value::String((*v).to_owned()))).collect();
            let good = keep_valid::<T>(section, &label, raw, &base, errors);
            // A section with an invalid value is kept without it, so that the later checks report further errors.
            if let Ok(good) = good.try_into() {
                found.push(good);
            }
        }
        found
    }

    /// Reports the sections that were not taken: they are unknown.
    pub(super) fn report_unknown(self, errors: &mut Vec<String>) {
        errors.extend(self.file.keys().map(|name| format!("{name}: there is no such section")));
        for section in self.environment.keys() {
            let listed = ["router", "region"].into_iter().find_map(|list| Some((list, section.strip_prefix(list)?)));
            errors.push(match listed.and_then(|(list, name)| Some((list, name.strip_prefix("__")?))) {
                Some((list, _)) => format!("{PREFIX}{}: the file has no such {list}", section.to_uppercase()),
                None => format!("{PREFIX}{}: there is no such section", section.to_uppercase()),
            });
        }
    }
}

/// Parses the sections of a router's rooms one by one, because messages about the whole would contain their secrets.
fn check_rooms(label: &str, raw: &mut Fields, errors: &mut Vec<String>) {
    let Some(RawValue { value, .. }) = raw.remove("rooms") else { return };
    let Value::Table(rooms) = value else {
        errors.push(format!("{label}.rooms: is not a section: write [router.rooms.\"name\"]"));
        return;
    };
    let mut good = Table::new();
    for (name, fields) in rooms {
        let label = format!("{label}.rooms.{name:?}");
        match (name.parse::<RoomId>(), fields) {
            (Err(problem), _) => errors.push(format!("{label}: {problem}")),
            (Ok(_), Value::Table(fields)) => {
                let raw = with_environment(fields, BTreeMap::new(), ROUTER_ROOM);
                let raw = with_secret_files(ROUTER_ROOM, &label, raw, errors);
                good.insert(
                    name,
                    Value::Table(keep_valid::<RoomSection>(ROUTER_ROOM, &label, raw, &Table::new(), errors)),
                );
            }
            (Ok(_), _) => errors.push(format!("{label}: is not a section: write [router.rooms.{name:?}]")),
        }
    }
    raw.insert("rooms".to_owned(), RawValue { value: Value::Table(good), untyped: false });
}

fn secrets_of(section: &str) -> &'static [&'static str] {
    SECRETS.iter().find(|(name, _)| *name == section).map_or(&[], |(_, keys)| keys)
}

/// The environment overrides the file. A secret in the environment also overrides a secret file in the file, and the other way round.
fn with_environment(fields: Table, environment: BTreeMap<String, String>, section: &str) -> Fields {
    let mut raw: Fields = fields.into_iter().map(|(key, value)| (key, RawValue { value, untyped: false })).collect();
    for (key, text) in environment {
        for secret in secrets_of(section) {
            let file = format!("{secret}_file");
            if key == *secret {
                raw.remove(&file);
            } else if key == file && raw.get(*secret).is_some_and(|g| !g.untyped) {
                raw.remove(*secret);
            }
        }
        raw.insert(key, RawValue { value: Value::String(text), untyped: true });
    }
    raw
}

/// Reads the files of secrets.
fn with_secret_files(section: &str, label: &str, mut raw: Fields, errors: &mut Vec<String>) -> Fields {
    for key in secrets_of(section) {
        let Some(path) = raw.remove(&format!("{key}_file")) else { continue };
        if raw.contains_key(*key) {
            errors.push(format!("{label}.{key} and {label}.{key}_file: only one of them"));
            continue;
        }
        match path.value.as_str().map(read_secret) {
            Some(Ok(secret)) => {
                raw.insert((*key).to_owned(), RawValue { value: Value::String(secret), untyped: true });
            }
            Some(Err(problem)) => errors.push(format!("{label}.{key}_file = {}: {problem}", shortened(&path.value))),
            None => errors.push(format!("{label}.{key}_file: is not a path")),
        }
    }
    raw
}

fn read_secret(path: &str) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|e| format!("cannot be read: {e}"))?;
    let mut secret = String::new();
    file.take(SECRET_BYTES_MAX + 1).read_to_string(&mut secret).map_err(|e| format!("cannot be read: {e}"))?;
    if secret.len() as u64 > SECRET_BYTES_MAX {
        return Err(format!("is longer than {SECRET_BYTES_MAX} bytes"));
    }
    // Editors end a file with a newline, which is not part of the secret.
    let secret = secret.trim_end_matches(['\n', '\r']);
    if secret.is_empty() { Err("is empty".to_owned()) } else { Ok(secret.to_owned()) }
}

/// Parses each key separately, together with a valid base, and returns the valid ones.
fn keep_valid<T: DeserializeOwned>(
    section: &str,
    label: &str,
    raw: Fields,
    base: &Table,
    errors: &mut Vec<String>,
) -> Table {
    let mut good = Table::new();
    for (key, raw) in raw {
        // A string from the environment may stand for a number or a boolean. It is tried as a string first.
        let as_text = raw.value.as_str().unwrap_or_default();
        let values =
            if raw.untyped { vec![raw.value.clone(), number_or_boolean(as_text)] } else { vec![raw.value.clone()] };
        let mut problem = String::new();
        let valid = values.into_iter().find(|value| {
            let mut alone = base.clone();
            alone.insert(key.clone(), value.clone());
            match Value::Table(alone).try_into::<T>() {
                Ok(_) => true,
                Err(error) => {
                    problem = plain_error(error.message());
                    false
                }
            }
        });
        match valid {
            Some(value) => drop(good.insert(key, value)),
            None if secrets_of(section).contains(&key.as_str()) => {
                errors.push(format!("{label}.{key}: is not a text"));
            }
            None if problem.starts_with("unknown field") => {
                errors.push(format!(
                    "{label}.{key}: there is no such key{}",
                    &problem[problem.find(',').unwrap_or(problem.len())..]
                ));
            }
            None => errors.push(format!("{label}.{key} = {}: {problem}", shortened(&raw.value))),
        }
    }
    good
}

fn number_or_boolean(text: &str) -> Value {
    if let Ok(number) = text.parse::<i64>() {
        return Value::Integer(number);
    }
    text.parse::<bool>().map_or_else(|_| Value::String(text.to_owned()), Value::Boolean)
}

/// A value, shortened for a message.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(VALUE_CHARS_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// A library's error message without the names of Rust types.
fn plain_error(problem: &str) -> String {
    if problem.contains("socket address") {
        return "is not an address with a port, such as 0.0.0.0:8080".to_owned();
    }
    if problem.contains("IP address") {
        return "is not an IP address, such as 203.0.113.10".to_owned();
    }
    first_line(problem)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}
