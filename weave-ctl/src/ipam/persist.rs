//! What of an allocator outlives the process, and how it is saved: change by change.
//!
//! A change set names the ring entries and owners that differ from what was saved last, so that saving costs
//! as much as what has happened, however large ring and records are. It must be saved as one: a ring without
//! the matching records, or the other way round, would hand out addresses twice.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::address::{Address, Range};
use super::owned::OwnedRecord;
use super::paxos::Voter;
use super::ring::{Entry, Ring};
use crate::mesh::name::PeerName;

/// All that outlives the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Persisted {
    /// Whose state it is.
    pub peer: PeerName,
    /// The ring, perhaps without entries.
    pub ring: Ring,
    /// Local owners by number, which is by age.
    pub owned: BTreeMap<u64, OwnedRecord>,
    /// Our part in a vote that is still going on.
    #[serde(default)]
    pub voter: Option<Voter>,
}

/// What hardly ever changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Whose state it is.
    pub peer: PeerName,
    /// The universe.
    pub range: Range,
    /// Among whom it was first divided.
    pub seeds: Vec<PeerName>,
}

/// What differs from what was saved before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// All that was saved before is void (another peer's, another universe's).
    pub anew: bool,
    /// New head.
    pub head: Option<Head>,
    /// Ring entries by token; `None` for one that is gone.
    pub entries: BTreeMap<Address, Option<Entry>>,
    /// Owners by number; `None` for one that is gone.
    pub owned: BTreeMap<u64, Option<OwnedRecord>>,
    /// The new part in a vote, `None` within when there is none any more.
    pub voter: Option<Option<Voter>>,
}

/// What was saved last, as far as it is needed to tell what has changed.
#[derive(Debug, Default)]
pub(super) struct Saved {
    head: Option<Head>,
    entries: Vec<Entry>,
    voter: Option<Voter>,
    /// Makes the next save replace everything.
    void: bool,
}

impl Persisted {
    /// State with a head and nothing else.
    #[must_use]
    pub fn new(head: Head) -> Self {
        let Head { peer, range, seeds } = head;
        Self {
            peer,
            ring: Ring {
                seeds,
                ..Ring::new(range, peer)
            },
            owned: BTreeMap::new(),
            voter: None,
        }
    }
}

impl Changes {
    /// The change from nothing to `state`.
    #[must_use]
    pub fn all(state: Persisted) -> Self {
        Self {
            anew: true,
            head: Some(Head {
                peer: state.peer,
                range: state.ring.range,
                seeds: state.ring.seeds,
            }),
            entries: state.ring.entries.iter().map(|e| (e.token, Some(*e))).collect(),
            owned: state.owned.into_iter().map(|(n, r)| (n, Some(r))).collect(),
            voter: Some(state.voter),
        }
    }

    /// Brings `state` up to date. The first change set of all has a head; before it there is no state.
    pub fn apply(self, state: &mut Option<Persisted>) {
        if self.anew {
            *state = None;
        }
        if let Some(head) = self.head {
            let state = state.get_or_insert_with(|| Persisted::new(head.clone()));
            state.peer = head.peer;
            state.ring.peer = head.peer;
            state.ring.range = head.range;
            state.ring.seeds = head.seeds;
        }
        let Some(state) = state else {
            return;
        };
        let old = state.ring.entries.drain(..).map(|e| (e.token, Some(e)));
        let mut entries: BTreeMap<Address, Option<Entry>> = old.collect();
        entries.extend(self.entries);
        state.ring.entries = entries.into_values().flatten().collect();
        for (number, record) in self.owned {
            match record {
                Some(record) => state.owned.insert(number, record),
                None => state.owned.remove(&number),
            };
        }
        if let Some(voter) = self.voter {
            state.voter = voter;
        }
    }
}

impl Saved {
    /// What was loaded.
    pub fn of(persisted: &Persisted) -> Self {
        let Persisted {
            peer, ring, voter, ..
        } = persisted;
        Self {
            head: Some(head(*peer, ring)),
            entries: ring.entries.clone(),
            voter: voter.clone(),
            void: false,
        }
    }

    /// What was loaded is of no use.
    pub fn discard(&mut self) {
        *self = Self {
            void: true,
            ..Self::default()
        };
    }

