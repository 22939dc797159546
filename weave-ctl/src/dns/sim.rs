//! Names of a few peers on a bad network: lost, doubled, late messages, partitions, restarts, wrong clocks; some
//! peers gossip as originals do. Afterwards all must know exactly the names that their owners have.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::entry::Id;
use super::names::{Filter, Names, TOMBSTONE_LIFE};
use crate::ipam::address::Address;
use crate::mesh::Now;
use crate::mesh::channel::{Channel, GossipData, Neighbour, Outlet, UnicastError};
use crate::mesh::name::PeerName;
use crate::mesh::reconcile::{Reconcile, Stamps};

pub(super) const UNIX: i64 = 1_600_000_000;
const CONTAINERS: [&str; 3] = ["c1", "c2", "weave:extern"];
const NAMES: [&str; 4] = ["one", "One", "two", "a.sub"];

pub(super) fn peer(n: usize) -> PeerName {
    PeerName::from_u64(n as u64 + 1).unwrap()
}

#[derive(Default)]
pub(super) struct FakeOutlet {
    pub now: Now,
    pub unix: i64,
    pub known: BTreeSet<PeerName>,
    pub neighbour: Option<Neighbour>,
    pub broadcasts: Vec<GossipData>,
    pub gossip: Vec<GossipData>,
}

impl Outlet for FakeOutlet {
    fn now(&self) -> Now {
        self.now
    }
    fn unix_now(&self) -> i64 {
        self.unix
    }
    fn is_known(&self, peer: PeerName) -> bool {
        self.known.contains(&peer)
    }
    fn nickname(&self, _: PeerName) -> Option<String> {
        None
    }
    fn active_targets(&self) -> usize {
        0
    }
    fn neighbour(&self) -> Option<Neighbour> {
        self.neighbour
    }
    fn unicast(&mut self, to: PeerName, _: Vec<u8>) -> Result<(), UnicastError> {
        Err(UnicastError::NoRoute(to))
    }
    fn broadcast(&mut self, data: GossipData) {
        self.broadcasts.push(data);
    }
    fn gossip(&mut self, data: GossipData) {
        self.gossip.push(data);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Gossip,
    Broadcast,
    Records,
}

#[derive(Clone)]
struct Mail {
    from: usize,
    to: usize,
    kind: Kind,
    payload: Vec<u8>,
}

struct Peer {
    names: Names,
    original: bool,
    /// Its clock minus the right one, in seconds.
    skew: i64,
    group: u8,
    known: BTreeSet<PeerName>,
    gone: bool,
    /// When its process began.
    since: Now,
}

/// Who has registered which name for what, as its owner knows.
type Model = BTreeSet<(usize, &'static str, Address, &'static str)>;

struct World {
    rng: SmallRng,
    now: Now,
    peers: Vec<Peer>,
    mail: Vec<Mail>,
    model: Model,
    chaos: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let count = rng.random_range(2..6);
        let all: BTreeSet<PeerName> = (0..count).map(peer).collect();
        let originals: Vec<bool> = (0..count).map(|_| rng.random_bool(0.2)).collect();
        // The age of what an original tells is known by the clocks alone.
        let most = if originals.contains(&true) { 400 } else { 7200 };
        let peers = originals.iter().enumerate().map(|(n, &original)| Peer {
            names: Names::new(peer(n), "weave.local"),
            original,
            skew: rng.random_range(-most..=most),
            group: 0,
            known: all.clone(),
            gone: false,
            since: Now::ZERO,
        });
        let peers = peers.collect();
        Self {
            rng,
            now: Now::ZERO,
            peers,
            mail: Vec::new(),
            model: Model::new(),
            chaos: true,
        }
    }

