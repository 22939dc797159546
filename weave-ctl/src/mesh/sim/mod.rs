//! Many meshes in one process: a seeded simulator with TCP links that delay, break and part.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod check;
mod hostile;
mod properties;
mod toy;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::core::{Config, Input, Introduction, Mesh, Output};
use super::handshake::Features;
use super::message::Message;
use super::name::{PeerName, ShortId};
use super::targets::ResolvedPeer;
use super::{ConnId, Now};
use toy::Toys;

const PORT: u16 = 6783;
/// Bytes a link carries in a second.
const BANDWIDTH: u64 = 50_000_000;

#[derive(Clone)]
struct Settings {
    seed: u64,
    peers: usize,
    discovery: bool,
    conn_limit: usize,
    /// All begin with short ID 0.
    same_short_id: bool,
}

struct Node {
    mesh: Mesh,
    toys: Toys,
    up: bool,
    incarnation: u64,
    tick_at: Option<Now>,
    /// Peers of different groups cannot talk.
    group: usize,
}

/// One end of a TCP connection.
struct End {
    node: usize,
    incarnation: u64,
    conn_id: u64,
    open: bool,
    added: bool,
    writing: bool,
    /// What arrived before reading started.
    inbox: Vec<Vec<u8>>,
    /// Nothing sent later may arrive before this.
    arrives: Now,
}

