//! Peers, virtual time, and what happens to them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use weave_ctl::mesh::Now;
use weave_ctl::mesh::channel::Outlet;
use weave_ctl::mesh::core::{Config, Input, Mesh, Output};
use weave_ctl::mesh::name::ShortId;
use weave_ctl::mesh::targets::ResolvedPeer;

use super::link::{Faults, Pipe, end_of};
use super::traffic::Traffic;
use super::{PORT, Settings, Site, address, name};

/// A simulated peer.
pub struct Node<S> {
    /// Its mesh.
    pub mesh: Mesh,
    /// What runs beside it.
    pub site: S,
    /// Is its process running?
    pub up: bool,
    /// Peers of different groups cannot talk.
    pub group: usize,
    /// Seconds by which its clock is ahead.
    pub skew: i64,
    /// Neither says nor understands what only new peers do.
    pub original: bool,
    /// Bytes sent since the world began.
    pub sent: u64,
    pub(super) incarnation: u64,
    tick_at: Option<Now>,
    doom: Option<Doom>,
}

/// At which moment of its next turn a peer crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doom {
    /// Nothing of the turn is left.
    BeforeSaving,
    /// It is on disk, but nobody has heard of it.
    BeforeSending,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    Tick(usize),
    Chore {
        node: usize,
        incarnation: u64,
    },
    Dialled {
        node: usize,
        incarnation: u64,
        target: SocketAddr,
    },
    Introduced {
        pipe: usize,
        side: usize,
    },
    Arrived {
        pipe: usize,
        side: usize,
        body: Vec<u8>,
    },
    Written {
        pipe: usize,
        side: usize,
    },
    Established {
        pipe: usize,
        side: usize,
    },
    Broken {
        pipe: usize,
        side: usize,
        error: &'static str,
    },
}

/// The network and all that is on it.
pub struct World<S> {
    /// As made.
    pub settings: Settings,
    /// Since it began.
    pub now: Now,
    /// The dice.
    pub rng: SmallRng,
    /// The peers; [`name`] has their names.
    pub nodes: Vec<Node<S>>,
    /// What happens to gossip on its way.
    pub faults: Faults,
    /// All that was sent.
    pub traffic: Traffic,
    /// Events so far.
    pub handled: u64,
    /// Reasons for which peers closed connections, with their number.
    pub closed: BTreeMap<String, usize>,
    /// The command that repeats this run, for messages about failures.
    pub replay: String,
    pub(super) pipes: BTreeMap<usize, Pipe>,
    pub(super) next_pipe: usize,
    events: BinaryHeap<Reverse<(Now, u64, Event)>>,
    sequence: u64,
}

impl<S: Site> World<S> {
    /// All peers run and know nobody; `site` makes what is beside the mesh.
    pub fn new(settings: Settings, mut site: impl FnMut(usize) -> S) -> Self {
        let mut world = Self {
            now: Duration::ZERO,
            rng: SmallRng::seed_from_u64(settings.seed),
            nodes: Vec::new(),
            faults: Faults::default(),
            traffic: Traffic::default(),
            handled: 0,
            closed: BTreeMap::new(),
            replay: String::new(),
            pipes: BTreeMap::new(),
            next_pipe: 0,
            events: BinaryHeap::new(),
            sequence: 0,
            settings,
        };
        for n in 0..world.settings.peers {
            let mesh = world.fresh_mesh(n);
            world.nodes.push(Node {
                mesh,
                site: site(n),
                up: true,
                group: 0,
                skew: 0,
                original: false,
                sent: 0,
                incarnation: 0,
                tick_at: None,
                doom: None,
            });
            world.begin(n);
        }
        world
    }

    fn fresh_mesh(&mut self, node: usize) -> Mesh {
        let short = if self.settings.same_short_id {
            0
        } else {
            self.rng.random_range(0..4096)
        };
        let config = Config {
            name: name(node),
            nickname: format!("host{node}"),
            uid: self.rng.random_range(1..u64::MAX),
            short_id: ShortId::new(short).unwrap(),
            port: PORT,
            conn_limit: self.settings.conn_limit,
            discovery: self.settings.discovery,
            seed: self.rng.random(),
        };
        Mesh::new(config, self.now)
    }

    fn begin(&mut self, node: usize) {
        let incarnation = self.nodes[node].incarnation;
        if let Some(every) = S::CHORE {
            let first = self.rng.random_range(0..every.as_millis() as u64);
            self.after(first, Event::Chore { node, incarnation });
        }
        self.schedule_tick(node);
    }

