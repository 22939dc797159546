//! The options of `weave launch`, read as the original's daemon read its flags (cli.md 5).

use std::error::Error as _;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::duration::duration;
use crate::cli::Failure;
use crate::mesh::crypto::Password;

/// Exit status for wrong flags.
const FLAG_ERROR: u8 = 125;

/// Start the daemon and connect to peers
#[derive(Debug, Clone, Default, clap::Args)]
#[command(
    after_help = "Options come before peers. The daemon's process number is printed once it answers.\n\n\
    Examples:\n  weave launch\n  weave launch --ipalloc-range 10.2.0.0/16 host2 host3:6783\n  \
    weave launch --nickname edge --no-discovery 192.0.2.7\n  \
    weave launch --password-file /etc/weave/password --trusted-subnets 10.0.1.0/24 host2"
)]
pub struct LaunchArgs {
    /// Encrypts what peers send each other; the same on all hosts (WEAVE_PASSWORD). For a moment all users
    /// of this host can see it: the variable and --password-file are safer
    #[arg(long, allow_hyphen_values = true)]
    pub(super) password: Option<Password>,
    /// File with the password; a newline at its end is no part of it
    #[arg(long, value_name = "FILE")]
    pub(super) password_file: Option<std::path::PathBuf>,
    /// Where data need not be encrypted, if the other peer says so as well
    #[arg(long, value_name = "CIDR,...")]
    pub(super) trusted_subnets: Option<String>,
    /// Do without the fast path: everything goes through sleeve (WEAVE_NO_FASTDP)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub(super) no_fastdp: Option<bool>,
    /// Peer name, like a MAC address; derived from the machine if left out
    #[arg(long, value_name = "MAC")]
    pub(super) name: Option<String>,
    /// Name for people; the host's name if left out
    #[arg(long)]
    pub(super) nickname: Option<String>,
    /// Port of the mesh, TCP; data uses the next one, UDP (WEAVE_PORT) [default: 6783]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=65534))]
    pub(super) port: Option<u16>,
    /// Address to listen on for other peers [default: all]
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub(super) host: Option<std::net::IpAddr>,
    /// Connect only to the peers given, not to those they tell of
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub(super) no_discovery: Option<bool>,
    /// Most connections to peers, 0 for any number [default: 200]
    #[arg(long, value_name = "COUNT")]
    pub(super) conn_limit: Option<u32>,
    /// Lowest mesh protocol to speak, 1 or 2 [default: 1]
    #[arg(long, value_name = "VERSION", allow_hyphen_values = true)]
    pub(super) min_protocol_version: Option<i64>,
    /// Connect to the peers of the last run
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub(super) resume: Option<bool>,
    /// MTU inside containers, in bytes, or auto (WEAVE_MTU) [default: auto]
    #[arg(long, value_name = "auto|BYTES")]
    pub(super) mtu: Option<super::Mtu>,
    /// Addresses to allocate from; the same on all peers; empty for none [default: 10.32.0.0/12]
    #[arg(long, value_name = "CIDR", alias = "iprange")]
    pub(super) ipalloc_range: Option<String>,
    /// Subnet for containers that name none [default: the range]
    #[arg(long, value_name = "CIDR")]
    pub(super) ipalloc_default_subnet: Option<String>,
    /// How the first peers divide the range: consensus[=COUNT], seed=MAC,... or observer
    #[arg(long, value_name = "MODE")]
    pub(super) ipalloc_init: Option<String>,
    /// Give the addresses of a peer that has been unreachable for so long (1h, 30m; at least 1m) to another, if
    /// more than half of all peers with addresses agree; to be given on all peers [default: never]
    #[arg(long, value_name = "DURATION", value_parser = absence)]
    pub(super) reclaim_after: Option<Duration>,
    /// Do without WeaveDNS
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub(super) no_dns: Option<bool>,
    /// Domain of the names that WeaveDNS knows; the same on all peers [default: weave.local.]
    #[arg(long, value_name = "DOMAIN")]
    pub(super) dns_domain: Option<String>,
    /// Where WeaveDNS answers: ADDRESS:PORT, or :PORT for all addresses [default: port 53 of Docker's bridge;
    /// without Docker of the weave bridge's addresses and of 127.0.0.1]
    #[arg(long, value_name = "ENDPOINT")]
    pub(super) dns_listen_address: Option<String>,
    /// How long others may keep answers of WeaveDNS, in seconds [default: 1]
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true, value_parser = clap::value_parser!(u32).range(..=i64::from(i32::MAX)))]
    pub(super) dns_ttl: Option<u32>,
    /// How long WeaveDNS waits for the servers that it passes other questions on to [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(super) dns_fallback_timeout: Option<Duration>,
    /// File that names those servers; empty for none [default: /etc/resolv.conf]
    #[arg(long, value_name = "PATH")]
    pub(super) resolv_conf: Option<String>,
    /// Docker's bridge (DOCKER_BRIDGE) [default: docker0]
    #[arg(long, value_name = "NAME")]
    pub(super) docker_bridge: Option<String>,
    /// XDP on the host's network cards: auto, native, generic or off [default: auto]
    #[arg(long, value_name = "MODE")]
    pub(super) xdp: Option<crate::overlay::fastdp::xdp::Wanted>,
    /// Let containers send from addresses that they were not given
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub(super) no_spoof_check: Option<bool>,
    /// Control interface: ADDRESS:PORT, /path of a Unix socket, or several with commas between them; empty for
    /// none (WEAVE_HTTP_ADDR) [default: 127.0.0.1:6784]
    #[arg(long, value_name = "ENDPOINT")]
    pub(super) http_addr: Option<String>,
    /// Read-only interface; empty for none (WEAVE_STATUS_ADDR) [default: 127.0.0.1:6782]
    #[arg(long, value_name = "ENDPOINT")]
    pub(super) status_addr: Option<String>,
    /// Interface for metrics only [default: none]
    #[arg(long, value_name = "ENDPOINT")]
    pub(super) metrics_addr: Option<String>,
    /// debug, info, warning or error [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub(super) log_level: Option<String>,
    /// Name of the bridge [default: weave]
    #[arg(long, value_name = "NAME")]
    pub(super) weave_bridge: Option<String>,
    /// Docker's API; empty to do without (DOCKER_HOST)
    #[arg(long, value_name = "ENDPOINT")]
    pub(super) docker_api: Option<String>,
    /// Where to keep what survives a restart (WEAVE_DATA_DIR) [default: /var/lib/weave]
    #[arg(long, value_name = "PATH")]
    pub(super) data_dir: Option<std::path::PathBuf>,
    #[command(flatten)]
    pub(super) proxy: super::proxy::ProxyArgs,
    #[command(flatten)]
    pub(super) plugin: super::plugin::PluginArgs,
    /// Be the daemon instead of starting one
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub(super) foreground: Option<bool>,
    /// Address or name of a peer, with :PORT if it is not the usual one
    #[arg(trailing_var_arg = true)]
    pub(super) peers: Vec<String>,
    /// What became of flags that are not ours.
    #[arg(skip)]
    pub(in crate::cli) other: super::other_flags::Found,
}