struct Pipe {
    ends: [End; 2],
    /// Whom the first end dialled.
    target: SocketAddr,
    latency: Duration,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Tick(usize),
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

struct World {
    settings: Settings,
    now: Now,
    rng: SmallRng,
    nodes: Vec<Node>,
    pipes: Vec<Pipe>,
    events: BinaryHeap<Reverse<(Now, u64, Event)>>,
    sequence: u64,
    handled: u64,
    bytes: u64,
    /// Reasons for which connections were closed, with their number.
    closed: BTreeMap<String, usize>,
}

fn name(node: usize) -> PeerName {
    PeerName::from_u64(0x0200_0000_0000 + node as u64 + 1).unwrap()
}

fn ip(node: usize) -> [u8; 4] {
    [10, 0, (node / 250) as u8, (node % 250) as u8 + 1]
}

fn address(node: usize) -> SocketAddr {
    SocketAddr::from((ip(node), PORT))
}

fn node_at(addr: SocketAddr) -> Option<usize> {
    let SocketAddr::V4(v4) = addr else { return None };
    let [_, _, high, low] = v4.ip().octets();
    (addr.port() == PORT).then(|| usize::from(high) * 250 + usize::from(low) - 1)
}

impl World {
    fn new(settings: Settings) -> Self {
        let mut world = Self {
            now: Duration::ZERO,
            rng: SmallRng::seed_from_u64(settings.seed),
            nodes: Vec::new(),
            pipes: Vec::new(),
            events: BinaryHeap::new(),
            sequence: 0,
            handled: 0,
            bytes: 0,
            closed: BTreeMap::new(),
            settings,
        };
        for n in 0..world.settings.peers {
            let mesh = world.fresh_mesh(n);
            world.nodes.push(Node {
                mesh,
                toys: Toys::default(),
                up: true,
                incarnation: 0,
                tick_at: None,
                group: 0,
            });
            world.schedule_tick(n);
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

    fn connect(&mut self, node: usize, to: &[usize]) {
        let resolved = |n: &usize| ResolvedPeer {
            text: address(*n).ip().to_string(),
            addr: SocketAddr::new(address(*n).ip(), 0),
            port_given: false,
        };
        let peers = to.iter().map(resolved).collect();
        self.input(
            node,
            Input::Connect {
                peers,
                replace: false,
            },
        );
    }

    fn crash(&mut self, node: usize) {
        self.nodes[node].up = false;
        for pipe in 0..self.pipes.len() {
            if let Some(side) = (0..2).find(|s| self.pipes[pipe].ends[*s].node == node) {
                self.pipes[pipe].ends[side].open = false;
                let wait = self.rng.random_range(0..3000);
                self.after(
                    wait,
                    Event::Broken {
                        pipe,
                        side: 1 - side,
                        error: "connection reset by peer",
                    },
                );
            }
        }
    }

    fn restart(&mut self, node: usize, direct: &[usize]) {
        let mesh = self.fresh_mesh(node);
        let entry = &mut self.nodes[node];
        entry.mesh = mesh;
        entry.toys = Toys::default();
        (entry.up, entry.tick_at, entry.incarnation) = (true, None, entry.incarnation + 1);
        self.connect(node, direct);
    }

    /// Splits the network: each peer into the group that the function names.
    fn partition(&mut self, group: impl Fn(usize) -> usize) {
        for (n, node) in self.nodes.iter_mut().enumerate() {
            node.group = group(n);
        }
        for pipe in 0..self.pipes.len() {
            let ends = &self.pipes[pipe].ends;
            if self.nodes[ends[0].node].group != self.nodes[ends[1].node].group {
                self.sever(pipe, 20_000, "i/o timeout");
            }
        }
    }

    /// Breaks about one connection in `of`.
    fn lose_connections(&mut self, of: usize) {
        for pipe in 0..self.pipes.len() {
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

    fn after(&mut self, millis: u64, event: Event) {
        self.at(self.now + Duration::from_millis(millis), event);
    }

    fn at(&mut self, when: Now, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((when, self.sequence, event)));
    }

    /// Runs until the condition holds, looking every second; panics after `limit` seconds.
    fn until(
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
        let why = condition(self).expect_err("the condition holds at last");
        panic!(
            "seed {}: {what}: not within {limit} s: {why}; closed: {:?}",
            self.settings.seed, self.closed
        );
    }

    fn run(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
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
            Event::Dialled {
                node,
                incarnation,
                target,
            } => self.dialled(node, incarnation, target),
            Event::Introduced { pipe, side } => {
                let end = &self.pipes[pipe].ends[side];
                let introduction = self.introduction(pipe, side);
                if end.open && self.alive(pipe, side) {
                    self.input(end.node, Input::Introduced(Box::new(introduction)));
                }
            }
            Event::Arrived { pipe, side, body } => self.arrived(pipe, side, body),
            Event::Written { pipe, side } => {
                self.pipes[pipe].ends[side].writing = false;
                self.write(pipe, side);
            }
            Event::Established { pipe, side } => {
                let end = &self.pipes[pipe].ends[side];
                if end.open && self.pipes[pipe].ends[1 - side].open && self.alive(pipe, side) {
                    self.input(
                        end.node,
                        Input::Established {
                            conn: conn_id(pipe, side),
                        },
                    );
                }
            }
            Event::Broken { pipe, side, error } => {
                let end = &mut self.pipes[pipe].ends[side];
                let (node, was_added) = (end.node, end.added);
                if std::mem::replace(&mut end.open, false) && self.alive(pipe, side) {
                    let input = match (was_added, side) {
                        (true, _) => Input::Closed {
                            conn: conn_id(pipe, side),
                            error: error.to_owned(),
                        },
                        (false, 0) => Input::DialFailed {
                            target: self.pipes[pipe].target,
                            error: error.to_owned(),
                            connected: true,
                        },
                        (false, _) => Input::AcceptFailed {
                            remote: address(0),
                            error: error.to_owned(),
                        },
                    };
                    self.input(node, input);
                }
            }
        }
    }

    /// Is the process that this end belongs to still running?
    fn alive(&self, pipe: usize, side: usize) -> bool {
        let end = &self.pipes[pipe].ends[side];
        self.nodes[end.node].up && self.nodes[end.node].incarnation == end.incarnation
    }

    fn dialled(&mut self, node: usize, incarnation: u64, target: SocketAddr) {
        if !self.nodes[node].up || self.nodes[node].incarnation != incarnation {
            return;
        }
        let Some(other) = node_at(target)
            .filter(|n| self.nodes.get(*n).is_some_and(|o| o.up))
            .filter(|n| self.nodes[*n].group == self.nodes[node].group)
        else {
            let error = format!("dial tcp {target}: connect: connection refused");
            self.input(
                node,
                Input::DialFailed {
                    target,
                    error,
                    connected: false,
                },
            );
            return;
        };
        let (a, b) = (self.rng.random(), self.rng.random());
        let end = |node: usize, conn_id, incarnation| End {
            node,
            incarnation,
            conn_id,
            open: true,
            added: false,
            writing: false,
            inbox: Vec::new(),
            arrives: Duration::ZERO,
        };
        let latency = Duration::from_micros(self.rng.random_range(200..30_000));
        let ends = [
            end(node, a, incarnation),
            end(other, b, self.nodes[other].incarnation),
        ];
        let pipe = self.pipes.len();
        self.pipes.push(Pipe {
            ends,
            target,
            latency,
        });
        for side in 0..2 {
            let wait = self.rng.random_range(1..60);
            self.after(wait, Event::Introduced { pipe, side });
        }
    }

    fn introduction(&self, pipe: usize, side: usize) -> Introduction {
        let (end, other) = (&self.pipes[pipe].ends[side], &self.pipes[pipe].ends[1 - side]);
        let theirs = self.nodes[other.node].mesh.own().unwrap();
        let ephemeral = SocketAddr::from((ip(other.node), 20_000 + (pipe % 40_000) as u16));
        let target = self.pipes[pipe].target;
        Introduction {
            conn: conn_id(pipe, side),
            outbound: side == 0,
            dialled: (side == 0).then_some(target),
            remote: if side == 0 { target } else { ephemeral },
            features: Features {
                name: theirs.name,
                nickname: theirs.nickname.clone(),
                uid: theirs.uid,
                conn_id: other.conn_id,
                short_id: theirs.short_id,
                trusted: false,
                overlays: None,
                extra: BTreeMap::new(),
            },
            our_conn_id: end.conn_id,
        }
    }

    fn arrived(&mut self, pipe: usize, side: usize, body: Vec<u8>) {
        let sender = self.pipes[pipe].ends[1 - side].node;
        let end = &mut self.pipes[pipe].ends[side];
        let node = end.node;
        if !end.open || self.nodes[sender].group != self.nodes[node].group {
            return;
        }
        if !end.added {
            end.inbox.push(body);
        } else if self.alive(pipe, side) {
            let message = Message::decode(&body)
                .expect("our own messages decode")
                .expect("and are known");
            self.input(
                node,
                Input::Received {
                    conn: conn_id(pipe, side),
                    message,
                },
            );
        }
    }

    fn input(&mut self, node: usize, input: Input) {
        let entry = &mut self.nodes[node];
        let outputs = entry
            .mesh
            .handle(self.now, unix(self.now), input, &mut entry.toys);
        self.carry_out(node, outputs);
    }

    fn carry_out(&mut self, node: usize, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Dial { target } => {
                    let wait = self.rng.random_range(1..50);
                    let incarnation = self.nodes[node].incarnation;
                    self.after(
                        wait,
                        Event::Dialled {
                            node,
                            incarnation,
                            target,
                        },
                    );
                }
                Output::Added { conn, remote, .. } => self.added(conn, remote),
                Output::Close { conn, reason } => {
                    *self.closed.entry(reason).or_default() += 1;
                    let (pipe, side) = end_of(conn);
                    self.pipes[pipe].ends[side].open = false;
                    let latency = self.pipes[pipe].latency;
                    let event = Event::Broken {
                        pipe,
                        side: 1 - side,
                        error: "connection reset by peer",
                    };
                    self.at(self.now + latency, event);
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

    fn added(&mut self, conn: ConnId, remote: PeerName) {
        let (pipe, side) = end_of(conn);
        assert_eq!(remote, name(self.pipes[pipe].ends[1 - side].node));
        self.pipes[pipe].ends[side].added = true;
        for body in std::mem::take(&mut self.pipes[pipe].ends[side].inbox) {
            self.after(0, Event::Arrived { pipe, side, body });
        }
        if self.pipes[pipe].ends.iter().all(|e| e.added) {
            for side in 0..2 {
                let wait = self.rng.random_range(1..700);
                self.after(wait, Event::Established { pipe, side });
            }
        }
    }

    fn write(&mut self, pipe: usize, side: usize) {
        if !self.alive(pipe, side) || !self.pipes[pipe].ends[side].open || self.pipes[pipe].ends[side].writing
        {
            return;
        }
        let entry = &mut self.nodes[self.pipes[pipe].ends[side].node];
        let Some(body) = entry
            .mesh
            .poll_send(conn_id(pipe, side), unix(self.now), &mut entry.toys)
        else {
            return;
        };
        self.bytes += body.len() as u64;
        let written = self.now + Duration::from_micros(20 + body.len() as u64 * 1_000_000 / BANDWIDTH);
        let latency = self.pipes[pipe].latency;
        let end = &mut self.pipes[pipe].ends[side];
        end.writing = true;
        end.arrives = end.arrives.max(written + latency);
        let arrives = end.arrives;
        self.at(
            arrives,
            Event::Arrived {
                pipe,
                side: 1 - side,
                body,
            },
        );
        self.at(written, Event::Written { pipe, side });
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

fn conn_id(pipe: usize, side: usize) -> ConnId {
    (pipe * 2 + side) as ConnId
}

fn end_of(conn: ConnId) -> (usize, usize) {
    (conn as usize / 2, conn as usize % 2)
}

fn unix(now: Now) -> i64 {
    1_700_000_000 + now.as_secs() as i64
}
