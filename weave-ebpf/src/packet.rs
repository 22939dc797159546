//! Headers: reading and writing them, verdicts.

use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_skb_change_type, bpf_skb_store_bytes};
use aya_ebpf::programs::TcContext;
use weave_common::OVERHEAD;

pub const ETH_LEN: usize = 14;
/// Outer Ethernet, IPv4, UDP, VXLAN, inner Ethernet.
pub const OUTER_LEN: usize = 14 + 20 + 8 + 8 + 14;

pub const ETH_P_IP: u16 = 0x0800;
pub const ETH_P_ARP: u16 = 0x0806;
pub const ETH_P_IPV6: u16 = 0x86dd;
pub const IPPROTO_UDP: u8 = 17;
/// IEEE 802.1D bridge group address.
pub const SPANNING_TREE: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 0];

/// Not ours: let the next program, then the kernel, have it.
pub const NEXT: i32 = TC_ACT_UNSPEC;
pub const OK: i32 = TC_ACT_OK;
pub const DROP: i32 = TC_ACT_SHOT;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Eth {
    pub dst: [u8; 6],
    pub src: [u8; 6],
    /// As on the wire.
    pub proto: [u8; 2],
}

impl Eth {
    #[inline(always)]
    pub fn proto(&self) -> u16 {
        u16::from_be_bytes(self.proto)
    }

    /// A heartbeat has both addresses zero (wire.md 8.6).
    #[inline(always)]
    pub fn is_special(&self) -> bool {
        self.dst == [0; 6] && self.src == [0; 6]
    }
}

