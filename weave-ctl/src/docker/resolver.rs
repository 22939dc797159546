//! WeaveDNS as the nameserver of a container of Docker that was attached while it ran (cli.md 4.8).

use std::io;
use std::net::Ipv4Addr;

use crate::ipam::address::Cidr;
use crate::net::container::Container;
use crate::net::{Netlink, bridge, expose, resolv_conf, underlay};

/// WeaveDNS, as the daemon tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeaveDns {
    /// Where it answers.
    pub address: Ipv4Addr,
    /// The local domain.
    pub domain: String,
}

/// Makes WeaveDNS the container's first nameserver, if it can reach it. Where the container keeps those that it
/// has: what to tell the user.
pub async fn add(
    nl: &Netlink,
    bridge: &str,
    container: &Container,
    addrs: &[Cidr],
    dns: &WeaveDns,
) -> Option<String> {
    let docker = container.docker.as_ref()?;
    let path = docker.resolv_conf.as_ref()?;
    let server = server(nl, bridge, dns.address, addrs).await?;
    let name = &container.display;
    if docker.dns.iter().any(|given| *given == server.to_string()) {
        return None;
    }
    if !docker.dns.is_empty() {
        return Some(format!(
            "{name} keeps the nameservers that were given with --dns; start it with 'docker run $(weave dns-args)' \
             for the names of WeaveDNS"
        ));
    }
    if !reaches(container, server).await {
        return Some(format!(
            "{name} keeps its nameservers: it has no route to WeaveDNS at {server}"
        ));
    }
    match resolv_conf::add(path, server, dns.domain.trim()) {
        Ok(resolv_conf::Outcome::Ours) => None,
        Ok(resolv_conf::Outcome::Embedded) => Some(format!(
            "{name} keeps Docker's own nameserver, for the names of its Docker networks; start it with \
             'docker run $(weave dns-args)' for those of WeaveDNS as well"
        )),
        Err(e) => Some(format!(
            "WARNING: {name} keeps its nameservers: {}: {e}",
            path.display()
        )),
    }
}

/// Undoes [`add`]; if that fails, what to tell the user.
#[must_use]
pub fn remove(container: &Container) -> Option<String> {
    let path = container.docker.as_ref()?.resolv_conf.as_ref()?;
    match resolv_conf::remove(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Some(format!("WARNING: WeaveDNS stays in {}: {e}", path.display()))
        }
        _ => None,
    }
}

/// Where a container finds WeaveDNS. If that listens everywhere: at an address of the bridge in its subnet.
async fn server(nl: &Netlink, bridge: &str, address: Ipv4Addr, addrs: &[Cidr]) -> Option<Ipv4Addr> {
    if address.is_loopback() {
        return None;
    }
    if !address.is_unspecified() {
        return Some(address);
    }
    let (_, exposed) = bridge::exposed(nl, bridge).await.ok()?;
    expose::reachable_from(&exposed, addrs)
}

async fn reaches(container: &Container, server: Ipv4Addr) -> bool {
    let Ok(guest) = Netlink::open(&container.ns).await else {
        return false;
    };
    let path = underlay::path_to(&guest, server).await;
    path.is_ok_and(|path| !path.local)
}
