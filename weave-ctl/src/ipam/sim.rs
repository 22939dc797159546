//! A simulator: allocators of many peers on a bad network, with crashes between any two steps.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::address::{Address, Cidr};
use super::allocator::{Allocator, Config, Persisted};
use super::mode::InitMode;
use super::operations::{ClaimOptions, Reply, RequestId};
use super::ring::Entry;
use super::talk::Say;
use crate::mesh::Now;
use crate::mesh::channel::{Channel, GossipData, Neighbour, Outlet, Rejected, UnicastError};
use crate::mesh::name::PeerName;

pub(super) const UNIX: i64 = 1_600_000_000;

pub(super) fn peer(index: usize) -> PeerName {
    PeerName::from_u64(index as u64 + 1).unwrap()
}

/// What a step wants to send; released only after it has been saved.
#[derive(Debug)]
pub(super) enum Sent {
    Unicast(PeerName, Vec<u8>),
    Broadcast,
}

#[derive(Debug, Default)]
pub(super) struct FakeOutlet {
    pub now: Now,
    pub known: BTreeSet<PeerName>,
    pub targets: usize,
    pub neighbour: Option<Neighbour>,
    pub sent: Vec<Sent>,
}

impl Outlet for FakeOutlet {
    fn now(&self) -> Now {
        self.now
    }
    fn unix_now(&self) -> i64 {
        UNIX
    }
    fn is_known(&self, peer: PeerName) -> bool {
        self.known.contains(&peer)
    }
    fn nickname(&self, _: PeerName) -> Option<String> {
        None
    }
    fn active_targets(&self) -> usize {
        self.targets
    }
    fn neighbour(&self) -> Option<Neighbour> {
        self.neighbour
    }
    fn unicast(&mut self, to: PeerName, payload: Vec<u8>) -> Result<(), UnicastError> {
        if !self.known.contains(&to) {
            return Err(UnicastError::NoRoute(to));
        }
        self.sent.push(Sent::Unicast(to, payload));
        Ok(())
    }
    fn broadcast(&mut self, _: GossipData) {
        self.sent.push(Sent::Broadcast);
    }
    fn gossip(&mut self, _: GossipData) {}
}

#[derive(Debug, Clone)]
enum Kind {
    Unicast,
    Broadcast,
    Gossip,
    Say(Say),
}

#[derive(Debug, Clone)]
struct Mail {
    from: usize,
    to: usize,
    kind: Kind,
    payload: Vec<u8>,
}

#[derive(Debug, Clone)]
enum Asked {
    Allocate(String),
    Claim(String, Address),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Up,
    Down,
    Gone,
}

struct Node {
    config: Config,
    allocator: Option<Allocator>,
    disk: Option<Persisted>,
    life: Life,
    group: u8,
    asked: HashMap<RequestId, Asked>,
}

/// How the peers come by their first ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Seeds,
    Guess,
    Count,
    Observers,
}

impl Style {
    const ALL: [Self; 4] = [Self::Seeds, Self::Guess, Self::Count, Self::Observers];
}

