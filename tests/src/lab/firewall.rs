//! Firewalls and narrow paths between the hosts: nftables in the underlay's bridges, where neither
//! end is told of what is dropped.

use std::io::Write;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use super::{Host, Lab, netns};

/// UDP port of sleeve.
pub const SLEEVE_PORT: u16 = 6783;
/// UDP port of the fast path (VXLAN).
pub const VXLAN_PORT: u16 = 6784;

/// Rules that drop packets until this is lifted or dropped.
#[derive(Debug)]
pub struct Block {
    netns: String,
    table: String,
}

impl Block {
    fn new(lab: &Lab, rules: &[String]) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let block = Self {
            netns: lab.underlay(),
            table: format!("lab{}", COUNT.fetch_add(1, Ordering::Relaxed)),
        };
        let rules: String = rules
            .iter()
            .map(|rule| format!("    {rule} counter drop\n"))
            .collect();
        let text = format!(
            "table bridge {} {{\n  chain forward {{\n    type filter hook forward priority 0;\n{rules}  }}\n}}\n",
            block.table
        );
        // A table of its own: lifting the block is to delete it.
        let mut command = Command::new("nft");
        command
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped());
        netns::enter(&mut command, &block.netns)?;
        let mut child = command.spawn().context("cannot run nft")?;
        child
            .stdin
            .take()
            .context("no input")?
            .write_all(text.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "nft refused\n{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(block)
    }

    /// How many packets the rules have dropped so far.
    ///
    /// # Errors
    /// If the rules are gone.
    pub fn dropped(&self) -> Result<u64> {
        let list = netns::run_in(&self.netns, &["nft", "list", "table", "bridge", &self.table])?.ok()?;
        let counts = list.split("counter packets ").skip(1);
        Ok(counts
            .filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok())
            .sum())
    }

    /// Takes the rules away.
    ///
    /// # Errors
    /// If nft fails.
    pub fn lift(self) -> Result<()> {
        let result = self.delete();
        std::mem::forget(self);
        result
    }

    fn delete(&self) -> Result<()> {
        netns::run_in(&self.netns, &["nft", "delete", "table", "bridge", &self.table])?
            .ok()
            .map(drop)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let _gone_with_the_lab = self.delete();
    }
}

fn towards(from: Ipv4Addr, to: Ipv4Addr) -> String {
    format!("ip saddr {from} ip daddr {to}")
}

impl Lab {
    /// Drops the fast path's packets between two hosts.
    ///
    /// # Errors
    /// If the hosts share no segment, or nft fails. So for all of these.
    pub fn block_vxlan(&self, a: &Host, b: &Host) -> Result<Block> {
        self.block_udp(a, b, VXLAN_PORT)
    }

    /// Drops sleeve's packets between two hosts, its fragments included.
    ///
    /// # Errors
    /// As [`Lab::block_vxlan`].
    pub fn block_sleeve(&self, a: &Host, b: &Host) -> Result<Block> {
        self.block_udp(a, b, SLEEVE_PORT)
    }

    fn block_udp(&self, a: &Host, b: &Host, port: u16) -> Result<Block> {
        let (a, b) = (a.address_towards(b)?, b.address_towards(a)?);
        let rule = |from, to| format!("{} udp dport {port}", towards(from, to));
        Block::new(self, &[rule(a, b), rule(b, a)])
    }

    /// Drops everything between two hosts.
    ///
    /// # Errors
    /// As [`Lab::block_vxlan`].
    pub fn block_all(&self, a: &Host, b: &Host) -> Result<Block> {
        let (a, b) = (a.address_towards(b)?, b.address_towards(a)?);
        Block::new(self, &[towards(a, b), towards(b, a)])
    }

    /// Divides the hosts: those for which `side` is true, in their order, and the others see only
    /// their own kind.
    ///
    /// # Errors
    /// If nft fails.
    pub fn partition(&self, side: &[bool]) -> Result<Block> {
        let addresses = |wanted: bool| {
            let hosts = self.hosts.iter().zip(side).filter(|(_, side)| **side == wanted);
            let texts: Vec<String> = hosts.map(|(host, _)| host.address().to_string()).collect();
            texts.join(", ")
        };
        let (one, other) = (addresses(true), addresses(false));
        let rule = |from: &str, to: &str| format!("ip saddr {{ {from} }} ip daddr {{ {to} }}");
        Block::new(self, &[rule(&one, &other), rule(&other, &one)])
    }

    /// Drops UDP packets to `port` in one direction only.
    ///
    /// # Errors
    /// As [`Lab::block_vxlan`].
    pub fn block_one_way(&self, from: &Host, to: &Host, port: u16) -> Result<Block> {
        let path = towards(from.address_towards(to)?, to.address_towards(from)?);
        Block::new(self, &[format!("{path} udp dport {port}")])
    }

    /// Drops UDP packets whose IP length is above `bytes`, fragments as well as whole ones; the
    /// control connections keep their way. Makes all links carry packets one by one.
    ///
    /// # Errors
    /// As [`Lab::block_vxlan`].
    pub fn drop_longer_than(&self, bytes: u16) -> Result<Block> {
        self.like_wires()?;
        Block::new(self, &[format!("ip protocol udp ip length > {bytes}")])
    }

    /// Drops all IP fragments. Makes all links carry packets one by one.
    ///
    /// # Errors
    /// As [`Lab::block_vxlan`].
    pub fn drop_fragments(&self) -> Result<Block> {
        self.like_wires()?;
        Block::new(self, &["ip frag-off & 0x3fff != 0".to_owned()])
    }

    /// Makes the hosts' ends of all links carry packets as wires do: one by one, no longer than the
    /// MTU, with their checksums.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn like_wires(&self) -> Result<()> {
        for host in &self.hosts {
            for device in host.devices() {
                like_a_wire(host.netns(), &device)?;
            }
        }
        Ok(())
    }
}

/// Everything that leaves by `device` is complete: segmented, and with its checksum.
pub(crate) fn like_a_wire(netns: &str, device: &str) -> Result<()> {
    netns::ip(&["-n", netns, "link", "set", device, "gso_max_segs", "1"])?;
    netns::inside(netns, || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for command in [ETHTOOL_STXCSUM, ETHTOOL_STSO, ETHTOOL_SGSO] {
            ethtool_off(&socket, device, command)
                .with_context(|| format!("cannot switch offloads of {device} off"))?;
        }
        Ok(())
    })
}

const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_STSO: u32 = 0x1f;
const ETHTOOL_SGSO: u32 = 0x24;

#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

fn ethtool_off(socket: &UdpSocket, device: &str, command: u32) -> std::io::Result<()> {
    let mut value = EthtoolValue { command, data: 0 };
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request
        .ifr_name
        .iter_mut()
        .zip(device.bytes().take(libc::IFNAMSIZ - 1))
    {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request has a NUL-terminated name and points to a live ethtool_value.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
