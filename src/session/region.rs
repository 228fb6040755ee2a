//! Chooses region and media router for a new session: the nearest ones to its first client. Pure.
//!
//! First the networks in the configuration decide, then the distance to the client's position in a geo database, then the region of
//! this process. A region without a media router is skipped for the next nearest one.

use std::net::IpAddr;

use sha2::{Digest, Sha256};

use crate::config::{RegionSection, RouterSection};
use crate::model::ids::{Region, RouterName, SessionId};
use crate::model::network::Network;

/// A position on the globe, in degrees north and east.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coordinates {
    /// -90 to 90.
    pub latitude: f64,
    /// -180 to 180.
    pub longitude: f64,
}

impl Coordinates {
    /// The great-circle distance in radians (haversine formula). Used for comparisons only.
    #[must_use]
    pub fn distance(self, other: Self) -> f64 {
        let half_square = |radians: f64| (radians / 2.0).sin().powi(2);
        let (a, b) = (self.latitude.to_radians(), other.latitude.to_radians());
        let east = (other.longitude - self.longitude).to_radians();
        2.0 * (half_square(b - a) + a.cos() * b.cos() * half_square(east)).sqrt().min(1.0).asin()
    }
}

#[derive(Debug, Clone)]
struct RegionEntry {
    name: Region,
    networks: Vec<Network>,
    position: Option<Coordinates>,
}

/// Chooses among the regions and media routers of a configuration.
#[derive(Debug, Clone)]
pub struct RegionSelector {
    own: Region,
    regions: Vec<RegionEntry>,
    routers: Vec<(Region, RouterName)>,
}

/// Where a session is carried and recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The router's region, whose workers record the session.
    pub region: Region,
    /// The media router of its room.
    pub router: RouterName,
}

impl RegionSelector {
    /// `own` is the region of this process. It is the region of routers without one, and of clients whose position is not known.
    #[must_use]
    pub fn new(own: &Region, regions: &[RegionSection], routers: &[RouterSection]) -> Self {
        let entry = |section: &RegionSection| RegionEntry {
            name: section.name.clone(),
            // The check of the configuration has refused texts that are not networks.
            networks: section.networks.0.iter().filter_map(|text| text.parse().ok()).collect(),
            position: section
                .latitude
                .zip(section.longitude)
                .map(|(latitude, longitude)| Coordinates { latitude, longitude }),
        };
        let router =
            |router: &RouterSection| (router.region.clone().unwrap_or_else(|| own.clone()), router.name.clone());
        Self {
            own: own.clone(),
            regions: regions.iter().map(entry).collect(),
            routers: routers.iter().map(router).collect(),
        }
    }

    /// Chooses for a session. `locate` looks up the position of an address. A hash of the session's id selects one of the region's
    /// routers, so that all processes choose the same. `None` when there is no router at all.
    #[must_use]
    pub fn choose(
        &self,
        session: &SessionId,
        location: Option<IpAddr>,
        locate: impl FnOnce(IpAddr) -> Option<Coordinates>,
    ) -> Option<Placement> {
        let region = self.nearest(location, locate)?;
        let candidates: Vec<&RouterName> =
            self.routers.iter().filter(|(of, _)| *of == region).map(|(_, name)| name).collect();
        let hash = Sha256::digest(session.as_str());
        let hash = hash.iter().take(8).fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
        let count = u64::try_from(candidates.len()).ok()?;
        let index = usize::try_from(hash.checked_rem(count)?).ok()?;
        Some(Placement { region, router: candidates.get(index).copied()?.clone() })
    }

