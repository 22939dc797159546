//! The options of a launch, checked, in the order of cli.md section 6.

use std::net::IpAddr;
use std::str::FromStr;

use super::dns::DnsOptions;
use super::flags::LaunchArgs;
use super::password;
use super::plugin::PluginOptions;
use super::proxy::{ProxyOptions, docker_daemons, engine};
use crate::cli::env::absolute;
use crate::cli::{Env, Failure, Paths};
use crate::ipam::address::Cidr;
use crate::ipam::mode::InitMode;
use crate::mesh::crypto::Password;
use crate::mesh::name::PeerName;
use crate::mesh::trusted::TrustedSubnets;
use crate::overlay::fastdp::xdp::Wanted;

/// Allocation range where none is given.
pub const DEFAULT_RANGE: &str = "10.32.0.0/12";

/// Everything the daemon is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchOptions {
    /// Peer name; `None`: from the bridge or the machine (control.md 8.2).
    pub name: Option<PeerName>,
    /// Nickname; the host's name by default.
    pub nickname: String,
    /// Address to listen on for other peers; `None`: all.
    pub host: Option<IpAddr>,
    /// TCP port of the mesh; data ports are the same and the next, UDP.
    pub port: u16,
    /// Lowest mesh protocol to speak, 1 or 2.
    pub min_protocol_version: u8,
    /// Peers as given, unresolved.
    pub peers: Vec<String>,
    /// Use the stored peers; `peers` is empty then.
    pub resume: bool,
    /// Whoever has started us does so again, by himself and with the same words.
    pub managed: bool,
    /// Leave a process behind that answers Docker's calls to its plugins while we are away; `false` where that would
    /// end with us.
    pub standby: bool,
    /// Connect to peers that others tell of.
    pub discovery: bool,
    /// Most connections; 0 for any number.
    pub conn_limit: usize,
    /// Bridge.
    pub bridge: String,
    /// MTU inside containers.
    pub mtu: Mtu,
    /// XDP on the underlay.
    pub xdp: Wanted,
    /// Do without the fast path.
    pub no_fastdp: bool,
    /// What containers send from addresses that are not theirs is dropped.
    pub spoof_check: bool,
    /// Seals what peers send each other; never empty.
    pub password: Option<Password>,
    /// Where only the control connection needs to be sealed.
    pub trusted_subnets: TrustedSubnets,
    /// IP allocation; `None`: off.
    pub ipam: Option<IpamOptions>,
    /// WeaveDNS; `None`: off.
    pub dns: Option<DnsOptions>,
    /// Docker's API endpoint; empty: no Docker.
    pub docker_api: String,
    /// Docker's network plugins; `None`: off.
    pub plugin: Option<PluginOptions>,
    /// Docker's bridge.
    pub docker_bridge: String,
    /// The Docker API proxy, and how its containers are attached.
    pub proxy: ProxyOptions,
    /// Control interface; empty: none.
    pub http_addr: String,
    /// Read-only interface; empty: none.
    pub status_addr: String,
    /// Interface for metrics; empty: none.
    pub metrics_addr: String,
    /// Least important level to log.
    pub log_level: tracing::level_filters::LevelFilter,
    /// Where things are kept; absolute paths.
    pub paths: Paths,
}

/// IP allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpamOptions {
    /// The universe.
    pub range: Cidr,
    /// Nobody chose it: an overlap with a host route is an error.
    pub range_is_default: bool,
    /// Overlaps the range.
    pub default_subnet: Cidr,
    /// How the first ring comes about.
    pub init: InitMode,
    /// After which absence a majority gives a peer's addresses to another; `None`: never.
    pub reclaim_after: Option<std::time::Duration>,
}

/// MTU inside containers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mtu {
    /// From the underlay.
    #[default]
    Auto,
    /// Bytes, 576..=65535.
    Bytes(u16),
}

/// A text that is no MTU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("auto, or a number of bytes from 576 to 65535")]
pub struct InvalidMtu;

impl FromStr for Mtu {
    type Err = InvalidMtu;

    /// `auto`, `0` for the same, or bytes.
    fn from_str(text: &str) -> Result<Self, InvalidMtu> {
        match text.parse() {
            _ if text == "auto" => Ok(Self::Auto),
            Ok(0) => Ok(Self::Auto),
            Ok(bytes @ 576..) => Ok(Self::Bytes(bytes)),
            _ => Err(InvalidMtu),
        }
    }
}

pub(super) fn fatal(text: impl std::fmt::Display) -> Failure {
    Failure::new(1, format!("FATA: {text}"))
}

