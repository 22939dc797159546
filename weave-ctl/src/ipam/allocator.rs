//! The allocator of one peer: gossip, the first ring, and what ties the parts together (control.md section 1).
//!
//! One actor: whoever drives it calls its methods one after the other. After each call, and before anything
//! that the call caused leaves the process (messages, answers), [`Allocator::take_dirty`] must be saved.
//! Then a crash at any moment loses only what nobody has heard of.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde::{Deserialize, Serialize};
use tracing::{debug, error, info, warn};

use super::address::{Cidr, Range};
use super::message::{MAX_NICKNAME, MAX_NICKNAMES, MessageError, State, Unicast};
use super::mode::{InitMode, quorum};
use super::operations::{Pending, Reply, RequestId};
use super::owned::{Owned, OwnedRecord};
use super::paxos::{NodeId, Nodes, Paxos, Voter};
use super::ring::{MAX_ENTRIES, Ring, RingError};
use super::space::Space;
use crate::mesh::Now;
use crate::mesh::channel::{Channel, GossipData, Outlet, Rejected};
use crate::mesh::name::PeerName;

/// Name of the mesh channel.
pub const CHANNEL: &str = "IPallocation";

/// What an allocator is told at start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Our peer name.
    pub name: PeerName,
    /// Our nickname.
    pub nickname: String,
    /// Random number of this process (wire.md 1.2): our identity as a new voter.
    pub uid: u64,
    /// `--ipalloc-range`.
    pub universe: Cidr,
    /// `--ipalloc-default-subnet`, else the universe.
    pub default_subnet: Cidr,
    /// `--ipalloc-init`.
    pub mode: InitMode,
    /// Seed for choices that need to be random but not secret.
    pub seed: u64,
}

/// All that outlives the process. Must be saved as one: a ring without the matching records, or the other
/// way round, would hand out addresses twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Persisted {
    /// Whose state it is.
    pub peer: PeerName,
    /// The ring, perhaps without entries.
    pub ring: Ring,
    /// Local owners.
    pub owned: Vec<OwnedRecord>,
    /// Our part in a vote that is still going on.
    #[serde(default)]
    pub voter: Option<Voter>,
}

/// Queued gossip: encoded from the allocator's state when it is sent.
struct CurrentState;

/// See the module's description.
#[derive(Debug)]
pub struct Allocator {
    pub(super) config: Config,
    pub(super) ring: Ring,
    pub(super) space: Space,
    pub(super) owned: Owned,
    pub(super) nicknames: BTreeMap<PeerName, String>,
    /// `None` for observers, and once there is a ring.
    pub(super) paxos: Option<Paxos>,
    pub(super) awaiting_consensus: bool,
    pub(super) pending: Pending,
    pub(super) replies: Vec<(RequestId, Reply)>,
    /// When containers died.
    pub(super) dead: HashMap<String, Now>,
    pub(super) rng: SmallRng,
    /// No new operations: we are about to stop.
    pub(super) stopping: bool,
    /// We have given everything away.
    pub(super) departed: bool,
    /// Some record is about an address that the ring says is not ours.
    stray: bool,
    saved_ring: Ring,
    saved_voter: Option<Voter>,
}

impl Allocator {
    /// An allocator as it was before (`persisted`, if it fits), or a new one.
    #[must_use]
    pub fn new(config: Config, persisted: Option<Persisted>) -> Self {
        let name = config.name;
        let empty = Ring::new(config.universe.range(), name);
        let mut allocator = Self {
            ring: empty.clone(),
            space: Space::default(),
            owned: Owned::default(),
            nicknames: BTreeMap::from([(name, config.nickname.clone())]),
            paxos: None,
            awaiting_consensus: false,
            pending: Pending::default(),
            replies: Vec::new(),
            dead: HashMap::new(),
            rng: SmallRng::seed_from_u64(config.seed),
            stopping: false,
            departed: false,
            stray: false,
            saved_ring: empty,
            saved_voter: None,
            config,
        };
        let voter = persisted.and_then(|p| allocator.restore(p));
        let restored = !allocator.ring.is_empty();
        match &allocator.config.mode {
            InitMode::Seed(_) if restored => {
                info!("[allocator {name}] Found persisted IPAM data, ignoring supplied IPAM seed");
            }
            _ if restored => info!("[allocator {name}] Initialising with persisted data"),
            InitMode::Seed(seeds) => {
                info!("[allocator {name}] Initialising with supplied IPAM seed");
                allocator.ring.divide(seeds.clone());
                allocator.agree_with_ring();
            }
            InitMode::Consensus(_) => {
                info!("[allocator {name}] Initialising via deferred consensus");
                let uid = allocator.config.uid;
                allocator.paxos = Some(Paxos::new(NodeId { name, uid }, voter));
            }
            InitMode::Observer => {
                info!("[allocator {name}] Initialising as observer - awaiting IPAM data from another peer");
            }
        }
        allocator.finish();
        allocator
    }

    /// Takes over what was saved, as far as it is about us and our universe.
    fn restore(&mut self, persisted: Persisted) -> Option<Voter> {
        let Persisted {
            peer,
            mut ring,
            owned,
            voter,
        } = persisted;
        let name = self.config.name;
        let mut discard = |why: String| {
            info!("[allocator {name}] {why}");
            // Makes the first save overwrite it.
            self.owned.changed = true;
        };
        if peer != name {
            discard(format!("Deleting persisted data for peername {peer}"));
            return None;
        }
        if ring.is_empty() {
            self.saved_voter.clone_from(&voter);
            if voter.is_none() {
                discard("No valid persisted data".to_owned());
            }
            return voter;
        }
        let universe = self.ring.range;
        if ring.range != universe {
            let theirs = range_text(ring.range);
            let ours = range_text(universe);
            discard(format!(
                "Deleting persisted data for IPAM range {theirs}; our range is {ours}"
            ));
            return None;
        }
        if let Err(why) = ring.check() {
            discard(format!("Deleting persisted data: {why}"));
            return None;
        }
        ring.peer = name;
        self.ring = ring;
        self.owned = Owned::from_records(owned);
        self.saved_ring = self.ring.clone();
        self.rebuild();
        None
    }

