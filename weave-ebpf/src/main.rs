//! The fast path. Each file is one job; each `#[classifier]` or `#[xdp]` below is one hook.
//!
//! ```text
//! container veth  --ingress--> weave_port      known unicast leaves here; the rest to the bridge
//! underlay device --ingress--> weave_underlay  VXLAN for us, for others, heartbeats
//! vxlan device    --ingress--> weave_vxlan_in  what came up the host's stack: floods, ARP
//! vxlan device    --egress---> weave_vxlan_out what the bridge floods or sends to the overlay
//! sleeve's TAP    --ingress--> weave_sleeve_in  frames that userspace has received for this host
//! sleeve's TAP    --egress---> weave_sleeve_out frames for peers that only userspace reaches
//! underlay device --XDP------> weave_xdp       strangers are dropped early, relaying where it pays
//! ```
#![no_std]
#![no_main]

mod arrival;
mod decap;
mod departure;
mod encap;
mod flood;
mod learn;
mod maps;
mod packet;
mod port;
mod relay;
mod sleeve;
mod spoof;
mod too_big;
mod underlay;
mod vxlan;
mod xdp;

use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};

/// Ingress of a container's host-side veth.
#[classifier]
pub fn weave_port(ctx: TcContext) -> i32 {
    port::ingress(&ctx)
}

/// Ingress of an underlay device.
#[classifier]
pub fn weave_underlay(ctx: TcContext) -> i32 {
    underlay::ingress(&ctx)
}

/// Ingress of a VXLAN device.
#[classifier]
pub fn weave_vxlan_in(ctx: TcContext) -> i32 {
    vxlan::ingress(&ctx)
}

/// Egress of a VXLAN device.
#[classifier]
pub fn weave_vxlan_out(ctx: TcContext) -> i32 {
    vxlan::egress(&ctx)
}

/// Ingress of the TAP: what userspace writes.
#[classifier]
pub fn weave_sleeve_in(ctx: TcContext) -> i32 {
    sleeve::ingress(&ctx)
}

/// Egress of the TAP: what userspace reads.
#[classifier]
pub fn weave_sleeve_out(ctx: TcContext) -> i32 {
    sleeve::egress(&ctx)
}

/// XDP on an underlay device.
#[xdp]
pub fn weave_xdp(ctx: XdpContext) -> u32 {
    xdp::run(&ctx)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
