//! Looks up positions of IP addresses in a MaxMind city database, for `session/region.rs`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use maxminddb::{PathElement, Reader};

use crate::model::fault::{Fault, FaultKind, HasFault};
use crate::session::region::Coordinates;

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("geo.database {} cannot be read", path.display())]
pub struct GeoError {
    /// The database's file.
    pub path: PathBuf,
    /// The cause.
    #[source]
    source: maxminddb::MaxMindDbError,
}

impl HasFault for GeoError {
    fn fault(&self) -> Fault {
        FaultKind::ConfigInvalid.fault()
    }
}

/// A database in memory (GeoLite2-City has some 60 MB).
#[derive(Debug)]
pub struct Geo {
    reader: Option<Reader<Vec<u8>>>,
}

impl Geo {
    /// Reads the database. Without one, no address has a position. Blocks.
    ///
    /// # Errors
    /// When the file cannot be read, or is not a MaxMind database.
    pub fn open(database: Option<&Path>) -> Result<Self, GeoError> {
        let open =
            |path: &Path| Reader::open_readfile(path).map_err(|source| GeoError { path: path.to_owned(), source });
        Ok(Self { reader: database.map(open).transpose()? })
    }

    /// The position of an address, if the database has it.
    #[must_use]
    pub fn locate(&self, address: IpAddr) -> Option<Coordinates> {
        let found = self.reader.as_ref()?.lookup(address).ok()?;
        let degrees = |name| found.decode_path::<f64>(&[PathElement::Key("location"), PathElement::Key(name)]).ok()?;
        let at = Coordinates { latitude: degrees("latitude")?, longitude: degrees("longitude")? };
        ((-90.0..=90.0).contains(&at.latitude) && (-180.0..=180.0).contains(&at.longitude)).then_some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A text as the database has it.
    fn text(text: &str) -> Vec<u8> {
        let mut bytes = vec![0x40 | u8::try_from(text.len()).expect("a short text")];
        bytes.extend_from_slice(text.as_bytes());
        bytes
    }

    fn map(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = vec![0xe0 | u8::try_from(entries.len()).expect("a small map")];
        for (key, value) in entries {
            bytes.extend(text(key));
            bytes.extend(value);
        }
        bytes
    }

    fn double(number: f64) -> Vec<u8> {
        [&[0x68][..], &number.to_be_bytes()].concat()
    }

    /// The smallest database that has one IPv4 network (MaxMind DB file format 2.0).
    fn database(network: [u8; 3], data: &[u8]) -> Vec<u8> {
        const NODES: u32 = 24;
        let mut bytes = Vec::new();
        for bit in 0..NODES {
            let next = if bit + 1 == NODES { NODES + 16 } else { bit + 1 };
            let one = (u32::from_be_bytes([0, network[0], network[1], network[2]]) >> (NODES - 1 - bit)) & 1 == 1;
            let (left, right) = if one { (NODES, next) } else { (next, NODES) };
            bytes.extend(&left.to_be_bytes()[1..]);
            bytes.extend(&right.to_be_bytes()[1..]);
        }
        bytes.extend([0; 16]);
        bytes.extend(data);
        bytes.extend(b"\xab\xcd\xefMaxMind.com");
        bytes.extend(map(&[
            ("node_count", vec![0xc1, 24]),
            ("record_size", vec![0xa1, 24]),
            ("ip_version", vec![0xa1, 4]),
            ("database_type", text("Test")),
            ("languages", vec![0x00, 0x04]),
            ("binary_format_major_version", vec![0xa1, 2]),
            ("binary_format_minor_version", vec![0xa0]),
            ("build_epoch", vec![0x01, 0x02, 1]),
            ("description", map(&[])),
        ]));
        bytes
    }

    fn opened(bytes: &[u8]) -> Result<Geo, GeoError> {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), bytes).expect("write");
        Geo::open(Some(file.path()))
    }

    #[test]
    fn an_address_is_where_the_database_says() {
        let at = |latitude, longitude| {
            let location = map(&[("latitude", double(latitude)), ("longitude", double(longitude))]);
            opened(&database([203, 0, 113], &map(&[("location", location)]))).expect("database")
        };
        let (inside, outside) = ("203.0.113.9".parse().expect("address"), "203.0.112.9".parse().expect("address"));
        let geo = at(50.1, -8.7);
        assert_eq!(geo.locate(inside), Some(Coordinates { latitude: 50.1, longitude: -8.7 }));
        assert_eq!(geo.locate(outside), None);
        assert_eq!(geo.locate("2001:db8::1".parse().expect("address")), None);
        assert_eq!(at(91.0, 0.0).locate(inside), None);
        assert_eq!(at(f64::NAN, 0.0).locate(inside), None);
        let other = opened(&database([203, 0, 113], &map(&[("city", text("X"))]))).expect("database");
        assert_eq!(other.locate(inside), None);
    }

    #[test]
    fn what_is_no_database_is_told_with_its_name() {
        assert!(Geo::open(None).expect("none").locate("203.0.113.9".parse().expect("address")).is_none());
        let error = opened(b"no database").expect_err("no database");
        assert_eq!(error.fault().kind, FaultKind::ConfigInvalid);
        let missing = Geo::open(Some(Path::new("/nowhere/city.mmdb"))).expect_err("no file");
        assert!(crate::model::fault::chain(&missing).contains("/nowhere/city.mmdb"), "{missing}");
    }
}
