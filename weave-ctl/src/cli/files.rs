//! The container's hosts file and `resolv.conf` (cli.md 4.8).

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use super::{Context, Failure, Outcome, note};
use crate::ipam::address::Cidr;
use crate::net::container::Container;
use crate::net::hosts_file::{self, StaticHost};
use crate::net::{Netlink, bridge, expose, resolv_conf, underlay};

/// A hosts file that is to be rewritten.
pub(super) struct Hosts {
    path: PathBuf,
    fqdn: Option<String>,
    hostname: String,
    hosts: Vec<StaticHost>,
}

impl Hosts {
    /// `None` if it was not asked for.
    pub fn choose(
        container: &Container,
        wanted: bool,
        given: &[StaticHost],
    ) -> Result<Option<Self>, Failure> {
        if !wanted {
            if !given.is_empty() {
                note("WARNING: --add-host has no effect without --rewrite-hosts");
            }
            return Ok(None);
        }
        let name = &container.display;
        let docker = container.docker.as_ref();
        let found = docker.and_then(|d| Some((d, d.hosts_file.clone()?)));
        let (docker, path) = found.ok_or_else(|| {
            let text = format!(
                "{name} has no hosts file of its own that Docker knows of: attach it without --rewrite-hosts"
            );
            Failure::new(1, text)
        })?;
        // Those of `docker run --add-host` first: resolvers take the first line of a name.
        let known = docker.extra_hosts.iter().filter_map(|host| host.parse().ok());
        let mut hosts: Vec<StaticHost> = known.collect();
        hosts.retain(|host| given.iter().all(|g| g.name != host.name));
        hosts.extend_from_slice(given);
        Ok(Some(Self {
            path,
            fqdn: docker.fqdn(),
            hostname: docker.hostname.as_deref().map_or_else(String::new, |name| {
                name.split('.').next().unwrap_or_default().to_owned()
            }),
            hosts,
        }))
    }

    /// With the container's addresses on the network.
    pub fn rewrite(&self, addrs: &[Cidr]) -> Outcome {
        let addresses: Vec<Ipv4Addr> = addrs.iter().map(|cidr| cidr.addr.into()).collect();
        let text = hosts_file::text(&addresses, self.fqdn.as_deref(), &self.hostname, &self.hosts);
        hosts_file::rewrite(&self.path, &text)
            .map_err(|e| Failure::new(1, format!("cannot rewrite {}: {e}", self.path.display())))
    }
}

/// Makes WeaveDNS the container's first nameserver, if it can reach it. The container is attached anyway.
pub(super) async fn add_resolver(nl: &Netlink, container: &Container, addrs: &[Cidr], context: &Context) {
    let Some(docker) = &container.docker else { return };
    let Some(path) = &docker.resolv_conf else { return };
    let client = context.env.client();
    let ask = async |path| client.call("GET", path, &[]).await.ok();
    // Nothing if DNS is off, or the daemon away.
    let Some(address) = ask("/dns-address")
        .await
        .and_then(|text| text.trim().parse().ok())
    else {
        return;
    };
    let Some(domain) = ask("/domain").await else {
        return;
    };
    let Some(server) = server(nl, address, addrs, context).await else {
        return;
    };
    let name = &container.display;
    if docker.dns.iter().any(|given| *given == server.to_string()) {
        return;
    }
    if !docker.dns.is_empty() {
        return note(&format!(
            "{name} keeps the nameservers that were given with --dns; start it with 'docker run $(weave dns-args)' \
             for the names of WeaveDNS"
        ));
    }
    if !reaches(container, server).await {
        return note(&format!(
            "{name} keeps its nameservers: it has no route to WeaveDNS at {server}"
        ));
    }
    match resolv_conf::add(path, server, domain.trim()) {
        Ok(resolv_conf::Outcome::Ours) => {}
        Ok(resolv_conf::Outcome::Embedded) => note(&format!(
            "{name} keeps Docker's own nameserver, for the names of its Docker networks; start it with \
             'docker run $(weave dns-args)' for those of WeaveDNS as well"
        )),
        Err(e) => note(&format!(
            "WARNING: {name} keeps its nameservers: {}: {e}",
            path.display()
        )),
    }
}

/// Undoes [`add_resolver`].
pub(super) fn remove_resolver(container: &Container) {
    let path = container.docker.as_ref().and_then(|d| d.resolv_conf.as_ref());
    let Some(path) = path else { return };
    match resolv_conf::remove(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            note(&format!("WARNING: WeaveDNS stays in {}: {e}", path.display()));
        }
        _ => {}
    }
}

/// Where a container finds WeaveDNS. If that listens everywhere: at an address of the bridge in its subnet.
async fn server(nl: &Netlink, address: Ipv4Addr, addrs: &[Cidr], context: &Context) -> Option<Ipv4Addr> {
    if address.is_loopback() {
        return None;
    }
    if !address.is_unspecified() {
        return Some(address);
    }
    let (_, exposed) = bridge::exposed(nl, &context.env.bridge).await.ok()?;
    expose::reachable_from(&exposed, addrs)
}

async fn reaches(container: &Container, server: Ipv4Addr) -> bool {
    let Ok(guest) = Netlink::open(&container.ns).await else {
        return false;
    };
    let path = underlay::path_to(&guest, server).await;
    path.is_ok_and(|path| !path.local)
}
