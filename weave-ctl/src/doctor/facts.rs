//! What the command saw on this host.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Everything that the checks need besides the daemon's report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Version of this command.
    pub version: String,
    /// We may look at everything.
    pub root: bool,
    /// Address of the daemon's control interface.
    pub address: String,
    /// What came from there.
    pub answer: Answer,
    /// The process that holds the lock of the run directory.
    pub lock_holder: Option<i32>,
    /// The latest complaint in the daemon's log.
    pub complaint: Option<String>,
    /// The data file.
    pub data: Data,
    /// Listeners on our ports that are not our daemon.
    pub strangers: Vec<Stranger>,
    /// Release of the kernel: major and minor.
    pub kernel: Option<(u32, u32)>,
    /// The directory for pins, if it cannot be in a BPF file system.
    pub no_bpffs: Option<String>,
    /// There is no `/dev/net/tun`.
    pub no_tun: bool,
    /// Why the BPF object is not there.
    pub no_object: Option<String>,
    /// Pins of links whose interface is gone.
    pub stale_pins: Vec<String>,
    /// Name of the bridge.
    pub bridge_name: String,
    /// The bridge, if there is one.
    pub bridge: Option<Bridge>,
    /// Host ends of containers' interfaces that are no ports of the bridge.
    pub unplugged: Vec<String>,
    /// How the allocation range overlaps the host's routes.
    pub overlap: Option<String>,
    /// The disk with the data directory.
    pub disk: Option<Disk>,
    /// Addresses of the targets that are names.
    pub resolved: BTreeMap<String, Vec<IpAddr>>,
}

/// What came from the control address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Answer {
    /// A report.
    #[default]
    Report,
    /// Nobody is there: why.
    Nobody(String),
    /// Nothing came in time.
    Silence,
    /// Something else than a report: why.
    Other(String),
}

/// State of the data file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Data {
    /// Not looked at, as a daemon has it open or we may not.
    #[default]
    Unseen,
    /// There is none.
    Absent,
    /// It can be read.
    Good,
    /// It cannot: why, and what to do.
    Bad(String),
}

/// Somebody who listens where the daemon would.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranger {
    /// `TCP port 6783`.
    pub port: String,
    /// `process 12 (nginx)`, if known.
    pub who: Option<String>,
}

/// The bridge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bridge {
    /// Set up.
    pub up: bool,
    /// Its ports.
    pub ports: Vec<String>,
    /// Ports that should have one of our programs and have not.
    pub bare: Vec<String>,
}

/// Room on a disk, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The directory.
    pub path: String,
    /// Left for us.
    pub free: u64,
    /// In all.
    pub total: u64,
}
