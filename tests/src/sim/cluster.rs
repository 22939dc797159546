//! A cluster of the product's peers in a world, with clients, and what must be true of it.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::SmallRng;
use weave_ctl::ipam::address::Cidr;
use weave_ctl::ipam::allocator::Config;
use weave_ctl::ipam::mode::InitMode;
use weave_ctl::mesh::name::PeerName;

use super::book::{Asked, Book};
use super::figures::{Figures, Phase, resident};
use super::options::Options;
use super::peer::Peer;
use super::{Faults, Settings, Traffic, World, name};

/// Questions of a peer's clients that may be open at a time.
const OPEN: usize = 6;
/// IDs at most peers, and at one in eight, so that these need the space of others.
const IDS: [usize; 2] = [6, 40];
/// Addresses for each peer: enough for all IDs and claims twice over.
const ROOM: usize = 32;
/// Peers that vote about the first ring at most; the others observe.
const ELECTORS: usize = 7;
/// Between two looks at the clients.
const STEP: Duration = Duration::from_millis(200);
/// All must agree by then: a partition is healed by the next attempt of some direct peer, which is nine
/// minutes off at most.
const PATIENCE: u64 = 1200;

/// The cluster.
pub struct Cluster {
    /// The network.
    pub world: World<Peer>,
    /// All addresses.
    pub book: Rc<RefCell<Book>>,
    /// Peers that have taken part in the first division, or were asked to vote on it: the first ones.
    pub founders: usize,
    /// Whom each is told of.
    pub told: Vec<Vec<usize>>,
    /// Takes no new questions.
    pub leaving: Vec<bool>,
    options: Options,
    universe: Cidr,
    started: Instant,
    phases: Vec<Phase>,
    before: (Duration, Traffic),
}

impl Cluster {
    /// All run, none knows another.
    #[must_use]
    pub fn new(options: &Options) -> Self {
        let peers = options.peers;
        let size = (peers * ROOM).next_power_of_two().max(64);
        let universe = Cidr {
            addr: u32::from_be_bytes([10, 32, 0, 0]),
            prefix_len: 32 - size.trailing_zeros() as u8,
        };
        let founders = peers.min(ELECTORS);
        let seeded = options.seed.is_multiple_of(3);
        let names: Vec<PeerName> = (0..founders).map(name).collect();
        let book = Rc::<RefCell<Book>>::default();
        let config = |node: usize| Config {
            name: name(node),
            nickname: format!("host{node}"),
            uid: node as u64 + 1,
            universe,
            default_subnet: universe,
            mode: match node {
                _ if seeded => InitMode::Seed(names.clone()),
                _ if node < founders => InitMode::Consensus(Some(founders)),
                _ => InitMode::Observer,
            },
            seed: options.seed,
        };
        let settings = Settings {
            seed: options.seed,
            peers,
            discovery: true,
            conn_limit: options.conn_limit,
            same_short_id: false,
        };
        let mut world = World::new(settings, |node| Peer::new(config(node), &book));
        world.replay = format!("again with: {options}");
        for node in 0..peers {
            world.nodes[node].original = world.rng.random_range(0..100) < options.originals;
        }
        let told = (0..peers).map(|node| whom(node, &mut world.rng)).collect();
        Self {
            world,
            book,
            founders,
            told,
            leaving: vec![false; peers],
            options: options.clone(),
            universe,
            started: Instant::now(),
            phases: Vec::new(),
            before: Default::default(),
        }
    }

    /// A line about what happens, for those who want it.
    pub fn tell(&self, what: &str) {
        if self.options.verbose {
            let at = self.world.now.as_secs_f64();
            println!(
                "{at:>9.1} s  {what} ({:.1} s)",
                self.started.elapsed().as_secs_f64()
            );
        }
    }

    /// Gossip suffers, or does not.
    pub fn set_faults(&mut self, on: bool) {
        self.world.faults = if on {
            Faults {
                lost: 10,
                doubled: 10,
                overtaken: 20,
            }
        } else {
            Faults::default()
        };
    }

    /// Time goes by with clients at work.
    pub fn live(&mut self, seconds: u64) {
        let end = self.world.now + Duration::from_secs(seconds);
        while self.world.now < end {
            self.clients();
            self.world.run_for(STEP);
            self.world.check_book(&self.book);
        }
    }

    /// About one client in so many peers does something.
    fn clients(&mut self) {
        for _ in 0..1 + self.world.nodes.len() / 32 {
            let node = self.any();
            if !self.world.nodes[node].up || self.leaving[node] {
                continue;
            }
            let id = format!(
                "c{node}.{}",
                self.world.rng.random_range(0..IDS[usize::from(node % 8 == 7)])
            );
            let dice = self.world.rng.random_range(0..10);
            if dice < 3 {
                self.world.free(node, &id);
            } else if self.book.borrow().waiting_at(node) < OPEN {
                let question = self.question(dice, id);
                self.world.ask(node, question);
            }
        }
    }

