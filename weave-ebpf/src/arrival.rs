//! What comes from other peers, by whichever way: may it, whose is it, and who on this host gets it.

use aya_ebpf::programs::TcContext;
use weave_common::{Config, MacEntry, Sender};

use crate::encap::TTL;
use crate::maps::{self, count, mac};
use crate::packet::{DROP, Eth, OK, Size, is_group, redirect_peer};
use crate::{flood, learn};

/// The neighbour at `ip`, if it may send us frames of peer `src` by VXLAN. Refusals are counted.
#[inline(always)]
pub fn sender(config: &Config, ip: [u8; 4], src: u32) -> Option<&'static Sender> {
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

/// By which way a frame came, as far as it matters for where it goes next.
#[derive(Clone, Copy)]
pub enum Onward {
    /// By VXLAN, from this neighbour (short ID), with this TTL.
    Fastdp { from: u32, ttl: u8 },
    /// By sleeve, from the neighbour that the tree of its origin says, unless it is a `leaf`.
    Sleeve { leaf: bool },
}

/// A frame of peer `src` for this host, without outer headers: straight into its container, else to
/// the bridge; what is for more than one goes on along the tree of `src`, unless `onward` says otherwise.
#[inline(always)]
pub fn deliver(ctx: &TcContext, config: &Config, eth: &Eth, src: u32, onward: Onward) -> i32 {
    if !learn(config, eth.src, src) {
        return DROP;
    }
    if let Onward::Fastdp { from, .. } = onward {
        maps::received(from, Size::inner(ctx));
    }
    if !is_group(eth.dst)
        && let Some(to) = mac(eth.dst)
        && to.flags & MacEntry::LOCAL != 0
    {
        if to.ifindex != 0 {
            match onward {
                Onward::Fastdp { .. } => count!(decap_device),
                Onward::Sleeve { .. } => count!(from_sleeve),
            }
            return redirect_peer(ctx, to.ifindex);
        }
    } else {
        count!(flood_relay);
        match onward {
            // The TTL goes down, so a loop ends (W13).
            Onward::Fastdp { from, ttl } => flood::copies(ctx, src, from, ttl.saturating_sub(1)),
            Onward::Sleeve { leaf: false } => flood::copies(ctx, src, flood::CHECKED, TTL),
            Onward::Sleeve { leaf: true } => count!(flood_astray),
        }
    }
    count!(bridge_in);
    OK
}
