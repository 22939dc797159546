//! The ring: which peer owns which part of the allocation range (control.md 1.3, 1.4).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::address::{Address, Range};
use crate::mesh::name::PeerName;

/// Largest number of entries accepted or made: such a ring fits into one mesh message and one gob value.
pub const MAX_ENTRIES: usize = 1 << 17;

/// From `token` up to the next entry's token the addresses belong to `peer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// First address.
    pub token: Address,
    /// The owner.
    pub peer: PeerName,
    /// Raised by the owner with each change.
    pub version: u32,
    /// How many addresses the owner has free in it.
    pub free: u32,
}

/// The replicated structure. One peer's copy of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    /// The universe: all that can be allocated.
    pub range: Range,
    /// Whose copy this is.
    pub peer: PeerName,
    /// Sorted by token; the last range wraps to the first token.
    pub entries: Vec<Entry>,
    /// Among whom the range was first divided, sorted.
    pub seeds: Vec<PeerName>,
}

/// A ring is wrong in itself, or contradicts ours. The texts are seen in `weave status connections`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// Entries are out of order.
    #[error("Ring not sorted")]
    NotSorted,
    /// Two entries start at the same address.
    #[error("Token appears twice in ring")]
    TokenTwice,
    /// An entry starts outside the universe.
    #[error("Token is out of range")]
    TokenOutOfRange,
    /// More free addresses than there are addresses.
    #[error("Entry {0}-{1} reporting too much free space: {2} > {3}")]
    TooMuchFree(Ipv4Addr, Ipv4Addr, u32, u32),
    /// More than [`MAX_ENTRIES`].
    #[error("Ring has too many entries: {0}")]
    TooManyEntries(usize),
    /// The first division was among other peers.
    #[error("Received ring was seeded differently from ours")]
    DifferentSeeds,
    /// Another universe.
    #[error("Received range differs from ours")]
    DifferentRange,
    /// Part of a range in which we have handed out addresses is said to be another's.
    #[error("Peer {0} says it owns the IP range from {1}, which I think I own")]
    OwnedByUs(PeerName, Ipv4Addr),
    /// The same version of an entry has two owners.
    #[error("Inconsistent entries for {0}: owned by {1} but incoming message says {2}")]
    Inconsistent(Ipv4Addr, PeerName, PeerName),
    /// Somebody else has changed the owner of what we own and use.
    #[error(
        "Received update for IP range I own at {token} v{version}: incoming message says owner {peer} v{new_version}"
    )]
    UpdateOfOurs {
        /// Start of our range.
        token: Ipv4Addr,
        /// Version of our entry.
        version: u32,
        /// Who they say owns it.
        peer: PeerName,
        /// Version of their entry.
        new_version: u32,
    },
    /// The union is wrong in itself.
    #[error("Merge of incoming data causes: {0}")]
    AfterMerge(Box<RingError>),
}

impl Ring {
    /// A ring without entries.
    #[must_use]
    pub fn new(range: Range, peer: PeerName) -> Self {
        Self {
            range,
            peer,
            entries: Vec::new(),
            seeds: Vec::new(),
        }
    }

    /// Has it no entries yet?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Checks the invariants.
    pub fn check(&self) -> Result<(), RingError> {
        let (Some(first), Some(last)) = (self.entries.first(), self.entries.last()) else {
            return Ok(());
        };
        if self.entries.len() > MAX_ENTRIES {
            return Err(RingError::TooManyEntries(self.entries.len()));
        }
        if !self.entries.is_sorted_by_key(|e| e.token) {
            return Err(RingError::NotSorted);
        }
        if self.entries.windows(2).any(|w| w[0].token == w[1].token) {
            return Err(RingError::TokenTwice);
        }
        if first.token < self.range.start || last.token >= self.range.end {
            return Err(RingError::TokenOutOfRange);
        }
        for (index, entry) in self.entries.iter().enumerate() {
            let next = self.next_token(index);
            let distance = self.distance(entry.token, next);
            if entry.free > distance {
                let (token, next) = (entry.token.into(), next.into());
                return Err(RingError::TooMuchFree(token, next, entry.free, distance));
            }
        }
        Ok(())
    }

