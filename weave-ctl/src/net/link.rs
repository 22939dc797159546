//! Links and their addresses.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    BridgePortState, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVxlan, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use rtnetlink::{AddressMessageBuilder, LinkUnspec};

use super::netlink::Ask;
use super::{Mac, NetError, Netlink};
use crate::ipam::address::Cidr;

/// What the kernel tells of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Ethernet address, if it has one of six bytes.
    pub mac: Option<Mac>,
    /// In bytes, without the Ethernet header.
    pub mtu: u32,
    /// Index of the bridge or other device it is a port of.
    pub master: Option<u32>,
    /// `bridge`, `veth`, `vxlan`, ...; `None` for most hardware.
    pub kind: Option<String>,
    /// Set up by the administrator.
    pub up: bool,
    /// Has a carrier.
    pub running: bool,
    /// Index of the other end (veth) or of the device below.
    pub peer: Option<u32>,
    /// Number of the namespace that `peer` is in, when not this one.
    pub peer_nsid: Option<i32>,
    /// Its state as a bridge port.
    pub port: Option<Port>,
    /// What somebody has noted beside its name.
    pub alias: Option<String>,
    /// VXLAN only: UDP port, and whether it takes its tunnel from metadata.
    pub vxlan: Option<(u16, bool)>,
}

/// State of a bridge port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// Frames may go back out of the port they came from.
    pub hairpin: bool,
    /// Frames pass.
    pub forwarding: bool,
}

impl Link {
    /// Reads a kernel message.
    #[must_use]
    pub fn from_message(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            running: message.header.flags.contains(LinkFlags::LowerUp),
            ..Self::default()
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(mac) => link.mac = Mac::try_from(mac.as_slice()).ok(),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Controller(master) => link.master = Some(*master),
                LinkAttribute::Link(peer) => link.peer = Some(*peer),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
                LinkAttribute::LinkNetNsId(nsid) => link.peer_nsid = Some(*nsid),
                LinkAttribute::LinkInfo(infos) => infos.iter().for_each(|info| link.read_info(info)),
                _ => {}
            }
        }
        link
    }

    fn read_info(&mut self, info: &LinkInfo) {
        match info {
            LinkInfo::Kind(kind) => self.kind = Some(kind.to_string()),
            LinkInfo::PortData(InfoPortData::BridgePort(data)) => {
                let mut port = Port::default();
                for item in data {
                    match item {
                        InfoBridgePort::HairpinMode(on) => port.hairpin = *on,
                        InfoBridgePort::State(state) => {
                            port.forwarding = *state == BridgePortState::Forwarding;
                        }
                        _ => {}
                    }
                }
                self.port = Some(port);
            }
            LinkInfo::Data(InfoData::Vxlan(data)) => {
                let mut vxlan = (0, false);
                for item in data {
                    match item {
                        InfoVxlan::Port(port) => vxlan.0 = *port,
                        InfoVxlan::CollectMetadata(on) => vxlan.1 = *on,
                        _ => {}
                    }
                }
                self.vxlan = Some(vxlan);
            }
            _ => {}
        }
    }

    /// Is it of this kind?
    #[must_use]
    pub fn is(&self, kind: &InfoKind) -> bool {
        self.kind.as_deref() == Some(kind.to_string().as_str())
    }
}

/// Refuses names that the kernel, or a path below `/proc/sys`, would not take.
pub(crate) fn check_name(name: &str) -> Result<(), NetError> {
    let fits = (1..=15).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_graphic() && b != b'/' && b != b':')
        && name != "."
        && name != "..";
    if fits {
        Ok(())
    } else {
        Err(NetError::BadName(name.to_owned()))
    }
}

impl Netlink {
    /// The device of that name, which must exist.
    pub async fn link(&self, name: &str) -> Result<Link, NetError> {
        self.find_link(name)
            .await?
            .ok_or_else(|| NetError::NoDevice(name.to_owned()))
    }

    /// The device of that name, if any.
    pub async fn find_link(&self, name: &str) -> Result<Option<Link>, NetError> {
        check_name(name)?;
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.get_link(&format!("look up {name}"), message).await
    }

