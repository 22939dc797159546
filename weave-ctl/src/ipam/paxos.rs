//! Agreeing once, among whom the universe is first divided (control.md 1.11).
//!
//! Two differences from the original, neither visible on the wire. A voter is remembered over a restart
//! (see [`Voter`]): one that forgets its promises could help to choose a second, different value. And a
//! value is chosen when a quorum accepted it *in the same round*, as accepting equal values in different
//! rounds does not bind later rounds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::mesh::name::PeerName;

/// Most voters remembered; each restart of an original peer makes a new one.
pub const MAX_NODES: usize = 4096;

/// One voter: a peer in one of its incarnations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId {
    /// Peer name.
    pub name: PeerName,
    /// Random number of the incarnation.
    pub uid: u64,
}

/// A numbered proposal; ordered by round, then proposer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Proposal {
    /// From 1 upward (0 on the wire means "none").
    pub round: u64,
    /// Who proposed.
    pub proposer: NodeId,
}

/// A value accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// In which proposal.
    pub proposal: Proposal,
    /// The peers that are to share the universe.
    pub value: Vec<PeerName>,
    /// The proposal that first brought the value up. Equal origin means equal value.
    pub origin: Proposal,
}

/// What a voter says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// It will accept nothing older.
    pub promise: Option<Proposal>,
    /// The latest it has accepted.
    pub accepted: Option<Accepted>,
}

/// What is known of all voters.
pub type Nodes = BTreeMap<NodeId, Claims>;

/// What must survive a restart: who we are as a voter, and what we have promised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Voter {
    /// Incarnation under which the promises were made.
    pub uid: u64,
    /// The promises.
    pub claims: Claims,
}

/// One voter's view of the vote.
#[derive(Debug, Clone)]
pub struct Paxos {
    us: NodeId,
    quorum: usize,
    nodes: Nodes,
}

impl Claims {
    fn round(&self) -> u64 {
        let accepted = self.accepted.as_ref().map(|a| a.proposal);
        self.promise.max(accepted).map_or(0, |p| p.round)
    }

    fn accepted_in(&self) -> Option<Proposal> {
        self.accepted.as_ref().map(|a| a.proposal)
    }
}

impl Paxos {
    /// A voter that has not begun. A remembered one goes on under its old incarnation.
    #[must_use]
    pub fn new(us: NodeId, voter: Option<Voter>) -> Self {
        let mut paxos = Self {
            us,
            quorum: 0,
            nodes: Nodes::new(),
        };
        if let Some(voter) = voter {
            paxos.us.uid = voter.uid;
            paxos.nodes.insert(paxos.us, voter.claims);
        }
        paxos
    }

    /// Everything known, to be sent to others.
    #[must_use]
    pub fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// Votes needed; 0 as long as we only help others.
    #[must_use]
    pub fn quorum(&self) -> usize {
        self.quorum
    }

    /// What to remember, `None` before our first promise.
    #[must_use]
    pub fn voter(&self) -> Option<Voter> {
        let claims = self.nodes.get(&self.us)?.clone();
        let uid = self.us.uid;
        Some(Voter { uid, claims })
    }

    /// From now on we want a decision by that many votes.
    pub fn set_quorum(&mut self, quorum: usize) {
        self.quorum = quorum;
    }

    /// Learns from others. Returns true if anything was new.
    pub fn update(&mut self, received: Nodes) -> bool {
        let mut changed = false;
        for (node, theirs) in received {
            if !self.nodes.contains_key(&node) {
                if self.nodes.len() < MAX_NODES {
                    self.nodes.insert(node, theirs);
                    changed = true;
                }
                continue;
            }
            let ours = self.nodes.entry(node).or_default();
            if theirs.promise > ours.promise {
                ours.promise = theirs.promise;
                changed = true;
            }
            if theirs.accepted_in() > ours.accepted_in() {
                ours.accepted = theirs.accepted;
                changed = true;
            }
        }
        changed
    }

    /// Proposes, above everything known.
    pub fn propose(&mut self) {
        let highest = self.nodes.values().map(Claims::round).max().unwrap_or(0);
        let proposal = Proposal {
            round: highest.saturating_add(1),
            proposer: self.us,
        };
        self.nodes.entry(self.us).or_default().promise = Some(proposal);
        if self.quorum == 1 {
            self.think();
        }
    }