#[inline(always)]
pub fn is_group(mac: [u8; 6]) -> bool {
    mac[0] & 1 != 0
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv4 {
    pub version_ihl: u8,
    pub tos: u8,
    pub total_len: [u8; 2],
    pub id: [u8; 2],
    pub frag_off: [u8; 2],
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: [u8; 2],
    pub src: [u8; 4],
    pub dst: [u8; 4],
}

impl Ipv4 {
    /// Writes the header checksum (RFC 1071) of a header without options.
    #[inline(always)]
    pub fn seal(&mut self) {
        let word = |b: [u8; 2]| u32::from(u16::from_be_bytes(b));
        let mut sum = word([self.version_ihl, self.tos])
            + word(self.total_len)
            + word(self.id)
            + word(self.frag_off)
            + word([self.ttl, self.protocol])
            + word([self.src[0], self.src[1]])
            + word([self.src[2], self.src[3]])
            + word([self.dst[0], self.dst[1]])
            + word([self.dst[2], self.dst[3]]);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        self.checksum = (!(sum as u16)).to_be_bytes();
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Udp {
    pub src_port: [u8; 2],
    /// As on the wire, in memory order.
    pub dst_port: u16,
    pub len: [u8; 2],
    pub checksum: [u8; 2],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Vxlan {
    pub flags: [u8; 4],
    pub vni: [u8; 3],
    pub reserved: u8,
}

impl Vxlan {
    /// VNI = destination << 12 | source (wire.md 8.4).
    #[inline(always)]
    pub fn new(dst: u32, src: u32) -> Self {
        let [_, a, b, c] = vni(dst, src).to_be_bytes();
        Self {
            flags: [8, 0, 0, 0],
            vni: [a, b, c],
            reserved: 0,
        }
    }

    #[inline(always)]
    pub fn vni(&self) -> u32 {
        u32::from_be_bytes([0, self.vni[0], self.vni[1], self.vni[2]])
    }
}

#[inline(always)]
pub fn vni(dst: u32, src: u32) -> u32 {
    (dst & 0xfff) << 12 | (src & 0xfff)
}

/// Destination and source short ID.
#[inline(always)]
pub fn vni_peers(vni: u32) -> (u32, u32) {
    (vni >> 12 & 0xfff, vni & 0xfff)
}

/// Everything before the inner packet.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Outer {
    pub eth: Eth,
    pub ip: Ipv4,
    pub udp: Udp,
    pub vxlan: Vxlan,
    pub inner: Eth,
}

const _: () = assert!(size_of::<Outer>() == OUTER_LEN);

/// A header at `offset` within the linear part of a packet.
#[inline(always)]
pub fn at<T>(data: usize, data_end: usize, offset: usize) -> Option<&'static T> {
    let start = data + offset;
    if start + size_of::<T>() > data_end {
        return None;
    }
    // SAFETY: in bounds as just checked (the verifier insists on it); all header types here are
    // made of bytes and unaligned-safe on BPF; not held across helpers that move packet data.
    Some(unsafe { &*(start as *const T) })
}

/// Copies the Ethernet header.
#[inline(always)]
pub fn eth(ctx: &TcContext) -> Option<Eth> {
    match at::<Eth>(ctx.data(), ctx.data_end(), 0) {
        Some(eth) => Some(*eth),
        None => ctx.load::<Eth>(0).ok(),
    }
}

#[inline(always)]
pub fn protocol(ctx: &TcContext) -> u16 {
    // SAFETY: reading a context field.
    u16::from_be(unsafe { (*ctx.skb.skb).protocol } as u16)
}

#[inline(always)]
pub fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: reading a context field.
    unsafe { (*ctx.skb.skb).ifindex }
}

/// Has it a VLAN tag beside it?
#[inline(always)]
pub fn tagged(ctx: &TcContext) -> bool {
    // SAFETY: reading a context field.
    unsafe { (*ctx.skb.skb).vlan_present != 0 }
}

#[inline(always)]
pub fn tc_index(ctx: &TcContext) -> u32 {
    // SAFETY: reading a context field.
    unsafe { (*ctx.skb.skb).tc_index }
}

/// Copies inherit it and so pass our own egress programs.
#[inline(always)]
pub fn set_tc_index(ctx: &TcContext, mark: u16) {
    // SAFETY: writing a context field that tc programs may write.
    unsafe { (*ctx.skb.skb).tc_index = u32::from(mark) };
}

#[inline(always)]
pub fn priority(ctx: &TcContext) -> u32 {
    // SAFETY: reading a context field.
    unsafe { (*ctx.skb.skb).priority }
}

#[inline(always)]
pub fn set_priority(ctx: &TcContext, priority: u32) {
    // SAFETY: writing a context field that tc programs may write.
    unsafe { (*ctx.skb.skb).priority = priority };
}

/// What `NEIGHBOURS` counts of a packet.
#[derive(Clone, Copy)]
pub struct Size {
    /// A super-packet is as many as it is cut into.
    pub packets: u32,
    /// Of the inner frame.
    pub bytes: u32,
}

impl Size {
    /// Of a frame without outer headers. They must be put on later, as that makes the kernel forget the
    /// number of segments.
    #[inline(always)]
    pub fn inner(ctx: &TcContext) -> Self {
        // SAFETY: reading a context field.
        let segments = unsafe { (*ctx.skb.skb).gso_segs };
        Self {
            packets: if segments == 0 { 1 } else { segments },
            bytes: ctx.len(),
        }
    }

    /// Of a frame with its outer headers.
    #[inline(always)]
    pub fn outer(ctx: &TcContext) -> Self {
        let size = Self::inner(ctx);
        Self {
            bytes: size.bytes.wrapping_sub(OVERHEAD),
            ..size
        }
    }
}

/// Overwrites the start of the packet.
#[inline(always)]
pub fn store<T>(ctx: &TcContext, value: &T) -> bool {
    // SAFETY: `value` is readable for its size; the kernel checks the packet's bounds.
    unsafe {
        bpf_skb_store_bytes(
            ctx.skb.skb,
            0,
            core::ptr::from_ref(value).cast(),
            size_of::<T>() as u32,
            0,
        ) == 0
    }
}

/// Into the container behind a host-side veth, skipping the host's stack.
#[inline(always)]
pub fn redirect_peer(ctx: &TcContext, ifindex: u32) -> i32 {
    // SAFETY: plain helper calls. The frame is for the container whatever the veth's own MAC
    // says: PACKET_HOST (0), or its stack would drop it.
    unsafe {
        bpf_skb_change_type(ctx.skb.skb, 0);
        aya_ebpf::helpers::generated::bpf_redirect_peer(ifindex, 0) as i32
    }
}

/// Out of an interface.
#[inline(always)]
pub fn redirect(ifindex: u32) -> i32 {
    // SAFETY: plain helper call.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}