    /// One step of one peer, and what it sends.
    fn act(&mut self, n: usize, from: Option<usize>, act: impl FnOnce(&mut Names, &mut FakeOutlet)) {
        let neighbour = from.map(|from| Neighbour {
            name: peer(from),
            original: self.peers[from].original,
        });
        let at = &mut self.peers[n];
        if at.gone {
            return;
        }
        let unix = UNIX + at.skew + i64::try_from(self.now.as_secs()).unwrap();
        let mut out = FakeOutlet {
            now: self.now - at.since,
            unix,
            known: at.known.clone(),
            neighbour,
            ..FakeOutlet::default()
        };
        act(&mut at.names, &mut out);
        let said = out.broadcasts.into_iter().map(|data| (Kind::Broadcast, data));
        let said: Vec<(Kind, GossipData)> = said
            .chain(out.gossip.into_iter().map(|data| (Kind::Gossip, data)))
            .collect();
        if said.is_empty() {
            return;
        }
        let at = &mut self.peers[n];
        let (group, original, keys) = (at.group, at.original, at.names.changed());
        for (kind, data) in said {
            for to in 0..self.peers.len() {
                if to == n || self.peers[to].group != group {
                    continue;
                }
                // Announced, asked for and answered, in one.
                let mut wanted: Stamps = keys.iter().map(|key| (*key, Default::default())).collect();
                let (kind, payload) = match original || self.peers[to].original {
                    true => (kind, self.peers[n].names.encode(unix, &data)),
                    false => (
                        Kind::Records,
                        self.peers[n].names.records(&mut wanted, usize::MAX),
                    ),
                };
                if !payload.is_empty() {
                    self.post(Mail {
                        from: n,
                        to,
                        kind,
                        payload,
                    });
                }
            }
        }
    }

    fn post(&mut self, mail: Mail) {
        if self.chaos && self.rng.random_bool(0.2) {
            return;
        }
        if self.chaos && self.rng.random_bool(0.1) {
            self.mail.push(mail.clone());
        }
        self.mail.push(mail);
    }

    /// Any of what is under way arrives.
    fn deliver(&mut self) -> bool {
        if self.mail.is_empty() {
            return false;
        }
        let at = self.rng.random_range(0..self.mail.len());
        let Mail {
            from,
            to,
            kind,
            payload,
        } = self.mail.swap_remove(at);
        if self.peers[from].group == self.peers[to].group {
            self.act(to, Some(from), |names, out| match kind {
                Kind::Gossip => drop(names.on_gossip(out, &payload).unwrap()),
                Kind::Broadcast => drop(names.on_broadcast(out, peer(from), &payload).unwrap()),
                Kind::Records => drop(names.apply(out, peer(from), &payload)),
            });
        }
        true
    }

    /// What passes between two neighbours every half minute.
    fn exchange(&mut self, a: usize, b: usize) {
        if a == b || self.peers[a].group != self.peers[b].group || self.peers[a].gone || self.peers[b].gone {
            return;
        }
        for (from, to) in [(a, b), (b, a)] {
            let (kind, payload) = if self.peers[a].original || self.peers[b].original {
                let unix = UNIX + self.peers[from].skew + i64::try_from(self.now.as_secs()).unwrap();
                let names = &mut self.peers[from].names;
                let data = names.full_state(&mut FakeOutlet::default()).unwrap();
                (Kind::Gossip, names.encode(unix, &data))
            } else {
                let has = self.peers[to].names.stamps();
                let names = &mut self.peers[from].names;
                let mut lacks = names.stamps();
                lacks.retain(|key, stamp| stamp.is_news_to(has.get(key).copied()));
                (Kind::Records, names.records(&mut lacks, usize::MAX))
            };
            if !payload.is_empty() {
                self.post(Mail {
                    from,
                    to,
                    kind,
                    payload,
                });
            }
        }
    }

    fn register(&mut self, n: usize) {
        let container = CONTAINERS[self.rng.random_range(0..CONTAINERS.len())];
        let addr = self.rng.random_range(1..3);
        let name = NAMES[self.rng.random_range(0..NAMES.len())];
        if self.peers[n].gone {
            return;
        }
        let full = format!("{name}.weave.local");
        self.act(n, None, |names, out| {
            names.register(out, container, addr, &full).unwrap()
        });
        self.model.insert((n, container, addr, name));
    }

    fn remove(&mut self, n: usize) {
        let container = CONTAINERS[self.rng.random_range(0..CONTAINERS.len())];
        let name = NAMES[self.rng.random_range(0..NAMES.len())];
        let by_name = self.rng.random_bool(0.5);
        let filter = Filter {
            container: Some(container.to_owned()),
            name: by_name.then(|| format!("{name}.weave.local")),
            addr: None,
        };
        self.act(n, None, |names, out| {
            names.remove(out, &filter);
        });
        self.model
            .retain(|(m, c, _, h)| (*m, *c) != (n, container) || (by_name && *h != name));
    }