impl LaunchOptions {
    /// Checks what was given; the environment fills what was not.
    pub fn new(args: LaunchArgs, env: &Env) -> Result<Self, Failure> {
        let name = args.name.as_deref().map(str::parse).transpose().map_err(fatal)?;
        let resume = args.resume.unwrap_or(false);
        if resume && !args.peers.is_empty() {
            return Err(fatal(
                "You must not specify an initial peer list in conjunction with --resume",
            ));
        }
        let log_level = level(args.log_level.as_deref().unwrap_or("info"))?;
        let min_protocol_version = match args.min_protocol_version.unwrap_or(1) {
            1 => 1,
            2 => 2,
            _ => return Err(fatal("--min-protocol-version must be in range [1,2]")),
        };
        let docker_api = args
            .docker_api
            .clone()
            .or_else(|| engine(&args.proxy, env))
            .unwrap_or_else(|| "unix:///var/run/docker.sock".to_owned());
        let proxy = ProxyOptions::new(
            &args.proxy,
            &docker_api,
            &env.docker,
            &env.paths.run_dir,
            docker_daemons,
        )?;
        let password = password::choose(&args, env)?;
        if let Some(why) = &args.other.refused {
            return Err(fatal(why));
        }
        let trusted_subnets = args.trusted_subnets.as_deref().unwrap_or_default().parse();
        let trusted_subnets = trusted_subnets.map_err(|e| {
            fatal(format!(
                "Unable to parse trusted subnets: {e}. Give --trusted-subnets as 10.0.1.0/24,10.0.2.0/24."
            ))
        })?;
        let mut paths = env.paths.clone();
        if let Some(dir) = &args.data_dir {
            paths.data_dir = absolute(dir);
        }
        Ok(Self {
            name,
            nickname: args.nickname.clone().unwrap_or_else(host_name),
            host: args.host,
            port: from_env(
                args.port,
                env.port.as_deref(),
                "WEAVE_PORT",
                6783,
                |port: &u16| (1..65535).contains(port),
            )?,
            min_protocol_version,
            resume,
            managed: false,
            standby: !env.foreground,
            discovery: !args.no_discovery.unwrap_or(false),
            conn_limit: args.conn_limit.unwrap_or(200) as usize,
            bridge: args.weave_bridge.clone().unwrap_or_else(|| env.bridge.clone()),
            mtu: from_env(args.mtu, env.mtu.as_deref(), "WEAVE_MTU", Mtu::Auto, |_| true)?,
            xdp: args.xdp.unwrap_or_default(),
            spoof_check: !args.no_spoof_check.unwrap_or(false),
            no_fastdp: args.no_fastdp.unwrap_or(env.no_fastdp),
            password,
            trusted_subnets,
            ipam: ipam(&args)?,
            dns: DnsOptions::new(&args)?,
            plugin: PluginOptions::new(&args.plugin, &docker_api, env),
            docker_api,
            proxy,
            docker_bridge: args
                .docker_bridge
                .clone()
                .unwrap_or_else(|| env.docker_bridge.clone()),
            http_addr: args.http_addr.clone().unwrap_or_else(|| env.http_addr.clone()),
            status_addr: args
                .status_addr
                .clone()
                .unwrap_or_else(|| env.status_addr.clone()),
            metrics_addr: args.metrics_addr.clone().unwrap_or_default(),
            log_level,
            paths,
            peers: args.peers,
        })
    }
}

fn from_env<T: FromStr>(
    given: Option<T>,
    variable: Option<&str>,
    name: &str,
    default: T,
    good: impl Fn(&T) -> bool,
) -> Result<T, Failure> {
    match (given, variable) {
        (Some(value), _) => Ok(value),
        (None, None) => Ok(default),
        (None, Some(text)) => {
            let value = text.parse().ok().filter(|v| good(v));
            value.ok_or_else(|| Failure::new(1, format!("invalid value \"{text}\" of {name}")))
        }
    }
}

fn host_name() -> String {
    nix::unistd::gethostname().map_or_else(|_| "weave".to_owned(), |name| name.to_string_lossy().into_owned())
}

fn level(text: &str) -> Result<tracing::level_filters::LevelFilter, Failure> {
    use tracing::level_filters::LevelFilter;
    Ok(match text.to_lowercase().as_str() {
        "trace" => LevelFilter::TRACE,
        "debug" => LevelFilter::DEBUG,
        "info" => LevelFilter::INFO,
        "warn" | "warning" => LevelFilter::WARN,
        "error" | "fatal" | "panic" => LevelFilter::ERROR,
        _ => return Err(fatal(format!("not a valid logrus Level: \"{text}\""))),
    })
}

fn ipam(args: &LaunchArgs) -> Result<Option<IpamOptions>, Failure> {
    let set = |value: &Option<String>| value.as_ref().is_some_and(|v| !v.is_empty());
    let range = args.ipalloc_range.as_deref().unwrap_or(DEFAULT_RANGE);
    if range.is_empty() {
        if set(&args.ipalloc_init) {
            return Err(fatal("--ipalloc-init specified without --ipalloc-range."));
        }
        if set(&args.ipalloc_default_subnet) {
            return Err(fatal(
                "--ipalloc-default-subnet specified without --ipalloc-range.",
            ));
        }
        return Ok(None);
    }
    let init = InitMode::parse(args.ipalloc_init.as_deref().unwrap_or_default())
        .map_err(|e| fatal(format!("Unable to parse --ipalloc-init: {e}")))?;
    let range = Cidr::parse_subnet(range).map_err(fatal)?;
    let default_subnet = match args.ipalloc_default_subnet.as_deref() {
        Some(subnet) if !subnet.is_empty() => Cidr::parse_subnet(subnet).map_err(fatal)?,
        _ => range,
    };
    if !default_subnet.range().overlaps(range.range()) {
        return Err(fatal(format!(
            "IP address allocation default subnet {default_subnet} does not overlap with allocation range {range}"
        )));
    }
    Ok(Some(IpamOptions {
        range,
        range_is_default: args.ipalloc_range.is_none(),
        default_subnet,
        init,
        reclaim_after: args.reclaim_after,
    }))
}