    /// What has changed besides the owners, which are given; remembers that it is saved. `None` if nothing.
    pub fn advance(
        &mut self,
        peer: PeerName,
        ring: &Ring,
        owned: BTreeMap<u64, Option<OwnedRecord>>,
        voter: Option<Voter>,
    ) -> Option<Changes> {
        let entries = difference(&self.entries, &ring.entries);
        let voter_changed = voter != self.voter;
        // A head alone is no news: that of a ring which is still empty says nothing.
        let seeds_changed = self.head.as_ref().is_some_and(|h| h.seeds != ring.seeds);
        if !(self.void || seeds_changed || voter_changed) && entries.is_empty() && owned.is_empty() {
            return None;
        }
        let head = head(peer, ring);
        let new_head = (self.void || self.head.as_ref() != Some(&head)).then(|| head.clone());
        let changes = Changes {
            anew: std::mem::take(&mut self.void),
            head: new_head,
            entries,
            owned,
            voter: voter_changed.then(|| voter.clone()),
        };
        self.head = Some(head);
        self.entries.clone_from(&ring.entries);
        self.voter = voter;
        Some(changes)
    }
}

fn head(peer: PeerName, ring: &Ring) -> Head {
    Head {
        peer,
        range: ring.range,
        seeds: ring.seeds.clone(),
    }
}

/// Both are sorted by token.
fn difference(old: &[Entry], new: &[Entry]) -> BTreeMap<Address, Option<Entry>> {
    let mut changes = BTreeMap::new();
    let mut old = old.iter().peekable();
    for entry in new {
        while let Some(gone) = old.next_if(|o| o.token < entry.token) {
            changes.insert(gone.token, None);
        }
        if old.next_if(|o| o.token == entry.token) != Some(entry) {
            changes.insert(entry.token, Some(*entry));
        }
    }
    changes.extend(old.map(|gone| (gone.token, None)));
    changes
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ipam::address::Cidr;

    fn name(number: u64) -> PeerName {
        PeerName::from_u64(number).unwrap()
    }

    fn any_state() -> impl Strategy<Value = Persisted> {
        let entries = proptest::collection::btree_map(0..20u32, (1..4u64, 0..3u32), 0..12);
        let owned = proptest::collection::btree_map(0..20u64, 0..3u32, 0..12);
        let seeds = proptest::collection::vec(1..4u64, 0..2);
        (entries, owned, seeds, proptest::option::of(0..2u64)).prop_map(|(entries, owned, seeds, uid)| {
            let range = Range { start: 0, end: 64 };
            let seeds = seeds.into_iter().map(name).collect();
            let mut state = Persisted::new(Head {
                peer: name(1),
                range,
                seeds,
            });
            state.ring.entries = entries
                .into_iter()
                .map(|(token, (peer, version))| Entry {
                    token,
                    peer: name(peer),
                    version,
                    free: 0,
                })
                .collect();
            let record = |n: u64, addr| OwnedRecord {
                id: n.to_string(),
                is_container: false,
                cidrs: vec![Cidr { addr, prefix_len: 24 }],
            };
            state.owned = owned.into_iter().map(|(n, addr)| (n, record(n, addr))).collect();
            state.voter = uid.map(|uid| Voter {
                uid,
                claims: Default::default(),
            });
            state
        })
    }

    fn owners(old: &Persisted, new: &Persisted) -> BTreeMap<u64, Option<OwnedRecord>> {
        let numbers = old.owned.keys().chain(new.owned.keys());
        let changed = numbers.filter(|n| old.owned.get(n) != new.owned.get(n));
        changed.map(|n| (*n, new.owned.get(n).cloned())).collect()
    }

    proptest! {
        /// The saved state follows the real one, and only what differs is in the change.
        #[test]
        fn changes_lead_from_one_state_to_the_next(states in proptest::collection::vec(any_state(), 2..6)) {
            let mut disk = None;
            Changes::all(states[0].clone()).apply(&mut disk);
            prop_assert_eq!(disk.as_ref(), Some(&states[0]));
            let mut saved = Saved::of(&states[0]);
            for pair in states.windows(2) {
                let (old, new) = (&pair[0], &pair[1]);
                let changes = saved.advance(new.peer, &new.ring, owners(old, new), new.voter.clone());
                prop_assert_eq!(changes.is_none(), old == new);
                if let Some(changes) = changes {
                    for entry in changes.entries.values().flatten() {
                        prop_assert!(!old.ring.entries.contains(entry));
                    }
                    changes.apply(&mut disk);
                }
                prop_assert_eq!(disk.as_ref(), Some(new));
                let again = saved.advance(new.peer, &new.ring, BTreeMap::new(), new.voter.clone());
                prop_assert_eq!(again, None);
            }
        }
    }
}