/// The network and all that is on it.
struct World {
    seed: u64,
    rng: SmallRng,
    now: Now,
    nodes: Vec<Node>,
    mail: Vec<Mail>,
    /// Who uses an address, as told by the answers given and releases asked for.
    users: HashMap<Address, (usize, String)>,
    universe: Cidr,
    next_request: RequestId,
    /// Loss, reordering, duplication, crashes.
    chaos: bool,
    /// Probability of a crash at each of the two moments of a step.
    crash: f64,
    /// Probability that a draw of that event divides the network anew.
    split: f64,
    answered: usize,
    /// `--reclaim-after` of all.
    reclaim_after: Option<Duration>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let count = rng.random_range(2..=if seed.is_multiple_of(10) { 20 } else { 6 });
        let universe = ["10.2.0.0/24", "10.2.0.0/22", "10.2.0.0/26"][rng.random_range(0..3)];
        let style = Style::ALL[rng.random_range(0..4)];
        Self::build(seed, count, style, universe)
    }

    fn build(seed: u64, count: usize, style: Style, universe: &str) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let universe: Cidr = universe.parse().unwrap();
        let seeds: Vec<PeerName> = (0..rng.random_range(1..=count)).map(peer).collect();
        let electors = if style == Style::Observers {
            count.div_ceil(2)
        } else {
            count
        };
        let nodes = (0..count).map(|index| {
            let mode = match style {
                Style::Seeds => InitMode::Seed(seeds.clone()),
                Style::Guess => InitMode::Consensus(None),
                _ if index < electors => InitMode::Consensus(Some(electors)),
                _ => InitMode::Observer,
            };
            let config = Config {
                name: peer(index),
                nickname: format!("host{index}"),
                uid: 0,
                universe,
                default_subnet: universe,
                mode,
                seed,
            };
            Node {
                config,
                allocator: None,
                disk: None,
                life: Life::Down,
                group: 0,
                asked: HashMap::new(),
            }
        });
        let nodes = nodes.collect();
        let mut world = Self {
            seed,
            rng,
            now: Now::ZERO,
            nodes,
            mail: Vec::new(),
            users: HashMap::new(),
            universe,
            next_request: 0,
            chaos: true,
            crash: 0.004,
            split: 0.3,
            answered: 0,
            reclaim_after: None,
        };
        (0..count).for_each(|n| world.start(n));
        world
    }

    fn start(&mut self, n: usize) {
        let uid = self.rng.random();
        let node = &mut self.nodes[n];
        if node.life != Life::Down {
            return;
        }
        let config = Config {
            uid,
            ..node.config.clone()
        };
        // Through bytes, as a store would.
        let disk = serde_json::to_vec(&node.disk).unwrap();
        let persisted: Option<Persisted> = serde_json::from_slice(&disk).unwrap();
        assert_eq!(persisted, node.disk);
        let mut allocator = Allocator::new(config, persisted);
        allocator.set_reclaim_after(self.reclaim_after);
        node.allocator = Some(allocator);
        node.life = Life::Up;
        self.step(n, |_, _| Ok(()));
    }

    fn stop(&mut self, n: usize, life: Life) {
        let node = &mut self.nodes[n];
        node.allocator = None;
        node.asked.clear();
        node.life = life;
        if life == Life::Gone {
            node.disk = None;
            self.users.retain(|_, (user, _)| *user != n);
            self.mail.retain(|m| m.from != n && m.to != n);
        }
    }

    fn up(&self) -> Vec<usize> {
        (0..self.nodes.len())
            .filter(|n| self.nodes[*n].life == Life::Up)
            .collect()
    }

    fn reachable(&self, from: usize) -> Vec<usize> {
        let group = self.nodes[from].group;
        self.up()
            .into_iter()
            .filter(|n| self.nodes[*n].group == group)
            .collect()
    }

    /// One step of one allocator: run, save, release. A crash may come in between.
    fn step(&mut self, n: usize, run: impl FnOnce(&mut Allocator, &mut dyn Outlet) -> Result<(), Rejected>) {
        let mut out = FakeOutlet {
            now: self.now,
            known: self.reachable(n).into_iter().map(peer).collect(),
            targets: self.nodes.len() - 1,
            ..FakeOutlet::default()
        };
        let seed = self.seed;
        let Some(allocator) = self.nodes[n].allocator.as_mut() else {
            return;
        };
        if let Err(why) = run(allocator, &mut out) {
            panic!("seed {seed}: {n} rejects: {why}");
        }
        if let Some(conflict) = allocator.conflicts().next() {
            panic!("seed {seed}: {n} in conflict: {}", conflict.text);
        }
        let may_lose = self.reclaim_after.is_some();
        assert!(
            may_lose || allocator.strays().is_empty(),
            "seed {seed}: {n} lost addresses"
        );
        let said = allocator.take_said();
        let changes = allocator.take_changes();
        let replies = allocator.take_replies();
        if self.chaos && self.rng.random_bool(self.crash) {
            return self.stop(n, Life::Down);
        }
        if let Some(changes) = changes {
            changes.apply(&mut self.nodes[n].disk);
            self.check_disks(n);
        }
        if self.chaos && self.rng.random_bool(self.crash) {
            return self.stop(n, Life::Down);
        }
        for (request, reply) in replies {
            self.answer(n, request, reply);
        }
        for (to, say) in said {
            let others = self.reachable(n).into_iter().filter(|o| *o != n);
            let to: Vec<usize> = match to {
                None => others.collect(),
                Some(to) => vec![to.as_u64() as usize - 1],
            };
            for to in to {
                self.post(Mail {
                    from: n,
                    to,
                    kind: Kind::Say(say.clone()),
                    payload: Vec::new(),
                });
            }
        }
        for sent in out.sent {
            match sent {
                Sent::Unicast(to, payload) => {
                    let to = to.as_u64() as usize - 1;
                    self.post(Mail {
                        from: n,
                        to,
                        kind: Kind::Unicast,
                        payload,
                    });
                }
                Sent::Broadcast => self.send_state(n, Kind::Broadcast),
            }
        }
    }

    fn send_state(&mut self, n: usize, kind: Kind) {
        let others: Vec<usize> = self.reachable(n).into_iter().filter(|o| *o != n).collect();
        let Some(allocator) = self.nodes[n].allocator.as_mut() else {
            return;
        };
        let data = allocator.full_state(&mut FakeOutlet::default()).unwrap();
        let payload = allocator.encode(UNIX, &data);
        for to in others {
            self.post(Mail {
                from: n,
                to,
                kind: kind.clone(),
                payload: payload.clone(),
            });
        }
    }

    fn post(&mut self, mail: Mail) {
        if self.chaos && self.rng.random_bool(0.1) {
            return;
        }
        if self.chaos && self.rng.random_bool(0.1) {
            self.mail.push(mail.clone());
        }
        self.mail.push(mail);
        if self.chaos && self.mail.len() > 300 {
            let lost = self.rng.random_range(0..self.mail.len());
            self.mail.swap_remove(lost);
        }
    }

    fn deliver(&mut self, index: usize) {
        let mail = if self.chaos {
            self.mail.swap_remove(index)
        } else {
            self.mail.remove(index)
        };
        let Mail {
            from,
            to,
            kind,
            payload,
        } = mail;
        let apart = self.nodes[from].group != self.nodes[to].group;
        if apart {
            return;
        }
        self.step(to, |allocator, out| match kind {
            Kind::Unicast => allocator.on_unicast(out, peer(from), &payload),
            Kind::Broadcast => allocator.on_broadcast(out, peer(from), &payload).map(|_| ()),
            Kind::Gossip => allocator.on_gossip(out, &payload).map(|_| ()),
            Kind::Say(say) => {
                allocator.on_say(out, peer(from), say);
                Ok(())
            }
        });
    }

    fn answer(&mut self, n: usize, request: RequestId, reply: Reply) {
        let asked = self.nodes[n].asked.remove(&request).unwrap();
        self.answered += 1;
        let (id, addr) = match (asked, reply) {
            (Asked::Allocate(id), Reply::Allocated(cidr)) => (id, cidr.addr),
            (Asked::Claim(id, addr), Reply::Done) => (id, addr),
            (Asked::Claim(..), Reply::Failed(_)) | (_, Reply::Cancelled) => return,
            other => panic!("seed {}: {other:?}", self.seed),
        };
        let user = (n, id);
        let first = self.users.entry(addr).or_insert_with(|| user.clone());
        assert_eq!(*first, user, "seed {}: {addr:#x} handed out twice", self.seed);
    }

    /// No two peers have saved that they handed out the same address.
    fn check_disks(&self, changed: usize) {
        let addresses = |n: usize| -> BTreeSet<Address> {
            let records = self.nodes[n].disk.iter().flat_map(|d| d.owned.values());
            records.flat_map(|r| r.cidrs.iter().map(|c| c.addr)).collect()
        };
        let here = addresses(changed);
        for other in (0..self.nodes.len()).filter(|o| *o != changed) {
            let both: Vec<_> = addresses(other).intersection(&here).copied().collect();
            assert!(
                both.is_empty(),
                "seed {}: {changed} and {other} both use {both:x?}",
                self.seed
            );
        }
    }

    fn ask(&mut self, n: usize, asked: Asked) {
        if self.nodes[n].life == Life::Up && self.nodes[n].asked.len() < 4 {
            self.ask_more(n, asked);
        }
    }

    fn ask_more(&mut self, n: usize, asked: Asked) {
        self.next_request += 1;
        let (request, universe) = (self.next_request, self.universe);
        self.nodes[n].asked.insert(request, asked.clone());
        self.step(n, |allocator, out| {
            match asked {
                Asked::Allocate(id) => allocator.allocate(out, request, &id, universe, true),
                Asked::Claim(id, addr) => {
                    let cidr = Cidr { addr, ..universe };
                    allocator.claim(out, request, &id, cidr, ClaimOptions::default());
                }
            }
            Ok(())
        });
    }

    fn free(&mut self, n: usize, id: &str) {
        self.users.retain(|_, user| *user != (n, id.to_owned()));
        self.step(n, |allocator, _| {
            let _ = allocator.free_all(id);
            Ok(())
        });
    }

    fn tick(&mut self, n: usize) {
        self.step(n, |allocator, out| {
            allocator.tick(out);
            Ok(())
        });
    }

    fn random_event(&mut self) {
        self.now += Duration::from_millis(self.rng.random_range(0..500));
        let n = self.rng.random_range(0..self.nodes.len());
        let id = format!("c{n}.{}", self.rng.random_range(0..12));
        match self.rng.random_range(0..100) {
            0..6 => self.ask(n, Asked::Allocate(id)),
            6..8 => {
                let range = self.universe.host_range();
                let addr = self.rng.random_range(range.start..range.end);
                self.ask(n, Asked::Claim(id, addr));
            }
            8..11 => self.free(n, &id),
            11..15 => self.tick(n),
            15..17 => self.send_state(n, Kind::Gossip),
            17 if self.rng.random_bool(0.2) => self.stop_if_up(n),
            18..22 => self.start(n),
            22 if self.rng.random_bool(self.split) => {
                let parts = self.rng.random_range(1..=2);
                for n in 0..self.nodes.len() {
                    self.nodes[n].group = self.rng.random_range(0..parts);
                }
            }
            _ if !self.mail.is_empty() => {
                let index = self.rng.random_range(0..self.mail.len());
                self.deliver(index);
            }
            _ => {}
        }
    }

    fn stop_if_up(&mut self, n: usize) {
        if self.nodes[n].life == Life::Up {
            self.stop(n, Life::Down);
        }
    }

    /// The network is whole, nobody crashes: rings become equal and everything asked is answered.
    fn settle(&mut self, what: &str) {
        self.chaos = false;
        for n in 0..self.nodes.len() {
            self.nodes[n].group = 0;
            self.start(n);
        }
        let mut deliveries = 0;
        for _ in 0..30 {
            self.now += Duration::from_secs(5);
            for n in self.up() {
                self.tick(n);
                self.send_state(n, Kind::Gossip);
            }
            while !self.mail.is_empty() {
                self.deliver(0);
                deliveries += 1;
                assert!(deliveries < 100_000, "seed {}: a storm of messages", self.seed);
            }
            if self.is_settled() {
                return;
            }
        }
        for n in self.up() {
            let allocator = self.nodes[n].allocator.as_ref().unwrap();
            println!("{n}: {:?} {:?}", allocator.ring().entries, self.nodes[n].asked);
        }
        panic!("seed {}: not settled: {what}", self.seed);
    }

    fn is_settled(&self) -> bool {
        let mut rings = self
            .up()
            .into_iter()
            .map(|n| &self.nodes[n].allocator.as_ref().unwrap().ring().entries);
        let first = rings.next().unwrap();
        let same = |other: &Vec<Entry>| other == first;
        rings.all(same) && self.nodes.iter().all(|n| n.asked.is_empty())
    }

    /// Frees so much that there is room for what is waiting, and for one more each.
    fn make_room(&mut self) {
        let limit = (self.universe.size() / 4) as usize;
        let mut users: Vec<(usize, String)> = self.users.values().cloned().collect();
        users.sort();
        users.dedup();
        // What was saved for clients that never got an answer, too.
        let disks: BTreeMap<usize, Vec<String>> = (0..self.nodes.len())
            .map(|n| {
                let records = self.nodes[n].disk.iter().flat_map(|d| d.owned.values());
                (n, records.map(|r| r.id.clone()).collect())
            })
            .collect();
        let total: usize = disks.values().map(Vec::len).sum();
        let excess = total.saturating_sub(limit.saturating_sub(5 * self.nodes.len()));
        let victims = disks
            .iter()
            .flat_map(|(n, ids)| ids.iter().map(|id| (*n, id.clone())));
        for (n, id) in victims.take(excess).collect::<Vec<_>>() {
            self.free(n, &id);
        }
    }

    /// Kills one peer for ever, or lets it hand over; another takes over what is left.
    fn lose_one(&mut self) {
        let up = self.up();
        if up.len() < 3 || self.nodes[up[0]].allocator.as_ref().is_none_or(|a| !a.has_ring()) {
            return;
        }
        let victim = up[self.rng.random_range(0..up.len())];
        if self.rng.random_bool(0.5) {
            // A departure whose news may be lost.
            self.chaos = true;
            self.users.retain(|_, (user, _)| *user != victim);
            self.step(victim, |allocator, out| {
                allocator.depart(out);
                Ok(())
            });
            self.chaos = false;
            while self.rng.random_bool(0.7) && !self.mail.is_empty() {
                self.deliver(0);
            }
        }
        self.stop(victim, Life::Gone);
        self.settle("before the takeover");
        let heir = self.up()[0];
        self.step(heir, |allocator, out| {
            allocator.take_over(out, peer(victim));
            Ok(())
        });
        self.settle("after the takeover");
        for n in self.up() {
            let ring = self.nodes[n].allocator.as_ref().unwrap().ring();
            assert!(!ring.owns(peer(victim)), "seed {}", self.seed);
        }
    }
}

