//! IPv4 addresses as numbers, half-open ranges, CIDRs (control.md 1.2).

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An IPv4 address as a number: the first octet is the most significant.
pub type Address = u32;

/// Half open: `start` is in it, `end` is not. Printed `first-last`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Range {
    /// First address.
    pub start: Address,
    /// One past the last address.
    pub end: Address,
}

/// An address with a prefix length. A *subnet* when all host bits are zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Cidr {
    /// The address, host bits included.
    pub addr: Address,
    /// 0..=32.
    pub prefix_len: u8,
}

/// Why a text is no CIDR, or no subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// No `A.B.C.D/L` at all.
    #[error("invalid CIDR address: {0}")]
    Syntax(String),
    /// IPv6.
    #[error("invalid Non-IPv4 address not supported: {0}")]
    NotIpv4(String),
    /// Host bits are set.
    #[error("invalid subnet - bits after network prefix are not all zero: {0}")]
    HostBits(Cidr),
    /// Fewer than four addresses.
    #[error("invalid subnet - smaller than minimum size 4: {0}")]
    TooSmall(Cidr),
}

impl Range {
    /// Number of addresses.
    #[must_use]
    pub fn size(self) -> u32 {
        self.end - self.start
    }
    /// Is the address in it?
    #[must_use]
    pub fn contains(self, addr: Address) -> bool {
        (self.start..self.end).contains(&addr)
    }
    /// The fewest CIDRs that make up the range, ascending.
    #[must_use]
    pub fn cidrs(self) -> Vec<Cidr> {
        let mut cidrs = Vec::new();
        let mut addr = self.start;
        while addr < self.end {
            // As large as alignment and the rest allow.
            let bits = addr.trailing_zeros().min((self.end - addr).ilog2());
            #[expect(clippy::cast_possible_truncation, reason = "at most 32")]
            let prefix_len = 32 - bits as u8;
            cidrs.push(Cidr { addr, prefix_len });
            addr = addr.saturating_add(1 << bits);
        }
        cidrs
    }
    /// Do the two share an address?
    #[must_use]
    pub fn overlaps(self, other: Range) -> bool {
        self.start < other.end && other.start < self.end
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}-{}",
            Ipv4Addr::from(self.start),
            Ipv4Addr::from(self.end.wrapping_sub(1))
        )
    }
}

impl Cidr {
    /// Parses a subnet of at least four addresses (control.md 1.2).
    pub fn parse_subnet(text: &str) -> Result<Self, CidrError> {
        let cidr: Self = text.parse()?;
        if cidr.prefix_len > 30 {
            return Err(CidrError::TooSmall(cidr));
        }
        if cidr.network().addr != cidr.addr {
            return Err(CidrError::HostBits(cidr));
        }
        Ok(cidr)
    }

    /// Number of addresses; a /0 counts as `u64`.
    #[must_use]
    pub fn size(self) -> u64 {
        1 << (32 - u32::from(self.prefix_len))
    }

    /// The same with host bits zero.
    #[must_use]
    pub fn network(self) -> Self {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix_len)).unwrap_or(0);
        Self {
            addr: self.addr & mask,
            ..self
        }
    }

    /// All addresses of the network. The end of a range that reaches 255.255.255.255 saturates.
    #[must_use]
    pub fn range(self) -> Range {
        let start = self.network().addr;
        let end = u64::from(start) + self.size();
        Range {
            start,
            end: u32::try_from(end).unwrap_or(u32::MAX),
        }
    }

    /// The network without its first and last address, which are never handed out.
    #[must_use]
    pub fn host_range(self) -> Range {
        let all = self.range();
        Range {
            start: all.start + 1,
            end: all.end - 1,
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.addr), self.prefix_len)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    /// Host bits are kept.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let syntax = || CidrError::Syntax(text.to_owned());
        let (addr, len) = text.split_once('/').ok_or_else(syntax)?;
        let addr: std::net::IpAddr = addr.parse().map_err(|_| syntax())?;
        if !(1..=3).contains(&len.len()) || !len.bytes().all(|b| b.is_ascii_digit()) {
            return Err(syntax());
        }
        let len: u8 = len.parse().map_err(|_| syntax())?;
        match addr {
            std::net::IpAddr::V6(_) if len <= 128 => Err(CidrError::NotIpv4(text.to_owned())),
            std::net::IpAddr::V4(v4) if len <= 32 => Ok(Self {
                addr: v4.into(),
                prefix_len: len,
            }),
            _ => Err(syntax()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_as_cidrs() {
        let cidrs = |start, end| {
            let cidrs = Range { start, end }.cidrs();
            cidrs.iter().map(Cidr::to_string).collect::<Vec<_>>()
        };
        assert_eq!(cidrs(0x0a20_0000, 0x0a30_0000), ["10.32.0.0/12"]);
        assert_eq!(
            cidrs(0x0a20_0001, 0x0a20_0009),
            ["10.32.0.1/32", "10.32.0.2/31", "10.32.0.4/30", "10.32.0.8/32"]
        );
        assert_eq!(cidrs(5, 5), [] as [&str; 0]);
        assert_eq!(cidrs(0, u32::MAX).len(), 32);
    }
}