    /// The running peers.
    #[must_use]
    pub fn up(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|n| self.nodes[*n].up).collect()
    }

    /// `weave connect`.
    pub fn connect(&mut self, node: usize, to: &[usize]) {
        let resolved = |n: &usize| ResolvedPeer {
            text: address(*n).ip().to_string(),
            addr: SocketAddr::new(address(*n).ip(), 0),
            port_given: false,
        };
        let peers = to.iter().map(resolved).collect();
        let replace = false;
        self.input(node, Input::Connect { peers, replace });
    }

    /// The process is gone; others notice within seconds.
    pub fn crash(&mut self, node: usize) {
        self.nodes[node].up = false;
        self.nodes[node].doom = None;
        let ends = self.pipes.iter().flat_map(|(pipe, p)| {
            let sides = (0..2).filter(|side| p.ends[*side].node == node);
            sides.map(|side| (*pipe, side))
        });
        for (pipe, side) in ends.collect::<Vec<_>>() {
            self.shut(pipe, side);
            let wait = self.rng.random_range(0..3000);
            let event = Event::Broken {
                pipe,
                side: 1 - side,
                error: "connection reset by peer",
            };
            self.after(wait, event);
        }
    }

    /// Crashes in the middle of its next turn.
    pub fn doom(&mut self, node: usize, moment: Doom) {
        self.nodes[node].doom = Some(moment);
    }

    /// Stops as on SIGTERM.
    pub fn stop(&mut self, node: usize) {
        self.input(node, Input::Shutdown);
        self.crash(node);
    }

    /// A new process with what was saved, told these direct peers.
    pub fn restart(&mut self, node: usize, site: S, direct: &[usize]) {
        let mesh = self.fresh_mesh(node);
        let entry = &mut self.nodes[node];
        entry.mesh = mesh;
        entry.site = site;
        (entry.up, entry.tick_at, entry.incarnation) = (true, None, entry.incarnation + 1);
        self.begin(node);
        self.connect(node, direct);
    }

    /// Splits the network: each peer into the group that the function names.
    pub fn partition(&mut self, group: impl Fn(usize) -> usize) {
        for (n, node) in self.nodes.iter_mut().enumerate() {
            node.group = group(n);
        }
        let apart =
            |ends: &[super::link::End; 2]| self.nodes[ends[0].node].group != self.nodes[ends[1].node].group;
        let cut = self.pipes.iter().filter(|(_, p)| apart(&p.ends)).map(|(n, _)| *n);
        for pipe in cut.collect::<Vec<_>>() {
            self.sever(pipe, 20_000, "i/o timeout");
        }
    }

    /// Breaks about one connection in `of`.
    pub fn lose_connections(&mut self, of: usize) {
        for pipe in self.pipes.keys().copied().collect::<Vec<_>>() {
            if self.rng.random_range(0..of) == 0 {
                self.sever(pipe, 1000, "connection reset by peer");
            }
        }
    }

    /// Each end notices within that many milliseconds.
    fn sever(&mut self, pipe: usize, within: u64, error: &'static str) {
        for side in 0..2 {
            let wait = self.rng.random_range(0..within);
            self.after(wait, Event::Broken { pipe, side, error });
        }
    }

    pub(super) fn after(&mut self, millis: u64, event: Event) {
        self.at(self.now + Duration::from_millis(millis), event);
    }

    pub(super) fn at(&mut self, when: Now, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((when, self.sequence, event)));
    }

    /// Runs until the condition holds, looking every second; fails after `limit` seconds.
    pub fn until(
        &mut self,
        what: &str,
        limit: u64,
        condition: impl Fn(&mut Self) -> Result<(), String>,
    ) -> Duration {
        let start = self.now;
        for _ in 0..limit {
            if condition(self).is_ok() {
                return self.now - start;
            }
            self.run(1);
        }
        match condition(self) {
            Ok(()) => self.now - start,
            Err(why) => self.fail(&format!(
                "{what}: not within {limit} s: {why}; closed: {:?}",
                self.closed
            )),
        }
    }

    /// Ends the run.
    #[allow(clippy::panic, reason = "that is its job")]
    pub fn fail(&self, why: &str) -> ! {
        let at = self.now.as_secs_f64();
        panic!("seed {} at {at:.3} s: {why}\n{}", self.settings.seed, self.replay)
    }

    /// So many seconds go by.
    pub fn run(&mut self, seconds: u64) {
        self.run_for(Duration::from_secs(seconds));
    }

    /// Some time goes by.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.events.peek().is_some_and(|Reverse((when, ..))| *when <= end) {
            let Reverse((when, _, event)) = self.events.pop().unwrap();
            self.now = when;
            self.handled += 1;
            self.happen(event);
        }
        self.now = end;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick(node) => {
                if self.nodes[node].up && self.nodes[node].tick_at == Some(self.now) {
                    self.nodes[node].tick_at = None;
                    self.input(node, Input::Tick);
                }
            }
            Event::Chore { node, incarnation } => {
                if self.nodes[node].up && self.nodes[node].incarnation == incarnation {
                    self.act(node, |site, out| site.chore(out));
                    let every = S::CHORE.unwrap_or(Duration::MAX);
                    self.at(self.now + every, Event::Chore { node, incarnation });
                }
            }
            Event::Dialled {
                node,
                incarnation,
                target,
            } => self.dialled(node, incarnation, target),
            Event::Introduced { pipe, side } => self.introduced(pipe, side),
            Event::Arrived { pipe, side, body } => self.arrived(pipe, side, body),
            Event::Written { pipe, side } => self.written(pipe, side),
            Event::Established { pipe, side } => self.established(pipe, side),
            Event::Broken { pipe, side, error } => self.broken(pipe, side, error),
        }
    }

    /// What the clock of a peer shows, in seconds.
    #[must_use]
    pub fn unix(&self, node: usize) -> i64 {
        1_700_000_000 + self.now.as_secs() as i64 + self.nodes[node].skew
    }

    /// A turn of a peer's mesh.
    pub fn input(&mut self, node: usize, input: Input) {
        let unix = self.unix(node);
        let entry = &mut self.nodes[node];
        let outputs = entry.mesh.handle(self.now, unix, input, &mut entry.site);
        self.settle(node, outputs);
    }

    /// A turn in which a site acts on its own behalf.
    pub fn act<R>(&mut self, node: usize, act: impl FnOnce(&mut S, &mut dyn Outlet) -> R) -> R {
        let unix = self.unix(node);
        let entry = &mut self.nodes[node];
        let (result, outputs) = entry
            .mesh
            .with_outlet(self.now, unix, S::CHANNEL, &mut entry.site, act);
        self.settle(node, outputs);
        result
    }

    /// The end of a turn: saves, answers, carries out and sends, in this order.
    fn settle(&mut self, node: usize, outputs: Vec<Output>) {
        let entry = &mut self.nodes[node];
        match entry.doom.take() {
            Some(Doom::BeforeSaving) => return self.crash(node),
            Some(Doom::BeforeSending) => {
                entry.site.save();
                return self.crash(node);
            }
            None => {}
        }
        entry.site.save();
        entry.site.answer(self.now);
        for output in outputs {
            match output {
                Output::Dial { target } => {
                    let wait = self.rng.random_range(1..50);
                    let incarnation = self.nodes[node].incarnation;
                    let event = Event::Dialled {
                        node,
                        incarnation,
                        target,
                    };
                    self.after(wait, event);
                }
                Output::Added { conn, remote, .. } => self.added(conn, remote),
                Output::Close { conn, reason } => {
                    // Names and numbers apart, there are few.
                    let end = reason.find(|c: char| c.is_ascii_digit()).unwrap_or(reason.len());
                    let text = reason.get(..end).unwrap_or_default().to_owned();
                    *self.closed.entry(text).or_default() += 1;
                    self.closed_by_us(conn);
                }
                Output::Ready { conn } => {
                    let (pipe, side) = end_of(conn);
                    self.write(pipe, side);
                }
                Output::PeerGone(_)
                | Output::Removed { .. }
                | Output::OverlayControlReceived { .. }
                | Output::RoutesChanged
                | Output::ShortIdsChanged
                | Output::Farewell { .. }
                | Output::NameTaken(_)
                | Output::OwnShortIdChanged(_) => {}
            }
        }
        self.schedule_tick(node);
    }

    fn schedule_tick(&mut self, node: usize) {
        let deadline = self.nodes[node].mesh.next_deadline();
        let planned = self.nodes[node].tick_at;
        if let Some(at) = deadline.map(|at| at.max(self.now))
            && planned.is_none_or(|planned| at < planned)
        {
            self.nodes[node].tick_at = Some(at);
            self.at(at, Event::Tick(node));
        }
    }
}
