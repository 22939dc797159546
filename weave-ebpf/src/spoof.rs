//! Frames that a container may not send: from another Ethernet or IPv4 address than its own.
//!
//! Only what is known of a port is checked: without an entry in `SOURCES` everything passes. IPv6 has no addresses
//! of ours, and frames with a VLAN tag in them reach nobody who has not asked for that VLAN.

use aya_ebpf::programs::TcContext;
use weave_common::{MAX_SOURCE_IPS, Source};

use crate::maps::count;
use crate::packet::{ETH_LEN, ETH_P_ARP, ETH_P_IP, Eth};

/// Where a header of IPv4 has its source.
const IP_SRC: usize = ETH_LEN + 12;
/// Where ARP has its sender: Ethernet address, then IPv4 address.
const ARP_SENDER: usize = ETH_LEN + 8;

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
    let ip = match eth.proto() {
        ETH_P_IP => ctx.load::<[u8; 4]>(IP_SRC).ok(),
        ETH_P_ARP => match ctx.load::<Sender>(ARP_SENDER) {
            Ok(sender) if sender.mac != source.mac => {
                count!(drop_spoofed_mac);
                return false;
            }
            // Who looks whether an address is free has none yet (RFC 5227).
            Ok(sender) => Some(sender.ip).filter(|ip| *ip != [0; 4]),
            Err(_) => None,
        },
        _ => None,
    };
    let known = ip.is_none_or(|ip| has(source, ip));
    if !known {
        count!(drop_spoofed_ip);
    }
    known
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
