//! Floods along the spanning tree of their origin (wire.md 4.4, 6.9): one copy for each next hop.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use weave_common::{FLOOD_SLEEVE, KEYED, MAX_FLOOD_HOPS, NextHop};

use crate::encap::set_key;
use crate::maps::{FLOODS, count, usable};
use crate::packet::{priority, set_priority, set_tc_index, tc_index};
use crate::sleeve;

/// Whom a flood came from: ourselves, or sleeve, where userspace has looked at the tree.
pub const CHECKED: u32 = 0;

/// Sends a copy of the frame to each next hop of `origin`'s tree, if the neighbour `from` is the one that
/// passes floods of `origin` on to us: from another they could go round in circles (W13).
#[inline(always)]
pub fn copies(ctx: &TcContext, origin: u32, from: u32, ttl: u8) {
    // SAFETY: as in `maps::mac`; a change while we read sends a copy more or less.
    let Some(hops) = (unsafe { FLOODS.get(origin) }) else {
        return;
    };
    if from != CHECKED && from != hops.from {
        count!(flood_astray);
        return;
    }
    if ttl == 0 {
        count!(drop_ttl);
        return;
    }
    let (mark, former) = (tc_index(ctx) as u16, priority(ctx));
    set_tc_index(ctx, KEYED);
    for index in 0..MAX_FLOOD_HOPS {
        if index as u32 >= hops.count {
            break;
        }
        let neighbour = u32::from(hops.hops[index]);
        // SAFETY: a BPF-to-BPF call with our own context.
        unsafe { flood_copy(ctx.skb.skb, neighbour, origin, u32::from(ttl)) };
    }
    set_tc_index(ctx, mark);
    set_priority(ctx, former);
}

/// One copy to one neighbour, or to sleeve. The outer packet may be fragmented: nobody could be told.
///
/// A global function, which the verifier checks once and not for every turn of the loop.
///
/// # Safety
/// `skb` is the context of the running program.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn flood_copy(skb: *mut __sk_buff, neighbour: u32, origin: u32, ttl: u32) -> i32 {
    let ctx = TcContext::new(skb);
    if neighbour == u32::from(FLOOD_SLEEVE) {
        if sleeve::copy(&ctx, origin) {
            count!(flood_sleeve);
        } else {
            count!(drop_error);
        }
        return 0;
    }
    // A neighbour that has just gone over to sleeve has its copy there.
    let Some(hop) = usable(neighbour).filter(|hop| hop.flags & NextHop::SLEEVE == 0) else {
        return 0;
    };
    if set_key(&ctx, hop, neighbour, origin, ttl as u8, true)
        && ctx.clone_redirect(hop.vxlan_ifindex, 0).is_ok()
    {
        count!(flood_copies);
    } else {
        count!(drop_error);
    }
    0
}
