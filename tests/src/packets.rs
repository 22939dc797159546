//! Frames as no network stack would send them.

use std::fs::File;
use std::io::{self, Write as _};
use std::mem::zeroed;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};

use crate::lab::netns;

const BUFFER: libc::c_int = 8 << 20;
/// 802.1Q.
pub const TAG: u16 = 0x8100;
/// 802.1ad.
pub const SERVICE_TAG: u16 = 0x88a8;

/// Sends what it is given, as it is, from one interface.
#[derive(Debug)]
pub struct Sender {
    socket: File,
    /// Ethernet address of the interface.
    pub mac: [u8; 6],
}

impl Sender {
    /// At `device` in a network namespace.
    ///
    /// # Errors
    /// If there is no such interface.
    pub fn open(netns: &str, device: &str) -> Result<Self> {
        Ok(Self {
            socket: netns::inside(netns, || open(device))?.into(),
            mac: mac(netns, device)?,
        })
    }

    /// Sends a frame to `to` from the interface's own address: `rest` is what comes after the addresses.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub fn send(&self, to: [u8; 6], rest: &[u8]) -> Result<()> {
        let frame = [&to, &self.mac, rest].concat();
        (&self.socket).write_all(&frame).context("sending a frame")
    }
}

/// Ethernet address of an interface.
///
/// # Errors
/// If it has none.
pub fn mac(netns: &str, device: &str) -> Result<[u8; 6]> {
    let shown = netns::ip(&["-n", netns, "-o", "link", "show", "dev", device])?;
    let mut words = shown.split_whitespace().skip_while(|word| *word != "link/ether");
    let text = words.nth(1).with_context(|| format!("no address: {shown}"))?;
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes = bytes.collect::<Result<Vec<u8>, _>>()?;
    bytes
        .try_into()
        .ok()
        .with_context(|| format!("an odd address: {text}"))
}

/// Tags of VLAN 0, the outermost first, then the type of what follows.
#[must_use]
pub fn tagged(tags: &[u16], ethertype: u16, packet: &[u8]) -> Vec<u8> {
    let mut rest = Vec::new();
    for tag in tags {
        rest.extend(tag.to_be_bytes());
        rest.extend([0, 0]);
    }
    rest.extend(ethertype.to_be_bytes());
    rest.extend(packet);
    rest
}

/// An IPv4 packet with a datagram of UDP.
#[must_use]
pub fn udp(source: Ipv4Addr, target: Ipv4Addr, port: u16, text: &str) -> Vec<u8> {
    let [udp_len, len] = [8, 28].map(|headers| (text.len() + headers) as u16);
    let mut packet = vec![0x45, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, libc::IPPROTO_UDP as u8, 0, 0]);
    packet.extend(source.octets());
    packet.extend(target.octets());
    let sum = checksum(&packet).to_be_bytes();
    packet.splice(10..12, sum);
    for word in [port, port, udp_len, 0] {
        packet.extend(word.to_be_bytes());
    }
    packet.extend(text.as_bytes());
    packet
}

/// An ARP request for `target` from somebody at `mac` and `source`.
#[must_use]
pub fn arp_request(mac: [u8; 6], source: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
    packet.extend(mac);
    packet.extend(source.octets());
    packet.extend([0; 6]);
    packet.extend(target.octets());
    packet
}

/// RFC 1071, of whole words.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0;
    for pair in bytes.chunks_exact(2) {
        sum += pair.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A packet socket that receives what arrives at `device`, in the network namespace of this thread.
pub(crate) fn open(device: &str) -> Result<OwnedFd> {
    let name = std::ffi::CString::new(device)?;
    // SAFETY: the name is NUL-terminated.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: the descriptor is fresh, valid, and owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, BUFFER)?;
    // SAFETY: all-zero is a valid address of this family.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = index.cast_signed();
    let size = size_of_val(&address) as u32;
    // SAFETY: passes a valid address and its size.
    if unsafe { libc::bind(fd, (&raw const address).cast(), size) } != 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("cannot bind to {device}"));
    }
    Ok(socket)
}

fn set(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = size_of_val(&value) as u32;
    // SAFETY: passes a valid int and its size.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), size) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
