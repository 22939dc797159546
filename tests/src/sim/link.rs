//! The TCP connections of a world: in order and without loss, until they break.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use rand::RngExt;
use weave_ctl::mesh::channel::FEATURE_IMPLEMENTATION;
use weave_ctl::mesh::core::{Input, Introduction};
use weave_ctl::mesh::handshake::Features;
use weave_ctl::mesh::message::Message;
use weave_ctl::mesh::name::PeerName;
use weave_ctl::mesh::reconcile::{FEATURE, FEATURE_VALUE};
use weave_ctl::mesh::{ConnId, Now};

use super::world::Event;
use super::{Site, World, address, ip, name, node_at};

/// Bytes a link carries in a second.
const BANDWIDTH: u64 = 50_000_000;
/// Tags that are not gossip: heartbeats and what overlays tell each other.
const NOT_GOSSIP: [u8; 2] = [0, 7];
/// A message that is overtaken is late by so many milliseconds at most.
const LATE: u64 = 2000;

/// What no TCP connection does to the gossip in it, and what the protocol survives all the same. In thousandths.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Faults {
    /// Messages that never arrive.
    pub lost: u32,
    /// Messages that arrive twice.
    pub doubled: u32,
    /// Messages that later ones overtake.
    pub overtaken: u32,
}

/// One end of a TCP connection.
pub(super) struct End {
    pub node: usize,
    incarnation: u64,
    conn_id: u64,
    pub open: bool,
    added: bool,
    writing: bool,
    /// What arrived before reading started.
    inbox: Vec<Vec<u8>>,
    /// Nothing sent later may arrive before this.
    arrives: Now,
}

/// A TCP connection.
pub(super) struct Pipe {
    pub ends: [End; 2],
    /// Whom the first end dialled.
    target: SocketAddr,
    latency: Duration,
}

impl<S: Site> World<S> {
    fn end(&mut self, pipe: usize, side: usize) -> Option<&mut End> {
        self.pipes.get_mut(&pipe).map(|pipe| &mut pipe.ends[side])
    }

    /// The end, if it is open and its process runs.
    fn live(&mut self, pipe: usize, side: usize) -> Option<&mut End> {
        let end = &self.pipes.get(&pipe)?.ends[side];
        let node = &self.nodes[end.node];
        let lives = end.open && node.up && node.incarnation == end.incarnation;
        if lives { self.end(pipe, side) } else { None }
    }

    /// Closes an end; false if it was not open.
    pub(super) fn shut(&mut self, pipe: usize, side: usize) -> bool {
        let was_open = self
            .end(pipe, side)
            .is_some_and(|end| std::mem::replace(&mut end.open, false));
        if self
            .pipes
            .get(&pipe)
            .is_some_and(|p| p.ends.iter().all(|end| !end.open))
        {
            self.pipes.remove(&pipe);
        }
        was_open
    }