    /// Number of addresses from `a` to `b`, around the end if need be; the whole ring when equal.
    pub(super) fn distance(&self, a: Address, b: Address) -> u32 {
        if b > a {
            b - a
        } else {
            (self.range.end - a) + (b - self.range.start)
        }
    }

    /// Token of the entry after this one; the last is followed by the first.
    pub(super) fn next_token(&self, index: usize) -> Address {
        let next = self.entries.get(index + 1).or(self.entries.first());
        next.map_or(self.range.start, |e| e.token)
    }

    /// Token of the entry after the one at `token`.
    pub(super) fn token_after(&self, token: Address) -> Address {
        let index = self.entries.partition_point(|e| e.token <= token);
        let next = self.entries.get(index).or(self.entries.first());
        next.map_or(self.range.start, |e| e.token)
    }

    /// `[token, next)` as ranges: two when it wraps, the low part last.
    pub(super) fn parts(&self, token: Address, next: Address) -> impl Iterator<Item = Range> + use<> {
        let high = |end| Range { start: token, end };
        let parts = if next > token {
            [high(next), high(token)]
        } else {
            let low = Range {
                start: self.range.start,
                end: next,
            };
            [high(self.range.end), low]
        };
        parts.into_iter().filter(|p| p.start < p.end)
    }

    /// The ranges of every entry, ascending; a wrapped one is split in two.
    pub fn ranges(&self) -> impl Iterator<Item = (Range, &Entry)> {
        let wrapped = self
            .entries
            .last()
            .zip(self.entries.first())
            .and_then(|(last, first)| {
                let low = Range {
                    start: self.range.start,
                    end: first.token,
                };
                (low.start < low.end).then_some((low, last))
            });
        let rest = self.entries.iter().enumerate().map(|(index, entry)| {
            let end = self.entries.get(index + 1).map_or(self.range.end, |e| e.token);
            let start = entry.token;
            (Range { start, end }, entry)
        });
        wrapped.into_iter().chain(rest)
    }

    /// What this peer owns, ascending, an element for each entry (two for one that wraps).
    #[must_use]
    pub fn owned_ranges(&self, peer: PeerName) -> Vec<Range> {
        let ranges = self.ranges().filter(|(_, e)| e.peer == peer);
        ranges.map(|(range, _)| range).collect()
    }

    /// All who own something.
    #[must_use]
    pub fn owners(&self) -> BTreeSet<PeerName> {
        self.entries.iter().map(|e| e.peer).collect()
    }

    /// Does this peer own anything?
    #[must_use]
    pub fn owns(&self, peer: PeerName) -> bool {
        self.entries.iter().any(|e| e.peer == peer)
    }

    /// Who owns the address; `None` for an empty ring.
    #[must_use]
    pub fn owner(&self, addr: Address) -> Option<PeerName> {
        let index = self.covering(addr)?;
        self.entries.get(index).map(|e| e.peer)
    }

    /// Index of the entry that an address belongs to.
    fn covering(&self, addr: Address) -> Option<usize> {
        let after = self.entries.partition_point(|e| e.token <= addr);
        after.checked_sub(1).or_else(|| self.entries.len().checked_sub(1))
    }

    /// Other peers that report free space in `range`, in the order in which to ask them: random, but the
    /// more they have, the earlier.
    pub fn peers_with_space(&self, range: Range, rng: &mut impl Rng) -> Vec<PeerName> {
        let mut free: BTreeMap<PeerName, u64> = BTreeMap::new();
        for (index, entry) in self.entries.iter().enumerate() {
            if entry.token >= range.end {
                break;
            }
            let ends_before = self
                .entries
                .get(index + 1)
                .is_some_and(|n| n.token <= range.start);
            if ends_before || entry.free == 0 || entry.peer == self.peer {
                continue;
            }
            *free.entry(entry.peer).or_default() += u64::from(entry.free);
        }
        #[expect(clippy::cast_precision_loss, reason = "a random order needs no precision")]
        let weigh = |(peer, total): (PeerName, u64)| (total as f64 * rng.random::<f64>(), peer);
        let mut weighed: Vec<(f64, PeerName)> = free.into_iter().map(weigh).collect();
        weighed.sort_by(|a, b| b.0.total_cmp(&a.0));
        weighed.into_iter().map(|(_, peer)| peer).collect()
    }

