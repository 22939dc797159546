//! The DNS server of the daemon: where it listens, and what it is told of the host (control.md 2.4).

use std::net::Ipv4Addr;

use anyhow::Context;

use super::core::Daemon;
use crate::cli::launch::LaunchOptions;
use crate::dns::answer::Local;
use crate::dns::server::{Config, Handle, Listen, PORT, Server};
use crate::dns::zone::SharedZone;
use crate::ipam::address::Cidr;
use crate::net::{NetError, Netlink, bridge};

/// Starts it, if it is wanted. The weave bridge exists by now.
pub(super) async fn start(
    options: &LaunchOptions,
    nl: &Netlink,
    zone: SharedZone,
) -> anyhow::Result<Option<Server>> {
    let Some(dns) = &options.dns else { return Ok(None) };
    let config = Config {
        local: Local::new(&dns.domain, dns.ttl)?,
        listen: dns.listen.map_or(Listen::Follow(PORT), Listen::At),
        fallback_timeout: dns.fallback_timeout,
        resolv_conf: dns.resolv_conf.clone(),
        upstream_port: PORT,
    };
    let server = Server::start(config, zone).context("Unable to start dns server")?;
    tell_addresses(&server.handle(), options, nl).await?;
    Ok(Some(server))
}

/// Containers of Docker reach the address of its bridge, which comes with Docker. Others reach addresses of the weave
/// bridge, which come and go with `weave expose`.
async fn tell_addresses(server: &Handle, options: &LaunchOptions, nl: &Netlink) -> Result<(), NetError> {
    let docker = match nl.find_link(&options.docker_bridge).await? {
        Some(link) if !options.docker_api.is_empty() => nl.addresses(link.index).await?,
        _ => Vec::new(),
    };
    let docker = docker.first().map(|cidr| cidr.addr.into());
    let (_, exposed) = bridge::exposed(nl, &options.bridge).await?;
    server.set_addresses(docker, subnets(&exposed)).await;
    Ok(())
}

/// Addresses with their masks.
fn subnets(exposed: &[Cidr]) -> Vec<(Ipv4Addr, Ipv4Addr)> {
    let mask = |length: u8| u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
    let subnet = |cidr: &Cidr| (cidr.addr.into(), mask(cidr.prefix_len).into());
    exposed.iter().map(subnet).collect()
}

impl Daemon {
    /// Addresses of this host have changed, perhaps those of a bridge.
    pub(super) async fn dns_addresses(&mut self) {
        if let Some(dns) = &self.resolver
            && let Err(error) = tell_addresses(dns, &self.options, &self.nl).await
        {
            tracing::warn!("WeaveDNS cannot follow the addresses of this host: {error}");
        }
    }
}
