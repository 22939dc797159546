//! Links beyond the connection limit (wire.md W4): whom not to dial, and whom to let go when somebody has no other
//! way into the mesh.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use super::core::{Call, Mesh};
use super::handshake::Features;
use super::name::PeerName;
use super::routes::Edges;
use super::{ConnId, targets};

/// Between two connections that are ended to make room.
const PAUSE: Duration = Duration::from_secs(1);
const REASON: &str = "makes room for a peer that has no other way in";

impl Mesh {
    /// When we are full: ends the most dispensable connection if this peer cannot do without us. False: no room.
    pub(super) fn make_room(&mut self, call: &mut Call<'_>, theirs: &Features) -> bool {
        let known = self.peers.get(theirs.name);
        let restarted = known.is_some_and(|known| known.uid != theirs.uid);
        let waits = self
            .made_room
            .is_some_and(|at| call.now.saturating_sub(at) < PAUSE);
        if waits || (self.reaches(theirs.name) && !restarted) {
            return false;
        }
        let Some(conn) = self.dispensable() else {
            return false;
        };
        self.made_room = Some(call.now);
        self.close(call, conn, REASON.to_owned());
        true
    }

    fn reaches(&self, peer: PeerName) -> bool {
        self.routes.next_hop(peer, Edges::All).is_some()
    }

    /// The connection whose ends have the most neighbours in common, so that they stay connected without it. One
    /// that the user wants comes last; `None` if each is needed.
    fn dispensable(&self) -> Option<ConnId> {
        let common = |remote: PeerName| {
            let links = self.peers.get(remote).map_or(&[][..], |p| &p.connections);
            let shared = links.iter().filter(|l| self.by_remote.contains_key(&l.name));
            shared.count()
        };
        let ranked = self.conns.iter().map(|(conn, c)| {
            let wanted = c.dialled.is_some_and(|addr| self.targets.is_direct(addr));
            (common(c.remote), !wanted, *conn)
        });
        let (_, _, conn) = ranked
            .filter(|(common, _, _)| *common > 0)
            .max_by_key(|(common, free, conn)| (*free, *common, *conn))?;
        Some(conn)
    }

    /// Direct peers that were up and that nothing leads to any more: to be dialled even when we are full.
    pub(super) fn urgent(&self) -> BTreeSet<SocketAddr> {
        let lost = |(_, by): &(SocketAddr, PeerName)| !self.reaches(*by) && *by != self.config.name;
        let answered = self.targets.direct_answered();
        answered.filter(lost).map(|(addr, _)| addr).collect()
    }

    /// Addresses of peers that others are connected to, and we are not (wire.md 5.1). A peer that seems to be as
    /// full as we may become is left alone.
    pub(super) fn discovered(&self) -> BTreeSet<SocketAddr> {
        let (own, limit) = (self.config.name, self.config.conn_limit);
        let full = limit > 0 && self.conns.len() >= targets::dial_limit(limit);
        if full || self.by_remote.len() + 1 >= self.peers.len() {
            return BTreeSet::new();
        }
        let strangers: BTreeSet<PeerName> = self
            .peers
            .iter()
            .filter(|p| limit == 0 || p.connections.len() < limit)
            .map(|p| p.name)
            .filter(|n| *n != own && !self.by_remote.contains_key(n))
            .collect();
        self.peers
            .iter()
            .filter(|p| p.name != own)
            .flat_map(|p| &p.connections)
            .filter(|l| strangers.contains(&l.name))
            .filter_map(|l| targets::discovered(&l.remote_addr, l.outbound, self.config.port))
            .collect()
    }
}
