//! Reconciling with neighbours that know how: digests, lists and single records instead of full state (wire.md W3).
//!
//! State is a set of *records*, each with a key and a [`Stamp`]. In rest, a neighbour gets a digest of
//! all stamps; if it differs from its own, the two narrow it down to the buckets that differ, tell each
//! other the stamps in them, and send exactly the records that the other lacks. A change is announced by its
//! stamp, and the neighbour asks for it if it is news. See docs/architecture.md, "Gossip".

pub(super) mod exchange;
pub mod history;
pub mod topology;
pub mod wire;
pub mod work;

use std::collections::{BTreeMap, BTreeSet};

use super::channel::{GossipData, Outlet};
use super::name::PeerName;

/// The feature by which a peer says that it understands all this.
pub const FEATURE: &str = "Gossip";
/// Its value.
pub const FEATURE_VALUE: &str = "reconcile";
/// Buckets of a digest at most.
pub const MAX_BUCKETS: usize = 64;
/// Records in a bucket, about, before there are more buckets.
const PER_BUCKET: usize = 4;

/// Which state of a record somebody has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// The greater is the newer.
    pub version: u64,
    /// Tells different records of the same version apart; which of them counts, their channel knows.
    pub tag: u32,
}

impl Stamp {
    /// Is this worth having for somebody who has `known`?
    #[must_use]
    pub fn is_news_to(self, known: Option<Stamp>) -> bool {
        known.is_none_or(|known| {
            self.version > known.version || (self.version == known.version && self.tag != known.tag)
        })
    }
}

/// The stamps of all records by key.
pub type Stamps = BTreeMap<u64, Stamp>;

/// What a channel must be able to do so that it need not send its full state to new peers.
pub trait Reconcile {
    /// Only peers with equal numbers here exchange records; others get the full state.
    fn scope(&self) -> u32;
    /// Must all that a neighbour lacks reach it in one message, taken from one state? Otherwise records are sent
    /// one by one.
    fn atomic(&self) -> bool;
    /// Is news passed on to random neighbours when it did not come along a broadcast tree?
    fn spreads(&self) -> bool;
    /// All records.
    fn stamps(&self) -> Stamps;
    /// One record.
    fn stamp(&self, key: u64) -> Option<Stamp>;
    /// The keys of records that are new or changed since this was last called, other than by [`Self::apply`].
    fn changed(&mut self) -> BTreeSet<u64>;
    /// Those of these records that exist, as bytes. `wanted` is what is known to be with the asker. What does
    /// not fit into about `limit` bytes stays in it, unless the channel is atomic.
    fn records(&mut self, wanted: &mut Stamps, limit: usize) -> Vec<u8>;
    /// Takes in records that a neighbour has sent, and returns the keys of those that were news. `None`: they
    /// contradict what we have; its full state will tell.
    fn apply(&mut self, out: &mut dyn Outlet, from: PeerName, payload: &[u8]) -> Option<BTreeSet<u64>>;
    /// What originals get when these records are passed on; `None`: everything.
    fn news(&self, _keys: &BTreeSet<u64>) -> Option<GossipData> {
        None
    }
    /// A neighbour has this channel too: its name, its nickname, its clock and ours at the same time, in Unix
    /// seconds.
    fn met(&mut self, _neighbour: PeerName, _nickname: &str, _clocks: (i64, i64)) {}
}

/// A good mixture of the bits (the finisher of SplitMix64).
#[must_use]
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A number for a text or other bytes that is the same in every process.
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    let fold = |sum: u64, chunk: &[u8]| {
        let mut word = [0; 8];
        word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        mix(sum ^ u64::from_be_bytes(word)).wrapping_add(0x9e37_79b9_7f4a_7c15)
    };
    bytes.chunks(8).fold(bytes.len() as u64, fold)
}

/// In which of so many buckets (a power of two) a key is.
fn bucket(key: u64, buckets: usize) -> usize {
    mix(key ^ 0x5bd1_e995) as usize & (buckets - 1)
}

/// How many buckets suit that many records.
fn buckets_for(records: usize) -> usize {
    (records / PER_BUCKET).next_power_of_two().clamp(1, MAX_BUCKETS)
}

/// A number for each bucket, which is the same for the same stamps.
fn digest<'a>(stamps: impl IntoIterator<Item = (&'a u64, &'a Stamp)>, buckets: usize) -> Vec<u64> {
    let mut sums = vec![0_u64; buckets];
    for (key, stamp) in stamps {
        let number = mix(mix(mix(*key).wrapping_add(stamp.version)) ^ u64::from(stamp.tag));
        if let Some(sum) = sums.get_mut(bucket(*key, buckets)) {
            *sum = sum.wrapping_add(number);
        }
    }
    sums
}

/// The buckets in which two digests of the same size differ, as bits.
fn differing(a: &[u64], b: &[u64]) -> u64 {
    let bits = a.iter().zip(b).enumerate();
    bits.filter(|(_, (a, b))| a != b)
        .fold(0, |mask, (n, _)| mask | 1 << n)
}

/// The records in some buckets.
fn in_buckets(stamps: &Stamps, buckets: usize, mask: u64) -> Stamps {
    let chosen = stamps
        .iter()
        .filter(|(key, _)| mask >> bucket(**key, buckets) & 1 == 1);
    chosen.map(|(key, stamp)| (*key, *stamp)).collect()
}
