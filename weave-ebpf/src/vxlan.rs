//! The collect-metadata VXLAN device: the bridge's port to the overlay.

use aya_ebpf::bindings::bpf_tunnel_key;
use aya_ebpf::helpers::generated::bpf_skb_get_tunnel_key;
use aya_ebpf::programs::TcContext;
use weave_common::{Config, HEARTBEAT_MIN, KEYED, NextHop};

use crate::arrival::Onward;
use crate::maps::{config, count, received};
use crate::packet::{DROP, ETH_LEN, OK, Size, eth, redirect, set_tc_index, tc_index, vni_peers};
use crate::{arrival, departure, encap, relay, sleeve, underlay};

/// What came up the host's stack: floods, ARP, and what only this device can receive.
#[inline(always)]
pub fn ingress(ctx: &TcContext) -> i32 {
    let (Some(config), Some(eth)) = (config(), eth(ctx)) else {
        return DROP;
    };
    // SAFETY: all-zero is a valid value of this struct of integers.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    // SAFETY: `key` is valid for the size given, which every kernel with this helper knows.
    if unsafe { bpf_skb_get_tunnel_key(ctx.skb.skb, &mut key, 28, 0) } != 0 {
        count!(drop_malformed);
        return DROP;
    }
    let (dst, src) = vni_peers(key.tunnel_id);
    // SAFETY: IPv4 is the only family this device receives, so this is the active field.
    let ip = unsafe { key.__bindgen_anon_1.remote_ipv4 }.to_be_bytes();
    if eth.is_special() {
        if eth.proto != [0; 2] || ctx.len() < HEARTBEAT_MIN {
            count!(drop_malformed);
            return DROP;
        }
        return underlay::report(ctx, ETH_LEN, ctx.len(), ip, [0; 4], dst, src);
    }
    let Some(neighbour) = arrival::sender(config, ip, src) else {
        return DROP;
    };
    if dst != config.short_id {
        let Some(hop) = relay::next_hop(neighbour, ip, key.tunnel_ttl, dst) else {
            return DROP;
        };
        received(neighbour.short_id, Size::inner(ctx));
        return send_on(ctx, config, hop, dst, src, key.tunnel_ttl - 1);
    }
    let onward = Onward::Fastdp {
        from: neighbour.short_id,
        ttl: key.tunnel_ttl,
    };
    arrival::deliver(ctx, config, &eth, src, onward)
}

/// For another peer, decrypted or otherwise only visible here.
#[inline(always)]
fn send_on(ctx: &TcContext, config: &Config, hop: &NextHop, dst: u32, src: u32, ttl: u8) -> i32 {
    if hop.flags & NextHop::SLEEVE != 0 {
        count!(relay_sleeve);
        return sleeve::hand_over(ctx, config, dst, src);
    }
    if !encap::set_key(ctx, hop, dst, src, ttl, true) {
        count!(drop_error);
        return DROP;
    }
    set_tc_index(ctx, KEYED);
    count!(relay);
    redirect(hop.vxlan_ifindex)
}

/// What leaves through the device: copies of ours, or what the bridge sends to the overlay.
#[inline(always)]
pub fn egress(ctx: &TcContext) -> i32 {
    if tc_index(ctx) == u32::from(KEYED) {
        set_tc_index(ctx, 0);
        return OK;
    }
    departure::from_bridge(ctx)
}
