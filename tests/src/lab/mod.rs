//! Hosts made out of network namespaces, joined by an underlay of bridges in one more namespace.
//!
//! ```text
//!   h1 ──veth── bridge ──veth── h2      one segment: everybody reaches everybody
//!   h1 ──── s1 ──── h2 ──── s2 ──── h3  a line: neighbours only, nobody forwards
//! ```

mod container;
pub mod firewall;
mod host;
pub mod netns;
mod options;
mod sweep;

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

pub use container::Container;
pub use firewall::Block;
pub use host::Host;
pub use options::Options;

use crate::case::Unsupported;

/// The shape of a lab that does not exist yet.
#[derive(Debug, Clone)]
pub struct Plan {
    hosts: u8,
    line: bool,
    mtu: u32,
    binary: Option<PathBuf>,
    everywhere: Options,
    somewhere: Vec<(u8, Options)>,
}

impl Plan {
    /// `hosts` hosts on one segment, 172.30.0.1 upwards.
    pub fn mesh(hosts: u8) -> Self {
        Self {
            hosts,
            line: false,
            mtu: 1500,
            binary: None,
            everywhere: Options::new(),
            somewhere: Vec::new(),
        }
    }

    /// `hosts` hosts in a line: host k and k+1 share the segment 172.30.k-1.0/24, and no host
    /// reaches any but its neighbours.
    pub fn line(hosts: u8) -> Self {
        Self {
            line: true,
            ..Self::mesh(hosts)
        }
    }

    /// MTU of the underlay, in bytes (default 1500).
    pub fn mtu(self, mtu: u32) -> Self {
        Self { mtu, ..self }
    }

    /// How each host is launched.
    pub fn options(self, options: Options) -> Self {
        Self {
            everywhere: options,
            ..self
        }
    }

    /// How host `number`, counted from 1, is launched instead.
    pub fn host_options(mut self, number: u8, options: Options) -> Self {
        self.somewhere.push((number, options));
        self
    }

    /// Uses this `weave-ctl` instead of the one built beside this program.
    pub fn binary(self, path: impl Into<PathBuf>) -> Self {
        Self {
            binary: Some(path.into()),
            ..self
        }
    }

    /// Makes the lab; it is removed when dropped.
    ///
    /// # Errors
    /// [`Unsupported`] if not root; else what could not be made.
    pub fn build(self, name: &str) -> Result<Lab> {
        // No lab's prefix may be the beginning of another's, or removing one would take the other along.
        let name = name.replace('-', "_");
        let prefix = format!("{}{name}-", sweep::process_prefix(std::process::id()));
        Lab::build(self, prefix, false)
    }

    /// Makes a lab that stays when this process ends, until [`Lab::remove`].
    ///
    /// # Errors
    /// As [`Plan::build`].
    pub fn build_kept(self) -> Result<Lab> {
        let prefix = format!("wlk{}-", std::process::id());
        Lab::build(self, prefix, true)
    }
}

/// Hosts and the underlay between them.
#[derive(Debug, Serialize, Deserialize)]
pub struct Lab {
    prefix: String,
    keep: bool,
    hosts: Vec<Host>,
}

impl Lab {
    fn build(plan: Plan, prefix: String, keep: bool) -> Result<Self> {
        need_root()?;
        need_bpf_fs()?;
        sweep::sweep_dead();
        sweep::on_signal();
        let binary = plan.binary.clone().map_or_else(beside_this_program, Ok)?;
        // Dropped, and so removed, if anything below fails.
        let mut lab = Self {
            prefix,
            keep: false,
            hosts: Vec::new(),
        };
        let underlay = lab.underlay();
        netns::create(&underlay)?;
        let segments = if plan.line {
            plan.hosts.saturating_sub(1)
        } else {
            1
        };
        for segment in 0..segments {
            let bridge = format!("s{segment}");
            netns::ip(&["-n", &underlay, "link", "add", &bridge, "type", "bridge"])?;
            netns::ip(&[
                "-n",
                &underlay,
                "link",
                "set",
                &bridge,
                "mtu",
                &plan.mtu.to_string(),
                "up",
            ])?;
        }
        for number in 1..=plan.hosts {
            let own = plan.somewhere.iter().rfind(|(host, _)| *host == number);
            let options = own.map_or(&plan.everywhere, |(_, options)| options);
            let mut host = Host::create(&lab.prefix, number, &binary, options.clone())?;
            let attached = if plan.line {
                (number.saturating_sub(2)..number.min(segments)).collect()
            } else {
                vec![0]
            };
            for segment in attached {
                host.plug_in(&underlay, segment, plan.mtu)?;
            }
            lab.hosts.push(host);
        }
        lab.keep = keep;
        Ok(lab)
    }

