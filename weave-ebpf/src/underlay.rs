//! What arrives on an underlay interface.

use aya_ebpf::programs::TcContext;
use weave_common::{Config, HEARTBEAT_MIN, Heartbeat, MacEntry, NextHop};

use crate::maps::{EVENTS, config, count, mac, received};
use crate::packet::{
    DROP, ETH_P_IP, ETH_P_IPV6, NEXT, OUTER_LEN, Outer, Size, at, is_group, protocol, store, vni_peers,
};
use crate::{arrival, decap, encap, relay};

#[inline(always)]
pub fn ingress(ctx: &TcContext) -> i32 {
    if protocol(ctx) != ETH_P_IP || ctx.len() < OUTER_LEN as u32 {
        return NEXT;
    }
    let Some(config) = config() else {
        return NEXT;
    };
    let outer = match at::<Outer>(ctx.data(), ctx.data_end(), 0) {
        Some(outer) => outer,
        None => {
            // Headers in fragments: worth pulling in only for our own ports.
            let Ok(port) = ctx.load::<u16>(36) else {
                return NEXT;
            };
            if !config.ports.contains(&u16::from_be(port)) || ctx.pull_data(OUTER_LEN as u32).is_err() {
                return NEXT;
            }
            match at::<Outer>(ctx.data(), ctx.data_end(), 0) {
                Some(outer) => outer,
                None => return NEXT,
            }
        }
    };
    if !relay::is_ours(config, outer) {
        return NEXT;
    }
    vxlan(ctx, config, outer)
}

#[inline(always)]
fn vxlan(ctx: &TcContext, config: &Config, outer: &Outer) -> i32 {
    if outer.vxlan.flags != [8, 0, 0, 0] || outer.vxlan.reserved != 0 {
        count!(drop_malformed);
        return DROP;
    }
    let (dst, src) = vni_peers(outer.vxlan.vni());
    if outer.inner.is_special() {
        return heartbeat(ctx, outer, dst, src);
    }
    let Some(sender) = arrival::sender(config, outer.ip.src, src) else {
        return DROP;
    };
    if dst != config.short_id {
        let Some(hop) = relay::next_hop(sender, outer.ip.src, outer.ip.ttl, dst) else {
            return DROP;
        };
        if hop.flags & NextHop::SLEEVE != 0 {
            // By way of the VXLAN device, which gives whole packets.
            count!(to_stack);
            return NEXT;
        }
        let headers = relay::rewrite(outer, hop);
        if !store(ctx, &headers) {
            count!(drop_error);
            return DROP;
        }
        count!(relay);
        let size = Size::outer(ctx);
        received(sender.short_id, size);
        return encap::out(hop, size);
    }
    let inner = outer.inner;
    if !arrival::learn(config, inner.src, src) {
        return DROP;
    }
    if !is_group(inner.dst)
        && matches!(inner.proto(), ETH_P_IP | ETH_P_IPV6)
        && let Some(to) = mac(inner.dst)
        && to.flags & MacEntry::LOCAL != 0
        && to.ifindex != 0
    {
        return decap::deliver(ctx, &inner, sender, to.ifindex);
    }
    count!(to_stack);
    NEXT
}

/// Heartbeats pass whoever sent them, as a peer's address may change; the controller judges.
#[inline(always)]
fn heartbeat(ctx: &TcContext, outer: &Outer, dst: u32, src: u32) -> i32 {
    let frame_len = ctx.len() - (OUTER_LEN - 14) as u32;
    if outer.inner.proto != [0; 2] || frame_len < HEARTBEAT_MIN {
        count!(drop_malformed);
        return DROP;
    }
    let (outer_src, outer_dst) = (outer.ip.src, outer.ip.dst);
    report(ctx, OUTER_LEN, frame_len, outer_src, outer_dst, dst, src)
}

/// Sends a heartbeat's content (at `offset`, behind the inner Ethernet header) to the controller.
#[inline(always)]
pub fn report(
    ctx: &TcContext,
    offset: usize,
    frame_len: u32,
    outer_src: [u8; 4],
    outer_dst: [u8; 4],
    dst: u32,
    src: u32,
) -> i32 {
    let (Ok(uid), Ok(claimed)) = (ctx.load::<[u8; 8]>(offset), ctx.load::<[u8; 2]>(offset + 8)) else {
        count!(drop_malformed);
        return DROP;
    };
    let event = Heartbeat {
        conn_uid: u64::from_be_bytes(uid),
        frame_len,
        claimed_len: u32::from(u16::from_be_bytes(claimed)),
        outer_src,
        outer_dst,
        src,
        dst,
    };
    if EVENTS.output(event, 0).is_ok() {
        count!(heartbeat);
    } else {
        count!(drop_events_full);
    }
    DROP
}