    /// Draws conclusions. Returns true if our own claims have changed.
    pub fn think(&mut self) -> bool {
        let Some(promise) = self.nodes.values().filter_map(|c| c.promise).max() else {
            return false;
        };
        let mut ours = self.nodes.get(&self.us).cloned().unwrap_or_default();
        let before = ours.clone();
        ours.promise = Some(promise);
        if promise.proposer == self.us
            && let Some(value) = self.choose(promise)
        {
            ours.accepted = Some(value);
        }
        let accepted = self.nodes.values().filter_map(|c| c.accepted.as_ref());
        if let Some(same) = accepted.into_iter().find(|a| a.proposal == promise) {
            ours.accepted = Some(same.clone());
        }
        let changed = ours != before;
        self.nodes.insert(self.us, ours);
        changed
    }

    /// Our proposal has been promised by enough voters: the value that we must, or may, propose.
    fn choose(&self, promise: Proposal) -> Option<Accepted> {
        let promised = || self.nodes.values().filter(|c| c.promise == Some(promise));
        if self.quorum == 0 || promised().count() < self.quorum {
            return None;
        }
        let latest = promised()
            .filter_map(|c| c.accepted.as_ref())
            .max_by_key(|a| a.proposal);
        let (value, origin) = match latest {
            Some(accepted) => (accepted.value.clone(), accepted.origin),
            None => (self.nodes.keys().map(|n| n.name).collect(), promise),
        };
        Some(Accepted {
            proposal: promise,
            value,
            origin,
        })
    }