    /// Name of the namespace with the underlay's bridges; host N's port on segment S is `pN-S`.
    pub fn underlay(&self) -> String {
        format!("{}net", self.prefix)
    }

    /// All hosts, in order.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Host `number`, counted from 1.
    ///
    /// # Errors
    /// If the lab has fewer hosts.
    pub fn host(&self, number: usize) -> Result<&Host> {
        let index = number.checked_sub(1).context("hosts are counted from 1")?;
        self.hosts
            .get(index)
            .with_context(|| format!("the lab has no host {number}"))
    }

    /// The host called `name` (`h1`, `h2`, …).
    ///
    /// # Errors
    /// If there is none.
    pub fn host_named(&self, name: &str) -> Result<&Host> {
        let found = self.hosts.iter().find(|host| host.name() == name);
        found.with_context(|| format!("the lab has no host {name}; it has {}", self.names()))
    }

    fn names(&self) -> String {
        self.hosts.iter().map(Host::name).collect::<Vec<_>>().join(", ")
    }

    /// Launches the daemon on every host, each with the address of the one before as its peer.
    ///
    /// Unless the arguments say how the address range is first divided, all hosts wait for a
    /// majority of them: by itself each would count only itself and its one peer.
    ///
    /// # Errors
    /// If one does not start.
    pub fn launch_all(&self, args: &[&str]) -> Result<()> {
        let majority = format!("--ipalloc-init=consensus={}", self.hosts.len());
        let mut common = args.to_vec();
        if !args.iter().any(|arg| arg.starts_with("--ipalloc-init")) {
            common.push(&majority);
        }
        let mut previous: Option<&Host> = None;
        for host in &self.hosts {
            let mut args = common.clone();
            let peer = previous
                .map(|p| p.address_towards(host))
                .transpose()?
                .map(|a| a.to_string());
            args.extend(peer.as_deref());
            host.launch(&args)?;
            previous = Some(host);
        }
        Ok(())
    }

    /// Cuts (`up == false`) or restores all underlay links of a host.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn link(&self, host: &Host, up: bool) -> Result<()> {
        for port in host.ports() {
            netns::ip(&[
                "-n",
                &self.underlay(),
                "link",
                "set",
                &port,
                if up { "up" } else { "down" },
            ])?;
        }
        Ok(())
    }

    /// What each host says about itself, for the message of a failed test.
    pub fn diagnose(&self) -> String {
        self.hosts.iter().map(Host::diagnose).collect()
    }

    /// Removes everything that belongs to this lab. Also for labs that are kept.
    ///
    /// # Errors
    /// The first thing that could not be removed.
    pub fn remove(mut self) -> Result<()> {
        self.keep = true;
        sweep::remove(&self.prefix)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = sweep::remove(&self.prefix)
        {
            eprintln!("lab: {error:#}");
        }
    }
}

/// The underlay address of host `number` on `segment`.
fn address(segment: u8, number: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, segment, number)
}

/// Fails with [`Unsupported`] unless we are root.
///
/// # Errors
/// As said.
pub fn need_root() -> Result<()> {
    // SAFETY: geteuid has no arguments and cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        Ok(())
    } else {
        Err(Unsupported::new("needs root").into())
    }
}

/// Mounts the BPF file system unless it is there. One lock for all labs of the machine: a second
/// mount would hide the first.
fn need_bpf_fs() -> Result<()> {
    let lock = File::create("/run/weave-lab.lock").context("cannot create /run/weave-lab.lock")?;
    lock.lock()?;
    let mounts = fs::read_to_string("/proc/mounts")?;
    if mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(sweep::BPF_ROOT))
    {
        return Ok(());
    }
    let (name, target) = (c"bpf".as_ptr(), c"/sys/fs/bpf".as_ptr());
    // SAFETY: all pointers are NUL-terminated constants; no data is passed.
    if unsafe { libc::mount(name, target, name, 0, std::ptr::null()) } != 0 {
        let error = std::io::Error::last_os_error();
        return Err(Unsupported::new(format!("needs the BPF file system: {error}")).into());
    }
    Ok(())
}

/// `weave-ctl` from the same build: target/PROFILE/, where tests are one folder deeper.
fn beside_this_program() -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    let found = me
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("weave-ctl"))
        .find(|path| path.is_file());
    match found {
        Some(path) => Ok(path),
        None => bail!(
            "no weave-ctl beside {}; build it first: cargo build --package weave-ctl",
            me.parent().unwrap_or(Path::new("/")).display()
        ),
    }
}
