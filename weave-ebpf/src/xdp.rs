//! Before the kernel makes a packet of it: strangers are dropped, and, where frames arrive
//! complete and one by one, packets for other peers are sent on.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::programs::XdpContext;
use weave_common::{Config, NextHop, OVERHEAD};

use crate::maps::{config, count, received, sender, sent};
use crate::packet::{Outer, Size, at, vni_peers};
use crate::relay::{self, Headers};

#[inline(always)]
pub fn run(ctx: &XdpContext) -> u32 {
    let (Some(config), Some(outer)) = (config(), at::<Outer>(ctx.data(), ctx.data_end(), 0)) else {
        return XDP_PASS;
    };
    if !relay::is_ours(config, outer) || outer.inner.is_special() {
        return XDP_PASS;
    }
    let Some(neighbour) = sender(outer.ip.src) else {
        count!(drop_xdp_unknown_sender);
        return XDP_DROP;
    };
    let (dst, src) = vni_peers(outer.vxlan.vni());
    let relays = config.flags & (Config::XDP_RELAY | Config::ENABLED) == Config::XDP_RELAY | Config::ENABLED;
    // Whatever cannot be done here is for the tc program, which also counts the refusals.
    if !relays || dst == config.short_id || src == config.short_id || outer.vxlan.flags != [8, 0, 0, 0] {
        return XDP_PASS;
    }
    let Some(hop) = crate::maps::peer(dst) else {
        return XDP_PASS;
    };
    let wanted = NextHop::USABLE | NextHop::HAS_MACS;
    if hop.flags & (wanted | NextHop::ENCRYPTED | NextHop::SLEEVE) != wanted
        || hop.remote_ip == outer.ip.src
        || outer.ip.ttl <= 1
    {
        return XDP_PASS;
    }
    let headers = relay::rewrite(outer, hop);
    let start = ctx.data();
    if start + size_of::<Headers>() > ctx.data_end() {
        return XDP_PASS;
    }
    // SAFETY: in bounds as just checked; nothing else refers to these bytes any more.
    unsafe { *(start as *mut Headers) = headers };
    count!(xdp_relay);
    let size = Size {
        packets: 1,
        bytes: (ctx.data_end() - start) as u32 - OVERHEAD,
    };
    received(neighbour.short_id, size);
    sent(hop.via, size);
    // SAFETY: reading a context field; plain helper call.
    unsafe {
        if hop.ifindex == (*ctx.ctx).ingress_ifindex {
            XDP_TX
        } else {
            bpf_redirect(hop.ifindex, 0) as u32
        }
    }
}