    /// The device of that index, if any.
    pub async fn link_by_index(&self, index: u32) -> Result<Option<Link>, NetError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.get_link(&format!("look up device {index}"), message).await
    }

    /// The device of that index in a namespace that this one knows by number.
    pub(crate) async fn link_in(&self, nsid: i32, index: u32) -> Result<Option<Link>, NetError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::IfNetnsId(nsid));
        self.get_link(&format!("look up device {index} of a container"), message)
            .await
    }

    async fn get_link(&self, action: &str, message: LinkMessage) -> Result<Option<Link>, NetError> {
        match self.ask(action, Ask::Get, Message::GetLink(message)).await {
            Ok(answers) => Ok(links(answers).next()),
            // EINVAL: the namespace of that number is gone.
            Err(e) if matches!(e.errno(), Some(libc::ENODEV | libc::EINVAL)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All devices.
    pub async fn links(&self) -> Result<Vec<Link>, NetError> {
        let request = Message::GetLink(LinkMessage::default());
        Ok(links(self.ask("list network devices", Ask::Dump, request).await?).collect())
    }

    /// The ports of a bridge, by its index.
    pub async fn ports(&self, bridge: u32) -> Result<Vec<Link>, NetError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Controller(bridge));
        let answers = self
            .ask("list bridge ports", Ask::Dump, Message::GetLink(message))
            .await?;
        Ok(links(answers).filter(|l| l.master == Some(bridge)).collect())
    }

    /// IPv4 addresses of a device, in the order of their making.
    pub async fn addresses(&self, index: u32) -> Result<Vec<Cidr>, NetError> {
        self.addresses_in(None, index).await
    }

    /// As [`Netlink::addresses`], in a namespace that this one knows by number.
    pub(crate) async fn addresses_in(&self, nsid: Option<i32>, index: u32) -> Result<Vec<Cidr>, NetError> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.index = index;
        message
            .attributes
            .extend(nsid.map(AddressAttribute::TargetNetNsId));
        let answers = self
            .ask("list addresses", Ask::Dump, Message::GetAddress(message))
            .await?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                Message::NewAddress(found) if found.header.index == index => cidr(&found),
                _ => None,
            })
            .collect())
    }

    /// Adds an address; having it already is fine.
    pub async fn add_address(&self, link: &Link, address: Cidr) -> Result<(), NetError> {
        let message = AddressMessageBuilder::<Ipv4Addr>::new()
            .index(link.index)
            .address(address.addr.into(), address.prefix_len)
            .build();
        let action = format!("add {address} to {}", link.name);
        tolerate(
            self.ask(&action, Ask::Create, Message::NewAddress(message)).await,
            libc::EEXIST,
        )
    }

    /// Removes an address; not having it is fine.
    pub async fn remove_address(&self, link: &Link, address: Cidr) -> Result<(), NetError> {
        let message = AddressMessageBuilder::<Ipv4Addr>::new()
            .index(link.index)
            .address(address.addr.into(), address.prefix_len)
            .build();
        let action = format!("remove {address} from {}", link.name);
        tolerate(
            self.ask(&action, Ask::Change, Message::DelAddress(message)).await,
            libc::EADDRNOTAVAIL,
        )
    }

    /// Sets the device up.
    pub async fn set_up(&self, link: &Link) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(link.index).up().build();
        self.change_link(&format!("set {} up", link.name), message).await
    }

    /// Sets the MTU, in bytes.
    pub async fn set_mtu(&self, link: &Link, mtu: u32) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(link.index).mtu(mtu).build();
        self.change_link(&format!("set the MTU of {} to {mtu}", link.name), message)
            .await
    }

    /// Sets the Ethernet address.
    pub async fn set_mac(&self, link: &Link, mac: Mac) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(link.index)
            .address(mac.to_vec())
            .build();
        let action = format!("set the address of {} to {}", link.name, super::mac_text(mac));
        self.change_link(&action, message).await
    }

    /// Removes the device; its being gone already is fine.
    pub async fn delete(&self, link: &Link) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(link.index).build();
        let action = format!("delete {}", link.name);
        tolerate(
            self.ask(&action, Ask::Change, Message::DelLink(message)).await,
            libc::ENODEV,
        )
    }

    pub(crate) async fn change_link(&self, action: &str, message: LinkMessage) -> Result<(), NetError> {
        self.ask(action, Ask::Change, Message::NewLink(message))
            .await
            .map(drop)
    }

    pub(crate) async fn create_link(&self, action: &str, message: LinkMessage) -> Result<(), NetError> {
        self.ask(action, Ask::Create, Message::NewLink(message))
            .await
            .map(drop)
    }
}

