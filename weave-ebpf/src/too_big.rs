//! Packets longer than the path allows: the sender is told, never left in the dark
//! (wire.md 6.10; RFC 792 "fragmentation needed", RFC 4443 "packet too big").

use aya_ebpf::bindings::bpf_adj_room_mode;
use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_skb_change_tail};
use aya_ebpf::programs::TcContext;

use crate::maps::count;
use crate::packet::{DROP, ETH_LEN, ETH_P_IP, ETH_P_IPV6, Eth, Ipv4, at, ifindex, redirect, store};

/// Does a frame fit the path?
pub enum Fit {
    Fits,
    /// It may be fragmented on the way.
    Fragment,
    /// The sender must be told.
    Refuse,
}

const IPPROTO_TCP: u8 = 6;

/// Compares a frame, or each segment of a super-packet, with the largest inner IP packet.
#[inline(always)]
pub fn check(ctx: &TcContext, eth: &Eth, mtu: u32) -> Fit {
    // SAFETY: reading a context field.
    let gso_size = unsafe { (*ctx.skb.skb).gso_size };
    let len = if gso_size == 0 {
        ctx.len() - ETH_LEN as u32
    } else {
        segment_len(ctx, eth, gso_size)
    };
    if len <= mtu {
        return Fit::Fits;
    }
    if eth.proto() == ETH_P_IPV6 {
        return Fit::Refuse;
    }
    if eth.proto() != ETH_P_IP {
        return Fit::Fragment;
    }
    match ctx.load::<u8>(ETH_LEN + 6) {
        Ok(flags) if flags & 0x40 != 0 => Fit::Refuse,
        _ => Fit::Fragment,
    }
}

/// Length of one segment's IP packet. Super-packets have their headers in the linear part.
#[inline(always)]
fn segment_len(ctx: &TcContext, eth: &Eth, gso_size: u32) -> u32 {
    let byte = |offset: usize| at::<u8>(ctx.data(), ctx.data_end(), offset).copied();
    let (l3, protocol) = if eth.proto() == ETH_P_IP {
        let ihl = byte(ETH_LEN).unwrap_or(0x45);
        (u32::from(ihl & 0xf) * 4, byte(ETH_LEN + 9))
    } else {
        (40, byte(ETH_LEN + 6))
    };
    let l4 = if protocol == Some(IPPROTO_TCP) {
        u32::from(byte(ETH_LEN + l3 as usize + 12).unwrap_or(0x50) >> 4) * 4
    } else {
        8
    };
    l3 + l4 + gso_size
}

/// Turns the frame into the ICMP error and sends it back to the container.
#[inline(never)]
pub fn refuse(ctx: &TcContext, eth: &Eth, mtu: u32) -> i32 {
    let sent = if eth.proto() == ETH_P_IP {
        ipv4(ctx, eth, mtu)
    } else {
        ipv6(ctx, eth, mtu)
    };
    if !sent {
        count!(drop_too_big);
        return DROP;
    }
    count!(too_big);
    redirect(ifindex(ctx))
}

#[repr(C)]
struct Icmp {
    kind: u8,
    code: u8,
    checksum: [u8; 2],
    /// ICMP: unused and MTU, two bytes each. ICMPv6: MTU.
    rest: [u8; 4],
}

/// What is quoted of the offending packet.
#[repr(C)]
#[derive(Clone, Copy)]
struct Quoted<H, const REST: usize> {
    header: H,
    rest: [u8; REST],
}

#[repr(C)]
struct Icmp4Packet {
    eth: Eth,
    ip: Ipv4,
    icmp: Icmp,
}

/// The offending header and the start of its payload. More than RFC 792 asks for: a packet whose
/// checksum is still to be computed cannot be cut before the checksum's place (60 bytes of IPv4
/// header and 18 of TCP). Such a packet is far longer than this.
const QUOTED4: usize = 96;

