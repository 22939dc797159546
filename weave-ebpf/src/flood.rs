//! Floods along the spanning tree of their origin (wire.md 4.4, 6.9): one copy for each next hop.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use weave_common::{FLOOD_SLEEVE, KEYED, MAX_FLOOD_HOPS, NextHop};

use crate::encap::set_key;
use crate::maps::{FLOODS, config, count, usable};
use crate::packet::{priority, set_priority, set_tc_index, tc_index};
use crate::sleeve;

/// Sends a copy of the frame to each next hop of `origin`'s tree.
#[inline(always)]
pub fn copies(ctx: &TcContext, origin: u32) {
    // SAFETY: as in `maps::mac`; a change while we read sends a copy more or less.
    let Some(hops) = (unsafe { FLOODS.get(origin) }) else {
        return;
    };
    let (mark, former) = (tc_index(ctx) as u16, priority(ctx));
    set_tc_index(ctx, KEYED);
    for index in 0..MAX_FLOOD_HOPS {
        if index as u32 >= hops.count {
            break;
        }
        let neighbour = u32::from(hops.hops[index]);
        // SAFETY: a BPF-to-BPF call with our own context.
        unsafe { flood_copy(ctx.skb.skb, neighbour, origin) };
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
pub unsafe extern "C" fn flood_copy(skb: *mut __sk_buff, neighbour: u32, origin: u32) -> i32 {
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
    let Some(config) = config() else { return 0 };
    if set_key(&ctx, config, hop, (neighbour, origin), true) && ctx.clone_redirect(hop.vxlan_ifindex, 0).is_ok() {
        count!(flood_copies);
    } else {
        count!(drop_error);
    }
    0
}