    fn question(&mut self, dice: u32, id: String) -> Asked {
        if dice > 3 {
            return Asked::Allocate(id);
        }
        let range = self.universe.host_range();
        Asked::Claim(id, self.world.rng.random_range(range.start..range.end))
    }

    /// Somebody.
    pub fn any(&mut self) -> usize {
        let peers = self.world.nodes.len();
        self.world.rng.random_range(0..peers)
    }

    /// A new process on the same disk, or on an empty one.
    pub fn start(&mut self, node: usize, reset: bool) {
        if self.world.nodes[node].up {
            self.world.crash(node);
        }
        let uid = self.world.rng.random();
        let old = &self.world.nodes[node].site;
        let site = if reset { old.reset(uid) } else { old.next(uid) };
        self.leaving[node] = false;
        let told = self.told[node].clone();
        self.world.restart(node, site, &told);
    }

    /// Ends a phase: no faults, no clients; all must agree, and nothing may be wrong. Figures are from the end
    /// of the phase before to here.
    pub fn agree(&mut self, what: &'static str) {
        self.set_faults(false);
        let book = Rc::clone(&self.book);
        let agreed_after = self.world.until(what, PATIENCE, |world| {
            world.check_book(&book);
            if let Some(open) = book.borrow().unanswered() {
                return Err(open);
            }
            world.rings_agree()?;
            world.settled()
        });
        if let Err(why) = self.world.addresses_kept(&self.book).and_then(|()| self.small()) {
            self.world.fail(&format!("{what}: {why}"));
        }
        self.end_phase(what, agreed_after);
        self.tell(&format!("{what}: all agree after {} s", agreed_after.as_secs()));
    }

    /// The same without conditions.
    pub fn end_phase(&mut self, what: &'static str, agreed_after: Duration) {
        let (since, traffic) = std::mem::take(&mut self.before);
        self.phases.push(Phase {
            what,
            agreed_after,
            time: self.world.now - since,
            traffic: self.world.traffic.since(&traffic),
        });
        self.before = (self.world.now, self.world.traffic.clone());
    }

    /// Nothing has grown beyond what so many peers explain.
    fn small(&self) -> Result<(), String> {
        let peers = self.world.nodes.len();
        let granted = self.book.borrow().granted as usize;
        for node in self.world.up() {
            let entry = &self.world.nodes[node];
            let (mesh, ipam) = (entry.mesh.sizes(), entry.site.ipam.sizes());
            let bounds = [
                ("connections", mesh.connections, peers),
                ("links", mesh.links, peers * peers),
                // A direct peer, and whoever is not connected.
                ("targets", mesh.targets, peers + 2),
                ("waiting items", mesh.waiting, 4 * peers),
                ("messages", mesh.messages, 16 * peers),
                ("slots", mesh.slots, 4 * peers * peers),
                ("nicknames", ipam.nicknames, peers),
                ("dead containers", ipam.dead, 0),
                ("pending operations", ipam.pending, 0),
                // An answer splits at most one range, at two places.
                ("ring entries", ipam.entries, self.founders + 2 * granted),
            ];
            for (what, is, most) in bounds {
                if is > most {
                    return Err(format!("{node} has {is} {what}: more than {most}"));
                }
            }
        }
        let known = [
            "Multiple connections to ",
            "Connection limit reached (",
            "Found unknown remote name: ",
            "weave is stopping",
        ];
        let expected = |reason: &&String| known.iter().any(|text| reason.starts_with(text));
        match self.world.closed.keys().find(|reason| !expected(reason)) {
            Some(reason) => Err(format!("a connection was closed: {reason}")),
            None => Ok(()),
        }
    }

    /// The end.
    #[must_use]
    pub fn figures(self) -> Figures {
        let book = self.book.borrow();
        Figures {
            peers: self.options.peers,
            phases: self.phases,
            entries: self.world.nodes[0].site.ipam.sizes().entries,
            answers: (book.granted, book.refused),
            longest: book.longest,
            events: self.world.handled,
            wall: self.started.elapsed(),
            memory: resident(),
        }
    }
}

/// One or two peers that came before; the first is told of the second.
fn whom(node: usize, rng: &mut SmallRng) -> Vec<usize> {
    if node == 0 {
        return vec![1];
    }
    let mut told: Vec<usize> = (0..rng.random_range(1..=2))
        .map(|_| rng.random_range(0..node))
        .collect();
    told.dedup();
    told
}
