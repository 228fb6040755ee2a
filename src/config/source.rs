//! Where values come from: the file, files of secrets, the environment. Each key is read by itself, so that every
//! bad one is told, not only the first.

use std::collections::BTreeMap;
use std::io::Read;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::ConfigErrors;
use super::sections::SECRETS;

/// A file that holds a secret is at most this long.
const SECRET_BYTES_MAX: u64 = 64 << 10;
/// Names from the environment begin with it.
const PREFIX: &str = "ARCHIVER__";
/// A value is told in a message up to so many characters.
const TOLD_MAX: usize = 80;

/// A value, and whether it came from the environment, which has texts only.
#[derive(Debug, Clone)]
struct Given {
    value: Value,
    text: bool,
}

/// The keys of a section.
type Fields = BTreeMap<String, Given>;

/// All that was given and not yet taken.
pub(super) struct Source {
    file: Table,
    /// By section, then key; the section of a router is `router__<name>`.
    environment: BTreeMap<String, BTreeMap<String, String>>,
}

impl Source {
    /// Reads a file's text. What is no TOML is told by line and column: the line itself may hold a secret.
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
        let given = with_secrets(name, name, merged(fields, environment, name), errors);
        read_each::<T>(name, name, given, &Table::new(), errors).try_into().unwrap_or_default()
    }

    /// Takes all sections of a list, such as routers, that each have a name. `ARCHIVER__ROUTER__<NAME>__<KEY>` goes before
    /// what the file says of the one of this name, in which characters other than letters and digits are written `_`.
    /// `base` has what is needed, with values that are good.
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
            let told = if name.is_empty() { format!("{section}[{n}]") } else { format!("{section} {name}") };
            let in_environment: String =
                name.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
            let environment = self.environment.remove(&format!("{section}__{in_environment}")).unwrap_or_default();
            let given = with_secrets(section, &told, merged(fields, environment, section), errors);
            for (needed, _) in base {
                if !given.contains_key(*needed) {
                    errors.push(format!("{told}.{needed}: is missing"));
                }
            }
            let base = base.iter().map(|(k, v)| ((*k).to_owned(), Value::String((*v).to_owned()))).collect();
            let good = read_each::<T>(section, &told, given, &base, errors);
            // One with a bad value is checked like the others, so that all is told at once.
            if let Ok(good) = good.try_into() {
                found.push(good);
            }
        }
        found
    }

    /// What is left has no meaning.
    pub(super) fn end(self, errors: &mut Vec<String>) {
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

fn secrets_of(section: &str) -> &'static [&'static str] {
    SECRETS.iter().find(|(name, _)| *name == section).map_or(&[], |(_, keys)| keys)
}

/// The environment goes before the file; a secret there, before a file of the secret too, and the other way round.
fn merged(fields: Table, environment: BTreeMap<String, String>, section: &str) -> Fields {
    let mut given: Fields = fields.into_iter().map(|(key, value)| (key, Given { value, text: false })).collect();
    for (key, text) in environment {
        for secret in secrets_of(section) {
            let file = format!("{secret}_file");
            if key == *secret {
                given.remove(&file);
            } else if key == file && given.get(*secret).is_some_and(|g| !g.text) {
                given.remove(*secret);
            }
        }
        given.insert(key, Given { value: Value::String(text), text: true });
    }
    given
}

/// Reads the files of secrets.
fn with_secrets(section: &str, told: &str, mut given: Fields, errors: &mut Vec<String>) -> Fields {
    for key in secrets_of(section) {
        let Some(path) = given.remove(&format!("{key}_file")) else { continue };
        if given.contains_key(*key) {
            errors.push(format!("{told}.{key} and {told}.{key}_file: only one of them"));
            continue;
        }
        match path.value.as_str().map(read_secret) {
            Some(Ok(secret)) => {
                given.insert((*key).to_owned(), Given { value: Value::String(secret), text: true });
            }
            Some(Err(why)) => errors.push(format!("{told}.{key}_file = {}: {why}", self::told(&path.value))),
            None => errors.push(format!("{told}.{key}_file: is not a path")),
        }
    }
    given
}

fn read_secret(path: &str) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|e| format!("cannot be read: {e}"))?;
    let mut secret = String::new();
    file.take(SECRET_BYTES_MAX + 1).read_to_string(&mut secret).map_err(|e| format!("cannot be read: {e}"))?;
    if secret.len() as u64 > SECRET_BYTES_MAX {
        return Err(format!("is longer than {SECRET_BYTES_MAX} bytes"));
    }
    // Editors end a file with a new line that is no part of the secret.
    let secret = secret.trim_end_matches(['\n', '\r']);
    if secret.is_empty() { Err("is empty".to_owned()) } else { Ok(secret.to_owned()) }
}

/// Tries each key alone, over a base that is valid, and returns those that are good.
fn read_each<T: DeserializeOwned>(
    section: &str,
    told: &str,
    given: Fields,
    base: &Table,
    errors: &mut Vec<String>,
) -> Table {
    let mut good = Table::new();
    for (key, given) in given {
        // A text from the environment may be meant as a number or a boolean; a key that wants a text gets it.
        let as_text = given.value.as_str().unwrap_or_default();
        let values = if given.text { vec![given.value.clone(), typed(as_text)] } else { vec![given.value.clone()] };
        let mut why = String::new();
        let fits = values.into_iter().find(|value| {
            let mut alone = base.clone();
            alone.insert(key.clone(), value.clone());
            match Value::Table(alone).try_into::<T>() {
                Ok(_) => true,
                Err(error) => {
                    why = in_our_words(error.message());
                    false
                }
            }
        });
        match fits {
            Some(value) => drop(good.insert(key, value)),
            None if secrets_of(section).contains(&key.as_str()) => {
                errors.push(format!("{told}.{key}: is not a text"));
            }
            None if why.starts_with("unknown field") => {
                errors
                    .push(format!("{told}.{key}: there is no such key{}", &why[why.find(',').unwrap_or(why.len())..]));
            }
            None => errors.push(format!("{told}.{key} = {}: {why}", self::told(&given.value))),
        }
    }
    good
}

fn typed(text: &str) -> Value {
    if let Ok(number) = text.parse::<i64>() {
        return Value::Integer(number);
    }
    text.parse::<bool>().map_or_else(|_| Value::String(text.to_owned()), Value::Boolean)
}

/// A value for a message.
fn told(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(TOLD_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// What a library says of a type, for people who have never seen ours.
fn in_our_words(why: &str) -> String {
    if why.contains("socket address") {
        return "is not an address with a port, such as 0.0.0.0:8080".to_owned();
    }
    if why.contains("IP address") {
        return "is not an IP address, such as 203.0.113.10".to_owned();
    }
    first_line(why)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}
