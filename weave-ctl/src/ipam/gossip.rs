//! What allocators tell each other, and what they make of it (control.md 1.6, 1.7, 1.9).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, warn};

use super::address::Range;
use super::allocator::Allocator;
use super::conflicts::Kind;
use super::message::{MAX_NICKNAME, MAX_NICKNAMES, State, Unicast};
use super::paxos::Nodes;
use super::ring::{MAX_ENTRIES, Ring, RingError};
use crate::mesh::Now;
use crate::mesh::channel::{Channel, GossipData, Neighbour, Outlet, Rejected};
use crate::mesh::name::PeerName;
use crate::mesh::reconcile::Reconcile;

/// Queued gossip: encoded from the allocator's state when it is sent.
struct CurrentState;

/// Between two lines in the log about messages that cannot be used.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// Messages that could not be used.
#[derive(Debug, Default)]
pub(super) struct Skipped {
    messages: u64,
    told: Option<Now>,
}

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
        if self.in_conflict(to) {
            return;
        }
        self.report_free();
        let update = Unicast::RingUpdate(self.state());
        // It spreads by gossip as well.
        let _ = self.send(out, to, &update);
    }

    /// `sender` is known for broadcasts and unicasts. Returns true if all of it could be used.
    fn on_state(&mut self, out: &mut dyn Outlet, sender: Option<PeerName>, state: State) -> bool {
        if let Some(Err(error)) = state.ring.as_ref().map(Ring::check) {
            self.skip(out, &error.to_string());
            return false;
        }
        self.learn_nicknames(state.nicknames);
        if let Some(theirs) = state.ring {
            return self.on_ring(out, &theirs);
        }
        // One who has no ring is the neighbour itself: others pass on what they have, not what they got.
        if let Some(neighbour) = out.neighbour().filter(|n| sender.is_none_or(|s| s == n.name)) {
            self.no_conflict(neighbour.name);
        }
        if !self.ring.is_empty() {
            if let Some(sender) = sender {
                self.send_state(out, sender);
            }
            return true;
        }
        match state.paxos {
            Some(nodes) => self.on_paxos(out, nodes),
            None if sender.is_some() && self.paxos.is_some() => self.establish(out),
            None => {}
        }
        true
    }

    /// Merges another peer's ring, or remembers the conflict with it. Returns true if it was merged.
    pub(super) fn on_ring(&mut self, out: &mut dyn Outlet, theirs: &Ring) -> bool {
        let space = &self.space;
        let in_use = |range: Range| space.count_free(range) != range.size();
        match self.ring.merge(theirs, in_use) {
            Ok(changed) => {
                let original = out.neighbour().filter(|n| n.original && n.name == theirs.peer);
                match original.and_then(|_| self.ring.refused_by(theirs)) {
                    Some(error) => self.on_conflict(out, theirs, &error, Kind::Refused),
                    None => self.no_conflict(theirs.peer),
                }
                if changed {
                    self.settle_conflicts();
                    self.prune_nicknames(out);
                    self.ring_updated(out);
                }
                true
            }
            Err(error) => {
                let kind = match error {
                    RingError::DifferentSeeds => Kind::Seeds,
                    RingError::DifferentRange => Kind::Range,
                    _ => Kind::Entries,
                };
                self.on_conflict(out, theirs, &error, kind);
                false
            }
        }
    }

    /// What cannot be used is counted and told of; it is not passed on and ends no connection (wire.md W1).
    fn skip(&mut self, out: &dyn Outlet, why: &str) {
        let now = out.now();
        self.skipped.messages += 1;
        if self
            .skipped
            .told
            .is_none_or(|told| now.saturating_sub(told) >= TELL_AGAIN)
        {
            self.skipped.told = Some(now);
            let (us, count) = (self.config.name, self.skipped.messages);
            let from = out
                .neighbour()
                .map_or_else(|| "nobody".to_owned(), |n| n.name.to_string());
            warn!("[allocator {us}] skipping bad IPAM gossip from {from} ({count} so far): {why}");
        }
    }

    /// Reads gossip; `None` if that is not possible.
    fn read(&mut self, out: &dyn Outlet, payload: &[u8]) -> Option<State> {
        match State::decode_with_clock(payload) {
            Ok((state, clock)) => {
                if let Some(neighbour) = out.neighbour() {
                    self.saw_clock(neighbour.name, clock, out.unix_now());
                }
                Some(state)
            }
            Err(error) => {
                self.skip(out, &error.to_string());
                None
            }
        }
    }

    /// Nicknames of ring owners as the topology has them: records between new peers come without those of owners
    /// that nothing has changed for.
    pub(super) fn name_owners(&mut self, out: &dyn Outlet) {
        let owners = self.ring.owners().into_iter();
        let named = owners.filter_map(|peer| Some((peer, out.nickname(peer)?)));
        let named = named.filter(|(_, nickname)| !nickname.is_empty()).collect();
        self.learn_nicknames(named);
    }

    /// A neighbour's clock showed `theirs` when ours showed `ours` (Unix seconds).
    pub(super) fn saw_clock(&mut self, neighbour: PeerName, theirs: i64, ours: i64) {
        if self.clocks.len() < MAX_NICKNAMES || self.clocks.contains_key(&neighbour) {
            self.clocks.insert(neighbour, theirs.saturating_sub(ours));
        }
    }

    /// Neighbours' clocks minus ours, in seconds, as their latest gossip showed them.
    pub fn clock_skew(&self) -> impl Iterator<Item = (PeerName, i64)> {
        self.clocks.iter().map(|(peer, seconds)| (*peer, *seconds))
    }

    /// How many messages could not be used.
    #[must_use]
    pub fn messages_skipped(&self) -> u64 {
        self.skipped.messages
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
        // In a conflict the asker knows another ring than we do; what we withhold may not be ours any more.
        // It asks again when that is over.
        let unsure = self.in_conflict(from) || self.withholds();
        if self.ring.is_empty() || from == self.config.name || unsure {
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
        self.take_block(range)
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
        let owners = self.ring.owners();
        let us = self.config.name;
        self.nicknames
            .retain(|name, _| *name == us || owners.contains(name) || out.is_known(*name));
    }
}

