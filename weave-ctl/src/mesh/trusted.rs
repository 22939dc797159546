//! Subnets over which nothing needs to be sealed (wire.md 2.7).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A part of a list of subnets is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid CIDR address: {0}")]
pub struct InvalidSubnet(String);

/// The subnets of `--trusted-subnets`, IPv4 or IPv6.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedSubnets(Vec<Subnet>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Subnet {
    /// Its host bits are zero.
    address: IpAddr,
    prefix: u32,
}

impl TrustedSubnets {
    /// Is the address in one of them? IPv4 in IPv6 counts as IPv4.
    #[must_use]
    pub fn contain(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|subnet| {
            address.is_ipv4() == subnet.address.is_ipv4() && network(address, subnet.prefix) == subnet.address
        })
    }

    /// Each in its usual form, `10.0.0.0/8`.
    pub fn texts(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(ToString::to_string)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for TrustedSubnets {
    type Err = InvalidSubnet;

    /// CIDRs with commas between them; the empty text is no subnet.
    fn from_str(text: &str) -> Result<Self, InvalidSubnet> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let subnets = text
            .split(',')
            .map(|part| subnet(part.trim()).ok_or_else(|| InvalidSubnet(part.to_owned())));
        subnets.collect::<Result<_, _>>().map(Self)
    }
}

fn subnet(text: &str) -> Option<Subnet> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let width = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| prefix.parse().ok())?
        .filter(|prefix| *prefix <= width)?;
    Some(Subnet {
        address: network(address, prefix),
        prefix,
    })
}

/// The address without its host bits.
fn network(address: IpAddr, prefix: u32) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(prefix)).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(prefix)).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn who_is_trusted() {
        let subnets: TrustedSubnets = "10.1.2.3/16, 192.0.2.7/32,2001:db8::/33".parse().unwrap();
        for (address, trusted) in [
            ("10.1.255.255", true),
            ("10.2.0.0", false),
            ("::ffff:10.1.0.1", true),
            ("192.0.2.7", true),
            ("192.0.2.6", false),
            ("2001:db8:7fff::1", true),
            ("2001:db8:8000::1", false),
            ("::", false),
        ] {
            assert_eq!(subnets.contain(address.parse().unwrap()), trusted, "{address}");
        }
        let texts: Vec<_> = subnets.texts().collect();
        assert_eq!(texts, ["10.1.0.0/16", "192.0.2.7/32", "2001:db8::/33"]);

        let all: TrustedSubnets = "0.0.0.0/0".parse().unwrap();
        assert!(all.contain("203.0.113.1".parse().unwrap()));
        assert!(!all.contain("2001:db8::1".parse().unwrap()));
        let none: TrustedSubnets = "".parse().unwrap();
        assert!(!none.contain("0.0.0.0".parse().unwrap()));
    }

    #[test]
    fn texts_that_are_no_subnets() {
        for (text, part) in [
            ("10.0.0.0", "10.0.0.0"),
            ("10.0.0.0/33", "10.0.0.0/33"),
            ("10.0.0.0/+8", "10.0.0.0/+8"),
            ("10.0.0.0/", "10.0.0.0/"),
            ("10.0.0.0/8,", ""),
            ("::/129", "::/129"),
            ("10.0.0.0/8,host/8", "host/8"),
        ] {
            let error = text.parse::<TrustedSubnets>().unwrap_err();
            assert_eq!(error.to_string(), format!("invalid CIDR address: {part}"));
        }
    }
}
