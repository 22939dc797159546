//! What can go wrong with the host's network, in words that name the device and what to do.

use std::io;

/// Failure of an operation on links, addresses, routes, namespaces or containers.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The kernel refused.
    #[error("cannot {action}: {source}")]
    Kernel {
        /// What was being done, to which device.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The weave bridge does not exist (control.md 4.5).
    #[error("bridge \"{0}\" not present; did you launch weave?")]
    NoBridge(String),
    /// A device is missing.
    #[error("network device \"{0}\" not found")]
    NoDevice(String),
    /// The container has no weave interface (cli.md 4.9).
    #[error("Link not found")]
    NotAttached,
    /// A name that the kernel would not take for a device.
    #[error("\"{0}\" cannot be the name of a network device: 1 to 15 characters, no '/', ':' or blanks")]
    BadName(String),
    /// The bridge's name is taken by an Open vSwitch datapath (control.md 7.1).
    #[error(
        "Existing bridge type \"fastdp\" is different than requested \"bridged_fastdp\". Please do 'weave reset' and try again"
    )]
    OvsBridge,
    /// A device of ours exists but is something else.
    #[error(
        "network device \"{name}\" exists and is of kind {found}, not {wanted}; remove it or choose another name"
    )]
    WrongKind {
        /// The device.
        name: String,
        /// What it is.
        found: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// The pair of interfaces for a container (control.md 4.5).
    #[error("could not create veth pair {host}-{guest}: {source}")]
    VethPair {
        /// End on the host.
        host: String,
        /// End in the container, before it gets its name there.
        guest: String,
        /// Why.
        source: Box<NetError>,
    },
    /// Another program or device owns the VXLAN port.
    #[error(
        "UDP port {port} is in use by another program or VXLAN device, so \"{name}\" cannot receive; free the port or choose another with WEAVE_PORT (VXLAN uses WEAVE_PORT+1)"
    )]
    PortInUse {
        /// UDP port.
        port: u16,
        /// Our device.
        name: String,
    },
    /// Refused: the host itself (cli.md 4.8).
    #[error(
        "Container is running in the host network namespace, and therefore cannot be\nconnected to weave - perhaps the container was started with --net=host"
    )]
    HostNamespace,
    /// No such namespace, or the file is none.
    #[error("no network namespace at {path}: {source}")]
    NoNamespace {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// No process of that number.
    #[error("no process {0}: nothing to attach")]
    NoProcess(String),
    /// Docker does not know the container or cannot be asked (cli.md 4.8).
    #[error("unable to inspect container {name}: {reason}")]
    Inspect {
        /// As given.
        name: String,
        /// Docker's words.
        reason: String,
    },
    /// It exists but does not run (cli.md 4.8).
    #[error("container {0} not running")]
    NotRunning(String),
    /// It ended meanwhile (cli.md 4.8).
    #[error("Container {0} died")]
    Died(String),
    /// The process that Docker tells of is another here.
    #[error(
        "container {name} is not on this host: process {pid} is not its own here; run weave on Docker's host, in its \
         PID namespace (docker run --pid=host)"
    )]
    Elsewhere {
        /// As given.
        name: String,
        /// Its process, as Docker tells.
        pid: u32,
    },
    /// The Docker daemon cannot be asked.
    #[error(
        "cannot reach Docker at {host}: {reason}; without Docker, name the container as netns:NAME, netns:/path or pid:N"
    )]
    NoDocker {
        /// Its address.
        host: String,
        /// Why not.
        reason: String,
    },
    /// A network overlaps a route of the host (control.md 7.5).
    #[error("Network {network} overlaps with existing route {route} on host")]
    NetworkOverlap {
        /// Ours.
        network: crate::ipam::address::Cidr,
        /// The host's.
        route: crate::ipam::address::Cidr,
    },
    /// An address lies inside a route of the host (control.md 7.5).
    #[error("Address {address} overlaps with existing route {route} on host")]
    AddressOverlap {
        /// Ours.
        address: std::net::Ipv4Addr,
        /// The host's.
        route: crate::ipam::address::Cidr,
    },
    /// A program that we call is not installed; its Debian package has the same name, or `nftables`.
    #[error(
        "the program {0} is missing; install it (Debian: apt-get install {package})",
        package = if *.0 == "nft" { "nftables" } else { "iptables" }
    )]
    NoProgram(&'static str),
    /// Several devices could not be dealt with; the rest was done.
    #[error("{}", lines(.0))]
    Several(Vec<NetError>),
}

fn lines(errors: &[NetError]) -> String {
    errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

impl NetError {
    /// A refusal while doing `action`.
    pub(crate) fn kernel(action: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Kernel {
            action: action.into(),
            source: source.into(),
        }
    }

    /// The kernel's error number, if it was the kernel that refused.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// `Ok` if nothing failed, the one failure, or all of them.
    pub(crate) fn all(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.swap_remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }
}
