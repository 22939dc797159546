//! Who a container may say it is: its Ethernet and IPv4 addresses, written as the alias of the host's end of its
//! pair. There they outlive every process of ours, `ip link` shows them, and the daemon hears of each change.
//!
//! ```text
//! weave 0a:1b:2c:3d:4e:5f 10.32.0.1 10.2.1.7
//! weave 0a:1b:2c:3d:4e:5f *                      too many addresses to write down
//! ```

use std::net::Ipv4Addr;

use netlink_packet_route::link::LinkAttribute;
use rtnetlink::LinkUnspec;

use super::{Mac, NetError, Netlink, mac_text, parse_mac};
use crate::ipam::address::Cidr;

/// How ours begin; an interface's other aliases are not ours to read.
const MARK: &str = "weave ";
/// Stands for all addresses.
const ANY: &str = "*";
/// Most addresses that are written down: so many fit into an alias (256 bytes, `IFALIASZ`) for certain.
pub const MOST: usize = weave_common::MAX_SOURCE_IPS;

/// A container's own addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The Ethernet address of its interface.
    pub mac: Mac,
    /// At most [`MOST`]; `None`: any.
    pub addrs: Option<Vec<Ipv4Addr>>,
}

impl Identity {
    /// Of an interface with these addresses.
    #[must_use]
    pub fn new(mac: Mac, addrs: &[Cidr]) -> Self {
        let addrs: Vec<Ipv4Addr> = addrs.iter().map(|cidr| cidr.addr.into()).collect();
        let addrs = (addrs.len() <= MOST).then_some(addrs);
        Self { mac, addrs }
    }

    /// As an alias.
    #[must_use]
    pub fn to_alias(&self) -> String {
        let mut alias = format!("{MARK}{}", mac_text(self.mac));
        match &self.addrs {
            Some(addrs) => addrs.iter().for_each(|addr| alias += &format!(" {addr}")),
            None => alias += &format!(" {ANY}"),
        }
        alias
    }

    /// Reads an alias; `None` if it is not one of ours.
    #[must_use]
    pub fn from_alias(alias: &str) -> Option<Self> {
        let mut words = alias.strip_prefix(MARK)?.split(' ');
        let mac = parse_mac(words.next()?)?;
        let words: Vec<&str> = words.collect();
        if words == [ANY] {
            return Some(Self { mac, addrs: None });
        }
        let addrs: Option<Vec<Ipv4Addr>> = words.iter().map(|word| word.parse().ok()).collect();
        let addrs = addrs.filter(|addrs| addrs.len() <= MOST)?;
        Some(Self {
            mac,
            addrs: Some(addrs),
        })
    }

    /// Writes it down at that interface.
    pub async fn write(&self, nl: &Netlink, index: u32) -> Result<(), NetError> {
        let change = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::IfAlias(self.to_alias()))
            .build();
        nl.change_link("note the container's addresses", change).await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MAC: Mac = [0x0a, 0x1b, 0x2c, 0x3d, 0x4e, 0x5f];

    #[test]
    fn there_and_back() {
        let cidr = |text: &str| text.parse::<Cidr>().unwrap();
        let longest: Vec<Cidr> = (0..MOST).map(|_| cidr("255.255.255.255/32")).collect();
        for (addrs, alias) in [
            (&[][..], "weave 0a:1b:2c:3d:4e:5f"),
            (
                &[cidr("10.32.0.1/12"), cidr("10.2.1.7/24")],
                "weave 0a:1b:2c:3d:4e:5f 10.32.0.1 10.2.1.7",
            ),
        ] {
            let identity = Identity::new(MAC, addrs);
            assert_eq!(identity.to_alias(), alias);
            assert_eq!(Identity::from_alias(alias), Some(identity));
        }
        let full = Identity::new(MAC, &longest);
        assert!(full.to_alias().len() < 256);
        assert_eq!(Identity::from_alias(&full.to_alias()), Some(full));
        let many = Identity::new(MAC, &[&longest[..], &[cidr("10.0.0.1/8")]].concat());
        assert_eq!(many.addrs, None);
        assert_eq!(Identity::from_alias(&many.to_alias()), Some(many));
    }

    #[test]
    fn aliases_of_others() {
        for alias in [
            "",
            "weave",
            "weave ",
            "weave x",
            "uplink",
            "weave 0a:1b:2c:3d:4e:5f 10.0.0",
            "weave 0a:1b:2c:3d:4e:5f * 10.0.0.1",
            "weave 0a:1b:2c:3d:4e:5f 10.0.0.1 *",
        ] {
            assert_eq!(Identity::from_alias(alias), None, "{alias}");
        }
    }
}
