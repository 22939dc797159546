//! The options of WeaveDNS (cli.md 5).

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::flags::LaunchArgs;
use super::options::fatal;
use crate::cli::Failure;
use crate::cli::env::absolute;
use crate::dns::answer::Local;

/// Where none is given.
const DOMAIN: &str = "weave.local.";
const TTL: u32 = 1;
const FALLBACK_TIMEOUT: Duration = Duration::from_secs(5);
const RESOLV_CONF: &str = "/etc/resolv.conf";
const DOCKER_BRIDGE: &str = "docker0";

/// WeaveDNS, as the daemon is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsOptions {
    /// The local domain, with its final dot, letter case as given.
    pub domain: String,
    /// Where to listen; `None`: where containers can ask.
    pub listen: Option<SocketAddrV4>,
    /// Of our answers, in seconds.
    pub ttl: u32,
    /// How long upstream servers have to answer.
    pub fallback_timeout: Duration,
    /// The file that names them; `None`: there are none.
    pub resolv_conf: Option<PathBuf>,
    /// The bridge whose address containers of Docker can ask.
    pub docker_bridge: String,
}

impl DnsOptions {
    /// `None`: no WeaveDNS.
    pub(super) fn new(args: &LaunchArgs) -> Result<Option<Self>, Failure> {
        if args.no_dns.unwrap_or(false) {
            return Ok(None);
        }
        let failed = |why: String| fatal(format!("Unable to start dns server: {why}"));
        let mut domain = args.dns_domain.clone().unwrap_or_else(|| DOMAIN.to_owned());
        if !domain.ends_with('.') {
            domain.push('.');
        }
        Local::new(&domain, TTL).map_err(|e| failed(e.to_string()))?;
        let listen = args.dns_listen_address.as_deref().filter(|text| !text.is_empty());
        let listen = listen.map(|text| {
            address(text).ok_or_else(|| {
                failed(format!(
                    "invalid DNS listen address \"{text}\": an IPv4 address and a port are wanted, like 172.17.0.1:53"
                ))
            })
        });
        let resolv_conf = args.resolv_conf.as_deref().unwrap_or(RESOLV_CONF);
        Ok(Some(Self {
            domain,
            listen: listen.transpose()?,
            ttl: args.dns_ttl.unwrap_or(TTL),
            fallback_timeout: args.dns_fallback_timeout.unwrap_or(FALLBACK_TIMEOUT),
            resolv_conf: Some(resolv_conf)
                .filter(|path| !path.is_empty())
                .map(|path| absolute(Path::new(path))),
            docker_bridge: args
                .docker_bridge
                .clone()
                .unwrap_or_else(|| DOCKER_BRIDGE.to_owned()),
        }))
    }
}

/// `ADDRESS:PORT`, or `:PORT` for all addresses.
fn address(text: &str) -> Option<SocketAddrV4> {
    match text.strip_prefix(':') {
        Some(port) => Some(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port.parse().ok()?)),
        None => text.parse().ok(),
    }
}