    /// The network is divided anew; some notice at once who is gone.
    fn divide(&mut self) {
        for n in 0..self.peers.len() {
            self.peers[n].group = self.rng.random_range(0..2);
        }
        for n in 0..self.peers.len() {
            if self.rng.random_bool(0.7) {
                self.look_around(n);
            }
        }
    }

    fn look_around(&mut self, n: usize) {
        for other in 0..self.peers.len() {
            let there = self.peers[other].group == self.peers[n].group && !self.peers[other].gone;
            if there {
                self.peers[n].known.insert(peer(other));
            } else if self.peers[n].known.remove(&peer(other)) {
                self.act(n, None, |names, out| names.on_peer_gone(out, peer(other)));
            }
        }
    }

    fn restart(&mut self, n: usize) {
        self.peers[n].names = Names::new(peer(n), "weave.local");
        self.peers[n].since = self.now;
        self.model.retain(|(m, ..)| *m != n);
    }

    fn step(&mut self) {
        let n = self.rng.random_range(0..self.peers.len());
        match self.rng.random_range(0..100) {
            0..30 => self.register(n),
            30..45 => self.remove(n),
            45..70 => drop(self.deliver()),
            70..82 => {
                let other = self.rng.random_range(0..self.peers.len());
                self.exchange(n, other);
            }
            82..92 => {
                self.now += Duration::from_secs(self.rng.random_range(1..300));
                self.tick();
            }
            92..95 => self.divide(),
            95..97 => self.look_around(n),
            97..99 => self.restart(n),
            _ if n > 1 => {
                self.restart(n);
                self.peers[n].gone = true;
            }
            _ => {}
        }
    }

    fn tick(&mut self) {
        for n in 0..self.peers.len() {
            self.act(n, None, |names, out| names.tick(out));
        }
    }

    /// A quiet network, for so many rounds of gossip.
    fn settle(&mut self, rounds: usize) {
        self.chaos = false;
        self.peers.iter_mut().for_each(|peer| peer.group = 0);
        (0..self.peers.len()).for_each(|n| self.look_around(n));
        for _ in 0..rounds {
            let mut budget = 100_000;
            while self.deliver() {
                budget -= 1;
                assert!(budget > 0, "they never stop talking");
            }
            self.now += Duration::from_secs(30);
            self.tick();
            for n in 0..self.peers.len() {
                (0..n).for_each(|other| self.exchange(n, other));
            }
        }
        while self.deliver() {}
    }

    fn check(&self) {
        let expected: BTreeSet<(PeerName, String, Address, String)> = self
            .model
            .iter()
            .map(|(n, container, addr, name)| {
                (
                    peer(*n),
                    (*container).to_owned(),
                    *addr,
                    format!("{name}.weave.local."),
                )
            })
            .collect();
        let text = |id: &Id| {
            (
                id.origin(),
                id.container().to_owned(),
                id.addr(),
                id.hostname().to_owned(),
            )
        };
        for (n, at) in self.peers.iter().enumerate().filter(|(_, at)| !at.gone) {
            let live = at.names.entries().filter(|(_, state)| state.is_live());
            let live: BTreeSet<_> = live.map(|(id, _)| text(id)).collect();
            assert_eq!(live, expected, "at {n}");
            let found: BTreeSet<_> = NAMES
                .iter()
                .map(|name| format!("{}.weave.local.", name.to_lowercase()))
                .flat_map(|name| at.names.answers(&name).map(text).collect::<Vec<_>>())
                .collect();
            assert_eq!(found, expected, "answers of {n}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn all_agree_and_nothing_deleted_comes_back(seed: u64, steps in 0..250_usize) {
        let mut world = World::new(seed);
        for _ in 0..steps {
            world.step();
        }
        world.settle(6);
        world.check();
        // Nothing is left of what was deleted, and nothing comes back when the tombstones are gone.
        for _ in 0..8 {
            world.now += TOMBSTONE_LIFE / 4;
            world.tick();
            world.settle(1);
            world.check();
        }
        for at in world.peers.iter().filter(|at| !at.gone) {
            prop_assert_eq!(at.names.size(), world.model.len());
            prop_assert_eq!(at.names.skipped(), 0);
        }
    }
}
