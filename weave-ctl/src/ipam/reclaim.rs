//! `--reclaim-after`: the space of peers that stay away goes to one of those that are there, if a majority of
//! all ring owners agrees.
//!
//! A peer with the option that misses a majority for half the time stops handing out addresses, as those may be
//! about to take its space: so no address is handed out by both. Originals and peers without the option
//! never vote; they count against.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::RngExt;
use tracing::{info, warn};

use super::address::Range;
use super::allocator::Allocator;
use super::talk::Say;
use crate::mesh::Now;
use crate::mesh::channel::Outlet;
use crate::mesh::name::PeerName;
use crate::mesh::reconcile::hash;

/// Shortest time that may be asked for.
pub const MIN_RECLAIM_AFTER: Duration = Duration::from_secs(60);
/// A vote binds for this long.
const BOUND: Duration = Duration::from_secs(600);
/// How long votes are counted; shorter than [`MIN_RECLAIM_AFTER`], so that a voter that has restarted and
/// forgotten its vote cannot vote again while it counts.
const COUNTING: Duration = Duration::from_secs(20);
/// How much later the next candidate proposes, if those with lower names do not.
const RANK: Duration = Duration::from_secs(10);
/// Others may have missed it a little later, and look only now and then.
const SLACK: Duration = Duration::from_secs(6);
/// Before a proposal that failed is made again.
const PAUSE: Duration = Duration::from_secs(60);
/// A takeover raises versions by as much.
const TAKEN: u32 = 100;
/// How long others must have been back before addresses are handed out again: what they have decided
/// meanwhile has reached us by then.
const BACK: Duration = Duration::from_secs(40);
/// The same after our own start: every new neighbour sends all it knows at once.
const BACK_AT_START: Duration = Duration::from_secs(10);

/// Who is absent since when, and what is done about it.
#[derive(Debug, Default)]
pub(super) struct Reclaim {
    after: Option<Duration>,
    /// Ring owners that the mesh does not know.
    absent: BTreeMap<PeerName, Now>,
    /// Since when a majority of ring owners has been seen without a break.
    majority_since: Option<Now>,
    /// Since when those absent have been too few to decide anything.
    safe_since: Option<Now>,
    /// When that was so last.
    safe_at: Option<Now>,
    withheld: bool,
    /// How long it must be so until we hand out addresses again.
    back: Duration,
    proposal: Option<Proposal>,
    /// For whom we voted to take over from a peer, and when.
    voted: BTreeMap<PeerName, (PeerName, Now)>,
    /// What was taken over: used last.
    pub taken: Vec<Range>,
}

#[derive(Debug)]
struct Proposal {
    peer: PeerName,
    number: u64,
    votes: BTreeSet<PeerName>,
    until: Now,
}

impl Reclaim {
    pub fn withdraw(&mut self, peer: PeerName) {
        self.proposal.take_if(|p| p.peer == peer);
    }
}

impl Allocator {
    /// `--reclaim-after`; `None`: never.
    pub fn set_reclaim_after(&mut self, after: Option<Duration>) {
        self.reclaim.after = after.map(|after| after.max(MIN_RECLAIM_AFTER));
        // We may have been away for long.
        let alone = self.ring.owners().iter().all(|p| *p == self.config.name);
        self.reclaim.withheld = after.is_some() && !alone;
        // What was taken over before a restart is told by its versions; some of the rest may look alike.
        let us = self.config.name;
        let owned = self
            .ring
            .ranges()
            .filter(|(_, e)| e.peer == us && e.version >= TAKEN);
        self.reclaim.taken = owned
            .map(|(range, _)| range)
            .filter(|_| after.is_some())
            .collect();
        self.reclaim.back = BACK_AT_START;
    }

    /// As set.
    #[must_use]
    pub fn reclaim_after(&self) -> Option<Duration> {
        self.reclaim.after
    }

    /// Are new addresses withheld, as others may be taking our space over?
    #[must_use]
    pub fn withholds(&self) -> bool {
        self.reclaim.withheld
    }

    /// For how long the mesh has not known this ring owner.
    pub(super) fn absent_for(&self, now: Now, peer: PeerName) -> Option<Duration> {
        let since = self.reclaim.absent.get(&peer)?;
        Some(now.saturating_sub(*since))
    }

