//! The book of all addresses: who was told that he has which, and what is on whose disk.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use weave_ctl::ipam::address::Address;
use weave_ctl::ipam::operations::{Reply, RequestId};
use weave_ctl::mesh::Now;

/// What a client has asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// An address for this ID.
    Allocate(String),
    /// This very address for this ID.
    Claim(String, Address),
}

#[derive(Debug)]
struct Question {
    node: usize,
    asked: Asked,
    since: Now,
}

/// All peers write into the same one.
#[derive(Debug, Default)]
pub struct Book {
    /// Address, peer and ID, as told by the answers given and the releases asked for.
    users: BTreeMap<Address, (usize, String)>,
    /// Whose disk says that it has handed out an address.
    disks: BTreeMap<Address, usize>,
    open: BTreeMap<RequestId, Question>,
    next: RequestId,
    /// Answers with an address.
    pub granted: u64,
    /// Claims that were refused.
    pub refused: u64,
    /// Longest time to an answer.
    pub longest: Duration,
    /// What must never happen, and has.
    pub wrong: Option<String>,
}

impl Book {
    fn wrong(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }

    /// A client asks.
    pub fn ask(&mut self, node: usize, asked: Asked, since: Now) -> RequestId {
        self.next += 1;
        self.open.insert(self.next, Question { node, asked, since });
        self.next
    }

    /// How many wait for an answer of that peer.
    #[must_use]
    pub fn waiting_at(&self, node: usize) -> usize {
        self.open.values().filter(|q| q.node == node).count()
    }

    /// The oldest question that is not answered yet, as a text.
    #[must_use]
    pub fn unanswered(&self) -> Option<String> {
        let (_, question) = self.open.first_key_value()?;
        let Question { node, asked, since } = question;
        Some(format!(
            "{} questions are open, one of them at {node} since {} s: {asked:?}",
            self.open.len(),
            since.as_secs()
        ))
    }

    /// A peer has answered.
    pub fn answer(&mut self, node: usize, request: RequestId, reply: Reply, now: Now) {
        let Some(Question { asked, since, .. }) = self.open.remove(&request) else {
            return self.wrong(format!("{node} answers what nobody has asked: {reply:?}"));
        };
        self.longest = self.longest.max(now - since);
        let (id, addr) = match (asked, reply) {
            (Asked::Allocate(id), Reply::Allocated(cidr)) => (id, cidr.addr),
            (Asked::Claim(id, addr), Reply::Done) => (id, addr),
            (Asked::Claim(..), Reply::Failed(_)) => return self.refused += 1,
            (_, Reply::Cancelled) => return,
            other => return self.wrong(format!("{node} answers {other:?}")),
        };
        self.granted += 1;
        let holder = self.disks.get(&addr).copied();
        if holder != Some(node) {
            self.wrong(format!(
                "{node} hands out {addr:#x}, which is on the disk of {holder:?}"
            ));
        }
        let user = (node, id);
        let first = self.users.entry(addr).or_insert_with(|| user.clone()).clone();
        if first != user {
            self.wrong(format!("{addr:#x} is handed out to {first:?} and to {user:?}"));
        }
    }

    /// A client gives up all addresses of an ID.
    pub fn free(&mut self, node: usize, id: &str) {
        self.users.retain(|_, user| user.0 != node || user.1 != id);
    }

    /// A peer's clients give up everything.
    pub fn free_all(&mut self, node: usize) {
        self.users.retain(|_, user| user.0 != node);
    }

    /// A process has ended: its clients get no answers.
    pub fn hang_up(&mut self, node: usize) {
        self.open.retain(|_, question| question.node != node);
    }

    /// A process has ended, and its disk is empty.
    pub fn forget(&mut self, node: usize) {
        self.hang_up(node);
        self.free_all(node);
        self.disks.retain(|_, holder| *holder != node);
    }

    /// A peer has saved that it has handed out these addresses, and before that those.
    pub fn saved(&mut self, node: usize, before: &BTreeSet<Address>, now: &BTreeSet<Address>) {
        for addr in before.difference(now) {
            if self.disks.get(addr) == Some(&node) {
                self.disks.remove(addr);
            }
        }
        for addr in now.difference(before) {
            if let Some(other) = self.disks.insert(*addr, node).filter(|other| *other != node) {
                self.wrong(format!("{addr:#x} is on the disks of {other} and {node}"));
            }
        }
    }

    /// What that peer's clients were told they have.
    pub fn of(&self, node: usize) -> impl Iterator<Item = (Address, &str)> {
        let users = self.users.iter().filter(move |(_, user)| user.0 == node);
        users.map(|(addr, (_, id))| (*addr, id.as_str()))
    }

    /// How many addresses are in use.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.users.len()
    }
}
