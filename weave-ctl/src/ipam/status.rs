//! What `weave report` and `weave status` tell of the allocator (control.md 1.16, 3.4).

use std::net::Ipv4Addr;

use super::allocator::Allocator;
use super::paxos::Paxos;
use crate::api::report;
use crate::mesh::channel::Outlet;
use crate::mesh::name::PeerName;

impl Allocator {
    /// As gossip told, else from the topology.
    fn nickname(&self, out: &dyn Outlet, peer: PeerName) -> String {
        let told = self.nicknames.get(&peer).cloned();
        told.or_else(|| out.nickname(peer)).unwrap_or_default()
    }

    /// The IPAM part of the report.
    #[must_use]
    pub fn report(&self, out: &dyn Outlet) -> report::Ipam {
        let entries = self.ring.ranges().map(|(range, entry)| report::RingEntry {
            token: Ipv4Addr::from(range.start).to_string(),
            size: range.size().into(),
            peer: entry.peer.to_string(),
            nickname: self.nickname(out, entry.peer),
            is_known_peer: out.is_known(entry.peer),
            version: entry.version.into(),
            free: Some(entry.free.into()),
            unreachable_seconds: self.absent_for(out.now(), entry.peer).map(|d| d.as_secs()),
        });
        let claims = self.pending.claims.iter().map(|claim| report::PendingClaim {
            ident: claim.id.clone(),
            cidr: report::ClaimedCidr {
                addr: Ipv4Addr::from(claim.cidr.addr).to_string(),
                prefix_len: claim.cidr.prefix_len,
            },
        });
        let allocates = self.pending.allocates.iter();
        report::Ipam {
            paxos: self.awaiting_consensus.then(|| report::Paxos {
                elector: self.paxos.is_some(),
                known_nodes: self.paxos.as_ref().map_or(0, |p| p.nodes().len() as u64),
                quorum: self.paxos.as_ref().map_or(0, Paxos::quorum) as u64,
            }),
            range: self.config.universe.to_string(),
            range_num_ips: self.config.universe.size(),
            active_ips: self.space.total_used().into(),
            default_subnet: self.config.default_subnet.to_string(),
            entries: entries.collect(),
            pending_claims: claims.collect(),
            pending_allocates: allocates.map(|a| format!("{} {}", a.id, a.subnet)).collect(),
            pending_seconds: self
                .pending_since
                .map(|since| out.now().saturating_sub(since).as_secs())
                .filter(|seconds| *seconds > 0),
            reclaim_after_seconds: self.reclaim_after().map(|after| after.as_secs()),
            withheld: self.withholds(),
            conflicts: self.report_conflicts(out.now()),
            lost: self.report_lost(out.now()),
            clock_skew: self
                .clock_skew()
                .map(|(peer, seconds)| report::ClockSkew {
                    peer: peer.to_string(),
                    nickname: self.nicknames.get(&peer).cloned().unwrap_or_default(),
                    seconds,
                })
                .collect(),
        }
    }
}