/// No Go boolean.
#[derive(Debug, thiserror::Error)]
#[error("invalid syntax")]
struct NotBoolean;

pub(super) fn boolean(text: &str) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(Box::new(NotBoolean)),
    }
}

/// At least a minute.
fn absence(text: &str) -> Result<Duration, String> {
    let longest = Duration::from_secs(10 * 365 * 86_400);
    let parsed = duration(text).ok();
    let parsed = parsed.filter(|after| (crate::ipam::reclaim::MIN_RECLAIM_AFTER..=longest).contains(after));
    parsed.ok_or_else(|| "a duration of at least a minute, like 1h or 30m".to_owned())
}

fn address(text: &str) -> Result<std::net::IpAddr, std::net::AddrParseError> {
    text.parse()
}

/// Arguments in the form that the parser takes: old spellings with one dash become those with two, and
/// quoted values after `=` lose their quotes. What follows the first peer stays as it is.
pub fn normalised(args: &[String]) -> Vec<String> {
    let mut options = true;
    let unquoted = |text: &str| {
        let inside = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
        inside('"').or_else(|| inside('\'')).unwrap_or(text).to_owned()
    };
    args.iter()
        .map(|arg| {
            options &= arg != "--";
            let old = ["-password", "-port", "-iprange"].iter().any(|o| {
                arg.strip_prefix(o)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
            });
            let dash = if options && old { "-" } else { "" };
            match arg.split_once('=') {
                Some((name, value)) if options && name.starts_with('-') => {
                    format!("{dash}{name}={}", unquoted(value))
                }
                _ => format!("{dash}{arg}"),
            }
        })
        .collect()
}

/// The original's texts for wrong flags.
pub fn flag_error(error: &clap::Error) -> Failure {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    // `--port <PORT>` or `--no-discovery[=<NO_DISCOVERY>]`
    let shown = context(ContextKind::InvalidArg);
    let flag = shown.split([' ', '[', '=']).next().unwrap_or_default();
    let value = context(ContextKind::InvalidValue);
    let source = error.source();
    let reason = source.map_or_else(|| "invalid syntax".to_owned(), ToString::to_string);
    let text = match error.kind() {
        ErrorKind::UnknownArgument => format!("flag provided but not defined: {flag}"),
        ErrorKind::InvalidValue if value.is_empty() => format!("flag needs an argument: {flag}"),
        _ if source.is_some_and(|s| s.is::<NotBoolean>()) => {
            format!("invalid boolean value \"{value}\" for  {flag}: {reason}")
        }
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            format!("invalid value \"{value}\" for flag {flag}: {reason}")
        }
        _ => error.to_string().lines().next().unwrap_or_default().to_owned(),
    };
    let hint = crate::cli::suggestion(Some(error));
    Failure::new(FLAG_ERROR, format!("{text}\n{hint}See 'weave --help'."))
}
