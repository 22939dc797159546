//! Sending to another peer.

use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
    BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_F_DONT_FRAGMENT, BPF_F_ZERO_CSUM_TX,
    bpf_adj_room_mode, bpf_tunnel_key, bpf_tunnel_key__bindgen_ty_1, bpf_tunnel_key__bindgen_ty_2,
    bpf_tunnel_key__bindgen_ty_3,
};
use aya_ebpf::helpers::generated::{bpf_get_hash_recalc, bpf_redirect_neigh, bpf_skb_set_tunnel_key};
use aya_ebpf::programs::TcContext;
use weave_common::{NextHop, OVERHEAD};

use crate::maps::{count, sent};
use crate::packet::{DROP, Eth, Ipv4, Outer, Size, Udp, Vxlan, redirect, store, vni};

/// `BPF_ADJ_ROOM_ENCAP_L2(14)`: the inner Ethernet header alone. GSO looks for the inner frame
/// by this length, so counting the VXLAN header in would stall TCP.
const ENCAP_L2_LEN: u64 = 14 << 56;
/// The segments keep their size: the overlay's MTU leaves room for the outer headers.
const FLAGS: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64
    | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64
    | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
    | BPF_F_ADJ_ROOM_NO_CSUM_RESET as u64
    | ENCAP_L2_LEN;
/// Network cards segment only tunnels that are marked so.
const MARKED: u64 = FLAGS | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64;

/// Of what begins here.
pub const TTL: u8 = 64;

/// Writes the VXLAN header around an IP frame and sends it out of the underlay interface.
#[inline(always)]
pub fn send(ctx: &TcContext, inner: &Eth, hop: &NextHop, dst: u32, src: u32) -> i32 {
    // SAFETY: plain helper call. Taken before the encapsulation, so it is the inner flow's.
    let hash = unsafe { bpf_get_hash_recalc(ctx.skb.skb) };
    // Ephemeral range, as the kernel's own choice is (RFC 7348 section 5).
    let src_port = 0x8000 | ((hash ^ hash >> 16) as u16 & 0x7fff);
    // A super-packet's length may wrap here: segmentation writes it anew for each segment.
    let size = Size::inner(ctx);
    let grow = |flags| ctx.adjust_room(OVERHEAD as i32, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, flags);
    // A kernel that does not know the mark (before 5.13, commit d01b59c9ae94) refuses it untouched.
    if grow(MARKED).is_err() && grow(FLAGS).is_err() {
        count!(drop_error);
        return DROP;
    }
    let udp_len = (size.bytes + 16) as u16;
    let mut ip = Ipv4 {
        version_ihl: 0x45,
        tos: 0,
        total_len: (udp_len.wrapping_add(20)).to_be_bytes(),
        id: [0; 2],
        frag_off: [0x40, 0],
        ttl: TTL,
        protocol: crate::packet::IPPROTO_UDP,
        checksum: [0; 2],
        src: hop.local_ip,
        dst: hop.remote_ip,
    };
    ip.seal();
    let outer = Outer {
        eth: Eth {
            dst: hop.dst_mac,
            src: hop.src_mac,
            proto: [8, 0],
        },
        ip,
        udp: Udp {
            src_port: src_port.to_be_bytes(),
            dst_port: hop.port.to_be(),
            len: udp_len.to_be_bytes(),
            checksum: [0; 2],
        },
        vxlan: Vxlan::new(dst, src),
        inner: *inner,
    };
    if !store(ctx, &outer) {
        count!(drop_error);
        return DROP;
    }
    count!(encap);
    out(hop, size)
}

/// Out of the underlay interface; the outer Ethernet header is in place if its addresses are known.
#[inline(always)]
pub fn out(hop: &NextHop, size: Size) -> i32 {
    sent(hop.via, size);
    if hop.flags & NextHop::HAS_MACS != 0 {
        return redirect(hop.ifindex);
    }
    // SAFETY: plain helper call; without parameters the kernel looks the route up itself.
    unsafe { bpf_redirect_neigh(hop.ifindex, core::ptr::null_mut(), 0, 0) as i32 }
}

/// Attaches the tunnel key with which the VXLAN device of `hop` will send the frame.
/// `fragment` allows the outer packet to be fragmented.
#[inline(always)]
pub fn set_key(ctx: &TcContext, hop: &NextHop, dst: u32, src: u32, ttl: u8, fragment: bool) -> bool {
    sent(hop.via, Size::inner(ctx));
    // Spelt out, as a call of memset in a loop over many hops costs the verifier its patience.
    let mut key = bpf_tunnel_key {
        tunnel_id: vni(dst, src),
        __bindgen_anon_1: bpf_tunnel_key__bindgen_ty_1 {
            remote_ipv6: [u32::from_be_bytes(hop.remote_ip), 0, 0, 0],
        },
        tunnel_tos: 0,
        tunnel_ttl: ttl,
        __bindgen_anon_2: bpf_tunnel_key__bindgen_ty_2 { tunnel_ext: 0 },
        tunnel_label: 0,
        __bindgen_anon_3: bpf_tunnel_key__bindgen_ty_3 {
            local_ipv6: [u32::from_be_bytes(hop.local_ip), 0, 0, 0],
        },
    };
    let df = if fragment { 0 } else { BPF_F_DONT_FRAGMENT as u64 };
    let flags = BPF_F_ZERO_CSUM_TX as u64 | df;
    let key = core::ptr::from_mut(&mut key);
    // SAFETY: `key` is valid for the sizes given. The first includes the local address (since
    // Linux 5.19, commit 26101f5ab6bd); an older kernel refuses it and chooses the address by route.
    unsafe {
        bpf_skb_set_tunnel_key(ctx.skb.skb, key, size_of::<bpf_tunnel_key>() as u32, flags) == 0
            || bpf_skb_set_tunnel_key(ctx.skb.skb, key, 28, flags) == 0
    }
}
