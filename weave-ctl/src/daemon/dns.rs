//! The DNS server of the daemon: where it listens, and what it is told of the host (control.md 2.4).

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Context;

use super::core::Daemon;
use crate::cli::launch::{DnsOptions, LaunchOptions};
use crate::dns::answer::Local;
use crate::dns::server::{Config, PORT, Server};
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
    let started = async {
        let (listen, device, host) = endpoints(options, dns, nl).await?;
        let config = Config {
            local: Local::new(&dns.domain, dns.ttl)?,
            listen,
            device,
            host,
            fallback_timeout: dns.fallback_timeout,
            resolv_conf: dns.resolv_conf.clone(),
            upstream_port: PORT,
        };
        anyhow::Ok(Server::start(config, zone)?)
    };
    let server = started.await.context("Unable to start dns server")?;
    for address in server.addresses() {
        tracing::info!("Listening for DNS queries on {address}");
    }
    let (_, exposed) = bridge::exposed(nl, &options.bridge).await?;
    server.handle().set_subnets(subnets(&exposed));
    Ok(Some(server))
}

/// Where to listen: address, only by which device, and where the host itself can ask.
type Endpoints = (SocketAddrV4, Option<String>, Option<SocketAddrV4>);

/// Containers of Docker reach the address of its bridge. Without Docker, they reach addresses of the weave bridge,
/// which come and go with `weave expose`; what arrives by other devices is not answered, as that may be the Internet.
async fn endpoints(options: &LaunchOptions, dns: &DnsOptions, nl: &Netlink) -> Result<Endpoints, NetError> {
    if let Some(given) = dns.listen {
        return Ok((given, None, None));
    }
    let docker = match nl.find_link(&dns.docker_bridge).await? {
        Some(link) if !options.docker_api.is_empty() => nl.addresses(link.index).await?,
        _ => Vec::new(),
    };
    Ok(match docker.first() {
        Some(cidr) => (SocketAddrV4::new(cidr.addr.into(), PORT), None, None),
        None => (
            SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT),
            Some(options.bridge.clone()),
            Some(SocketAddrV4::new(Ipv4Addr::LOCALHOST, PORT)),
        ),
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
            dns.set_subnets(subnets(&exposed));
        }
    }
}