fn run(seed: u64) -> usize {
    let mut world = World::new(seed);
    for round in 0..3 {
        world.chaos = true;
        for _ in 0..700 {
            world.random_event();
        }
        world.chaos = false;
        for n in 0..world.nodes.len() {
            world.start(n);
        }
        world.make_room();
        world.settle(&format!("round {round}"));
        world.lose_one();
        // Everybody can allocate.
        for n in world.up() {
            world.ask(n, Asked::Allocate(format!("last{round}")));
        }
        world.settle("one address for each");
        for n in world.up() {
            assert!(
                world.users.values().any(|u| *u == (n, format!("last{round}"))),
                "seed {seed}"
            );
        }
    }
    world.answered
}

#[test]
fn no_address_is_handed_out_twice_and_everyone_is_served() {
    let answered: usize = (0..60).map(run).sum();
    assert!(
        answered > 2000,
        "the simulation has hardly done anything: {answered}"
    );
}

/// The first minutes of a network on which everything crashes: still there is one ring.
#[test]
fn one_ring_in_spite_of_crashes() {
    for seed in 0..400 {
        let count = 3 + (seed % 3) as usize;
        let mut world = World::build(seed, count, Style::Count, "10.2.0.0/24");
        world.crash = 0.05;
        world.split = 1.0;
        for _ in 0..200 {
            world.random_event();
        }
        world.settle("start");
    }
}

