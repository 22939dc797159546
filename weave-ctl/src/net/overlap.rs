//! Does a network collide with the host's routes? (control.md 7.5)

use std::net::Ipv4Addr;

use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::netlink::Ask;
use super::{NetError, Netlink};
use crate::ipam::address::Cidr;

/// IPv4 routes of the host's main table that have a destination, except those through the devices
/// in `ignore` (the weave bridge).
pub async fn host_routes(nl: &Netlink, ignore: &[&str]) -> Result<Vec<Cidr>, NetError> {
    let mut ignored = Vec::new();
    for name in ignore {
        ignored.extend(nl.find_link(name).await?.map(|link| link.index));
    }
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    let answers = nl
        .ask("list routes", Ask::Dump, Message::GetRoute(message))
        .await?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            Message::NewRoute(route) if route.header.table == RouteHeader::RT_TABLE_MAIN => {
                destination(&route, &ignored)
            }
            _ => None,
        })
        .collect())
}

fn destination(route: &RouteMessage, ignored: &[u32]) -> Option<Cidr> {
    let through_ours = |a: &RouteAttribute| matches!(a, RouteAttribute::Oif(oif) if ignored.contains(oif));
    if route.attributes.iter().any(through_ours) {
        return None;
    }
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(Cidr {
            addr: (*address).into(),
            prefix_len: route.header.destination_prefix_length,
        }),
        _ => None,
    })
}

/// For an allocation range: `Err` if it and a route contain one another's base.
pub async fn check_network(nl: &Netlink, network: Cidr, ignore: &[&str]) -> Result<(), NetError> {
    network_free(network, &host_routes(nl, ignore).await?)
}

/// For an address given by hand: as a network if its host bits are zero, else only the address
/// itself must not lie inside a route.
pub async fn check_address(nl: &Netlink, address: Cidr, ignore: &[&str]) -> Result<(), NetError> {
    let routes = host_routes(nl, ignore).await?;
    if address.network() == address {
        network_free(address, &routes)
    } else {
        address_free(address, &routes)
    }
}

fn contains(network: Cidr, address: u32) -> bool {
    let masked = Cidr {
        addr: address,
        ..network
    };
    masked.network() == network.network()
}

fn network_free(network: Cidr, routes: &[Cidr]) -> Result<(), NetError> {
    let hit = |r: &&Cidr| contains(network, r.addr) || contains(**r, network.network().addr);
    match routes.iter().find(hit) {
        Some(route) => Err(NetError::NetworkOverlap {
            network,
            route: *route,
        }),
        None => Ok(()),
    }
}

fn address_free(address: Cidr, routes: &[Cidr]) -> Result<(), NetError> {
    match routes.iter().find(|r| contains(**r, address.addr)) {
        Some(route) => Err(NetError::AddressOverlap {
            address: Ipv4Addr::from(address.addr),
            route: *route,
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::net::testing::{ip, new_host};

    #[tokio::test]
    async fn texts_and_exceptions() {
        let Some(nl) = new_host().await else { return };
        for command in [
            "link add eth0 type veth peer name x",
            "link add weave type bridge",
            "link set eth0 up",
            "link set x up",
            "link set weave up",
            "addr add 192.168.7.2/24 dev eth0",
            "addr add 10.32.0.1/12 dev weave",
            "route add 10.50.0.0/16 via 192.168.7.1",
            "route add default via 192.168.7.1",
        ] {
            ip(nl.ns(), command).await;
        }
        let network = |text: &'static str| {
            let nl = nl.clone();
            async move {
                let checked = check_network(&nl, text.parse().unwrap(), &["weave"]).await;
                checked.map_err(|e| e.to_string())
            }
        };
        assert_eq!(network("10.32.0.0/12").await, Ok(()), "the bridge's own");
        assert_eq!(network("10.51.0.0/16").await, Ok(()), "the default route");
        let text = |n: &str, r: &str| Err(format!("Network {n} overlaps with existing route {r} on host"));
        assert_eq!(
            network("10.48.0.0/12").await,
            text("10.48.0.0/12", "10.50.0.0/16")
        );
        assert_eq!(
            network("192.168.7.128/25").await,
            text("192.168.7.128/25", "192.168.7.0/24")
        );
        let address = |text: &'static str| {
            let nl = nl.clone();
            async move {
                let checked = check_address(&nl, text.parse().unwrap(), &["weave"]).await;
                checked.map_err(|e| e.to_string())
            }
        };
        assert_eq!(
            address("10.50.3.4/24").await,
            Err("Address 10.50.3.4 overlaps with existing route 10.50.0.0/16 on host".to_owned())
        );
        assert_eq!(address("10.48.0.1/12").await, Ok(()), "not inside the route");
        assert_eq!(
            address("10.50.3.0/24").await,
            text("10.50.3.0/24", "10.50.0.0/16")
        );

        assert!(
            check_network(&nl, "10.32.0.0/12".parse().unwrap(), &["absent"])
                .await
                .is_err()
        );
    }
}
