//! Routing tables, computed from the topology (wire.md 4.4).

use std::collections::{BTreeMap, HashMap};

use super::name::PeerName;
use super::peers::Peers;

/// Which connections count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Edges {
    /// Present and established at both ends: for data frames.
    Established,
    /// Claimed by one end: for gossip.
    All,
}

/// Our place in the tree along which a peer's broadcasts go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    /// The neighbour that passes them on to us; `None` for our own, and where none does. What comes from
    /// another goes no further: it has another topology in mind, and frames could go round in circles (W13).
    pub from: Option<PeerName>,
    /// To whom we pass them on.
    pub to: Vec<PeerName>,
}

/// The neighbours of each peer by number, in order: one list for all, and where each peer's part of it ends. A
/// list for each would cost more than all the searches, with hundreds of peers.
#[derive(Debug, Default)]
struct Graph {
    list: Vec<u32>,
    ends: Vec<usize>,
}

impl Graph {
    fn with_capacity(peers: usize, edges: usize) -> Self {
        Self {
            list: Vec::with_capacity(edges),
            ends: Vec::with_capacity(peers),
        }
    }

    /// What was put on the list since the last call are the neighbours of the next peer.
    fn close(&mut self) {
        self.ends.push(self.list.len());
    }

    /// Number of peers.
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn neighbours(&self, of: u32) -> &[u32] {
        let of = of as usize;
        let start = of
            .checked_sub(1)
            .map_or(Some(0), |before| self.ends.get(before).copied());
        let range = start.zip(self.ends.get(of).copied());
        range
            .and_then(|(start, end)| self.list.get(start..end))
            .unwrap_or_default()
    }
}

/// First hop of each peer that was reached; the start leads to itself.
type Hops = Vec<Option<u32>>;

/// The tables of one peer for one state of the topology. Peers are numbered in order of their
/// names, as that order decides between equal paths.
#[derive(Debug, Default)]
pub struct Routes {
    names: Vec<PeerName>,
    own: Option<u32>,
    established: Graph,
    all: Graph,
    unicast: Hops,
    unicast_all: Hops,
    weights: Vec<(PeerName, u32)>,
    cache: HashMap<(PeerName, Edges), Tree>,
}

impl Routes {
    /// Tables for that peer.
    #[must_use]
    pub fn compute(peers: &Peers, own: PeerName) -> Self {
        let names: Vec<PeerName> = peers.iter().map(|p| p.name).collect();
        let edges = peers.iter().map(|p| p.connections.len()).sum();
        let new = || Graph::with_capacity(names.len(), edges);
        let (mut all, mut claimed, mut established) = (new(), new(), new());
        for peer in peers.iter() {
            let mut at = 0;
            // Both are sorted, so one pass over the names finds all numbers.
            for link in &peer.connections {
                while names.get(at).is_some_and(|n| *n < link.name) {
                    at += 1;
                }
                if names.get(at) == Some(&link.name) {
                    all.list.push(at as u32);
                    if link.established {
                        claimed.list.push(at as u32);
                    }
                }
            }
            all.close();
            claimed.close();
        }
        for peer in 0..claimed.len() as u32 {
            let mutual = |q: &&u32| claimed.neighbours(**q).binary_search(&peer).is_ok();
            let both = claimed.neighbours(peer).iter().filter(mutual);
            established.list.extend(both);
            established.close();
        }
        let own = names.binary_search(&own).ok().map(|i| i as u32);
        let mut routes = Self {
            names,
            own,
            established,
            all,
            ..Self::default()
        };
        if let Some(own) = own {
            routes.unicast = search(&routes.established, own, None).hops;
            routes.unicast_all = search(&routes.all, own, None).hops;
            routes.weights = routes.weigh(own);
        }
        routes
    }

    /// Do data frames take the same ways in both?
    #[must_use]
    pub fn same_for_data(&self, other: &Self) -> bool {
        self.data_edges().eq(other.data_edges())
    }

    fn data_edges(&self) -> impl Iterator<Item = (Option<&PeerName>, Option<&PeerName>)> {
        let ends = move |(number, from)| {
            let to = self.established.neighbours(number).iter();
            to.map(move |to| (Some(from), self.names.get(*to as usize)))
        };
        (0..).zip(&self.names).flat_map(ends)
    }

    /// First hop towards a peer; `None` when there is none, or for ourselves.
    #[must_use]
    pub fn next_hop(&self, to: PeerName, edges: Edges) -> Option<PeerName> {
        let hops = if edges == Edges::All {
            &self.unicast_all
        } else {
            &self.unicast
        };
        let to = self.names.binary_search(&to).ok()?;
        let hop = (*hops.get(to)?)?;
        if Some(hop) == self.own {
            None
        } else {
            self.names.get(hop as usize).copied()
        }
    }