/// More is asked for than there is: every usable address is handed out, and those that go without do not
/// keep asking each other at the speed of the network.
#[test]
fn exhausted_space() {
    let mut world = World::build(3, 5, Style::Seeds, "10.2.0.0/26");
    world.chaos = false;
    let want = world.universe.size() as usize;
    for index in 0..want {
        for n in 0..world.nodes.len() {
            world.ask_more(n, Asked::Allocate(format!("c{n}.{index}")));
        }
    }
    let mut deliveries = 0;
    for _ in 0..40 {
        deliveries = 0;
        world.now += Duration::from_secs(5);
        for n in world.up() {
            world.tick(n);
            world.send_state(n, Kind::Gossip);
        }
        while !world.mail.is_empty() {
            world.deliver(0);
            deliveries += 1;
            assert!(deliveries < 20_000, "a storm of messages");
        }
    }
    assert_eq!(world.users.len() as u64, world.universe.size() - 2);
    let nodes = world.nodes.len();
    assert!(
        deliveries <= 6 * nodes * nodes,
        "{deliveries} messages in 5 s among {nodes}"
    );
}

impl World {
    /// Some seconds in which messages arrive, and all allocate now and then.
    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds / 5 {
            self.now += Duration::from_secs(5);
            for n in self.up() {
                self.tick(n);
                self.send_state(n, Kind::Gossip);
                if self.rng.random_bool(0.1) {
                    let id = format!("c{n}.{}", self.rng.random_range(0..12));
                    self.ask(n, Asked::Allocate(id));
                }
            }
            while !self.mail.is_empty() {
                let index = self.rng.random_range(0..self.mail.len());
                self.deliver(index);
            }
        }
    }
}

