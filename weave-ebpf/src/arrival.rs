//! What comes from other peers, by whichever way: may it, whose is it, and who on this host gets it.

use aya_ebpf::programs::TcContext;
use weave_common::{Config, MacEntry};

use crate::maps::{self, Neighbour, count, mac};
use crate::packet::{DROP, Eth, OK, is_group, redirect_peer};
use crate::{flood, learn};

/// The neighbour at `ip`, if it may send us frames of peer `src` by VXLAN. Refusals are counted.
#[inline(always)]
pub fn sender(config: &Config, ip: [u8; 4], src: u32) -> Option<Neighbour> {
    if config.flags & Config::ENABLED == 0 {
        count!(drop_stopped);
        return None;
    }
    let Some(sender) = maps::sender(ip) else {
        count!(drop_unknown_sender);
        return None;
    };
    if src == config.short_id {
        count!(drop_own_source);
        return None;
    }
    Some(sender)
}

/// Learns that `address` is at peer `src`. False, and counted, if it cannot be.
#[inline(always)]
pub fn learn(config: &Config, address: [u8; 6], src: u32) -> bool {
    if !learn::valid_source(address) {
        count!(drop_bad_source_mac);
        return false;
    }
    if !learn::remote(config, address, src) {
        count!(drop_unknown_source);
        return false;
    }
    true
}

/// A frame of peer `src` for this host, without outer headers: straight into its container, else to
/// the bridge; what is for more than one goes on along the tree of `src`.
#[inline(always)]
pub fn deliver(ctx: &TcContext, config: &Config, eth: &Eth, src: u32, sleeve: bool) -> i32 {
    if !learn(config, eth.src, src) {
        return DROP;
    }
    if !is_group(eth.dst)
        && let Some(to) = mac(eth.dst)
        && to.flags & MacEntry::LOCAL != 0
    {
        if to.ifindex != 0 {
            if sleeve {
                count!(from_sleeve);
            } else {
                count!(decap_device);
            }
            return redirect_peer(ctx, to.ifindex);
        }
    } else {
        count!(flood_relay);
        flood::copies(ctx, src);
    }
    count!(bridge_in);
    OK
}