    /// What must be saved now, `None` if that is what was last returned (or loaded).
    pub fn take_dirty(&mut self) -> Option<Persisted> {
        let voter = self.paxos.as_ref().and_then(Paxos::voter);
        if !self.owned.changed && self.ring == self.saved_ring && voter == self.saved_voter {
            return None;
        }
        self.owned.changed = false;
        self.saved_ring.clone_from(&self.ring);
        self.saved_voter.clone_from(&voter);
        Some(Persisted {
            peer: self.config.name,
            ring: self.ring.clone(),
            owned: self.owned.records().cloned().collect(),
            voter,
        })
    }

    /// Ends every step: the ring and the space set agree, and the ring knows how much is free.
    pub(super) fn finish(&mut self) {
        self.agree_with_ring();
        self.report_free();
    }

    pub(super) fn report_free(&mut self) {
        self.ring.report_free(|range| self.space.count_free(range));
    }

    /// The space set becomes what the ring says is ours.
    fn agree_with_ring(&mut self) {
        if self.departed {
            return;
        }
        let ranges = self.ring.owned_ranges(self.config.name);
        self.space.extend(&ranges);
        if !self.space.covers_exactly(&ranges) {
            let name = self.config.name;
            error!("[allocator {name}] address space differs from the ring; rebuilding it");
            self.rebuild();
        } else if self.stray {
            self.rebuild();
        }
    }

    fn rebuild(&mut self) {
        let name = self.config.name;
        self.space.clear();
        self.space.extend(&self.ring.owned_ranges(name));
        self.stray = false;
        for record in self.owned.records() {
            let inside = record.cidrs.iter().filter(|c| self.ring.range.contains(c.addr));
            for cidr in inside {
                if let Err(error) = self.space.claim(cidr.addr) {
                    warn!("[allocator {name}] {cidr} of {}: {error}", record.id);
                    self.stray = true;
                }
            }
        }
    }

    /// Everything 5 s: try again what is waiting, give up what is dead.
    pub fn tick(&mut self, out: &mut dyn Outlet) {
        if self.awaiting_consensus {
            self.propose(out);
        }
        self.release_dead(out.now());
        self.retry_pending(out);
        self.finish();
    }

    /// Begins to bring about a ring, unless there is one or we are at it.
    pub(super) fn establish(&mut self, out: &mut dyn Outlet) {
        if !self.ring.is_empty() || self.awaiting_consensus || self.stopping {
            return;
        }
        self.awaiting_consensus = true;
        if let Some(paxos) = &mut self.paxos {
            let votes = match self.config.mode {
                InitMode::Consensus(Some(peers)) => quorum(peers),
                _ => {
                    let votes = quorum(out.active_targets().saturating_add(1));
                    info!("[allocator {}] Assuming quorum size of {votes}", self.config.name);
                    votes
                }
            };
            paxos.set_quorum(votes);
        }
        self.propose(out);
    }

    fn propose(&mut self, out: &mut dyn Outlet) {
        if let Some(paxos) = &mut self.paxos {
            paxos.propose();
        }
        broadcast(out);
        self.conclude(out);
    }

    /// Creates the ring if the vote is over.
    fn conclude(&mut self, out: &mut dyn Outlet) {
        let Some(peers) = self.paxos.as_ref().and_then(Paxos::consensus) else {
            return;
        };
        self.ring.divide(peers);
        self.ring_updated(out);
        broadcast(out);
    }

    /// The ring has changed by what others said, or has come into being.
    pub(super) fn ring_updated(&mut self, out: &mut dyn Outlet) {
        self.awaiting_consensus = false;
        self.paxos = None;
        if self.departed {
            self.hand_over(out);
        }
        self.agree_with_ring();
        self.retry_pending(out);
    }

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

    fn on_ring(&mut self, out: &mut dyn Outlet, theirs: &Ring) -> Result<(), Rejected> {
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

    fn learn_nicknames(&mut self, received: BTreeMap<PeerName, String>) {
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

    /// The parts of the universe that are ours, merged where adjacent (for range trackers, control.md 1.15).
    #[must_use]
    pub fn our_ranges(&self) -> Vec<Range> {
        let mut merged: Vec<Range> = Vec::new();
        for range in self.ring.owned_ranges(self.config.name) {
            match merged.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => merged.push(range),
            }
        }
        merged
    }

    /// Is there a ring?
    #[must_use]
    pub fn has_ring(&self) -> bool {
        !self.ring.is_empty()
    }

    /// The subnet of requests that name none.
    #[must_use]
    pub fn default_subnet(&self) -> Cidr {
        self.config.default_subnet
    }

    /// The ring, to be looked at.
    #[must_use]
    pub fn ring(&self) -> &Ring {
        &self.ring
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

/// As a CIDR when it is as large as one, else `first-last`.
fn range_text(range: Range) -> String {
    let size = range.end.saturating_sub(range.start);
    if !size.is_power_of_two() {
        return range.to_string();
    }
    #[expect(clippy::cast_possible_truncation, reason = "at most 32")]
    let prefix_len = 32 - size.trailing_zeros() as u8;
    let addr = range.start;
    Cidr { addr, prefix_len }.to_string()
}