    /// The nearest region that has a router.
    fn nearest(&self, location: Option<IpAddr>, locate: impl FnOnce(IpAddr) -> Option<Coordinates>) -> Option<Region> {
        let by_network = location.and_then(|address| self.by_network(address));
        let first = by_network.filter(|region| self.has_router(&region.name));
        if let Some(region) = first {
            return Some(region.name.clone());
        }
        // The best known position: of the network's region, else of the address, else of this process's region.
        let own = self.regions.iter().find(|region| region.name == self.own).and_then(|region| region.position);
        let client = by_network.and_then(|region| region.position).or_else(|| location.and_then(locate));
        if client.is_none() && self.has_router(&self.own) {
            return Some(self.own.clone());
        }
        let from = client.or(own);
        let distances = self.regions.iter().filter(|region| self.has_router(&region.name));
        let distances = distances.filter_map(|region| Some((from?.distance(region.position?), &region.name)));
        let nearest = distances.min_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, name)| name);
        let own = Some(&self.own).filter(|own| self.has_router(own));
        nearest.or(own).or_else(|| self.routers.first().map(|(region, _)| region)).cloned()
    }

    /// The region with the longest network prefix that contains the address.
    fn by_network(&self, address: IpAddr) -> Option<&RegionEntry> {
        let longest = |region: &RegionEntry| {
            region.networks.iter().filter(|network| network.contains(address)).map(Network::length).max()
        };
        let matching = self.regions.iter().filter_map(|region| Some((longest(region)?, region)));
        // Of equally long ones the first: `max_by_key` returns the last.
        matching.rev().max_by_key(|(length, _)| *length).map(|(_, region)| region)
    }

    fn has_router(&self, region: &Region) -> bool {
        self.routers.iter().any(|(at, _)| at == region)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRANKFURT: Coordinates = Coordinates { latitude: 50.1, longitude: 8.7 };
    const LISBON: Coordinates = Coordinates { latitude: 38.7, longitude: -9.1 };
    const SEOUL: Coordinates = Coordinates { latitude: 37.6, longitude: 127.0 };
    const HONOLULU: Coordinates = Coordinates { latitude: 21.3, longitude: -157.9 };

    fn selector(own: &str, routers: &[(&str, Option<&str>)]) -> RegionSelector {
        #[derive(serde::Deserialize)]
        struct Regions {
            region: Vec<RegionSection>,
        }
        let regions: Regions = toml::from_str(
            "[[region]]\nname = \"eu\"\nnetworks = [\"203.0.113.0/24\", \"2001:db8::/32\"]\nlatitude = 50.1\nlongitude = 8.7\n\
             [[region]]\nname = \"us\"\nnetworks = [\"203.0.113.128/25\", \"198.51.100.0/24\"]\nlatitude = 39.0\nlongitude = -77.5\n\
             [[region]]\nname = \"ap\"\nlatitude = 35.7\nlongitude = 139.7\n\
             [[region]]\nname = \"lan\"\nnetworks = [\"10.0.0.0/8\"]\n",
        )
        .expect("regions");
        let router = |(name, region): &(&str, Option<&str>)| {
            let region = region.map(|r| format!("region = \"{r}\"\n")).unwrap_or_default();
            toml::from_str(&format!("name = \"{name}\"\nurl = \"ws://x\"\n{region}")).expect("router")
        };
        let routers: Vec<RouterSection> = routers.iter().map(router).collect();
        RegionSelector::new(&own.parse().expect("region"), &regions.region, &routers)
    }

    fn chosen(selector: &RegionSelector, location: Option<&str>, at: Option<Coordinates>) -> Option<(String, String)> {
        let session = "s1".parse().expect("id");
        let choice = selector.choose(&session, location.map(|ip| ip.parse().expect("address")), |_| at)?;
        Some((choice.region.to_string(), choice.router.to_string()))
    }

    const ALL: &[(&str, Option<&str>)] =
        &[("j-eu", Some("eu")), ("j-us", Some("us")), ("j-ap", Some("ap")), ("j-lan", Some("lan"))];

    #[test]
    fn the_nearest_region_is_that_of_the_longest_network_then_of_the_least_distance_then_our_own() {
        let selector = selector("eu", ALL);
        for (location, at, region) in [
            (None, None, "eu"),
            (Some("203.0.113.1"), None, "eu"),
            (Some("203.0.113.200"), None, "us"),
            (Some("203.0.113.200"), Some(FRANKFURT), "us"),
            (Some("2001:db8::7"), Some(SEOUL), "eu"),
            (Some("10.1.2.3"), None, "lan"),
            (Some("192.0.2.1"), Some(LISBON), "eu"),
            (Some("192.0.2.1"), Some(SEOUL), "ap"),
            // Over the date line: Tokyo is nearer than Virginia.
            (Some("192.0.2.1"), Some(HONOLULU), "ap"),
            (Some("192.0.2.1"), None, "eu"),
        ] {
            let expected = (region.to_owned(), format!("j-{region}"));
            assert_eq!(chosen(&selector, location, at), Some(expected), "{location:?} {at:?}");
        }
    }

    #[test]
    fn a_region_without_a_router_is_passed_over_for_the_next_nearest() {
        for (own, routers, location, at, region) in [
            ("eu", &[("a", Some("us")), ("b", Some("ap"))][..], Some("203.0.113.1"), None, "us"),
            ("eu", &[("a", Some("us")), ("b", Some("ap"))], Some("192.0.2.1"), Some(SEOUL), "ap"),
            ("eu", &[("a", Some("us")), ("b", Some("ap"))], None, None, "us"),
            ("ap", &[("a", Some("us")), ("b", Some("eu"))], Some("10.1.2.3"), None, "eu"),
            ("nowhere", &[("a", Some("ap"))], None, None, "ap"),
            ("nowhere", &[("a", None)], Some("203.0.113.1"), None, "nowhere"),
            ("mars", &[("a", Some("moon")), ("b", Some("mars"))], Some("192.0.2.1"), Some(SEOUL), "mars"),
        ] {
            let found = chosen(&selector(own, routers), location, at).map(|(region, _)| region);
            assert_eq!(found.as_deref(), Some(region), "{own} {routers:?} {location:?}");
        }
        assert_eq!(chosen(&selector("eu", &[]), None, None), None);
    }

    #[test]
    fn the_routers_of_a_region_take_turns_and_one_without_a_region_is_in_ours() {
        let selector = selector("eu", &[("a", Some("eu")), ("b", None), ("c", Some("eu")), ("d", Some("us"))]);
        let mut counts = std::collections::BTreeMap::new();
        for n in 0..3000 {
            let session = format!("session-{n}").parse().expect("id");
            let choice = selector.choose(&session, None, |_| None).expect("a router");
            assert_eq!(selector.choose(&session, None, |_| None).as_ref(), Some(&choice));
            *counts.entry(choice.router.to_string()).or_insert(0) += 1;
        }
        assert_eq!(counts.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert!(counts.values().all(|count| (900..1100).contains(count)), "{counts:?}");
    }

    #[test]
    fn distances_are_those_of_the_globe() {
        // 1 radian is 6,371 km: Frankfurt to Lisbon is 1,890 km, to Seoul 8,600 km.
        let km = |a: Coordinates, b: Coordinates| a.distance(b) * 6371.0;
        assert!((km(FRANKFURT, LISBON) - 1890.0).abs() < 30.0, "{}", km(FRANKFURT, LISBON));
        assert!((km(FRANKFURT, SEOUL) - 8600.0).abs() < 80.0, "{}", km(FRANKFURT, SEOUL));
        assert!(km(SEOUL, SEOUL).abs() < 1e-6);
    }
}
