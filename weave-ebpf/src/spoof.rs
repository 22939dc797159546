//! Frames that a container may not send: from another Ethernet or IPv4 address than its own.
//!
//! Only what is known of a port is checked: without an entry in `SOURCES` everything passes. A receiver's kernel takes
//! off tags of VLANs until it finds something else, so the packet behind them is judged. IPv6 has no addresses of ours;
//! IPv4 in 802.2 SNAP, in MPLS or in PPPoE reaches nobody whose kernel has not been told to take it out of there.

use aya_ebpf::programs::TcContext;
use weave_common::{MAX_SOURCE_IPS, Source};

use crate::maps::count;
use crate::packet::{ETH_LEN, ETH_P_ARP, ETH_P_IP, Eth};

/// Where IPv4 has its source: options come after it, and each fragment has it.
const IP_SRC: usize = 12;
/// Where ARP has its sender, Ethernet address, then IPv4 address: with addresses of other lengths no kernel takes it.
const ARP_SENDER: usize = 8;
/// So many tags in the packet are looked behind. The outermost is not among them: the kernel keeps it beside the packet.
const MAX_TAGS: usize = 2;

#[repr(C)]
#[derive(Clone, Copy)]
struct Sender {
    mac: [u8; 6],
    ip: [u8; 4],
}

/// Is this frame of a port really from there?
#[inline(always)]
pub fn genuine(ctx: &TcContext, eth: &Eth, source: &Source) -> bool {
    if eth.src != source.mac {
        count!(drop_spoofed_mac);
        return false;
    }
    let (mut proto, mut at) = (eth.proto(), ETH_LEN);
    let mut tags = 0;
    while tags < MAX_TAGS
        && is_tag(proto)
        && let Ok([_, _, high, low]) = ctx.load::<[u8; 4]>(at)
    {
        proto = u16::from_be_bytes([high, low]);
        at += 4;
        tags += 1;
    }
    let claimed = match proto {
        ETH_P_IP => ctx.load::<[u8; 4]>(at + IP_SRC).ok(),
        ETH_P_ARP => match ctx.load::<Sender>(at + ARP_SENDER) {
            Ok(sender) if sender.mac != source.mac => {
                count!(drop_spoofed_mac);
                return false;
            }
            // Who looks whether an address is free has none yet (RFC 5227).
            Ok(sender) if sender.ip == [0; 4] => return true,
            Ok(sender) => Some(sender.ip),
            Err(_) => None,
        },
        _ if is_tag(proto) => None,
        _ => return true,
    };
    // Whatever is too short or too deep to be read could be anybody's.
    let known = claimed.is_some_and(|ip| has(source, ip));
    if !known {
        count!(drop_spoofed_ip);
    }
    known
}

/// 802.1Q, 802.1ad, and what was there before that.
#[inline(always)]
fn is_tag(proto: u16) -> bool {
    matches!(proto, 0x8100 | 0x88a8 | 0x9100)
}

#[inline(always)]
fn has(source: &Source, ip: [u8; 4]) -> bool {
    let mut found = source.count == Source::ANY;
    let mut i = 0;
    while i < MAX_SOURCE_IPS {
        found |= i < source.count as usize && source.ips[i] == ip;
        i += 1;
    }
    found
}