impl Channel for Allocator {
    fn on_unicast(&mut self, out: &mut dyn Outlet, from: PeerName, payload: &[u8]) -> Result<(), Rejected> {
        match Unicast::decode(payload) {
            Ok(Unicast::SpaceRequest(range)) => self.on_space_request(out, from, range),
            Ok(Unicast::RingUpdate(state)) => {
                self.on_state(out, Some(from), state);
            }
            Ok(Unicast::SpaceDenied(range)) => self.deny_claims(out.now(), from, range),
            Err(error) => self.skip(out, &format!("unicast of {from}: {error}")),
        }
        self.finish();
        Ok(())
    }

    fn on_broadcast(
        &mut self,
        out: &mut dyn Outlet,
        from: PeerName,
        payload: &[u8],
    ) -> Result<Option<GossipData>, Rejected> {
        let state = self.read(out, payload);
        let used = state.is_some_and(|state| self.on_state(out, Some(from), state));
        self.finish();
        Ok(used.then(current_state))
    }

    fn on_gossip(&mut self, out: &mut dyn Outlet, payload: &[u8]) -> Result<Option<GossipData>, Rejected> {
        if let Some(state) = self.read(out, payload) {
            self.on_state(out, None, state);
        }
        self.finish();
        Ok(None)
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

    fn wants_gossip(&self, neighbour: Neighbour) -> bool {
        // It would close the connection, again and again.
        !neighbour.original || !self.in_conflict(neighbour.name)
    }

    fn reconcile(&mut self) -> Option<&mut dyn Reconcile> {
        // Until there is a ring there is nothing to compare; what is in the way of a vote is small.
        // In a conflict the full state tells when it is over; where an original refuses our ring, its own gossip does,
        // and its ring is part of ours.
        let merged = self.conflicts.iter().all(|c| c.kind == Kind::Refused);
        (!self.ring.is_empty() && merged).then_some(self)
    }

    fn on_peer_gone(&mut self, _: &mut dyn Outlet, peer: PeerName) {
        self.clocks.remove(&peer);
        if peer != self.config.name && !self.ring.owns(peer) {
            self.nicknames.remove(&peer);
        }
    }
}

fn current_state() -> GossipData {
    Arc::new(CurrentState)
}

pub(super) fn broadcast(out: &mut dyn Outlet) {
    out.broadcast(current_state());
}
