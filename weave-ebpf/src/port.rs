//! What a container sends.

use aya_ebpf::programs::TcContext;
use weave_common::{Config, KEYED, MacEntry, NextHop};

use crate::maps::{config, count, mac, peer, source};
use crate::packet::{
    DROP, ETH_P_IP, ETH_P_IPV6, Eth, OK, eth, ifindex, is_group, redirect, redirect_peer, set_tc_index,
    tagged,
};
use crate::too_big::Fit;
use crate::{encap, learn, sleeve, spoof, too_big};

#[inline(always)]
pub fn ingress(ctx: &TcContext) -> i32 {
    let (Some(config), Some(eth)) = (config(), eth(ctx)) else {
        return OK;
    };
    if !learn::valid_source(eth.src) {
        count!(drop_bad_source_mac);
        return DROP;
    }
    let port = ifindex(ctx);
    if let Some(source) = source(port)
        && !spoof::genuine(ctx, &eth, source)
    {
        return DROP;
    }
    learn::local(config, eth.src, port);
    if is_group(eth.dst) {
        count!(to_bridge);
        return OK;
    }
    match mac(eth.dst) {
        Some(to) if to.flags & MacEntry::LOCAL != 0 => {
            // Its own port: the bridge's hairpin mode decides.
            if to.ifindex == 0 || to.ifindex == port {
                count!(to_bridge);
                return OK;
            }
            count!(local);
            redirect_peer(ctx, to.ifindex)
        }
        Some(to) => to_peer(ctx, config, &eth, u32::from(to.peer)),
        None => {
            count!(to_bridge);
            OK
        }
    }
}

#[inline(always)]
fn to_peer(ctx: &TcContext, config: &Config, eth: &Eth, dst: u32) -> i32 {
    let Some(hop) = peer(dst).filter(|hop| hop.flags & NextHop::USABLE != 0) else {
        // The bridge may know another way.
        count!(to_bridge);
        return OK;
    };
    let ip = matches!(eth.proto(), ETH_P_IP | ETH_P_IPV6);
    let sleeve = hop.flags & NextHop::SLEEVE != 0;
    // In VXLAN a tag beside the packet would be lost.
    if tagged(ctx) && !sleeve {
        count!(to_bridge);
        return OK;
    }
    let fragment = match too_big::check(ctx, eth, hop.mtu) {
        Fit::Fits => false,
        Fit::Fragment => true,
        Fit::Refuse => return too_big::refuse(ctx, eth, hop.mtu),
    };
    if sleeve {
        count!(to_sleeve);
        return sleeve::hand_over(ctx, config, dst, config.short_id);
    }
    if ip && !fragment && hop.flags & NextHop::ENCRYPTED == 0 {
        return encap::send(ctx, eth, hop, dst, config.short_id);
    }
    if !encap::set_key(ctx, hop, dst, config.short_id, encap::TTL, fragment) {
        count!(drop_error);
        return DROP;
    }
    set_tc_index(ctx, KEYED);
    count!(encap_device);
    redirect(hop.vxlan_ifindex)
}