/// Success also if the kernel's answer is `errno`.
pub(crate) fn tolerate<T>(result: Result<T, NetError>, errno: i32) -> Result<(), NetError> {
    match result {
        Err(e) if e.errno() != Some(errno) => Err(e),
        _ => Ok(()),
    }
}

fn links(answers: Vec<Message>) -> impl Iterator<Item = Link> {
    answers.into_iter().filter_map(|answer| match answer {
        Message::NewLink(message) => Some(Link::from_message(&message)),
        _ => None,
    })
}

fn cidr(message: &AddressMessage) -> Option<Cidr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(Cidr {
            addr: (*address).into(),
            prefix_len: message.header.prefix_len,
        }),
        _ => None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::net::testing::{ip, ip_link, new_host};

    #[tokio::test]
    async fn reads_and_changes_what_ip_shows() {
        let Some(nl) = new_host().await else { return };
        ip(nl.ns(), "link add br0 type bridge").await;
        ip(
            nl.ns(),
            "link add a0 master br0 address 02:00:00:00:00:0a mtu 1400 type veth peer name b0",
        )
        .await;
        let (br, a, b) = (
            nl.link("br0").await.unwrap(),
            nl.link("a0").await.unwrap(),
            nl.link("b0").await.unwrap(),
        );
        assert_eq!((a.mac, a.mtu), (Some([2, 0, 0, 0, 0, 10]), 1400));
        assert_eq!((a.master, a.peer), (Some(br.index), Some(b.index)));
        assert!(a.is(&InfoKind::Veth) && br.is(&InfoKind::Bridge) && !a.up);
        assert_eq!(nl.ports(br.index).await.unwrap(), std::slice::from_ref(&a));
        let all = nl.links().await.unwrap();
        assert!(
            all.contains(&br) && all.contains(&a) && all.contains(&b),
            "{all:?}"
        );
        assert_eq!(nl.link_by_index(a.index).await.unwrap().unwrap().name, "a0");

        nl.set_mtu(&b, 1234).await.unwrap();
        nl.set_mac(&b, [2, 0, 0, 0, 0, 11]).await.unwrap();
        nl.set_up(&b).await.unwrap();
        let seen = ip_link(nl.ns(), "b0").await;
        assert_eq!(seen["mtu"], 1234);
        assert_eq!(seen["address"], "02:00:00:00:00:0b");
        assert!(seen["flags"].as_array().unwrap().contains(&"UP".into()));

        nl.delete(&b).await.unwrap();
        nl.delete(&b).await.unwrap();
        assert!(
            nl.find_link("a0").await.unwrap().is_none(),
            "a pair goes together"
        );
        let error = nl.link("a0").await.unwrap_err().to_string();
        assert_eq!(error, "network device \"a0\" not found");
    }

    #[tokio::test]
    async fn addresses_come_and_go() {
        let Some(nl) = new_host().await else { return };
        let lo = nl.link("lo").await.unwrap();
        let (one, two) = ("10.2.1.1/24".parse().unwrap(), "10.2.2.1/24".parse().unwrap());
        for address in [one, two, one] {
            nl.add_address(&lo, address).await.unwrap();
        }
        assert_eq!(nl.addresses(lo.index).await.unwrap(), [one, two]);
        assert!(ip(nl.ns(), "addr show lo").await.contains("10.2.2.1/24"));
        nl.remove_address(&lo, one).await.unwrap();
        nl.remove_address(&lo, one).await.unwrap();
        assert_eq!(nl.addresses(lo.index).await.unwrap(), [two]);
    }

    #[test]
    fn names() {
        for good in ["weave", "eth0.100", "a", "123456789012345"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "a:1", "1234567890123456", "ä"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
