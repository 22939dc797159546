//! What waits to be told to one neighbour about one channel. It merges while it waits, and is put into words when
//! it is sent.

use std::collections::BTreeMap;

use super::{MAX_BUCKETS, Stamps};
use crate::mesh::name::PeerName;

/// Records asked for or announced at a time at most.
pub const MAX_KEYS: usize = 8192;

/// How fine a digest is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// One number for all: enough when nothing is expected to differ.
    Short,
    /// As many buckets as suit the state.
    Long,
}

/// Buckets to be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listing {
    /// Of so many.
    pub buckets: usize,
    /// These.
    pub mask: u64,
    /// In answer to a list.
    pub reply: bool,
}

/// See the module's description.
#[derive(Debug, Clone, Default)]
pub struct Work {
    /// We need the full state.
    pub full: bool,
    /// Ask for these records; with each what we have.
    pub ask: Stamps,
    /// Tell our stamps.
    pub list: Option<Listing>,
    /// Announce these records, along the tree of an originator.
    pub announce: BTreeMap<u64, Option<PeerName>>,
    /// Send a digest.
    pub digest: Option<Depth>,
    /// Send these records; with each what the neighbour has.
    pub records: Stamps,
}

impl Work {
    /// Both in one.
    #[must_use]
    pub fn merge(mut self, new: Work) -> Work {
        self.full |= new.full;
        self.ask.extend(new.ask);
        self.list = match (self.list, new.list) {
            (Some(a), Some(b)) => Some(if a.buckets == b.buckets {
                Listing {
                    mask: a.mask | b.mask,
                    reply: a.reply && b.reply,
                    ..a
                }
            } else {
                let buckets = a.buckets.max(b.buckets);
                Listing {
                    buckets,
                    mask: u64::MAX >> (MAX_BUCKETS - buckets),
                    reply: a.reply && b.reply,
                }
            }),
            (a, b) => a.or(b),
        };
        self.announce.extend(new.announce);
        self.digest = self.digest.max(new.digest);
        // The neighbour may have got an earlier answer meanwhile, but not for certain.
        self.records.extend(new.records);
        if self.announce.len() > MAX_KEYS {
            // A digest says it as well.
            self.announce.clear();
            self.digest = Some(Depth::Long);
        }
        while self.ask.len() > MAX_KEYS {
            self.ask.pop_last();
        }
        self
    }

    /// Nothing to tell?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.full
            && self.ask.is_empty()
            && self.list.is_none()
            && self.announce.is_empty()
            && self.digest.is_none()
            && self.records.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Stamp;
    use super::*;

    #[test]
    fn merging_keeps_everything_within_bounds() {
        let listing = |buckets, mask, reply| Listing { buckets, mask, reply };
        let work = |n: u64| Work {
            list: Some(listing(8, 1 << (n % 8), n > 0)),
            announce: (n..n + 5000).map(|key| (key, None)).collect(),
            ask: (n..n + 5000).map(|key| (key, Stamp::default())).collect(),
            digest: Some(Depth::Short),
            ..Work::default()
        };
        assert!(Work::default().is_empty() && !work(0).is_empty());
        let merged = work(0).merge(work(1));
        assert_eq!(merged.list, Some(listing(8, 3, false)));
        assert_eq!((merged.announce.len(), merged.digest), (5001, Some(Depth::Short)));
        let merged = merged.merge(work(9000));
        assert_eq!((merged.announce.len(), merged.digest), (0, Some(Depth::Long)));
        assert_eq!(merged.ask.len(), MAX_KEYS);
        let finer = Work {
            list: Some(listing(64, 1, true)),
            ..Work::default()
        };
        assert_eq!(merged.merge(finer).list, Some(listing(64, u64::MAX, false)));
    }
}
