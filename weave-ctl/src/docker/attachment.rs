//! What is remembered of `weave attach`, so that it outlives a restart of the container (control.md 9, 25).

use serde::{Deserialize, Serialize};

use crate::ipam::address::{Address, Cidr};
use crate::net::hosts_file::StaticHost;

/// Most addresses that are remembered of one container.
const MAX_ADDRESSES: usize = 256;

/// How a container was attached while it ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// In the order in which they were given.
    pub addresses: Vec<Kept>,
    /// 224.0.0.0/4 is routed through the interface.
    pub multicast_route: bool,
    /// It has its name in WeaveDNS, and WeaveDNS as a nameserver.
    pub dns: bool,
    /// Its hosts file has its addresses.
    pub rewrite_hosts: bool,
    /// More lines for that file, as `name:address`.
    pub add_hosts: Vec<String>,
}

/// An address of an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The address, with the length of its subnet.
    pub cidr: Cidr,
    /// It was allocated, so that another one of the subnet does as well.
    pub allocated: bool,
}

impl Kept {
    /// `10.2.1.5/24`, or `net:10.2.1.5/24` if it was allocated.
    #[must_use]
    pub fn text(&self) -> String {
        let prefix = if self.allocated { "net:" } else { "" };
        format!("{prefix}{}", self.cidr)
    }

    /// The reverse of [`Kept::text`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (allocated, cidr) = match text.strip_prefix("net:") {
            Some(cidr) => (true, cidr),
            None => (false, text),
        };
        let cidr = cidr.parse().ok()?;
        Some(Self { cidr, allocated })
    }
}

impl Attachment {
    /// The lines for the hosts file that make sense.
    #[must_use]
    pub fn static_hosts(&self) -> Vec<StaticHost> {
        self.add_hosts
            .iter()
            .filter_map(|host| host.parse().ok())
            .collect()
    }

    /// After another `weave attach` of the same container: its addresses come on top, its options hold.
    #[must_use]
    pub fn joined(mut self, newer: Self) -> Self {
        let new = |kept: &Kept| self.addresses.iter().all(|known| known.cidr != kept.cidr);
        let more: Vec<Kept> = newer.addresses.iter().copied().filter(new).collect();
        self.addresses.extend(more);
        self.addresses.truncate(MAX_ADDRESSES);
        Self {
            addresses: self.addresses,
            ..newer
        }
    }

    /// After `weave detach` of these; `None` if nothing is left.
    #[must_use]
    pub fn without(mut self, gone: &[Address]) -> Option<Self> {
        self.addresses.retain(|kept| !gone.contains(&kept.cidr.addr));
        (!self.addresses.is_empty()).then_some(self)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn attachment(addresses: &[&str]) -> Attachment {
        Attachment {
            addresses: addresses.iter().map(|text| Kept::parse(text).unwrap()).collect(),
            ..Attachment::default()
        }
    }

    #[test]
    fn what_was_attached_and_detached_since() {
        let first = attachment(&["net:10.32.0.1/12", "10.2.0.1/24"]);
        let newer = Attachment {
            multicast_route: true,
            ..attachment(&["10.32.0.1/12", "10.3.0.1/24"])
        };
        let both = first.joined(newer);
        let texts: Vec<String> = both.addresses.iter().map(Kept::text).collect();
        assert_eq!(texts, ["net:10.32.0.1/12", "10.2.0.1/24", "10.3.0.1/24"]);
        assert!(both.multicast_route, "the newer options");
        let addr = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().into();
        let left = both.without(&[addr("10.2.0.1"), addr("10.3.0.1")]).unwrap();
        assert_eq!(left.addresses.len(), 1);
        assert_eq!(left.without(&[addr("10.32.0.1")]), None);
        assert_eq!(Kept::parse("net:default"), None);
    }
}
