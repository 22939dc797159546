//! Plugging a container into the bridge, and unplugging it (control.md 4.5).

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute};
use netlink_packet_route::route::{RouteProtocol, RouteScope};
use rtnetlink::{LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::bridge::{self, HOST_END, MAX_MTU};
use super::container::Container;
use super::identity::Identity;
use super::link::{Link, check_name, tolerate};
use super::netlink::Ask;
use super::{Mac, NetError, Netlink, Netns, arp, multicast};
use crate::ipam::address::Cidr;

/// Beginning of the original's name of the container's end.
const GUEST_END: &str = "vethwepg";
/// Largest super-packet a container may hand over, in bytes: 64 less than an IPv4 packet can be,
/// for the outer headers, rounded down to a multiple of 64.
pub(super) const GUEST_GSO_MAX: u32 = 65_408;
const MULTICAST: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 0);
/// How long the bridge may take to let a new port forward.
const PORT_PATIENCE: Duration = Duration::from_secs(1);

/// What to attach, and how.
#[derive(Clone, Debug)]
pub struct AttachRequest {
    /// The container's namespace.
    pub ns: Netns,
    /// At most seven characters that make the names of the pair unique on this host.
    pub id7: String,
    /// Name of the interface inside: `ethwe` unless CNI asks otherwise.
    pub ifname: String,
    /// Addresses it should have; others that it has stay.
    pub addrs: Vec<Cidr>,
    /// MTU inside, in bytes; 0 means the bridge's.
    pub mtu: u32,
    /// The weave bridge.
    pub bridge: String,
    /// Route 224.0.0.0/4 through the interface.
    pub multicast_route: bool,
    /// Let frames of the container return to it through the bridge.
    pub hairpin: bool,
}

/// Name of the interface inside containers.
pub const INTERFACE: &str = "ethwe";

impl AttachRequest {
    /// As all containers are attached but for those of CNI, with the bridge's MTU.
    #[must_use]
    pub fn new(container: &Container, addrs: &[Cidr], bridge: &str, multicast_route: bool) -> Self {
        Self {
            ns: container.ns.clone(),
            id7: container.id7.clone(),
            ifname: INTERFACE.to_owned(),
            addrs: addrs.to_vec(),
            mtu: 0,
            bridge: bridge.to_owned(),
            multicast_route,
            hairpin: true,
        }
    }
}

/// An attached interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Its Ethernet address.
    pub mac: Mac,
    /// Was it made by this call?
    pub created: bool,
    /// Addresses that this call added.
    pub added: Vec<Cidr>,
}

/// Attaches a container. Repeating is harmless. When anything fails after the pair of interfaces
/// was created, the pair is removed.
pub async fn attach(nl: &Netlink, request: &AttachRequest) -> Result<Attached, NetError> {
    check_name(&request.ifname)?;
    if request.ns.id() == nl.ns().id() {
        return Err(NetError::HostNamespace);
    }
    let bridge = nl
        .find_link(&request.bridge)
        .await?
        .ok_or_else(|| NetError::NoBridge(request.bridge.clone()))?;
    bridge::check_kind(&bridge)?;
    // Command and daemon may attach the same container at the same time.
    let _lock = request.ns.lock().await;
    let guest = Netlink::open(&request.ns).await?;
    let created = guest.find_link(&request.ifname).await?.is_none();
    let host_end = format!("{HOST_END}{}", request.id7);
    if created {
        create_pair(nl, request, &bridge, &host_end).await?;
    }
    let result = configure(nl, &guest, request, created.then_some(host_end.as_str())).await;
    if result.is_err()
        && created
        && let Ok(link) = nl.link(&host_end).await
    {
        // The first error is the one to tell.
        let _ = nl.delete(&link).await;
    }
    result
}

/// The host end becomes a port at once and takes every size, so that what is too big for the
/// overlay reaches our program, which answers with ICMP, instead of vanishing between the ends. The
/// guest end is made in its place under its final name: nothing is left half-way if we die.
async fn create_pair(
    nl: &Netlink,
    request: &AttachRequest,
    bridge: &Link,
    host_end: &str,
) -> Result<(), NetError> {
    check_name(host_end)?;
    let mtu = if request.mtu == 0 { bridge.mtu } else { request.mtu };
    let guest = LinkUnspec::new_with_name(&request.ifname)
        .mtu(mtu)
        .append_extra_attribute(LinkAttribute::NetNsFd(request.ns.as_fd().as_raw_fd()))
        .build();
    let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(host_end)
        .mtu(MAX_MTU)
        .controller(bridge.index)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(guest)))
        .build();
    nl.create_link("create it", message)
        .await
        .map_err(|e| NetError::VethPair {
            host: host_end.to_owned(),
            guest: format!("{GUEST_END}{}", request.id7),
            source: Box::new(e),
        })
}

