//! The hosts file of a container of Docker (control.md 4.6, cli.md 4.8).

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use crate::ipam::address::Cidr;
use crate::net::container::Container;
use crate::net::hosts_file::{self, StaticHost};

/// A hosts file that is to be rewritten.
#[derive(Debug)]
pub struct Hosts {
    path: PathBuf,
    fqdn: Option<String>,
    hostname: String,
    hosts: Vec<StaticHost>,
}

/// `--add-host NAME:host-gateway`: which address that is stands in the file that Docker has made.
fn of_gateway(host: &str, present: &str) -> Option<StaticHost> {
    let name = host.strip_suffix(":host-gateway")?;
    let address = hosts_file::address_of(present, name)?;
    Some(StaticHost {
        name: name.to_owned(),
        address,
    })
}

impl Hosts {
    /// The container's, with those of `docker run --add-host` and those `given`. `None` if Docker knows of none.
    #[must_use]
    pub fn of(container: &Container, given: &[StaticHost]) -> Option<Self> {
        let docker = container.docker.as_ref()?;
        let path = docker.hosts_file.clone()?;
        let present = fs::read_to_string(&path).unwrap_or_default();
        // Those of `docker run --add-host` first: resolvers take the first line of a name.
        let known = docker
            .extra_hosts
            .iter()
            .filter_map(|host| host.parse().ok().or_else(|| of_gateway(host, &present)));
        let mut hosts: Vec<StaticHost> = known.collect();
        hosts.retain(|host| given.iter().all(|g| g.name != host.name));
        hosts.extend_from_slice(given);
        Some(Self {
            path,
            fqdn: docker.fqdn(),
            hostname: docker.hostname.as_deref().map_or_else(String::new, |name| {
                name.split('.').next().unwrap_or_default().to_owned()
            }),
            hosts,
        })
    }

    /// Rewrites it with the container's addresses on the network.
    ///
    /// # Errors
    /// If it is not a plain file, or cannot be written; the text names it.
    pub fn rewrite(&self, addrs: &[Cidr]) -> io::Result<()> {
        let addresses: Vec<Ipv4Addr> = addrs.iter().map(|cidr| cidr.addr.into()).collect();
        let text = hosts_file::text(&addresses, self.fqdn.as_deref(), &self.hostname, &self.hosts);
        let rewritten = hosts_file::rewrite(&self.path, &text);
        rewritten
            .map_err(|e| io::Error::new(e.kind(), format!("cannot rewrite {}: {e}", self.path.display())))
    }
}
