//! The DNS server of the daemon: where it listens, and what it is told of the host (control.md 2.4).

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Context;

use super::core::Daemon;
use crate::cli::launch::{DnsOptions, LaunchOptions};
use crate::dns::answer::Local;
use crate::dns::server::{Config, Listen, PORT, Server};
use crate::dns::zone::SharedZone;
use crate::ipam::address::Cidr;
use crate::net::{NetError, Netlink, bridge};

/// Starts it, if it is wanted. The weave bridge exists by now. If the address that we chose ourselves is taken,
/// names are gossiped all the same.
pub(super) async fn start(
    options: &LaunchOptions,
    nl: &Netlink,
    zone: SharedZone,
) -> anyhow::Result<Option<Server>> {
    let Some(dns) = &options.dns else { return Ok(None) };
    let config = Config {
        local: Local::new(&dns.domain, dns.ttl)?,
        listen: listen(options, dns, nl).await?,
        fallback_timeout: dns.fallback_timeout,
        resolv_conf: dns.resolv_conf.clone(),
        upstream_port: PORT,
    };
    let server = match Server::start(config, zone) {
        Ok(server) => server,
        // Nobody asked for this address, and some other server of the host's may have it.
        Err(error) if dns.listen.is_none() => {
            tracing::warn!("Names are not answered on this host: {error}");
            return Ok(None);
        }
        Err(error) => return Err(error).context("Unable to start dns server"),
    };
    let (_, exposed) = bridge::exposed(nl, &options.bridge).await?;
    server.handle().set_subnets(subnets(&exposed)).await;
    Ok(Some(server))
}

/// Containers of Docker reach the address of its bridge. Without Docker, they reach addresses of the weave bridge,
/// which come and go with `weave expose`.
async fn listen(options: &LaunchOptions, dns: &DnsOptions, nl: &Netlink) -> Result<Listen, NetError> {
    if let Some(given) = dns.listen {
        return Ok(Listen::At(given));
    }
    let docker = match nl.find_link(&options.docker_bridge).await? {
        Some(link) if !options.docker_api.is_empty() => nl.addresses(link.index).await?,
        _ => Vec::new(),
    };
    Ok(match docker.first() {
        Some(cidr) => Listen::At(SocketAddrV4::new(cidr.addr.into(), PORT)),
        None => Listen::Bridge(PORT),
    })
}

/// Addresses with their masks.
fn subnets(exposed: &[Cidr]) -> Vec<(Ipv4Addr, Ipv4Addr)> {
    let mask = |length: u8| u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
    let subnet = |cidr: &Cidr| (cidr.addr.into(), mask(cidr.prefix_len).into());
    exposed.iter().map(subnet).collect()
}

impl Daemon {
    /// Addresses of this host have changed, perhaps those of the bridge.
    pub(super) async fn dns_subnets(&mut self) {
        if let Some(dns) = &self.resolver
            && let Ok((_, exposed)) = bridge::exposed(&self.nl, &self.options.bridge).await
        {
            dns.set_subnets(subnets(&exposed)).await;
        }
    }
}
