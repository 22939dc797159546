//! Taking over the space of a dead peer, and handing over our own (control.md 1.13).

use tracing::info;

use super::allocator::Allocator;
use super::gossip::broadcast;
use crate::mesh::channel::Outlet;
use crate::mesh::name::PeerName;

impl Allocator {
    /// Takes over everything of that peer; by how much our free space grew.
    pub(super) fn take_over(&mut self, out: &mut dyn Outlet, peer: PeerName) -> u32 {
        let us = self.config.name;
        let before = self.space.total_free();
        if self.ring.transfer(peer, us).is_empty() {
            return 0;
        }
        self.ring_updated(out);
        let gained = self.space.total_free().saturating_sub(before);
        info!("[allocator {us}] took over {gained} addresses from {peer}");
        broadcast(out);
        self.prune_nicknames(out);
        self.finish();
        gained
    }

    /// By nickname, else by name. Of several with one nickname (a host that was reset): one that owns
    /// something, rather one that is gone.
    pub(super) fn find_peer(&mut self, out: &dyn Outlet, text: &str) -> Option<PeerName> {
        self.name_owners(out);
        let owners = self.ring.owners();
        let named = self.nicknames.iter().filter(|(_, nickname)| *nickname == text);
        let named = named.map(|(name, _)| *name);
        named
            .min_by_key(|p| (*p == self.config.name, !owners.contains(p), out.is_known(*p)))
            .or_else(|| text.parse().ok())
    }

    /// `weave reset`: cancels everything and gives our space away. The caller stops us soon after.
    pub fn depart(&mut self, out: &mut dyn Outlet) {
        self.stop();
        self.departed = true;
        self.space.clear();
        self.hand_over(out);
        self.finish();
    }

    /// Also run for space that we are given after we have departed.
    pub(super) fn hand_over(&mut self, out: &mut dyn Outlet) {
        let us = self.config.name;
        let Some(heir) = self.heir(out) else {
            return;
        };
        if self.ring.transfer(us, heir).is_empty() {
            return;
        }
        // What is in the universe belongs to the heir now.
        for (id, cidr) in self.addresses_inside() {
            self.owned.remove(&id, cidr.addr);
        }
        info!("[allocator {us}] handed our address space over to {heir}");
        broadcast(out);
    }

    fn heir(&self, out: &dyn Outlet) -> Option<PeerName> {
        let us = self.config.name;
        let named = || self.nicknames.keys().copied().filter(|p| *p != us);
        let known = self.ring.heir(|p| out.is_known(p));
        let newcomer = || named().find(|p| out.is_known(*p) && !self.ring.owns(*p));
        let any = || self.ring.heir(|_| true);
        known.or_else(newcomer).or_else(any).or_else(|| named().next())
    }
}
