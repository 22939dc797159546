//! How packets to another host leave: route, source address, MTU, next hop (for the tunnel keys).

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::netlink::Ask;
use super::{Mac, NetError, Netlink};

/// The kernel's present choice for packets to a remote address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// Index of the device they leave by.
    pub oif: u32,
    /// Its name.
    pub device: String,
    /// Its Ethernet address; `None` for devices without one.
    pub mac: Option<Mac>,
    /// Router, if the remote is not on the device's own network.
    pub gateway: Option<IpAddr>,
    /// Source address.
    pub source: Ipv4Addr,
    /// Largest IP packet, in bytes: of the device, the route and what path MTU discovery learned,
    /// the least.
    pub mtu: u32,
    /// The address is this host's own.
    pub local: bool,
}

impl Path {
    /// Whose Ethernet address packets carry: the router's or the remote's.
    #[must_use]
    pub fn next_hop(&self, remote: Ipv4Addr) -> IpAddr {
        self.gateway.unwrap_or(IpAddr::V4(remote))
    }
}

/// An entry of the neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its Ethernet address, if known.
    pub mac: Option<Mac>,
    /// May the address be used now? Not when resolution failed or is under way.
    pub usable: bool,
}

/// Looks up the path to a remote address.
pub async fn path_to(nl: &Netlink, remote: Ipv4Addr) -> Result<Path, NetError> {
    let action = format!("find a route to {remote}");
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = 32;
    message
        .attributes
        .push(RouteAttribute::Destination(RouteAddress::Inet(remote)));
    let answers = nl.ask(&action, Ask::Get, Message::GetRoute(message)).await?;
    let route = answers.into_iter().find_map(|answer| match answer {
        Message::NewRoute(route) => Some(route),
        _ => None,
    });
    let none = || NetError::kernel(action.clone(), io::Error::from_raw_os_error(libc::ENETUNREACH));
    let route = route.ok_or_else(none)?;
    let (mut oif, mut source, mut gateway, mut limit) = (None, None, None, None);
    for attribute in route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => oif = Some(index),
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => source = Some(address),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(IpAddr::V4(address)),
            RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = Some(IpAddr::V6(address)),
            RouteAttribute::Metrics(metrics) => {
                limit = metrics.into_iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if mtu != 0 => Some(mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let (oif, source) = oif.zip(source).ok_or_else(none)?;
    let link = nl.link_by_index(oif).await?.ok_or_else(none)?;
    Ok(Path {
        oif,
        device: link.name,
        mac: link.mac,
        gateway,
        source,
        mtu: limit.map_or(link.mtu, |limit| limit.min(link.mtu)),
        local: route.header.kind == RouteType::Local,
    })
}

/// Looks up a neighbour; `None` if the kernel has no entry.
pub async fn neighbour(nl: &Netlink, oif: u32, address: IpAddr) -> Result<Option<Neighbour>, NetError> {
    let action = format!("look up neighbour {address}");
    let request = Message::GetNeighbour(request(oif, address));
    let answers = match nl.ask(&action, Ask::Get, request).await {
        Err(e) if e.errno() == Some(libc::ENOENT) => return Ok(None),
        answers => answers?,
    };
    Ok(answers.into_iter().find_map(|answer| match answer {
        Message::NewNeighbour(message) => Some(read(&message)),
        _ => None,
    }))
}

/// Makes the kernel resolve a neighbour now, as if a packet had to be sent; the result arrives as
/// [`super::watch::Change::Neighbour`].
pub async fn solicit(nl: &Netlink, oif: u32, address: IpAddr) -> Result<(), NetError> {
    let mut message = request(oif, address);
    message.header.flags = NeighbourFlags::Use;
    // Not there yet: create it. Create alone would fail if it is there.
    let action = format!("resolve neighbour {address}");
    match nl
        .ask(&action, Ask::Create, Message::NewNeighbour(message.clone()))
        .await
    {
        Err(e) if e.errno() == Some(libc::EEXIST) => nl
            .ask(&action, Ask::Change, Message::NewNeighbour(message))
            .await
            .map(drop),
        result => result.map(drop),
    }
}

fn request(oif: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.ifindex = oif;
    message
        .attributes
        .push(NeighbourAttribute::Destination(NeighbourAddress::from(address)));
    message
}

/// Reads a kernel message.
pub(super) fn read(message: &NeighbourMessage) -> Neighbour {
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => Mac::try_from(mac.as_slice()).ok(),
        _ => None,
    });
    let usable = matches!(
        message.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
            | NeighbourState::Noarp
    );
    Neighbour {
        mac,
        usable: usable && mac.is_some(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::net::testing::{ip, new_host};

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 1);

    #[tokio::test]
    async fn path_and_next_hop() {
        let Some(nl) = new_host().await else { return };
        for command in [
            "link add eth0 address 02:00:00:00:00:01 mtu 1460 type veth peer name x",
            "link set eth0 up",
            "link set x up",
            "link set lo up",
            "addr add 192.168.7.2/24 dev eth0",
            "route add default via 192.168.7.1",
            "route add 10.1.0.0/16 via 192.168.7.1 mtu 1300",
            "neigh add 192.168.7.1 lladdr 02:00:00:00:00:99 dev eth0 nud permanent",
        ] {
            ip(nl.ns(), command).await;
        }
        let direct = path_to(&nl, Ipv4Addr::new(192, 168, 7, 9)).await.unwrap();
        assert_eq!(direct.device, "eth0");
        assert_eq!(direct.mac, Some([2, 0, 0, 0, 0, 1]));
        assert_eq!((direct.gateway, direct.mtu, direct.local), (None, 1460, false));
        assert_eq!(direct.source, Ipv4Addr::new(192, 168, 7, 2));

        let remote = Ipv4Addr::new(10, 1, 2, 3);
        let routed = path_to(&nl, remote).await.unwrap();
        assert_eq!((routed.next_hop(remote), routed.mtu), (GATEWAY.into(), 1300));
        let own = path_to(&nl, Ipv4Addr::new(192, 168, 7, 2)).await.unwrap();
        assert!(own.local);

        let known = neighbour(&nl, direct.oif, GATEWAY.into()).await.unwrap();
        assert_eq!(
            known,
            Some(Neighbour {
                mac: Some([2, 0, 0, 0, 0, 0x99]),
                usable: true
            })
        );
        let unknown = IpAddr::from([192, 168, 7, 77]);
        assert_eq!(neighbour(&nl, direct.oif, unknown).await.unwrap(), None);
        for _ in 0..2 {
            solicit(&nl, direct.oif, unknown).await.unwrap();
            let asked = neighbour(&nl, direct.oif, unknown).await.unwrap().unwrap();
            assert!(!asked.usable);
        }
    }

    #[tokio::test]
    async fn no_route_is_an_error_that_names_the_remote() {
        let Some(nl) = new_host().await else { return };
        let error = path_to(&nl, Ipv4Addr::new(10, 1, 2, 3)).await.unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENETUNREACH));
        assert!(error.to_string().contains("10.1.2.3"));
    }
}
