//! The allocator of one peer: its state, the first ring, and what ties the parts together (control.md section 1).
//!
//! One actor: whoever drives it calls its methods one after the other. After each call, and before anything
//! that the call caused leaves the process (messages, answers, and the current state that `encode` puts into
//! queued gossip), [`Allocator::take_changes`] must be saved. Then a crash at any moment loses only what nobody
//! has heard of. If saving fails, the process must stop without letting anything out.

use std::collections::{BTreeMap, HashMap};

use rand::SeedableRng;
use rand::rngs::SmallRng;
use tracing::{debug, info};

use super::address::{Address, Cidr, Range};
use super::adopt::Adoption;
use super::conflicts::Conflict;
use super::gossip::{self, Skipped};
use super::mode::{InitMode, quorum};
use super::operations::{Pending, Reply, RequestId};
use super::owned::Owned;
use super::paxos::{NodeId, Paxos, Voter};
use super::persist::Saved;
pub use super::persist::{Changes, Persisted};
use super::reclaim::Reclaim;
use super::reconcile::Announced;
use super::removal::Removals;
use super::ring::Ring;
use super::space::Space;
use super::strays::{Asked, Lost};
use super::talk::Say;
use super::tracker;
use crate::mesh::Now;
use crate::mesh::channel::Outlet;
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
    pub(super) announced: Announced,
    /// Some record is about an address that the ring says is not ours.
    pub(super) stray: bool,
    /// When their owners were asked for stray addresses.
    pub(super) asked_strays: BTreeMap<Address, Asked>,
    /// What could not be had back.
    pub(super) lost: BTreeMap<Address, Lost>,
    /// Rings that do not fit with ours, the latest last.
    pub(super) conflicts: Vec<Conflict>,
    pub(super) adoptions: Vec<Adoption>,
    /// Neighbours' clocks minus ours, in seconds.
    pub(super) clocks: BTreeMap<PeerName, i64>,
    pub(super) skipped: Skipped,
    pub(super) removals: Removals,
    pub(super) reclaim: Reclaim,
    /// For the channel of [`super::talk`].
    pub(super) said: Vec<(Option<PeerName>, Say)>,
    /// Since when allocations have been waiting.
    pub(super) pending_since: Option<Now>,
    saved: Saved,
}

