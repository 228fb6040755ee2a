//! Networks of IP addresses, as configurations name them. Pure.

use std::net::IpAddr;

/// A network, as `10.1.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    base: IpAddr,
    bits: u8,
}

impl Network {
    /// The network of so many leading bits of an address.
    #[must_use]
    pub const fn new(base: IpAddr, bits: u8) -> Self {
        Self { base, bits }
    }

    /// How many bits its addresses have in common: of two networks the longer one says more.
    #[must_use]
    pub const fn length(&self) -> u8 {
        self.bits
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let same = |a: u128, b: u128, length: u32| {
            let unused = length.saturating_sub(u32::from(self.bits));
            a.checked_shr(unused).unwrap_or(0) == b.checked_shr(unused).unwrap_or(0)
        };
        match (self.base, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same(u32::from(a).into(), u32::from(b).into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => same(a.into(), b.into(), 128),
            _ => false,
        }
    }
}

impl std::str::FromStr for Network {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a network, such as 10.1.0.0/16 or fd00::/8");
        let (base, bits) = text.split_once('/').ok_or_else(bad)?;
        let (base, bits): (IpAddr, u8) = (base.parse().map_err(|_| bad())?, bits.parse().map_err(|_| bad())?);
        let most = if base.is_ipv4() { 32 } else { 128 };
        if bits <= most { Ok(Self { base, bits }) } else { Err(bad()) }
    }
}
