//! What allocators tell each other, and what they make of it (control.md 1.6, 1.7, 1.9).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tracing::{debug, warn};

use super::address::Range;
use super::allocator::{Allocator, range_text};
use super::message::{MAX_NICKNAME, MAX_NICKNAMES, MessageError, State, Unicast};
use super::paxos::Nodes;
use super::ring::{MAX_ENTRIES, Ring, RingError};
use crate::mesh::channel::{Channel, GossipData, Outlet, Rejected};
use crate::mesh::name::PeerName;
use crate::mesh::reconcile::Reconcile;

/// Queued gossip: encoded from the allocator's state when it is sent.
struct CurrentState;

impl Allocator {
    /// Our state as others may know it.
    fn state(&self) -> State {
        let mut state = State {
            nicknames: self.nicknames.clone(),
            ..State::default()
        };
        if self.ring.is_empty() {
            state.paxos = self.paxos.as_ref().map(|p| p.nodes().clone());
        } else {
            state.ring = Some(self.ring.clone());
        }
        state
    }

    pub(super) fn send(&self, out: &mut dyn Outlet, to: PeerName, message: &Unicast) -> Result<(), String> {
        let payload = message.encode(out.unix_now());
        out.unicast(to, payload).map_err(|error| {
            debug!("[allocator {}] sending to {to}: {error}", self.config.name);
            error.to_string()
        })
    }

    fn send_state(&mut self, out: &mut dyn Outlet, to: PeerName) {
        self.report_free();
        let update = Unicast::RingUpdate(self.state());
        // It spreads by gossip as well.
        let _ = self.send(out, to, &update);
    }

    /// `sender` is known for broadcasts and unicasts.
    fn on_state(
        &mut self,
        out: &mut dyn Outlet,
        sender: Option<PeerName>,
        state: State,
    ) -> Result<(), Rejected> {
        self.learn_nicknames(state.nicknames);
        if let Some(theirs) = state.ring {
            return self.on_ring(out, &theirs);
        }
        if !self.ring.is_empty() {
            if let Some(sender) = sender {
                self.send_state(out, sender);
            }
            return Ok(());
        }
        match state.paxos {
            Some(nodes) => self.on_paxos(out, nodes),
            None if sender.is_some() && self.paxos.is_some() => self.establish(out),
            None => {}
        }
        Ok(())
    }

