//! Delivering a VXLAN packet that is for a container on this host.

use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, bpf_adj_room_mode,
};
use aya_ebpf::programs::TcContext;
use weave_common::{OVERHEAD, Sender};

use crate::maps::{count, received};
use crate::packet::{DROP, ETH_P_IPV6, Eth, NEXT, Size, redirect_peer, store};

const FLAGS: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64 | BPF_F_ADJ_ROOM_NO_CSUM_RESET as u64;

/// Takes the outer headers off an IP frame of neighbour `sender` and hands it to the container behind `ifindex`.
#[inline(always)]
pub fn deliver(ctx: &TcContext, inner: &Eth, sender: &Sender, ifindex: u32) -> i32 {
    let ipv6 = if inner.proto() == ETH_P_IPV6 {
        u64::from(BPF_F_ADJ_ROOM_DECAP_L3_IPV6)
    } else {
        0
    };
    let size = Size::outer(ctx);
    if ctx
        .adjust_room(
            -(OVERHEAD as i32),
            bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
            FLAGS | ipv6,
        )
        .is_err()
    {
        // A kernel that cannot change the protocol to IPv6 (before 6.3), or an inner packet
        // shorter than its header: the VXLAN device does it instead.
        count!(to_stack);
        return NEXT;
    }
    if !store(ctx, inner) {
        count!(drop_error);
        return DROP;
    }
    count!(decap);
    received(sender.short_id, size);
    redirect_peer(ctx, ifindex)
}