    pub(super) fn dialled(&mut self, node: usize, incarnation: u64, target: SocketAddr) {
        if !self.nodes[node].up || self.nodes[node].incarnation != incarnation {
            return;
        }
        let Some(other) = node_at(target)
            .filter(|n| self.nodes.get(*n).is_some_and(|o| o.up))
            .filter(|n| self.nodes[*n].group == self.nodes[node].group)
        else {
            let error = format!("dial tcp {target}: connect: connection refused");
            let connected = false;
            self.input(
                node,
                Input::DialFailed {
                    target,
                    error,
                    connected,
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
        let pipe = self.next_pipe;
        self.next_pipe += 1;
        self.pipes.insert(
            pipe,
            Pipe {
                ends,
                target,
                latency,
            },
        );
        for side in 0..2 {
            let wait = self.rng.random_range(1..60);
            self.after(wait, Event::Introduced { pipe, side });
        }
    }

    pub(super) fn introduced(&mut self, pipe: usize, side: usize) {
        let Some(node) = self.live(pipe, side).map(|end| end.node) else {
            return;
        };
        let introduction = self.introduction(pipe, side);
        self.input(node, Input::Introduced(Box::new(introduction)));
    }

    fn introduction(&self, number: usize, side: usize) -> Introduction {
        let pipe = &self.pipes[&number];
        let (end, other) = (&pipe.ends[side], &pipe.ends[1 - side]);
        let theirs = self.nodes[other.node].mesh.own().unwrap();
        let ephemeral = SocketAddr::from((ip(other.node), 20_000 + (number % 40_000) as u16));
        let mut extra = BTreeMap::new();
        // An original neither says it nor listens to it.
        if !self.nodes[end.node].original && !self.nodes[other.node].original {
            extra.insert(FEATURE.to_owned(), FEATURE_VALUE.to_owned());
            extra.insert(FEATURE_IMPLEMENTATION.to_owned(), "weave-ctl".to_owned());
        }
        Introduction {
            conn: conn_id(number, side),
            outbound: side == 0,
            dialled: (side == 0).then_some(pipe.target),
            remote: if side == 0 { pipe.target } else { ephemeral },
            features: Features {
                name: theirs.name,
                nickname: theirs.nickname.clone(),
                uid: theirs.uid,
                conn_id: other.conn_id,
                short_id: theirs.short_id,
                trusted: false,
                overlays: None,
                extra,
            },
            our_conn_id: end.conn_id,
        }
    }

    pub(super) fn arrived(&mut self, pipe: usize, side: usize, body: Vec<u8>) {
        let Some(sender) = self.end(pipe, 1 - side).map(|end| end.node) else {
            return;
        };
        let Some(end) = self.live(pipe, side) else {
            return;
        };
        let (node, added) = (end.node, end.added);
        if !added {
            end.inbox.push(body);
        } else if self.nodes[sender].group == self.nodes[node].group {
            let conn = conn_id(pipe, side);
            let message = Message::decode(&body)
                .expect("our own messages decode")
                .expect("and are known");
            self.input(node, Input::Received { conn, message });
        }
    }

    pub(super) fn established(&mut self, pipe: usize, side: usize) {
        let both = self
            .pipes
            .get(&pipe)
            .is_some_and(|p| p.ends.iter().all(|end| end.open));
        if let Some(node) = self.live(pipe, side).filter(|_| both).map(|end| end.node) {
            let conn = conn_id(pipe, side);
            self.input(node, Input::Established { conn });
        }
    }

    pub(super) fn broken(&mut self, pipe: usize, side: usize, error: &'static str) {
        let Some(end) = self.live(pipe, side) else { return };
        let (node, added) = (end.node, end.added);
        let target = self.pipes[&pipe].target;
        self.shut(pipe, side);
        let error = error.to_owned();
        let input = match (added, side) {
            (true, _) => Input::Closed {
                conn: conn_id(pipe, side),
                error,
            },
            (false, 0) => Input::DialFailed {
                target,
                error,
                connected: true,
            },
            (false, _) => Input::AcceptFailed {
                remote: address(0),
                error,
            },
        };
        self.input(node, input);
    }

    /// A mesh has closed its end.
    pub(super) fn closed_by_us(&mut self, conn: ConnId) {
        let (pipe, side) = end_of(conn);
        if let Some(latency) = self.pipes.get(&pipe).map(|pipe| pipe.latency) {
            self.shut(pipe, side);
            let event = Event::Broken {
                pipe,
                side: 1 - side,
                error: "connection reset by peer",
            };
            self.at(self.now + latency, event);
        }
    }

    pub(super) fn added(&mut self, conn: ConnId, remote: PeerName) {
        let (pipe, side) = end_of(conn);
        let Some(ends) = self.pipes.get_mut(&pipe).map(|pipe| &mut pipe.ends) else {
            return;
        };
        assert_eq!(remote, name(ends[1 - side].node));
        ends[side].added = true;
        let inbox = std::mem::take(&mut ends[side].inbox);
        let both = ends.iter().all(|end| end.added);
        for body in inbox {
            self.after(0, Event::Arrived { pipe, side, body });
        }
        if both {
            for side in 0..2 {
                let wait = self.rng.random_range(1..700);
                self.after(wait, Event::Established { pipe, side });
            }
        }
    }

    /// The writer of an end is free.
    pub(super) fn written(&mut self, pipe: usize, side: usize) {
        if let Some(end) = self.end(pipe, side) {
            end.writing = false;
        }
        self.write(pipe, side);
    }

    pub(super) fn write(&mut self, pipe: usize, side: usize) {
        let Some(node) = self
            .live(pipe, side)
            .filter(|end| !end.writing)
            .map(|end| end.node)
        else {
            return;
        };
        let unix = self.unix(node);
        let entry = &mut self.nodes[node];
        let Some(body) = entry.mesh.poll_send(conn_id(pipe, side), unix, &mut entry.site) else {
            return;
        };
        entry.sent += body.len() as u64;
        self.traffic.count(&body);
        let written = self.now + Duration::from_micros(20 + body.len() as u64 * 1_000_000 / BANDWIDTH);
        let latency = self.pipes[&pipe].latency;
        let end = &mut self.pipes.get_mut(&pipe).unwrap().ends[side];
        end.writing = true;
        end.arrives = end.arrives.max(written + latency);
        let arrives = end.arrives;
        self.send(pipe, 1 - side, arrives, body);
        self.at(written, Event::Written { pipe, side });
    }

    fn send(&mut self, pipe: usize, side: usize, mut arrives: Now, body: Vec<u8>) {
        let faults = self.faults;
        if faults != Faults::default() && !NOT_GOSSIP.iter().any(|tag| body.first() == Some(tag)) {
            let mut happens = |of_thousand| self.rng.random_range(0..1000) < of_thousand;
            if happens(faults.lost) {
                return;
            }
            let (doubled, overtaken) = (happens(faults.doubled), happens(faults.overtaken));
            if doubled {
                let body = body.clone();
                self.at(arrives, Event::Arrived { pipe, side, body });
            }
            if overtaken {
                arrives += Duration::from_millis(self.rng.random_range(0..LATE));
            }
        }
        self.at(arrives, Event::Arrived { pipe, side, body });
    }
}

pub(super) fn conn_id(pipe: usize, side: usize) -> ConnId {
    (pipe * 2 + side) as ConnId
}

pub(super) fn end_of(conn: ConnId) -> (usize, usize) {
    (conn as usize / 2, conn as usize % 2)
}