impl Allocator {
    /// An allocator as it was before (`persisted`, if it fits), or a new one.
    #[must_use]
    pub fn new(config: Config, persisted: Option<Persisted>) -> Self {
        let name = config.name;
        let mut allocator = Self {
            ring: Ring::new(config.universe.range(), name),
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
            announced: Announced::default(),
            stray: false,
            asked_strays: BTreeMap::new(),
            lost: BTreeMap::new(),
            conflicts: Vec::new(),
            adoptions: Vec::new(),
            clocks: BTreeMap::new(),
            skipped: Skipped::default(),
            removals: Removals::default(),
            reclaim: Reclaim::default(),
            said: Vec::new(),
            pending_since: None,
            saved: Saved::default(),
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
        self.saved = Saved::of(&persisted);
        let Persisted {
            peer,
            mut ring,
            owned,
            voter,
        } = persisted;
        let name = self.config.name;
        let mut discard = |why: String| {
            info!("[allocator {name}] {why}");
            self.saved.discard();
        };
        if peer != name {
            discard(format!("Deleting persisted data for peername {peer}"));
            return None;
        }
        let universe = self.ring.range;
        let nothing = voter.is_none() && owned.is_empty();
        if ring.is_empty() && (nothing || ring.range != universe) {
            discard("No valid persisted data".to_owned());
            return voter;
        }
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
        self.rebuild();
        voter
    }

    /// What must be saved now, `None` if nothing has changed since the last call (or since it was loaded).
    pub fn take_changes(&mut self) -> Option<Changes> {
        let voter = self.paxos.as_ref().and_then(Paxos::voter);
        let owned = self.owned.take_changes();
        self.saved.advance(self.config.name, &self.ring, owned, voter)
    }

    /// Ends every step: the ring and the space set agree, and the ring knows how much is free.
    pub(super) fn finish(&mut self) {
        self.agree_with_ring();
        self.report_free();
        self.finish_adoptions(None);
    }

    pub(super) fn report_free(&mut self) {
        self.ring.report_free(|range| self.space.recount_free(range));
    }

    /// The space set becomes what the ring says is ours.
    fn agree_with_ring(&mut self) {
        if self.departed {
            return;
        }
        let ranges = self.ring.owned_ranges(self.config.name);
        if !self.space.covers_exactly(&ranges) {
            self.space.extend(&ranges);
        }
        if !self.space.covers_exactly(&ranges) {
            let name = self.config.name;
            info!("[allocator {name}] ranges of ours are another peer's now");
            self.rebuild();
        } else if self.stray {
            self.rebuild();
        }
    }

    pub(super) fn rebuild(&mut self) {
        let name = self.config.name;
        self.space.clear();
        self.space.extend(&self.ring.owned_ranges(name));
        self.stray = false;
        let addresses = self.owned.addresses();
        for (id, cidr) in addresses.filter(|(_, c)| self.ring.range.contains(c.addr)) {
            if let Err(error) = self.space.claim(cidr.addr) {
                debug!("[allocator {name}] {cidr} of {id}: {error}");
                self.stray = true;
            }
        }
    }

    /// The addresses in use here that are of the universe, with their owners' IDs.
    pub(super) fn addresses_inside(&self) -> Vec<(String, Cidr)> {
        let addresses = self.owned.addresses();
        addresses
            .filter(|(_, cidr)| self.ring.range.contains(cidr.addr))
            .map(|(id, cidr)| (id.to_owned(), cidr))
            .collect()
    }

    /// Everything 5 s: try again what is waiting, give up what is dead.
    pub fn tick(&mut self, out: &mut dyn Outlet) {
        if self.awaiting_consensus {
            self.propose(out);
        }
        self.name_owners(out);
        self.release_dead(out.now());
        self.age_conflicts(out);
        self.watch_owners(out);
        self.finish_adoptions(Some(out.now()));
        self.retry_pending(out);
        self.on_deadline(out);
        self.pending_since = match self.pending.allocates.is_empty() {
            true => None,
            false => self.pending_since.or(Some(out.now())),
        };
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
        gossip::broadcast(out);
        self.conclude(out);
    }

    /// Creates the ring if the vote is over.
    pub(super) fn conclude(&mut self, out: &mut dyn Outlet) {
        let Some(peers) = self.paxos.as_ref().and_then(Paxos::consensus) else {
            return;
        };
        self.ring.divide(peers);
        self.ring_updated(out);
        gossip::broadcast(out);
    }

    /// The ring has changed by what others said, or has come into being.
    pub(super) fn ring_updated(&mut self, out: &mut dyn Outlet) {
        self.awaiting_consensus = false;
        self.paxos = None;
        if self.departed {
            self.hand_over(out);
        }
        let strays = self.stray;
        self.agree_with_ring();
        if !strays {
            self.tell_strays("ranges that we use were taken over");
        }
        self.retry_pending(out);
    }

    /// The parts of the universe that are ours, merged where adjacent (for range trackers, control.md 1.15).
    #[must_use]
    pub fn our_ranges(&self) -> Vec<Range> {
        tracker::merged(&self.ring.owned_ranges(self.config.name))
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

/// As a CIDR when it is as large as one, else `first-last`.
pub(super) fn range_text(range: Range) -> String {
    let size = range.end.saturating_sub(range.start);
    if !size.is_power_of_two() {
        return range.to_string();
    }
    #[expect(clippy::cast_possible_truncation, reason = "at most 32")]
    let prefix_len = 32 - size.trailing_zeros() as u8;
    let addr = range.start;
    Cidr { addr, prefix_len }.to_string()
}