    /// On every tick.
    pub(super) fn watch_owners(&mut self, out: &mut dyn Outlet) {
        let (now, us) = (out.now(), self.config.name);
        let owners = self.ring.owners();
        let reclaim = &mut self.reclaim;
        reclaim
            .absent
            .retain(|peer, _| owners.contains(peer) && !out.is_known(*peer));
        for peer in owners.iter().filter(|p| **p != us && !out.is_known(**p)) {
            reclaim.absent.entry(*peer).or_insert(now);
        }
        reclaim.proposal.take_if(|p| p.until <= now);
        reclaim.voted.retain(|_, (_, at)| now.saturating_sub(*at) < BOUND);
        let present = owners.len() - reclaim.absent.len();
        let since = |yes: bool, since: Option<Now>| yes.then(|| since.unwrap_or(now));
        reclaim.majority_since = since(present * 2 > owners.len(), reclaim.majority_since);
        let safe = reclaim.absent.len() * 2 <= owners.len();
        reclaim.safe_since = since(safe, reclaim.safe_since);
        if safe {
            reclaim.safe_at = Some(now);
        }
        self.withhold(now);
        self.propose_takeover(out, &owners);
    }

    fn withhold(&mut self, now: Now) {
        let reclaim = &mut self.reclaim;
        let Some(after) = reclaim.after else {
            return;
        };
        let us = self.config.name;
        let seen = *reclaim.safe_at.get_or_insert(now);
        if !reclaim.withheld && now.saturating_sub(seen) >= after / 2 {
            reclaim.withheld = true;
            reclaim.back = BACK;
            warn!(
                "[allocator {us}] most of the ring's owners are out of sight: no new addresses until they are back"
            );
        }
        let back = reclaim.back;
        let over = |since: Now| now.saturating_sub(since) >= back;
        if reclaim.withheld && reclaim.safe_since.is_some_and(over) {
            reclaim.withheld = false;
            info!("[allocator {us}] enough of the ring's owners are in sight: handing out addresses");
        }
    }

    /// We have seen a majority for long enough, and not that peer.
    fn long_absent(&self, now: Now, peer: PeerName) -> Option<Duration> {
        let after = self.reclaim.after?;
        let since = self.reclaim.majority_since?;
        let absent = self.absent_for(now, peer)?;
        absent.min(now.saturating_sub(since)).checked_sub(after)
    }

    fn propose_takeover(&mut self, out: &mut dyn Outlet, owners: &BTreeSet<PeerName>) {
        let (now, us) = (out.now(), self.config.name);
        if self.reclaim.proposal.is_some() || self.stopping || self.departed || !owners.contains(&us) {
            return;
        }
        let rank = owners.iter().filter(|p| **p < us && out.is_known(**p)).count();
        let wait = SLACK + RANK * u32::try_from(rank.min(60)).unwrap_or(60);
        let due = |peer: &&PeerName| {
            let free = match self.reclaim.voted.get(peer) {
                Some((by, at)) => *by == us && now.saturating_sub(*at) >= PAUSE,
                None => true,
            };
            free && self.long_absent(now, **peer).is_some_and(|over| over >= wait)
        };
        let Some(peer) = self.reclaim.absent.keys().find(due).copied() else {
            return;
        };
        let number = self.rng.random();
        let entries = self.fingerprint_of(peer);
        self.reclaim.voted.insert(peer, (us, now));
        self.reclaim.proposal = Some(Proposal {
            peer,
            number,
            votes: BTreeSet::from([us]),
            until: now + COUNTING,
        });
        info!(
            "[allocator {us}] {} has been away for long: asking who else misses it",
            self.full_name(peer)
        );
        self.said.push((
            None,
            Say::Ask {
                peer,
                number,
                entries,
            },
        ));
    }

    /// The same at all that know the same of it.
    fn fingerprint_of(&self, peer: PeerName) -> u64 {
        let entries = self.ring.entries.iter().filter(|e| e.peer == peer);
        let bytes: Vec<u8> = entries
            .flat_map(|e| [e.token.to_be_bytes(), e.version.to_be_bytes()])
            .flatten()
            .collect();
        hash(&bytes)
    }