    pub(super) fn on_ring(&mut self, out: &mut dyn Outlet, theirs: &Ring) -> Result<(), Rejected> {
        let space = &self.space;
        let in_use = |range: Range| space.count_free(range) != range.size();
        match self.ring.merge(theirs, in_use) {
            Ok(true) => {
                self.prune_nicknames(out);
                self.ring_updated(out);
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(error) => {
                let text = self.explain(theirs, &error);
                warn!("[allocator {}] {text}", self.config.name);
                Err(Rejected(text))
            }
        }
    }

    fn explain(&self, theirs: &Ring, error: &RingError) -> String {
        let peers = |names: &[PeerName]| {
            let peer = |name: &PeerName| match self.nicknames.get(name) {
                Some(nickname) => format!("{name}({nickname})"),
                None => name.to_string(),
            };
            names.iter().map(peer).collect::<Vec<_>>().join(" ")
        };
        match error {
            RingError::DifferentSeeds => {
                let (received, ours) = (peers(&theirs.seeds), peers(&self.ring.seeds));
                format!(
                    "IP allocation was seeded by different peers (received: [{received}], ours: [{ours}])"
                )
            }
            RingError::DifferentRange => {
                let (received, ours) = (range_text(theirs.range), range_text(self.ring.range));
                format!("Incompatible IP allocation ranges (received: {received}, ours: {ours})")
            }
            other => other.to_string(),
        }
    }

    fn on_paxos(&mut self, out: &mut dyn Outlet, nodes: Nodes) {
        let Some(paxos) = &mut self.paxos else {
            return;
        };
        if paxos.update(nodes) {
            if paxos.think() {
                broadcast(out);
            }
            self.conclude(out);
        }
    }

    fn on_space_request(&mut self, out: &mut dyn Outlet, from: PeerName, range: Range) {
        if self.ring.is_empty() || from == self.config.name {
            return;
        }
        match self.donate(range) {
            Some(chunk) => {
                let name = self.config.name;
                debug!("[allocator {name}] giving {chunk} to {from}");
                self.ring.grant(chunk, from);
                broadcast(out);
            }
            None => {
                let _ = self.send(out, from, &Unicast::SpaceDenied(range));
            }
        }
        self.send_state(out, from);
    }

    fn donate(&mut self, range: Range) -> Option<Range> {
        // The asker will use neither the first nor the last address of a subnet. Giving it just those
        // would make peers that have run out pass them to and fro for ever.
        let usable = if range.size() < 4 {
            range
        } else {
            Range {
                start: range.start + 1,
                end: range.end - 1,
            }
        };
        let full = self.ring.entries.len() + 2 > MAX_ENTRIES;
        if full || self.departed || self.space.count_free(usable) == 0 {
            return None;
        }
        self.space.donate(range)
    }

    pub(super) fn learn_nicknames(&mut self, received: BTreeMap<PeerName, String>) {
        for (name, nickname) in received {
            let room = self.nicknames.len() < MAX_NICKNAMES || self.nicknames.contains_key(&name);
            if name != self.config.name && room && nickname.len() <= MAX_NICKNAME {
                self.nicknames.insert(name, nickname);
            }
        }
    }

    pub(super) fn prune_nicknames(&mut self, out: &mut dyn Outlet) {
        let in_ring: BTreeSet<PeerName> = self.ring.entries.iter().map(|e| e.peer).collect();
        let us = self.config.name;
        self.nicknames
            .retain(|name, _| *name == us || in_ring.contains(name) || out.is_known(*name));
    }
}

impl Channel for Allocator {
    fn on_unicast(&mut self, out: &mut dyn Outlet, from: PeerName, payload: &[u8]) -> Result<(), Rejected> {
        let result = match Unicast::decode(payload) {
            Ok(Unicast::SpaceRequest(range)) => {
                self.on_space_request(out, from, range);
                Ok(())
            }
            Ok(Unicast::RingUpdate(state)) => self.on_state(out, Some(from), state),
            Ok(Unicast::SpaceDenied(range)) => {
                self.deny_claims(from, range);
                Ok(())
            }
            Err(error) => {
                // Not the fault of the neighbour that relayed it.
                warn!("[allocator {}] unicast from {from}: {error}", self.config.name);
                Ok(())
            }
        };
        self.finish();
        result
    }

    fn on_broadcast(
        &mut self,
        out: &mut dyn Outlet,
        from: PeerName,
        payload: &[u8],
    ) -> Result<Option<GossipData>, Rejected> {
        let result = self.on_state(out, Some(from), decode(payload)?);
        self.finish();
        result.map(|()| Some(current_state()))
    }

    fn on_gossip(&mut self, out: &mut dyn Outlet, payload: &[u8]) -> Result<Option<GossipData>, Rejected> {
        let result = self.on_state(out, None, decode(payload)?);
        self.finish();
        result.map(|()| None)
    }

    fn full_state(&mut self, _: &mut dyn Outlet) -> Option<GossipData> {
        Some(current_state())
    }

    fn merge(&self, _: GossipData, new: GossipData) -> GossipData {
        new
    }

    fn encode(&mut self, unix_now: i64, _: &GossipData) -> Vec<u8> {
        self.state().encode(unix_now)
    }

    fn reconcile(&mut self) -> Option<&mut dyn Reconcile> {
        // Until there is a ring there is nothing to compare; what is in the way of a vote is small.
        (!self.ring.is_empty()).then_some(self)
    }

    fn on_peer_gone(&mut self, _: &mut dyn Outlet, peer: PeerName) {
        let needed = peer == self.config.name || self.ring.entries.iter().any(|e| e.peer == peer);
        if !needed {
            self.nicknames.remove(&peer);
        }
    }
}

fn decode(payload: &[u8]) -> Result<State, Rejected> {
    State::decode(payload).map_err(|error: MessageError| Rejected(error.to_string()))
}

fn current_state() -> GossipData {
    Arc::new(CurrentState)
}

pub(super) fn broadcast(out: &mut dyn Outlet) {
    out.broadcast(current_state());
}