/// Peers are out of sight for so long that the others take their space over, and come back with their
/// containers: no address is handed out by both sides, and all that is in use is had back.
#[test]
fn space_that_is_reclaimed_from_peers_that_return() {
    let mut reclaimed = 0;
    for seed in 0..40 {
        let mut world = World::build(seed, 5, Style::Count, "10.2.0.0/22");
        world.chaos = false;
        world.reclaim_after = Some(Duration::from_secs(60));
        for n in 0..5 {
            let node = world.nodes[n].allocator.as_mut().unwrap();
            node.set_reclaim_after(world.reclaim_after);
            world.ask(n, Asked::Allocate(format!("c{n}.0")));
        }
        world.pass(20);
        let away = world.rng.random_range(1..=2);
        for n in 0..away {
            let n = (n + seed as usize) % 5;
            world.nodes[n].group = 1;
        }
        let seconds = world.rng.random_range(20..250);
        world.pass(seconds);
        if world.rng.random_bool(0.3) {
            let n = world.rng.random_range(0..5);
            world.stop(n, Life::Down);
        }
        for node in &world.nodes {
            let owners = node.allocator.as_ref().map(|a| a.ring().owners().len());
            reclaimed += usize::from(owners.is_some_and(|count| count < 5));
        }
        world.settle("after the return");
        world.pass(60);
        world.settle("a minute later");
        for n in 0..5 {
            let allocator = world.nodes[n].allocator.as_ref().unwrap();
            assert!(
                allocator.strays().is_empty(),
                "seed {seed}: {n} waits for {:?}",
                allocator.strays()
            );
            assert!(
                allocator.lost.is_empty(),
                "seed {seed}: {n} lost {:?}",
                allocator.lost
            );
        }
    }
    assert!(reclaimed > 20, "hardly anything was reclaimed: {reclaimed}");
}