// Functions of their own for their stacks: a program and what it calls have 512 bytes together.
#[inline(never)]
fn ipv4(ctx: &TcContext, eth: &Eth, mtu: u32) -> bool {
    let Ok(mut quoted) = ctx.load::<Quoted<Ipv4, { QUOTED4 - size_of::<Ipv4>() }>>(ETH_LEN) else {
        return false;
    };
    let original = quoted.header;
    let added = size_of::<Ipv4>() + size_of::<Icmp>();
    if !resize(ctx, QUOTED4, added) {
        return false;
    }
    let total = (added + QUOTED4) as u16;
    let mut ip = Ipv4 {
        version_ihl: 0x45,
        tos: original.tos,
        total_len: total.to_be_bytes(),
        id: [0; 2],
        frag_off: [0; 2],
        ttl: 64,
        protocol: 1,
        checksum: [0; 2],
        src: original.dst,
        dst: original.src,
    };
    ip.seal();
    let [_, _, high, low] = mtu.min(0xffff).to_be_bytes();
    let mut icmp = Icmp {
        kind: 3,
        code: 4,
        checksum: [0; 2],
        rest: [0, 0, high, low],
    };
    let sum = add(add(0, &mut icmp), &mut quoted);
    icmp.checksum = fold(sum);
    store(
        ctx,
        &Icmp4Packet {
            eth: reply(eth),
            ip,
            icmp,
        },
    )
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Ipv6 {
    version_class_flow: [u8; 4],
    payload_len: [u8; 2],
    next_header: u8,
    hop_limit: u8,
    src: [u8; 16],
    dst: [u8; 16],
}

#[repr(C)]
struct Icmp6Packet {
    eth: Eth,
    ip: Ipv6,
    icmp: Icmp,
}

/// RFC 4443 section 2.4 (c) asks for as much as fits 1280 bytes; this suffices to find the socket,
/// and to keep the checksum's place, as above.
const QUOTED6: usize = 96;

#[inline(never)]
fn ipv6(ctx: &TcContext, eth: &Eth, mtu: u32) -> bool {
    let Ok(mut quoted) = ctx.load::<Quoted<Ipv6, { QUOTED6 - size_of::<Ipv6>() }>>(ETH_LEN) else {
        return false;
    };
    let original = quoted.header;
    let added = size_of::<Ipv6>() + size_of::<Icmp>();
    if !resize(ctx, QUOTED6, added) {
        return false;
    }
    let len = (size_of::<Icmp>() + QUOTED6) as u16;
    let mut ip = Ipv6 {
        version_class_flow: [0x60, 0, 0, 0],
        payload_len: len.to_be_bytes(),
        next_header: 58,
        hop_limit: 64,
        src: original.dst,
        dst: original.src,
    };
    let mut icmp = Icmp {
        kind: 2,
        code: 0,
        checksum: [0; 2],
        rest: mtu.to_be_bytes(),
    };
    let mut pseudo = [0, 0, len.to_be_bytes()[0], len.to_be_bytes()[1], 0, 0, 0, 58u8];
    let mut sum = add(add(add(0, &mut ip.src), &mut ip.dst), &mut pseudo);
    sum = add(add(sum, &mut icmp), &mut quoted);
    icmp.checksum = fold(sum);
    store(
        ctx,
        &Icmp6Packet {
            eth: reply(eth),
            ip,
            icmp,
        },
    )
}

/// Cuts the packet behind what is quoted and makes room for new headers before it.
#[inline(always)]
fn resize(ctx: &TcContext, quoted: usize, added: usize) -> bool {
    // SAFETY: plain helper call.
    let cut = unsafe { bpf_skb_change_tail(ctx.skb.skb, (ETH_LEN + quoted) as u32, 0) };
    cut == 0
        && ctx
            .adjust_room(added as i32, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, 0)
            .is_ok()
}

#[inline(always)]
fn reply(eth: &Eth) -> Eth {
    Eth {
        dst: eth.src,
        src: eth.dst,
        proto: eth.proto,
    }
}

/// Adds a value whose size is a multiple of four to a ones' complement sum.
#[inline(always)]
fn add<T>(sum: u32, value: &mut T) -> u32 {
    const { assert!(size_of::<T>().is_multiple_of(4)) };
    // SAFETY: `value` is readable for its size; nothing is subtracted.
    unsafe {
        bpf_csum_diff(
            core::ptr::null_mut(),
            0,
            core::ptr::from_mut(value).cast(),
            size_of::<T>() as u32,
            sum,
        ) as u32
    }
}

/// Folds to the checksum, in memory order.
#[inline(always)]
fn fold(sum: u32) -> [u8; 2] {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (!(sum as u16)).to_ne_bytes()
}