async fn configure(
    nl: &Netlink,
    guest: &Netlink,
    request: &AttachRequest,
    new_host_end: Option<&str>,
) -> Result<Attached, NetError> {
    let ifname = &request.ifname;
    let link = guest.link(ifname).await?;
    if let Some(host_end) = new_host_end {
        let host = nl.link(host_end).await?;
        nl.ns()
            .sysctl(vec![(format!("net/ipv6/conf/{host_end}/accept_ra"), "0")])
            .await?;
        bridge::settle(guest, ifname).await?;
        let gso = LinkUnspec::new_with_index(link.index)
            .append_extra_attribute(LinkAttribute::GsoMaxSize(GUEST_GSO_MAX))
            .build();
        guest
            .change_link(&format!("limit the packet size of {ifname}"), gso)
            .await?;
        let hairpin = LinkBridgePort::new(host.index).hairpin(request.hairpin).build();
        nl.change_link(&format!("set hairpin mode of {host_end}"), hairpin)
            .await?;
    }
    let mut held = guest.addresses(link.index).await?;
    let mut added = Vec::new();
    for address in &request.addrs {
        if !held.iter().any(|h| h.addr == address.addr) {
            held.push(*address);
            added.push(*address);
        }
    }
    if new_host_end.is_some() || !added.is_empty() {
        note(nl, &link, &held).await?;
        multicast::allow_only(guest.ns(), ifname, &held).await;
    }
    if let Some(host_end) = new_host_end {
        nl.set_up(&nl.link(host_end).await?).await?;
    }
    for address in &added {
        guest.add_address(&link, *address).await?;
    }
    guest.set_up(&link).await?;
    if !added.is_empty() {
        if let Some(host_end) = new_host_end {
            wait_forwarding(nl, host_end).await?;
        }
        let addresses = added.iter().map(|a| a.addr.into()).collect();
        arp::announce(guest.ns(), &link, addresses).await?;
    }
    if request.multicast_route {
        // Last of all: programs that wait for the network wait for this route.
        add_multicast_route(guest, &link).await?;
    }
    Ok(Attached {
        mac: link.mac.unwrap_or_default(),
        created: new_host_end.is_some(),
        added,
    })
}

/// Notes at the host's end of a container's interface which addresses it has now.
async fn note(nl: &Netlink, guest_end: &Link, held: &[Cidr]) -> Result<(), NetError> {
    let (Some(index), Some(mac)) = (guest_end.peer, guest_end.mac) else {
        return Ok(());
    };
    // Numbers mean something in one namespace only: the other end may be elsewhere.
    match nl.link_by_index(index).await? {
        Some(host_end) if host_end.peer == Some(guest_end.index) && host_end.master.is_some() => {
            Identity::new(mac, held).write(nl, index).await
        }
        _ => Ok(()),
    }
}

/// A port that does not forward yet would swallow the announcement.
async fn wait_forwarding(nl: &Netlink, host_end: &str) -> Result<(), NetError> {
    let waiting = async {
        loop {
            if nl.link(host_end).await?.port.is_none_or(|p| p.forwarding) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    // A port that stays blocked is the administrator's affair, and no reason to fail.
    tokio::time::timeout(PORT_PATIENCE, waiting)
        .await
        .unwrap_or(Ok(()))
}

async fn add_multicast_route(guest: &Netlink, link: &Link) -> Result<(), NetError> {
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(MULTICAST, 4)
        .output_interface(link.index)
        .scope(RouteScope::Link)
        .protocol(RouteProtocol::Boot)
        .build();
    let action = format!("add the multicast route through {}", link.name);
    tolerate(
        guest.ask(&action, Ask::Create, Message::NewRoute(route)).await,
        libc::EEXIST,
    )
}

/// Takes addresses from a container's interface, and the interface with the last one. Returns what
/// was removed; addresses it does not have are skipped.
pub async fn detach(nl: &Netlink, ns: &Netns, ifname: &str, addrs: &[Cidr]) -> Result<Vec<Cidr>, NetError> {
    let _lock = ns.lock().await;
    let guest = Netlink::open(ns).await?;
    let link = guest.find_link(ifname).await?.ok_or(NetError::NotAttached)?;
    let (removed, left): (Vec<Cidr>, Vec<Cidr>) = guest
        .addresses(link.index)
        .await?
        .into_iter()
        .partition(|held| addrs.iter().any(|a| a.addr == held.addr));
    for address in &removed {
        guest.remove_address(&link, *address).await?;
    }
    if left.is_empty() {
        guest.delete(&link).await?;
        multicast::forget(ns, ifname).await;
    } else if !removed.is_empty() {
        note(nl, &link, &left).await?;
        multicast::allow_only(ns, ifname, &left).await;
    }
    Ok(removed)
}

#[cfg(test)]
mod tests;
