//! Sending on what is for another peer: the outer addresses change, the VNI stays (wire.md 8.11).

use weave_common::{Config, NextHop, Sender};

use crate::maps::{count, usable};
use crate::packet::{Eth, Ipv4, Outer, Udp};

/// Where to, or `None` when it must be dropped (already counted). `sender` is the neighbour at `ip`
/// that sent it with this `ttl`.
#[inline(always)]
pub fn next_hop(sender: &Sender, ip: [u8; 4], ttl: u8, dst: u32) -> Option<&'static NextHop> {
    let hop = usable(dst)?;
    // Never back to the sender: disagreeing topologies would play ball (W13).
    if is_back(hop, sender, ip) {
        count!(drop_returning);
        return None;
    }
    if ttl <= 1 {
        count!(drop_ttl);
        return None;
    }
    Some(hop)
}

#[inline(always)]
fn is_back(hop: &NextHop, sender: &Sender, ip: [u8; 4]) -> bool {
    if hop.flags & NextHop::SLEEVE != 0 {
        hop.via == sender.short_id
    } else {
        hop.remote_ip == ip
    }
}

/// What changes at a relay.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Headers {
    eth: Eth,
    ip: Ipv4,
    udp: Udp,
}

/// The outer headers for the next hop. The TTL goes down, so a loop ends (W13).
#[inline(always)]
pub fn rewrite(outer: &Outer, hop: &NextHop) -> Headers {
    let mut ip = Ipv4 {
        src: hop.local_ip,
        dst: hop.remote_ip,
        ttl: outer.ip.ttl - 1,
        ..outer.ip
    };
    ip.seal();
    let udp = Udp {
        dst_port: hop.port.to_be(),
        checksum: [0; 2],
        ..outer.udp
    };
    Headers {
        eth: Eth {
            dst: hop.dst_mac,
            src: hop.src_mac,
            proto: [8, 0],
        },
        ip,
        udp,
    }
}

/// Is the VXLAN packet addressed to this host on one of our ports?
#[inline(always)]
pub fn is_ours(config: &Config, outer: &Outer) -> bool {
    outer.eth.proto == [8, 0]
        && outer.ip.version_ihl == 0x45
        && outer.ip.protocol == crate::packet::IPPROTO_UDP
        && outer.ip.frag_off[0] & 0x3f == 0
        && outer.ip.frag_off[1] == 0
        && is_port(config, u16::from_be(outer.udp.dst_port))
        && is_local_ip(config, outer.ip.dst)
}

#[inline(always)]
fn is_port(config: &Config, port: u16) -> bool {
    port != 0 && config.ports.contains(&port)
}

#[inline(always)]
fn is_local_ip(config: &Config, ip: [u8; 4]) -> bool {
    // One number compares faster than four bytes.
    let ip = u32::from_ne_bytes(ip);
    ip != 0
        && config
            .local_ips
            .iter()
            .any(|&ours| u32::from_ne_bytes(ours) == ip)
}
