//! Interfaces that Docker's network plugin makes (control.md 4.9): we make the pair, Docker moves one end into the
//! container, names it `ethwe0`, `ethwe1`, … and gives it its address.

use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};

use super::attach::GUEST_GSO_MAX;
use super::bridge::{self, MAX_MTU};
use super::identity::Identity;
use super::link::check_name;
use super::{Mac, NetError, Netlink, Netns, arp};
use crate::ipam::address::Cidr;

/// Beginning of the names of host ends.
pub const HOST_END: &str = "vethwl";
/// Beginning of the names of the ends that Docker moves into containers.
const GUEST_END: &str = "vethwg";
/// What Docker calls them there, with a number behind it.
pub const INSIDE: &str = "ethwe";
/// How much of an endpoint's ID is in the names; before release 1.0 it was the second.
const ID_LENGTHS: [usize; 2] = [9, 5];

/// Names of both ends for an endpoint's ID: the host's, then the container's.
#[must_use]
pub fn names(endpoint: &str) -> (String, String) {
    let id: String = endpoint.chars().take(ID_LENGTHS[0]).collect();
    (format!("{HOST_END}{id}"), format!("{GUEST_END}{id}"))
}

/// Makes the pair of an endpoint, the first end a port of the bridge; the Ethernet address of the second, which is
/// `mac` if that is given. `addrs` are those that Docker will give it: it may use no others.
///
/// # Errors
/// Without the bridge, if the names are taken, or if the kernel refuses; nothing is left then.
pub async fn create(
    nl: &Netlink,
    bridge_name: &str,
    endpoint: &str,
    mac: Option<Mac>,
    addrs: &[Cidr],
) -> Result<Mac, NetError> {
    let bridge = nl.find_link(bridge_name).await?;
    let bridge = bridge.ok_or_else(|| NetError::NoBridge(bridge_name.to_owned()))?;
    bridge::check_kind(&bridge)?;
    let (host_end, guest_end) = names(endpoint);
    check_name(&host_end)?;
    let mut guest = LinkUnspec::new_with_name(&guest_end).mtu(bridge.mtu);
    if let Some(mac) = mac {
        guest = guest.address(mac.to_vec());
    }
    // As in `attach`: the host's end takes every size, and answers what is too big.
    let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(host_end.clone())
        .mtu(MAX_MTU)
        .controller(bridge.index)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(guest.build())))
        .build();
    nl.create_link("create it", message)
        .await
        .map_err(|e| NetError::VethPair {
            host: host_end.clone(),
            guest: guest_end.clone(),
            source: Box::new(e),
        })?;
    let prepared = prepare(nl, &host_end, &guest_end, addrs).await;
    if prepared.is_err() {
        // The first error is the one to tell.
        let _ = delete(nl, endpoint).await;
    }
    prepared
}

async fn prepare(nl: &Netlink, host_end: &str, guest_end: &str, addrs: &[Cidr]) -> Result<Mac, NetError> {
    nl.ns()
        .sysctl(vec![(format!("net/ipv6/conf/{host_end}/accept_ra"), "0")])
        .await?;
    let guest = nl.link(guest_end).await?;
    let gso = LinkUnspec::new_with_index(guest.index)
        .append_extra_attribute(LinkAttribute::GsoMaxSize(GUEST_GSO_MAX))
        .build();
    nl.change_link(&format!("limit the packet size of {guest_end}"), gso)
        .await?;
    let mac = guest
        .mac
        .ok_or_else(|| NetError::NoDevice(guest_end.to_owned()))?;
    let host = nl.link(host_end).await?;
    Identity::new(mac, addrs).write(nl, host.index).await?;
    nl.set_up(&host).await?;
    Ok(mac)
}

/// Removes the pair of an endpoint, wherever its second end is. False if there was none.
///
/// # Errors
/// If the kernel refuses.
pub async fn delete(nl: &Netlink, endpoint: &str) -> Result<bool, NetError> {
    for length in ID_LENGTHS {
        let id: String = endpoint.chars().take(length).collect();
        if let Some(link) = nl.find_link(&format!("{HOST_END}{id}")).await? {
            nl.delete(&link).await?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// Is the endpoint one of ours?
///
/// # Errors
/// If the kernel refuses.
pub async fn exists(nl: &Netlink, endpoint: &str) -> Result<bool, NetError> {
    let (host_end, _) = names(endpoint);
    match check_name(&host_end) {
        Ok(()) => Ok(nl.find_link(&host_end).await?.is_some()),
        Err(_) => Ok(false),
    }
}

/// In a container that has just started: its neighbours are told where its addresses are now, and what it knows of
/// them itself does not get old (control.md 4.5, step 5).
///
/// # Errors
/// If the container is gone, or the kernel refuses.
pub async fn settle(ns: &Netns) -> Result<(), NetError> {
    let guest = Netlink::open(ns).await?;
    for link in guest.links().await? {
        if !link.name.starts_with(INSIDE) {
            continue;
        }
        bridge::settle(&guest, &link.name).await?;
        let addresses = guest.addresses(link.index).await?;
        let addresses = addresses.into_iter().map(|cidr| cidr.addr.into()).collect();
        arp::announce(ns, &link, addresses).await?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::net::testing::{ip, new_host};

    const ENDPOINT: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[tokio::test]
    async fn a_pair_comes_and_goes() {
        let Some(nl) = new_host().await else { return };
        let error = create(&nl, "weave", ENDPOINT, None, &[]).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "bridge \"weave\" not present; did you launch weave?"
        );
        ip(nl.ns(), "link add weave mtu 1376 type bridge").await;
        ip(nl.ns(), "link set weave mtu 1376 up").await;
        let bridge = nl.link("weave").await.unwrap();

        let mac = create(&nl, "weave", ENDPOINT, None, &[]).await.unwrap();
        let (host, guest) = (
            nl.link("vethwl012345678").await.unwrap(),
            nl.link("vethwg012345678").await.unwrap(),
        );
        assert_eq!(
            (host.master, host.mtu, host.up),
            (Some(bridge.index), MAX_MTU, true)
        );
        assert_eq!((guest.mac, guest.mtu, guest.up), (Some(mac), 1376, false));
        assert!(exists(&nl, ENDPOINT).await.unwrap());
        assert!(!exists(&nl, "a/b").await.unwrap());
        assert!(create(&nl, "weave", ENDPOINT, None, &[]).await.is_err(), "twice");
        assert!(delete(&nl, ENDPOINT).await.unwrap());
        assert!(!delete(&nl, ENDPOINT).await.unwrap());
        assert!(nl.find_link("vethwg012345678").await.unwrap().is_none());

        let wanted = [2, 0, 0, 0, 0, 7];
        assert_eq!(
            create(&nl, "weave", ENDPOINT, Some(wanted), &[]).await.unwrap(),
            wanted
        );
        // As a release before 1.0 named it.
        ip(nl.ns(), "link set vethwl012345678 name vethwl01234").await;
        assert!(delete(&nl, ENDPOINT).await.unwrap());
    }
}
