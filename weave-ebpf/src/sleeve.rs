//! The TAP between us and userspace, which carries frames by sleeve (wire.md 6).
//!
//! A program that has chosen sleeve leaves the peers in `skb->priority` (as in a VNI) and the mark in
//! `skb->tc_index`; at the TAP they become the prefix that userspace reads. What userspace writes bears
//! the short ID of its source peer in an 802.1Q tag.

use aya_ebpf::helpers::generated::bpf_skb_change_head;
use aya_ebpf::programs::TcContext;
use weave_common::{Config, KEYED, LEAF_TAG, SleevePrefix};

use crate::arrival::Onward;
use crate::maps::{config, count};
use crate::packet::{
    DROP, OK, eth, ifindex, priority, redirect, set_priority, set_tc_index, store, tagged, tc_index, vni,
    vni_peers,
};
use crate::{arrival, departure};

/// To userspace, for peer `dst`; `dst` is ourselves for a flood.
#[inline(always)]
pub fn hand_over(ctx: &TcContext, config: &Config, dst: u32, src: u32) -> i32 {
    if config.sleeve_ifindex == 0 {
        count!(drop_no_route);
        return DROP;
    }
    if config.sleeve_ifindex == ifindex(ctx) {
        return prefix(ctx, dst, src);
    }
    set_priority(ctx, vni(dst, src));
    set_tc_index(ctx, KEYED);
    redirect(config.sleeve_ifindex)
}

/// A copy of a flood for userspace; the frame itself stays as it is, but for its mark and priority.
#[inline(always)]
pub fn copy(ctx: &TcContext, origin: u32) -> bool {
    let Some(config) = config().filter(|config| config.sleeve_ifindex != 0) else {
        return false;
    };
    set_priority(ctx, vni(config.short_id, origin));
    ctx.clone_redirect(config.sleeve_ifindex, 0).is_ok()
}

/// What leaves through the TAP: marked by us, or sent by the bridge.
#[inline(always)]
pub fn egress(ctx: &TcContext) -> i32 {
    if tc_index(ctx) != u32::from(KEYED) {
        return departure::from_bridge(ctx);
    }
    let (dst, src) = vni_peers(priority(ctx));
    set_tc_index(ctx, 0);
    set_priority(ctx, 0);
    prefix(ctx, dst, src)
}

/// Puts the prefix in front. Offsets of checksums and segments move along, as they are kept relative
/// to the buffer.
#[inline(always)]
fn prefix(ctx: &TcContext, dst: u32, src: u32) -> i32 {
    let prefix = SleevePrefix {
        magic: SleevePrefix::MAGIC,
        flags: if tagged(ctx) { SleevePrefix::TAGGED } else { 0 },
        dst: dst as u16,
        src: src as u16,
    };
    // SAFETY: plain helper call.
    let moved = unsafe { bpf_skb_change_head(ctx.skb.skb, size_of::<SleevePrefix>() as u32, 0) };
    if moved != 0 || !store(ctx, &prefix) {
        count!(drop_error);
        return DROP;
    }
    OK
}

/// What userspace writes: frames from other peers for this host.
#[inline(always)]
pub fn ingress(ctx: &TcContext) -> i32 {
    // The kernel has put the tag beside the frame by now. Without one the source peer has no short ID,
    // and the bridge alone can deliver.
    if !tagged(ctx) {
        return OK;
    }
    // SAFETY: reading a context field.
    let tag = unsafe { (*ctx.skb.skb).vlan_tci };
    let (src, leaf) = (tag & 0xfff, tag & u32::from(LEAF_TAG) != 0);
    // SAFETY: plain helper call. A container's own tag, if any, takes the place of the one removed.
    if unsafe { aya_ebpf::helpers::generated::bpf_skb_vlan_pop(ctx.skb.skb) } != 0 {
        count!(drop_error);
        return DROP;
    }
    let (Some(config), Some(eth)) = (config(), eth(ctx)) else {
        return DROP;
    };
    if config.flags & Config::ENABLED == 0 {
        count!(drop_stopped);
        return DROP;
    }
    if src == config.short_id {
        count!(drop_own_source);
        return DROP;
    }
    arrival::deliver(ctx, config, &eth, src, Onward::Sleeve { leaf })
}