    /// The table for data frames, by destination; ourselves with `None`.
    pub fn unicast(&self) -> impl Iterator<Item = (PeerName, Option<PeerName>)> {
        self.names.iter().zip(&self.unicast).filter_map(|(to, hop)| {
            let hop = (*hop)?;
            let via = if Some(hop) == self.own {
                None
            } else {
                self.names.get(hop as usize).copied()
            };
            Some((*to, via))
        })
    }

    /// To whom we pass on what that peer broadcasts.
    pub fn broadcast(&mut self, origin: PeerName, edges: Edges) -> &[PeerName] {
        self.tree(origin, edges).map_or(&[], |tree| &tree.to)
    }

    /// Computed on first use; `None` for a peer that is not known.
    fn tree(&mut self, origin: PeerName, edges: Edges) -> Option<&Tree> {
        let known = self.names.binary_search(&origin).ok().zip(self.own);
        // The cache holds known origins only, so it cannot grow beyond the table of peers.
        let (origin_number, own) = known?;
        let graph = if edges == Edges::All {
            &self.all
        } else {
            &self.established
        };
        let names = &self.names;
        let tree = self.cache.entry((origin, edges)).or_insert_with(|| {
            let found = search(graph, origin_number as u32, Some(own));
            let unreached = |q: &&u32| found.hops.get(**q as usize).is_some_and(Option::is_none);
            let list = if found.stopped { graph.neighbours(own) } else { &[] };
            let name = |q: u32| names.get(q as usize).copied();
            Tree {
                from: found.before_stop.and_then(name),
                to: list.iter().filter(unreached).filter_map(|q| name(*q)).collect(),
            }
        });
        Some(tree)
    }

    /// Broadcast table for data frames of every peer that reaches us.
    pub fn broadcasts(&mut self) -> BTreeMap<PeerName, Tree> {
        let reachable: Vec<PeerName> = self.unicast().map(|(name, _)| name).collect();
        reachable
            .into_iter()
            .filter_map(|origin| Some((origin, self.tree(origin, Edges::Established)?.clone())))
            .collect()
    }

    /// Peers in the table for gossip, ourselves included (wire.md 4.3 "number of table entries").
    #[must_use]
    pub fn gossip_entries(&self) -> usize {
        self.unicast_all.iter().filter(|h| h.is_some()).count()
    }

    /// Neighbours with the number of peers that they lead to.
    #[must_use]
    pub fn weights(&self) -> &[(PeerName, u32)] {
        &self.weights
    }

    fn weigh(&self, own: u32) -> Vec<(PeerName, u32)> {
        let mut counts = BTreeMap::new();
        for hop in self.unicast_all.iter().flatten().filter(|h| **h != own) {
            if let Some(name) = self.names.get(*hop as usize) {
                *counts.entry(*name).or_insert(0) += 1;
            }
        }
        counts.into_iter().collect()
    }
}

/// What [`search`] found.
struct Found {
    hops: Hops,
    /// The stop peer was reached, and the search ended there.
    stopped: bool,
    /// Over whom it was reached.
    before_stop: Option<u32>,
}

