//! What the bridge sends to the overlay, through the VXLAN device or the TAP of sleeve.

use aya_ebpf::programs::TcContext;
use weave_common::{Config, KEYED, MacEntry, NextHop};

use crate::maps::{config, count, mac, usable};
use crate::packet::{DROP, OK, SPANNING_TREE, eth, ifindex, is_group, redirect, set_tc_index};
use crate::too_big::Fit;
use crate::{encap, flood, learn, sleeve, too_big};

/// One frame without a mark of ours.
#[inline(always)]
pub fn from_bridge(ctx: &TcContext) -> i32 {
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
    if !is_group(eth.dst) {
        match mac(eth.dst) {
            Some(to) if to.flags & MacEntry::LOCAL != 0 => {
                count!(drop_local_destination);
                return DROP;
            }
            Some(to) => return to_peer(ctx, config, u32::from(to.peer)),
            // The bridge remembers that it was behind sleeve, so userspace may as well.
            None if ifindex(ctx) == config.sleeve_ifindex => return OK,
            None => {}
        }
    }
    count!(flood);
    flood::copies(ctx, config.short_id, flood::CHECKED, encap::TTL);
    DROP
}

#[inline(always)]
fn to_peer(ctx: &TcContext, config: &Config, dst: u32) -> i32 {
    let (Some(hop), Some(eth)) = (usable(dst), eth(ctx)) else {
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
    if hop.flags & NextHop::SLEEVE != 0 {
        count!(to_sleeve);
        return sleeve::hand_over(ctx, config, dst, config.short_id);
    }
    if !encap::set_key(ctx, hop, dst, config.short_id, encap::TTL, fragment) {
        count!(drop_error);
        return DROP;
    }
    count!(bridge_out);
    if hop.vxlan_ifindex == ifindex(ctx) {
        return OK;
    }
    set_tc_index(ctx, KEYED);
    redirect(hop.vxlan_ifindex)
}
