//! Floods along the spanning tree of their origin (wire.md 4.4, 6.9): one copy for each next hop.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use weave_common::{KEYED, MAX_FLOOD_HOPS, NextHop};

use crate::encap::set_key;
use crate::maps::{FLOODS, count, peer};

/// Sends a copy of the frame to each next hop of `origin`'s tree.
#[inline(always)]
pub fn copies(ctx: &TcContext, origin: u32) {
    // SAFETY: as in `maps::mac`; a change while we read sends a copy more or less.
    let Some(hops) = (unsafe { FLOODS.get(origin) }) else {
        return;
    };
    // SAFETY: writing a context field that tc programs may write. Copies inherit it and so pass
    // our own egress program.
    unsafe { (*ctx.skb.skb).tc_index = u32::from(KEYED) };
    for index in 0..MAX_FLOOD_HOPS {
        if index as u32 >= hops.count {
            break;
        }
        let neighbour = u32::from(hops.hops[index]);
        // SAFETY: a BPF-to-BPF call with our own context.
        unsafe { flood_copy(ctx.skb.skb, neighbour, origin) };
    }
    // SAFETY: as above.
    unsafe { (*ctx.skb.skb).tc_index = 0 };
}

/// One copy to one neighbour. The outer packet may be fragmented: nobody could be told.
///
/// A global function, which the verifier checks once and not for every turn of the loop.
///
/// # Safety
/// `skb` is the context of the running program.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn flood_copy(skb: *mut __sk_buff, neighbour: u32, origin: u32) -> i32 {
    let ctx = TcContext::new(skb);
    let Some(hop) = peer(neighbour).filter(|hop| hop.flags & NextHop::USABLE != 0) else {
        count!(drop_no_route);
        return 0;
    };
    if set_key(&ctx, hop, neighbour, origin, true) && ctx.clone_redirect(hop.vxlan_ifindex, 0).is_ok() {
        count!(flood_copies);
    } else {
        count!(drop_error);
    }
    0
}