    /// The first other peer, in token order, for which the predicate holds.
    pub fn heir(&self, mut fits: impl FnMut(PeerName) -> bool) -> Option<PeerName> {
        let others = self.entries.iter().map(|e| e.peer).filter(|p| *p != self.peer);
        others.into_iter().find(|p| fits(*p))
    }

    /// Divides the universe for the first time. Does nothing unless the ring is empty.
    pub fn divide(&mut self, mut peers: Vec<PeerName>) {
        if !self.is_empty() {
            return;
        }
        peers.sort_unstable();
        peers.dedup();
        self.divide_part(self.range, &peers);
        self.seeds = peers;
    }

    fn divide_part(&mut self, part: Range, peers: &[PeerName]) {
        let Some(&first) = peers.first() else {
            return;
        };
        if peers.len() == 1 || part.size() <= 1 {
            self.entries.push(Entry {
                token: part.start,
                peer: first,
                version: 0,
                free: part.size(),
            });
            return;
        }
        let middle = part.start + part.size() / 2;
        let (left, right) = peers.split_at(peers.len() / 2);
        self.divide_part(Range { end: middle, ..part }, left);
        self.divide_part(
            Range {
                start: middle,
                ..part
            },
            right,
        );
    }

    /// Gives `range`, which must be ours and not empty, to another peer.
    pub fn grant(&mut self, range: Range, to: PeerName) {
        let Range { start, end } = range;
        let Some(prev) = self.covering(start) else {
            return;
        };
        let after_prev = self.next_token(prev);
        let free = self.distance(start, after_prev).min(range.size());
        if let Some(entry) = self.entries.get_mut(prev).filter(|e| e.token == start) {
            entry.change(to, free);
        } else {
            let token = self.entries.get(prev).map_or(start, |e| e.token);
            let kept = self.distance(token, start);
            if let Some(entry) = self.entries.get_mut(prev) {
                entry.change(entry.peer, kept);
            }
            self.insert(start, to, free);
        }
        let inner = self.entries.partition_point(|e| e.token <= start);
        let until = self.entries.partition_point(|e| e.token < end);
        for index in inner..until {
            let token = self.entries.get(index).map_or(start, |e| e.token);
            let distance = self.distance(token, end);
            if let Some(entry) = self.entries.get_mut(index) {
                entry.change(to, entry.free.min(distance));
            }
        }
        let rest = if end == self.range.end {
            self.range.start
        } else {
            end
        };
        if self.entries.binary_search_by_key(&rest, |e| e.token).is_err() {
            let next = self
                .entries
                .iter()
                .find(|e| e.token > rest)
                .or(self.entries.first());
            let free = next.map_or(0, |n| self.distance(rest, n.token));
            self.insert(rest, self.peer, free);
        }
    }

    fn insert(&mut self, token: Address, peer: PeerName, free: u32) {
        let at = self.entries.partition_point(|e| e.token < token);
        let entry = Entry {
            token,
            peer,
            version: 0,
            free,
        };
        self.entries.insert(at, entry);
    }

    /// Gives everything of one peer to another (an administrator's act). Returns what was moved.
    pub fn transfer(&mut self, from: PeerName, to: PeerName) -> Vec<Range> {
        let moved = self.owned_ranges(from);
        for entry in self.entries.iter_mut().filter(|e| e.peer == from) {
            entry.peer = to;
            // Outranks the small steps that others may be making at the same time.
            entry.version = entry.version.saturating_add(100);
        }
        moved
    }

    /// Brings the `free` fields of our entries up to date. Returns true if one differed.
    pub fn report_free(&mut self, mut count: impl FnMut(Range) -> u32) -> bool {
        let mut changed = false;
        for index in 0..self.entries.len() {
            let Some(entry) = self.entries.get(index).filter(|e| e.peer == self.peer) else {
                continue;
            };
            let free = self
                .parts(entry.token, self.next_token(index))
                .map(&mut count)
                .sum();
            if free != entry.free
                && let Some(entry) = self.entries.get_mut(index)
            {
                entry.change(entry.peer, free);
                changed = true;
            }
        }
        changed
    }
}

impl Entry {
    fn change(&mut self, peer: PeerName, free: u32) {
        self.peer = peer;
        self.version = self.version.saturating_add(1);
        self.free = free;
    }
}
