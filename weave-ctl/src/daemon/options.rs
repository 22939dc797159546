//! What the daemon is told at start: validated by the command line.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::ipam::address::Cidr;
use crate::ipam::mode::InitMode;
use crate::mesh::name::PeerName;
use crate::overlay::fastdp::xdp;

/// Everything `launch` decides (cli.md 5).
#[derive(Debug, Clone)]
pub struct Options {
    /// `--name`; else the persisted one, else derived (wire.md 10.1).
    pub name: Option<PeerName>,
    /// `--nickname`; else the host name.
    pub nickname: Option<String>,
    /// `--host`: where to listen, and dial from; all addresses if absent.
    pub host: Option<IpAddr>,
    /// `--port`: TCP port of the mesh; VXLAN uses the next one.
    pub port: u16,
    /// Peers as the user wrote them.
    pub peers: Vec<String>,
    /// `--resume`: use the persisted peers.
    pub resume: bool,
    /// Off with `--no-discovery`.
    pub discovery: bool,
    /// `--conn-limit`; 0 is none.
    pub conn_limit: usize,
    /// `--mtu`; `None` is `auto`.
    pub mtu: Option<u32>,
    /// IP allocation; `None` with an empty `--ipalloc-range`.
    pub ipam: Option<IpamOptions>,
    /// `--http-addr`; blank is off.
    pub http_addr: String,
    /// `--status-addr`; blank is off.
    pub status_addr: String,
    /// `--metrics-addr`; blank is off.
    pub metrics_addr: String,
    /// `--weave-bridge`.
    pub bridge: String,
    /// `--xdp`.
    pub xdp: xdp::Wanted,
    /// Where state, run-time files and pins live.
    pub paths: Paths,
}

/// IP allocation.
#[derive(Debug, Clone)]
pub struct IpamOptions {
    /// `--ipalloc-range`.
    pub range: Cidr,
    /// `--ipalloc-default-subnet`.
    pub default_subnet: Cidr,
    /// `--ipalloc-init`.
    pub mode: InitMode,
}

/// Directories of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// `WEAVE_DATA_DIR`: what must survive a reboot.
    pub data: PathBuf,
    /// `WEAVE_RUN_DIR`: lock, log.
    pub run: PathBuf,
    /// `WEAVE_BPF_DIR`: pins.
    pub bpf: PathBuf,
}

impl Paths {
    /// The persistent state.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.data.join("weave.redb")
    }
}
