//! Names, entry by entry, for new peers (mesh/reconcile): only what differs travels, and a tombstone comes with its
//! age, so that no two clocks need to agree (request 15 of control.md section 9).
//!
//! ```text
//! number of entries, then for each:
//! origin (6) | address (4) | container ID | hostname | version | time of deletion, 0 for none |
//! its age in seconds
//! ```
//! Texts with their length, numbers as LEB128.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::entry::{Id, State};
use super::names::{Heard, Ids, Names, News};
use crate::mesh::channel::{GossipData, Outlet};
use crate::mesh::name::PeerName;
use crate::mesh::reconcile::wire::{Reader, WireError, Writer};
use crate::mesh::reconcile::{Reconcile, Stamp, Stamps};

/// Least bytes of an entry.
const LEAST: usize = 15;

impl Reconcile for Names {
    fn scope(&self) -> u32 {
        0
    }

    fn atomic(&self) -> bool {
        false
    }

    fn spreads(&self) -> bool {
        true
    }

    fn stamps(&self) -> Stamps {
        self.entries()
            .map(|(id, state)| (id.key(), state.stamp()))
            .collect()
    }

    fn stamp(&self, key: u64) -> Option<Stamp> {
        self.state(self.of_key(key)?).map(State::stamp)
    }

    fn changed(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.changed)
    }

    fn records(&mut self, wanted: &mut Stamps, limit: usize) -> Vec<u8> {
        let (mut count, mut records) = (0, Writer::default());
        while records.0.len() < limit
            && let Some((key, _)) = wanted.pop_first()
        {
            let Some(id) = self.of_key(key) else { continue };
            let Some(state) = self.state(id) else { continue };
            count += 1;
            records.0.extend(id.origin().to_bytes());
            records.0.extend(id.addr().to_be_bytes());
            records.bytes(id.container().as_bytes());
            records.bytes(id.hostname().as_bytes());
            records.uint(state.version);
            records.uint(state.tombstone.unsigned_abs());
            records.uint(self.age(id).as_secs());
        }
        if count == 0 {
            return Vec::new();
        }
        let mut out = Writer::default();
        out.uint(count);
        out.0.extend(records.0);
        out.0
    }

    fn apply(&mut self, out: &mut dyn Outlet, _: PeerName, payload: &[u8]) -> Option<BTreeSet<u64>> {
        let (heard, skipped) = match decode(payload) {
            Ok(decoded) => decoded,
            Err(error) => {
                self.skip(1);
                self.complain(out, &format!("skipping records: {error}"));
                return Some(BTreeSet::new());
            }
        };
        self.skip(skipped);
        let mut news = News::default();
        for heard in heard {
            self.hear(out, heard, &mut news);
        }
        self.tell(out, news.corrected);
        Some(news.merged.iter().map(|id| id.key()).collect())
    }

    fn news(&self, keys: &BTreeSet<u64>) -> Option<GossipData> {
        let ids = keys.iter().filter_map(|key| self.of_key(*key));
        Some(super::gossip::some(ids.map(Arc::clone).collect::<Ids>()))
    }
}

/// Entries, and how many of them make no sense.
fn decode(payload: &[u8]) -> Result<(Vec<Heard>, u64), WireError> {
    let mut input = Reader(payload);
    let count = input.count(LEAST)?;
    let (mut heard, mut skipped) = (Vec::with_capacity(count), 0);
    for _ in 0..count {
        let origin = PeerName::from_bytes(input.take(6)?);
        let addr = u32::from_be_bytes(input.array()?);
        let container = String::from_utf8_lossy(input.bytes()?);
        let hostname = String::from_utf8_lossy(input.bytes()?);
        let (version, tombstone, age) = (input.uint()?, input.uint()?, input.uint()?);
        let id = origin.and_then(|origin| Id::new(&container, origin, addr, &hostname));
        let state = i64::try_from(tombstone)
            .ok()
            .and_then(|time| State::new(version, time));
        match id.zip(state) {
            Some((id, state)) => heard.push(Heard {
                id,
                state,
                age: Duration::from_secs(age),
            }),
            None => skipped += 1,
        }
    }
    input.end()?;
    Ok((heard, skipped))
}
