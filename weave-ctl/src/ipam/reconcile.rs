//! The ring, entry by entry, for new peers (mesh/reconcile): only what differs travels.
//!
//! An entry's key is its token; its stamp is its version and owner. Merging must never see part of a grant. So the
//! records for a neighbour are always all entries that it lacks or has older, taken from one state of the ring and
//! sent in one message: merged, they give the very ring that all entries would give. Without a ring, and where seeds
//! or range differ, the full state travels as it does to originals.
//!
//! ```text
//! number of owners | name (6), nickname: for each
//! number of entries | token (4), which owner, version, free: for each
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::address::Address;
use super::allocator::Allocator;
use super::message::MAX_NICKNAME;
use super::ring::{Entry, MAX_ENTRIES, Ring};
use crate::mesh::channel::Outlet;
use crate::mesh::name::PeerName;
use crate::mesh::reconcile::wire::{Reader, WireError, Writer};
use crate::mesh::reconcile::{Reconcile, Stamp, Stamps, hash, mix};

/// Least bytes of an entry and of an owner.
const LEAST: usize = 7;

/// What others have been told of the ring.
#[derive(Debug, Default)]
pub(super) struct Announced(Stamps);

fn stamp(entry: &Entry) -> Stamp {
    Stamp {
        version: entry.version.into(),
        tag: mix(entry.peer.as_u64()) as u32,
    }
}

fn ring_stamps(ring: &Ring) -> Stamps {
    ring.entries.iter().map(|e| (e.token.into(), stamp(e))).collect()
}

/// Keys whose stamps are not the same in both.
fn differing(before: &Stamps, after: &Stamps) -> BTreeSet<u64> {
    let new = after.iter().filter(|(key, stamp)| before.get(key) != Some(stamp));
    new.map(|(key, _)| *key).collect()
}

impl Reconcile for Allocator {
    fn scope(&self) -> u32 {
        let Ring { range, seeds, .. } = &self.ring;
        let mut bytes = [range.start.to_be_bytes(), range.end.to_be_bytes()].concat();
        seeds.iter().for_each(|seed| bytes.extend(seed.to_bytes()));
        hash(&bytes) as u32
    }

    fn atomic(&self) -> bool {
        true
    }

    fn spreads(&self) -> bool {
        // As with originals: what was not broadcast spreads with the gossip of every half minute.
        false
    }

    fn stamps(&self) -> Stamps {
        ring_stamps(&self.ring)
    }

    fn stamp(&self, key: u64) -> Option<Stamp> {
        let token = Address::try_from(key).ok()?;
        let found = self.ring.entries.binary_search_by_key(&token, |e| e.token);
        self.ring.entries.get(found.ok()?).map(stamp)
    }

    fn changed(&mut self) -> BTreeSet<u64> {
        let now = ring_stamps(&self.ring);
        let changed = differing(&self.announced.0, &now);
        self.announced.0 = now;
        changed
    }

    fn records(&mut self, wanted: &mut Stamps, _: usize) -> Vec<u8> {
        let wanted = std::mem::take(wanted);
        let entries = self.ring.entries.iter();
        let entries: Vec<Entry> = entries
            .filter(|e| wanted.contains_key(&e.token.into()))
            .copied()
            .collect();
        encode(&entries, &self.nicknames)
    }

    fn apply(&mut self, out: &mut dyn Outlet, from: PeerName, payload: &[u8]) -> Option<BTreeSet<u64>> {
        let (entries, nicknames) = match decode(payload) {
            Ok(decoded) => decoded,
            Err(error) => {
                tracing::warn!("[allocator {}] records from {from}: {error}", self.config.name);
                return Some(BTreeSet::new());
            }
        };
        let theirs = Ring {
            range: self.ring.range,
            peer: from,
            entries,
            seeds: self.ring.seeds.clone(),
        };
        let space = &self.space;
        let in_use = |range: super::address::Range| space.count_free(range) != range.size();
        if self.ring.clone().merge(&theirs, in_use).is_err() {
            return None;
        }
        let before = ring_stamps(&self.ring);
        self.learn_nicknames(nicknames);
        self.on_ring(out, &theirs);
        self.finish();
        let changed = differing(&before, &ring_stamps(&self.ring));
        for key in &changed {
            if let Some(stamp) = self.stamp(*key) {
                self.announced.0.insert(*key, stamp);
            }
        }
        Some(changed)
    }

    fn met(&mut self, neighbour: PeerName, nickname: &str, (theirs, ours): (i64, i64)) {
        self.saw_clock(neighbour, theirs, ours);
        if !nickname.is_empty() {
            self.learn_nicknames(BTreeMap::from([(neighbour, nickname.to_owned())]));
        }
    }
}

fn encode(entries: &[Entry], nicknames: &BTreeMap<PeerName, String>) -> Vec<u8> {
    let owners: BTreeSet<PeerName> = entries.iter().map(|e| e.peer).collect();
    let owners: Vec<PeerName> = owners.into_iter().collect();
    let mut out = Writer::default();
    out.uint(owners.len() as u64);
    for owner in &owners {
        out.0.extend(owner.to_bytes());
        out.bytes(nicknames.get(owner).map_or("", String::as_str).as_bytes());
    }
    out.uint(entries.len() as u64);
    for entry in entries {
        out.0.extend(entry.token.to_be_bytes());
        out.uint(owners.binary_search(&entry.peer).unwrap_or_default() as u64);
        out.uint(entry.version.into());
        out.uint(entry.free.into());
    }
    out.0
}