    /// The value that has been chosen, if one has.
    #[must_use]
    pub fn consensus(&self) -> Option<Vec<PeerName>> {
        if self.quorum == 0 {
            return None;
        }
        let accepted = || self.nodes.values().filter_map(|c| c.accepted.as_ref());
        let votes = |a: &Accepted| accepted().filter(|b| b.proposal == a.proposal).count();
        accepted()
            .find(|a| votes(a) >= self.quorum && !a.value.is_empty())
            .map(|a| a.value.clone())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn node(number: u64) -> NodeId {
        NodeId {
            name: PeerName::from_u64(number).unwrap(),
            uid: 100 + number,
        }
    }

    fn voter(number: u64, quorum: usize) -> Paxos {
        let mut paxos = Paxos::new(node(number), None);
        paxos.set_quorum(quorum);
        paxos
    }

    fn names(numbers: &[u64]) -> Vec<PeerName> {
        numbers.iter().map(|n| PeerName::from_u64(*n).unwrap()).collect()
    }

    #[test]
    fn alone() {
        let mut paxos = voter(1, 1);
        assert_eq!(paxos.consensus(), None);
        paxos.propose();
        assert_eq!(paxos.consensus(), Some(names(&[1])));
        let claims = &paxos.nodes()[&node(1)];
        assert_eq!(claims.promise.map(|p| p.round), Some(1));
        assert_eq!(claims.accepted.as_ref().unwrap().origin, claims.promise.unwrap());
    }

    #[test]
    fn two_rounds_of_messages() {
        let (mut a, mut b) = (voter(1, 2), voter(2, 0));
        a.propose();
        assert!(b.update(a.nodes().clone()) && b.think());
        assert!(a.update(b.nodes().clone()) && a.think());
        assert_eq!(a.consensus(), None);
        assert!(b.update(a.nodes().clone()) && b.think());
        assert_eq!(b.consensus(), None, "b does not know the quorum");
        assert!(a.update(b.nodes().clone()));
        assert!(!a.think());
        assert_eq!(a.consensus(), Some(names(&[1, 2])));
        assert!(!a.update(b.nodes().clone()), "nothing new");
    }

    #[test]
    fn equal_values_of_different_rounds_are_no_decision() {
        // 1 accepts alone; 2 and 3 accept something else; then 3 continues with 1's value.
        let (p1, p2, p3) = (1, 2, 3);
        let proposal = |round, n| Proposal {
            round,
            proposer: node(n),
        };
        let claims = |promise, accepted, origin, value: &[u64]| Claims {
            promise: Some(promise),
            accepted: Some(Accepted {
                proposal: accepted,
                value: names(value),
                origin,
            }),
        };
        let first = proposal(p1, 1);
        let mut c = voter(3, 2);
        c.update(Nodes::from([
            (node(1), claims(proposal(p3, 3), first, first, &[1, 2])),
            (
                node(2),
                claims(proposal(p2, 2), proposal(p2, 2), proposal(p2, 2), &[2, 3]),
            ),
            (node(3), claims(proposal(p3, 3), proposal(p3, 3), first, &[1, 2])),
        ]));
        // 1 and 2 may by now have accepted 2's value in round 4.
        assert_eq!(c.consensus(), None);
    }

    #[test]
    fn nodes_are_bounded() {
        let mut paxos = voter(1, 2);
        let many = (1..=2 * MAX_NODES as u64).map(|n| (node(n), Claims::default()));
        paxos.update(many.collect());
        assert_eq!(paxos.nodes().len(), MAX_NODES);
        let proposal = Proposal {
            round: u64::MAX,
            proposer: node(2),
        };
        let promise = Some(proposal);
        paxos.update(Nodes::from([(
            node(2),
            Claims {
                promise,
                accepted: None,
            },
        )]));
        paxos.propose();
        paxos.think();
    }

    /// Loss, reordering, duplication and restarts: no two voters ever see different values chosen, and
    /// when messages come through, all see one.
    #[test]
    fn never_two_values() {
        for seed in 0..300 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let count = rng.random_range(2..=5u64);
            let quorum = count as usize / 2 + 1;
            let mut voters: Vec<Paxos> = (1..=count).map(|n| voter(n, quorum)).collect();
            let mut mail: Vec<(usize, Nodes)> = Vec::new();
            let mut chosen: Option<Vec<PeerName>> = None;
            for step in 0..600 {
                let calm = step >= 500;
                let at = rng.random_range(0..voters.len());
                let send = match rng.random_range(0..20) {
                    0 if !calm || step % 50 == 0 => {
                        voters[at].propose();
                        true
                    }
                    1 if !calm => {
                        // A restart, with another number drawn by the process.
                        let voter = voters[at].voter();
                        let fresh = NodeId {
                            uid: rng.random(),
                            ..node(at as u64 + 1)
                        };
                        voters[at] = Paxos::new(fresh, voter);
                        voters[at].set_quorum(quorum);
                        false
                    }
                    2 => true,
                    _ if !mail.is_empty() => {
                        let index = rng.random_range(0..mail.len());
                        let keep = !calm && rng.random_bool(0.1);
                        let (to, nodes) = if keep {
                            mail[index].clone()
                        } else {
                            mail.swap_remove(index)
                        };
                        if !calm && rng.random_bool(0.3) {
                            continue;
                        }
                        voters[to].update(nodes) && voters[to].think() && {
                            let nodes = voters[to].nodes().clone();
                            mail.extend((0..voters.len()).map(|v| (v, nodes.clone())));
                            false
                        }
                    }
                    _ => false,
                };
                if send {
                    let nodes = voters[at].nodes().clone();
                    mail.extend((0..voters.len()).map(|v| (v, nodes.clone())));
                }
                for voter in &voters {
                    if let Some(value) = voter.consensus() {
                        let first = chosen.get_or_insert_with(|| value.clone());
                        assert_eq!(*first, value, "seed {seed}");
                    }
                }
            }
            // Quiet at last: one proposes, all talk.
            voters[0].propose();
            for _ in 0..6 {
                let all: Vec<Nodes> = voters.iter().map(|v| v.nodes().clone()).collect();
                for voter in &mut voters {
                    for nodes in &all {
                        voter.update(nodes.clone());
                    }
                    voter.think();
                }
            }
            let values: Vec<_> = voters.iter().map(Paxos::consensus).collect();
            assert!(
                values.iter().all(|v| v.is_some() && *v == values[0]),
                "seed {seed}: {values:?}"
            );
            assert!(chosen.is_none() || chosen == values[0]);
        }
    }
}