    /// Somebody said something on the channel of [`super::talk`].
    pub fn on_say(&mut self, out: &mut dyn Outlet, from: PeerName, say: Say) {
        match say {
            Say::Intend { peer } => self.on_intend(out, from, peer),
            Say::Object { peer } => self.on_object(from, peer),
            Say::Ask {
                peer,
                number,
                entries,
            } => self.on_ask(out, from, (peer, number, entries)),
            Say::Vote { peer, number } => self.on_vote(out, from, peer, number),
        }
        self.finish();
    }

    /// What is to be said, and to whom (`None`: to all).
    pub fn take_said(&mut self) -> Vec<(Option<PeerName>, Say)> {
        std::mem::take(&mut self.said)
    }

    fn on_ask(&mut self, out: &dyn Outlet, from: PeerName, (peer, number, entries): (PeerName, u64, u64)) {
        let (now, us) = (out.now(), self.config.name);
        let other = |(by, at): &(PeerName, Now)| *by != from && now.saturating_sub(*at) < BOUND;
        let bound = self.reclaim.voted.get(&peer).is_some_and(other);
        let agreed = !out.is_known(peer)
            && self.long_absent(now, peer).is_some()
            && self.fingerprint_of(peer) == entries
            && self.ring.owns(us);
        if agreed && !bound && from != us {
            self.reclaim.voted.insert(peer, (from, now));
            self.said.push((Some(from), Say::Vote { peer, number }));
        }
    }

    fn on_vote(&mut self, out: &mut dyn Outlet, from: PeerName, peer: PeerName, number: u64) {
        let owners = self.ring.owners();
        let now = out.now();
        let proposal = self.reclaim.proposal.as_mut();
        let Some(proposal) = proposal.filter(|p| p.peer == peer && p.number == number && p.until > now)
        else {
            return;
        };
        if owners.contains(&from) {
            proposal.votes.insert(from);
        }
        let votes = proposal.votes.len();
        if votes * 2 <= owners.len() {
            return;
        }
        self.reclaim.proposal = None;
        if out.is_known(peer) || self.long_absent(now, peer).is_none() {
            return;
        }
        let moved = self.ring.owned_ranges(peer);
        let name = self.full_name(peer);
        let us = self.config.name;
        info!(
            "[allocator {us}] {votes} of {} ring owners agree: taking over from {name}",
            owners.len()
        );
        // First, so that nothing is handed out from it as from the rest.
        self.reclaim.taken.extend(moved);
        self.took_over(now, peer);
        self.take_over(out, peer);
    }

    /// A free address of ours: the lowest, but what was taken over last and from the top, as its former owner,
    /// should it only have been out of sight, has begun at the bottom.
    pub(super) fn take_address(&mut self, range: Range) -> Option<u32> {
        let (first, last) = self.split_taken(range);
        let first = first.into_iter().find_map(|part| self.space.allocate(part));
        first.or_else(|| {
            last.into_iter()
                .rev()
                .find_map(|part| self.space.allocate_last(part))
        })
    }

    /// A part of the free space in the range, for another peer.
    pub(super) fn take_block(&mut self, range: Range) -> Option<Range> {
        let (first, _) = self.split_taken(range);
        let most = first.into_iter().max_by_key(|part| self.space.count_free(*part));
        most.and_then(|part| self.space.donate(part))
            .or_else(|| self.space.donate(range))
    }

    /// The range without what was taken over, and that.
    fn split_taken(&self, range: Range) -> (Vec<Range>, Vec<Range>) {
        let clip = |r: &Range| Range {
            start: r.start.max(range.start),
            end: r.end.min(range.end),
        };
        let taken = self.reclaim.taken.iter().filter(|r| r.overlaps(range));
        let mut taken: Vec<Range> = taken.map(clip).collect();
        taken.sort_unstable();
        let (mut rest, mut start) = (Vec::new(), range.start);
        for part in &taken {
            if start < part.start {
                rest.push(Range {
                    start,
                    end: part.start,
                });
            }
            start = start.max(part.end);
        }
        if start < range.end {
            rest.push(Range { start, ..range });
        }
        (rest, taken)
    }
}
