//! The collect-metadata VXLAN device: the bridge's port to the overlay.

use aya_ebpf::bindings::bpf_tunnel_key;
use aya_ebpf::helpers::generated::bpf_skb_get_tunnel_key;
use aya_ebpf::programs::TcContext;
use weave_common::{Config, HEARTBEAT_MIN, KEYED, MacEntry, NextHop};

use crate::maps::{config, count, is_sender, mac, peer};
use crate::packet::{
    DROP, ETH_LEN, OK, SPANNING_TREE, eth, ifindex, is_group, redirect, redirect_peer, vni_peers,
};
use crate::too_big::Fit;
use crate::{encap, flood, learn, too_big, underlay};

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
    let sender = unsafe { key.__bindgen_anon_1.remote_ipv4 }.to_be_bytes();
    if eth.is_special() {
        if eth.proto != [0; 2] || ctx.len() < HEARTBEAT_MIN {
            count!(drop_malformed);
            return DROP;
        }
        return underlay::report(ctx, ETH_LEN, ctx.len(), sender, [0; 4], dst, src);
    }
    if config.flags & Config::ENABLED == 0 {
        count!(drop_stopped);
        return DROP;
    }
    if !is_sender(sender) {
        count!(drop_unknown_sender);
        return DROP;
    }
    if src == config.short_id {
        count!(drop_own_source);
        return DROP;
    }
    if dst != config.short_id {
        return relay(ctx, sender, dst, src, key.tunnel_ttl);
    }
    if !learn::valid_source(eth.src) {
        count!(drop_bad_source_mac);
        return DROP;
    }
    if !learn::remote(config, eth.src, src) {
        count!(drop_unknown_source);
        return DROP;
    }
    if !is_group(eth.dst)
        && let Some(to) = mac(eth.dst)
        && to.flags & MacEntry::LOCAL != 0
    {
        if to.ifindex != 0 {
            count!(decap_device);
            return redirect_peer(ctx, to.ifindex);
        }
    } else {
        count!(flood_relay);
        flood::copies(ctx, src);
    }
    count!(bridge_in);
    OK
}

/// For another peer, decrypted or otherwise only visible here.
#[inline(always)]
fn relay(ctx: &TcContext, sender: [u8; 4], dst: u32, src: u32, ttl: u8) -> i32 {
    let Some(hop) = peer(dst).filter(|hop| hop.flags & NextHop::USABLE != 0) else {
        count!(drop_no_route);
        return DROP;
    };
    if hop.remote_ip == sender {
        count!(drop_returning);
        return DROP;
    }
    if ttl <= 1 {
        count!(drop_ttl);
        return DROP;
    }
    if !encap::set_key(ctx, hop, dst, src, true) {
        count!(drop_error);
        return DROP;
    }
    // SAFETY: writing a context field that tc programs may write.
    unsafe { (*ctx.skb.skb).tc_index = u32::from(KEYED) };
    count!(relay);
    redirect(hop.vxlan_ifindex)
}

/// What the bridge sends to the overlay.
#[inline(always)]
pub fn egress(ctx: &TcContext) -> i32 {
    // SAFETY: reading and writing a context field that tc programs may use.
    unsafe {
        if (*ctx.skb.skb).tc_index == u32::from(KEYED) {
            (*ctx.skb.skb).tc_index = 0;
            return OK;
        }
    }
    let (Some(config), Some(eth)) = (config(), eth(ctx)) else {
        return DROP;
    };
    if config.flags & Config::ENABLED == 0 {
        count!(drop_stopped);
        return DROP;
    }
    if !learn::valid_source(eth.src) {
        count!(drop_bad_source_mac);
        return DROP;
    }
    learn::local(config, eth.src, 0);
    if eth.dst == SPANNING_TREE {
        count!(drop_spanning_tree);
        return DROP;
    }
    if is_group(eth.dst) {
        count!(flood);
        flood::copies(ctx, config.short_id);
        return DROP;
    }
    match mac(eth.dst) {
        Some(to) if to.flags & MacEntry::LOCAL != 0 => {
            count!(drop_local_destination);
            DROP
        }
        Some(to) => to_peer(ctx, config, u32::from(to.peer)),
        None => {
            count!(flood);
            flood::copies(ctx, config.short_id);
            DROP
        }
    }
}

#[inline(always)]
fn to_peer(ctx: &TcContext, config: &Config, dst: u32) -> i32 {
    let Some(hop) = peer(dst).filter(|hop| hop.flags & NextHop::USABLE != 0) else {
        count!(drop_no_route);
        return DROP;
    };
    let Some(eth) = eth(ctx) else {
        return DROP;
    };
    let fragment = match too_big::check(ctx, &eth, hop.mtu) {
        Fit::Fits => false,
        Fit::Fragment => true,
        Fit::Refuse => {
            count!(drop_too_big);
            return DROP;
        }
    };
    if !encap::set_key(ctx, hop, dst, config.short_id, fragment) {
        count!(drop_error);
        return DROP;
    }
    count!(bridge_out);
    if hop.vxlan_ifindex == ifindex(ctx) {
        return OK;
    }
    // SAFETY: writing a context field that tc programs may write.
    unsafe { (*ctx.skb.skb).tc_index = u32::from(KEYED) };
    redirect(hop.vxlan_ifindex)
}
