//! Which containers are plugged into the bridge, and with what (cli.md 4.14).

use netlink_packet_route::link::InfoKind;

use super::link::Link;
use super::netns::NetnsId;
use super::{Mac, NetError, Netlink, Netns, scan};
use crate::ipam::address::Cidr;

/// An interface of a container whose other end is a port of the bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedInterface {
    /// Name inside the container.
    pub ifname: String,
    /// Ethernet address.
    pub mac: Mac,
    /// IPv4 addresses.
    pub cidrs: Vec<Cidr>,
}

/// The same with its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedContainer {
    /// The container as IPAM knows it (see [`super::container::Container::id`]).
    pub id: String,
    /// What a person may give as argument to mean it: twelve digits of a Docker ID, `netns:NAME` or
    /// `pid:N`.
    pub display: String,
    /// Name inside the container.
    pub ifname: String,
    /// Ethernet address.
    pub mac: Mac,
    /// IPv4 addresses.
    pub cidrs: Vec<Cidr>,
}

/// Weave interfaces of one container. Empty if it has none; [`NetError::NotAttached`] without the
/// bridge (cli.md 4.14).
pub async fn attached(nl: &Netlink, bridge: &str, ns: &Netns) -> Result<Vec<AttachedInterface>, NetError> {
    let ports = guest_ports(nl, bridge).await?;
    let Some(wanted) = nl.nsid_of(ns).await? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for (nsid, peer) in ports {
        if nsid == wanted {
            found.extend(interface(nl, nsid, peer).await?);
        }
    }
    Ok(found)
}

/// Weave interfaces of all containers, with and without Docker, that have a process or a named
/// namespace.
pub async fn list_attached(nl: &Netlink, bridge: &str) -> Result<Vec<AttachedContainer>, NetError> {
    let ports = guest_ports(nl, bridge).await?;
    if ports.is_empty() {
        return Ok(Vec::new());
    }
    let known = scan::by_nsid(nl).await?;
    let mut all = Vec::new();
    for (nsid, peer) in ports {
        let Some(owner) = known.get(&nsid) else { continue };
        let Some((id, display)) = identity(owner) else {
            continue;
        };
        if let Some(interface) = interface(nl, nsid, peer).await? {
            all.push(AttachedContainer {
                id,
                display,
                ifname: interface.ifname,
                mac: interface.mac,
                cidrs: interface.cidrs,
            });
        }
    }
    Ok(all)
}

/// Gives all attached containers a new MTU, in bytes, after the overlay's changed. Returns how many
/// interfaces were changed. One that fails does not keep the others from being changed.
pub async fn set_guest_mtu(nl: &Netlink, bridge: &str, mtu: u32) -> Result<usize, NetError> {
    let ports = guest_ports(nl, bridge).await?;
    if ports.is_empty() {
        return Ok(0);
    }
    let known = scan::by_nsid(nl).await?;
    let (mut changed, mut errors) = (0, Vec::new());
    for (nsid, peer) in ports {
        // Without process or name the namespace has nobody who could send anything.
        let Some(owner) = known.get(&nsid) else { continue };
        match set_mtu_in(&owner.ns, peer, mtu).await {
            Ok(done) => changed += usize::from(done),
            Err(e) => errors.push(e),
        }
    }
    NetError::all(errors).map(|()| changed)
}

async fn set_mtu_in(ns: &Netns, index: u32, mtu: u32) -> Result<bool, NetError> {
    let guest = Netlink::open(ns).await?;
    match guest.link_by_index(index).await? {
        Some(link) if link.mtu != mtu => guest.set_mtu(&link, mtu).await.map(|()| true),
        _ => Ok(false),
    }
}

/// Namespace number and interface index of the other end of every port that leads to a container.
async fn guest_ports(nl: &Netlink, bridge: &str) -> Result<Vec<(i32, u32)>, NetError> {
    let bridge = nl.find_link(bridge).await?.ok_or(NetError::NotAttached)?;
    let other_end = |port: Link| {
        port.is(&InfoKind::Veth)
            .then_some(port.peer_nsid.zip(port.peer))
            .flatten()
    };
    let ports = nl.ports(bridge.index).await?;
    Ok(ports.into_iter().filter_map(other_end).collect())
}

async fn interface(nl: &Netlink, nsid: i32, index: u32) -> Result<Option<AttachedInterface>, NetError> {
    // The container may end between any two of these questions.
    let Some(link) = nl.link_in(nsid, index).await? else {
        return Ok(None);
    };
    let cidrs = match nl.addresses_in(Some(nsid), index).await {
        Err(e) if matches!(e.errno(), Some(libc::ENODEV | libc::EINVAL)) => return Ok(None),
        answer => answer?,
    };
    Ok(Some(AttachedInterface {
        ifname: link.name,
        mac: link.mac.unwrap_or_default(),
        cidrs,
    }))
}

/// IPAM's name of a namespace that belongs to no container runtime and has no name.
pub(super) fn anonymous_id(id: NetnsId) -> String {
    format!("netns-{}", id.ino)
}

fn identity(found: &scan::Found) -> Option<(String, String)> {
    match (&found.runtime_id, &found.name, found.pid) {
        (Some(id), _, _) => Some((id.clone(), id.get(..12)?.to_owned())),
        (None, Some(name), _) => Some((format!("netns:{name}"), format!("netns:{name}"))),
        (None, None, Some(pid)) => Some((anonymous_id(found.ns.id()), format!("pid:{pid}"))),
        (None, None, None) => None,
    }
}
