//! Blocks of addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::{Error, ErrorKind};

/// A block of addresses, as `198.19.0.0/16`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// A block; `None` when the prefix is too long or the address has bits beyond it.
    #[must_use]
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let fits = prefix <= bits(address) && trim(address, prefix) == address;
        fits.then_some(Self { address, prefix })
    }

    /// The block that an address is in.
    pub(super) fn around(address: IpAddr, prefix: u8) -> Self {
        let prefix = prefix.min(bits(address));
        Self { address: trim(address, prefix), prefix }
    }

    /// Its first address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many leading bits all its addresses share.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        bits(address) == bits(self.address) && trim(address, self.prefix) == self.address
    }

    /// Whether the two have an address in common: blocks are nested or disjoint.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn trim(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

impl FromStr for Cidr {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parsed = text.split_once('/').and_then(|(address, prefix)| {
            let digits = prefix.len() <= 3 && prefix.bytes().all(|b| b.is_ascii_digit());
            Self::new(address.parse().ok()?, if digits { prefix.parse().ok()? } else { return None })
        });
        parsed.ok_or_else(|| {
            let message = format!("'{}' is no block of addresses", text.escape_default());
            Error::new(ErrorKind::InvalidArgument, message)
                .advise("write it as 198.19.0.0/16, with zeros after the prefix")
        })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().expect(text)
    }

    #[test]
    fn blocks_are_written_with_zeros_after_the_prefix() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "1.2.3.4/32", "::/0", "fe80::/10", "::1/128"] {
            assert_eq!(cidr(text).to_string(), text);
        }
        for text in
            ["10.0.0.1/8", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "::/129", "/8", "", "x/1"]
        {
            let error = text.parse::<Cidr>().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        }
    }

    #[test]
    fn what_is_in_a_block() {
        let block = cidr("169.254.0.0/16");
        assert!(block.contains("169.254.169.254".parse().expect("ip")));
        assert!(!block.contains("169.255.0.0".parse().expect("ip")));
        assert!(!block.contains("::a9fe:1".parse().expect("ip")));
        assert!(cidr("0.0.0.0/0").contains("255.255.255.255".parse().expect("ip")));
        assert!(cidr("10.0.0.0/8").overlaps(&cidr("10.213.0.0/16")));
        assert!(cidr("10.213.0.0/16").overlaps(&cidr("10.0.0.0/8")));
        assert!(!cidr("10.0.0.0/9").overlaps(&cidr("10.128.0.0/9")));
        assert!(!cidr("::/0").overlaps(&cidr("10.0.0.0/8")));
    }
}