type Decoded = (Vec<Entry>, BTreeMap<PeerName, String>);

fn decode(payload: &[u8]) -> Result<Decoded, WireError> {
    let mut input = Reader(payload);
    let (mut owners, mut nicknames) = (Vec::new(), BTreeMap::new());
    for _ in 0..input.count(LEAST)? {
        let name = PeerName::from_bytes(input.take(6)?).ok_or(WireError::OutOfRange("owner"))?;
        let nickname = String::from_utf8_lossy(input.bytes()?);
        owners.push(name);
        if !nickname.is_empty() && nickname.len() <= MAX_NICKNAME {
            nicknames.insert(name, nickname.into_owned());
        }
    }
    let count = input.count(LEAST)?;
    if count > MAX_ENTRIES {
        return Err(WireError::OutOfRange("number of entries"));
    }
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let token = u32::from_be_bytes(input.array()?);
        let owner = usize::try_from(input.uint()?).ok().and_then(|n| owners.get(n));
        let uint = |value: u64| u32::try_from(value).map_err(|_| WireError::OutOfRange("number"));
        entries.push(Entry {
            token,
            peer: *owner.ok_or(WireError::OutOfRange("owner"))?,
            version: uint(input.uint()?)?,
            free: uint(input.uint()?)?,
        });
    }
    input.end()?;
    Ok((entries, nicknames))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::super::address::Range;
    use super::*;

    const PEERS: usize = 4;

    fn peer(n: usize) -> PeerName {
        PeerName::from_u64(n as u64 + 1).unwrap()
    }

    fn rings() -> Vec<Ring> {
        let range = Range {
            start: 1000,
            end: 1256,
        };
        let ring = |n| {
            let mut ring = Ring::new(range, peer(n));
            ring.divide((0..PEERS - 1).map(peer).collect());
            ring
        };
        (0..PEERS).map(ring).collect()
    }

    /// Somebody gives something away, changes how much it has free, or hears of another's ring.
    fn step(rings: &mut [Ring], rng: &mut SmallRng) {
        let who = rng.random_range(0..PEERS);
        match rng.random_range(0..4) {
            0 | 1 => {
                let owned = rings[who].owned_ranges(peer(who));
                if let Some(range) = owned.get(rng.random_range(0..PEERS)).filter(|r| r.size() > 0) {
                    let start = rng.random_range(range.start..range.end);
                    let end = rng.random_range(start..range.end) + 1;
                    rings[who].grant(Range { start, end }, peer(rng.random_range(0..PEERS)));
                }
            }
            2 => drop(rings[who].report_free(|range| range.size() / 2)),
            _ => {
                let other = rings[rng.random_range(0..PEERS)].clone();
                rings[who].merge(&other, |_| false).unwrap();
            }
        }
    }

    /// All that somebody with those stamps lacks.
    fn delta(of: &Ring, has: &Stamps) -> Ring {
        let lacks = |e: &&Entry| stamp(e).is_news_to(has.get(&e.token.into()).copied());
        let entries: Vec<Entry> = of.entries.iter().filter(lacks).copied().collect();
        let (entries, _) = decode(&encode(&entries, &BTreeMap::new())).unwrap();
        Ring {
            entries,
            ..of.clone()
        }
    }

    proptest! {
        /// Whatever has happened, and even if the asker has changed before the answer arrives.
        #[test]
        fn what_is_lacking_gives_the_same_ring_as_everything(seed: u64, steps in 0..60, later in 0..8, used: bool) {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut rings = rings();
            for _ in 0..steps {
                step(&mut rings, &mut rng);
            }
            let (asker, giver) = (rng.random_range(0..PEERS), rng.random_range(0..PEERS));
            let has = ring_stamps(&rings[asker]);
            let answer = delta(&rings[giver], &has);
            let everything = rings[giver].clone();
            for _ in 0..later {
                step(&mut rings, &mut rng);
            }
            let (mut by_all, mut by_delta) = (rings[asker].clone(), rings[asker].clone());
            let in_use = |range: Range| used && range.contains(1100);
            prop_assert_eq!(by_delta.merge(&answer, in_use), by_all.merge(&everything, in_use));
            prop_assert_eq!(by_delta, by_all);
        }

        #[test]
        fn any_bytes(seed: u64, at in any::<prop::sample::Index>(), byte: u8) {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut rings = rings();
            (0..20).for_each(|_| step(&mut rings, &mut rng));
            let entries = rings[0].entries.clone();
            let mut nicknames = BTreeMap::from([(peer(0), "one".to_owned())]);
            let mut bytes = encode(&entries, &nicknames);
            // Names of owners only; by now it may have given everything away.
            nicknames.retain(|name, _| entries.iter().any(|entry| entry.peer == *name));
            prop_assert_eq!(decode(&bytes).unwrap(), (entries, nicknames));
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = decode(&bytes);
            prop_assert!(decode(&bytes[..at]).is_err());
        }
    }
}