/// Breadth first from a peer, each level in order of names, as far as the stop peer.
fn search(graph: &Graph, from: u32, stop: Option<u32>) -> Found {
    let mut hops: Hops = vec![None; graph.len()];
    let mut before_stop = None;
    let mut level = vec![from];
    if let Some(start) = hops.get_mut(from as usize) {
        *start = Some(from);
    }
    let mut reached = 1;
    while !level.is_empty() {
        if reached == graph.len() {
            // Nothing can change any more: in a full mesh this is after the first peer.
            let stopped = stop.is_some();
            return Found {
                hops,
                stopped,
                before_stop,
            };
        }
        level.sort_unstable();
        let mut next = Vec::new();
        for peer in level {
            if stop == Some(peer) {
                let stopped = true;
                return Found {
                    hops,
                    stopped,
                    before_stop,
                };
            }
            let via = hops.get(peer as usize).copied().flatten();
            for neighbour in graph.neighbours(peer) {
                if let Some(hop @ None) = hops.get_mut(*neighbour as usize) {
                    *hop = if peer == from { Some(*neighbour) } else { via };
                    next.push(*neighbour);
                    reached += 1;
                    if stop == Some(*neighbour) {
                        before_stop = Some(peer);
                    }
                }
            }
        }
        level = next;
    }
    let stopped = false;
    Found {
        hops,
        stopped,
        before_stop,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::super::summary::{ConnectionSummary, PeerSummary};
    use super::*;

    fn name(letter: char) -> PeerName {
        PeerName::from_u64(u64::from(letter)).unwrap()
    }

    fn peers(own: char, links: &[(char, &str)]) -> Peers {
        let summary = |(from, to): &(char, &str)| PeerSummary {
            name: name(*from),
            nickname: String::new(),
            uid: 1,
            version: 1,
            short_id: None,
            connections: to
                .chars()
                .filter(|c| c.is_alphabetic())
                .map(|c| ConnectionSummary {
                    name: name(c.to_ascii_uppercase()),
                    remote_addr: String::new(),
                    outbound: true,
                    established: c.is_uppercase(),
                })
                .collect(),
        };
        let own_summary = links.iter().find(|l| l.0 == own).map(summary).unwrap();
        let mut peers = Peers::new(own_summary);
        peers.apply(links.iter().map(summary).collect());
        peers
    }

    fn text(hops: &[PeerName]) -> String {
        hops.iter().map(|n| char::from(n.to_bytes()[5])).collect()
    }

    /// The worked example of wire.md 4.4.
    #[test]
    fn worked_example() {
        let links = [('A', "BC"), ('B', "AD"), ('C', "AD"), ('D', "BCE"), ('E', "D")];
        for (own, unicast, broadcast) in [
            ('A', "-BCBB", ["BC", "C", "B", "", ""]),
            ('B', "A-ADD", ["D", "AD", "", "A", "A"]),
            ('C', "AA-DD", ["", "", "AD", "", ""]),
            ('D', "BBC-E", ["E", "E", "E", "BCE", "BC"]),
            ('E', "DDDD-", ["", "", "", "", "D"]),
        ] {
            let mut routes = Routes::compute(&peers(own, &links), name(own));
            for edges in [Edges::Established, Edges::All] {
                let hop = |c| {
                    routes
                        .next_hop(name(c), edges)
                        .map_or("-".to_owned(), |n| text(&[n]))
                };
                assert_eq!(
                    "ABCDE".chars().map(hop).collect::<String>(),
                    unicast,
                    "unicast at {own}"
                );
                let lists: Vec<String> = "ABCDE"
                    .chars()
                    .map(|c| text(routes.broadcast(name(c), edges)))
                    .collect();
                assert_eq!(lists, broadcast, "broadcasts at {own}");
            }
        }
    }

    /// Who passes a broadcast on to us is he who has us in his list.
    #[test]
    fn both_ends_of_a_branch_agree() {
        let mut rng = SmallRng::seed_from_u64(1);
        for _ in 0..50 {
            let count = rng.random_range(2..12);
            let all: Vec<char> = ('A'..='Z').take(count).collect();
            let mut links: BTreeMap<char, String> = all.iter().map(|c| (*c, String::new())).collect();
            for (at, a) in all.iter().enumerate() {
                for b in all.get(at + 1..).unwrap().iter().filter(|_| rng.random_bool(0.3)) {
                    links.get_mut(a).unwrap().push(*b);
                    links.get_mut(b).unwrap().push(*a);
                }
            }
            let links: Vec<(char, &str)> = links.iter().map(|(c, to)| (*c, to.as_str())).collect();
            let trees: BTreeMap<PeerName, BTreeMap<PeerName, Tree>> = all
                .iter()
                .map(|c| {
                    (
                        name(*c),
                        Routes::compute(&peers(*c, &links), name(*c)).broadcasts(),
                    )
                })
                .collect();
            for (own, trees_here) in &trees {
                for (origin, tree) in trees_here {
                    let senders: Vec<PeerName> = trees
                        .iter()
                        .filter(|(_, there)| there.get(origin).is_some_and(|t| t.to.contains(own)))
                        .map(|(name, _)| *name)
                        .collect();
                    assert_eq!(tree.from.into_iter().collect::<Vec<_>>(), senders, "{links:?}");
                }
            }
        }
    }

    /// Small letters: claimed, but not established.
    #[test]
    fn data_needs_both_ends_gossip_one_claim() {
        let mut routes = Routes::compute(&peers('A', &[('A', "Bc"), ('B', "a"), ('C', "A")]), name('A'));
        assert_eq!(routes.next_hop(name('B'), Edges::Established), None);
        assert_eq!(routes.next_hop(name('C'), Edges::Established), None);
        assert_eq!(routes.next_hop(name('B'), Edges::All), Some(name('B')));
        assert_eq!(routes.next_hop(name('C'), Edges::All), Some(name('C')));
        assert_eq!(routes.unicast().collect::<Vec<_>>(), [(name('A'), None)]);
        assert!(routes.broadcast(name('A'), Edges::Established).is_empty());
        assert_eq!(text(routes.broadcast(name('A'), Edges::All)), "BC");
        assert!(
            routes.broadcast(name('Z'), Edges::All).is_empty(),
            "unknown origin"
        );
        assert!(routes.cache.len() <= 4);
    }

    #[test]
    fn weights_count_what_lies_behind() {
        let links = [('A', "BC"), ('B', "AD"), ('C', "AD"), ('D', "BCE"), ('E', "D")];
        let routes = Routes::compute(&peers('A', &links), name('A'));
        assert_eq!(routes.weights(), [(name('B'), 3), (name('C'), 1)]);
        assert_eq!(routes.gossip_entries(), 5);
    }
}
