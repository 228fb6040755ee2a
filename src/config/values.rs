//! Types of values: parsing, and printing without secrets.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Deserializer};

use super::{RoomSection, StoreKind};
use crate::model::ids::{Region, RoomId, RouterName, WorkerId};
use crate::runtime::telemetry::LogFormat;

/// A duration, written `500ms`, `60s`, `10m`, `4h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DurationValue(pub Duration);

impl FromStr for DurationValue {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || "is not a duration such as 500ms, 60s, 10m or 4h".to_owned();
        let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: u64 = text[..split].parse().map_err(|_| bad())?;
        let ms = match &text[split..] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(bad()),
        };
        number.checked_mul(ms).map(|ms| Self(Duration::from_millis(ms))).ok_or_else(bad)
    }
}

/// A number of bytes, written `500MB`, `50GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteCount(pub u64);

impl FromStr for ByteCount {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || "is not a size such as 16MiB or 50GB".to_owned();
        let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: u64 = text[..split].parse().map_err(|_| bad())?;
        let unit = match &text[split..] {
            "B" => 1,
            "KB" => 1000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            _ => return Err(bad()),
        };
        number.checked_mul(unit).map(Self).ok_or_else(bad)
    }
}

/// A list of strings; in the environment, one string with commas.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct List(pub Vec<String>);

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum TextOrList {
            Text(String),
            List(Vec<String>),
        }
        let value = TextOrList::deserialize(from).map_err(|_| serde::de::Error::custom("is not a list of texts"))?;
        let list = match value {
            TextOrList::List(list) => list,
            TextOrList::Text(text) => text.split(',').map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()).collect(),
        };
        Ok(Self(list))
    }
}

macro_rules! from_text {
    ($($name:ident, $such_as:literal;)*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = String::deserialize(from)
                    .map_err(|_| serde::de::Error::custom(concat!("is not a text such as ", $such_as)))?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
from_text! {
    DurationValue, "\"500ms\", \"60s\", \"10m\" or \"4h\"";
    ByteCount, "\"16MiB\" or \"50GB\"";
}

/// Prints values without secrets.
pub(super) trait Redacted {
    /// The value in TOML; `None` if it is not set.
    fn redacted(&self) -> Option<String>;
}

fn quoted(text: &str) -> Option<String> {
    Some(toml::Value::String(text.to_owned()).to_string())
}

macro_rules! redact_as_text {
    ($($name:ty),*) => {$(
        impl Redacted for $name {
            fn redacted(&self) -> Option<String> {
                quoted(&self.to_string())
            }
        }
    )*};
}
macro_rules! redact_as_literal {
    ($($name:ty),*) => {$(
        impl Redacted for $name {
            fn redacted(&self) -> Option<String> {
                Some(self.to_string())
            }
        }
    )*};
}
redact_as_text!(String, SocketAddr, IpAddr, WorkerId, Region, RouterName);
redact_as_literal!(bool, usize, u8, u32, f64);

impl Redacted for List {
    fn redacted(&self) -> Option<String> {
        let texts = self.0.iter().map(|text| toml::Value::String(text.clone())).collect();
        Some(toml::Value::Array(texts).to_string())
    }
}

impl Redacted for BTreeMap<RoomId, RoomSection> {
    fn redacted(&self) -> Option<String> {
        let room = |(name, room): (&RoomId, &RoomSection)| {
            let keys = room.redacted().into_iter().filter_map(|(key, value)| Some(format!("{key} = {}", value?)));
            let keys: Vec<String> = keys.collect();
            Some(format!("{} = {{ {} }}", quoted(name.as_str())?, keys.join(", ")))
        };
        let rooms: Vec<String> = self.iter().filter_map(room).collect();
        (!rooms.is_empty()).then(|| format!("{{ {} }}", rooms.join(", ")))
    }
}

impl<T: Redacted> Redacted for Option<T> {
    fn redacted(&self) -> Option<String> {
        self.as_ref().and_then(Redacted::redacted)
    }
}

impl Redacted for SecretString {
    fn redacted(&self) -> Option<String> {
        quoted("(hidden)")
    }
}

impl Redacted for PathBuf {
    fn redacted(&self) -> Option<String> {
        quoted(&self.to_string_lossy())
    }
}

impl Redacted for StoreKind {
    fn redacted(&self) -> Option<String> {
        quoted(match self {
            Self::Dir => "dir",
            Self::S3 => "s3",
        })
    }
}

impl Redacted for LogFormat {
    fn redacted(&self) -> Option<String> {
        quoted(match self {
            Self::Json => "json",
            Self::Pretty => "pretty",
        })
    }
}

/// The number in the largest unit that divides it.
fn in_largest_unit(number: u64, units: &[(u64, &str)]) -> Option<String> {
    let (unit, name) = units.iter().find(|(unit, _)| number > 0 && number.is_multiple_of(*unit)).or(units.last())?;
    quoted(&format!("{}{name}", number / unit))
}

impl Redacted for DurationValue {
    fn redacted(&self) -> Option<String> {
        let ms = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if ms == 0 {
            return quoted("0s");
        }
        in_largest_unit(ms, &[(3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms")])
    }
}

impl Redacted for ByteCount {
    fn redacted(&self) -> Option<String> {
        in_largest_unit(self.0, &[(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B")])
    }
}
