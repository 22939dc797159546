//! Which identifier owns which addresses on this peer. Local, persisted, never gossiped.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::address::{Address, Cidr};

/// What one identifier (a container, `weave:expose`, an address text) owns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedRecord {
    /// The identifier.
    pub id: String,
    /// Does it react to Docker events?
    pub is_container: bool,
    /// In order of allocation.
    pub cidrs: Vec<Cidr>,
}

/// All records of this peer.
#[derive(Debug, Default)]
pub(super) struct Owned {
    /// By age, so that listings are in order of allocation.
    records: BTreeMap<u64, OwnedRecord>,
    by_id: HashMap<String, u64>,
    by_addr: HashMap<Address, u64>,
    next: u64,
    /// Numbers of the records that have changed since [`Owned::take_changes`].
    changed: BTreeSet<u64>,
}

impl Owned {
    /// As they were saved, under the numbers they had.
    pub fn from_records(records: BTreeMap<u64, OwnedRecord>) -> Self {
        let mut owned = Self::default();
        for (number, record) in records {
            let known = record.cidrs.iter().any(|c| owned.by_addr.contains_key(&c.addr));
            if known || owned.by_id.contains_key(&record.id) || record.cidrs.is_empty() {
                // Nothing of ours: let the next save remove it.
                owned.changed.insert(number);
                continue;
            }
            owned.by_id.insert(record.id.clone(), number);
            owned
                .by_addr
                .extend(record.cidrs.iter().map(|c| (c.addr, number)));
            owned.next = number.saturating_add(1);
            owned.records.insert(number, record);
        }
        owned
    }

    /// The records that have changed since the last call, `None` for those that are gone.
    pub fn take_changes(&mut self) -> BTreeMap<u64, Option<OwnedRecord>> {
        let changed = std::mem::take(&mut self.changed).into_iter();
        changed.map(|n| (n, self.records.get(&n).cloned())).collect()
    }

    pub fn records(&self) -> impl Iterator<Item = &OwnedRecord> {
        self.records.values()
    }

    /// Each address with its owner's ID.
    pub fn addresses(&self) -> impl Iterator<Item = (&str, Cidr)> {
        let records = self.records.values();
        records.flat_map(|r| r.cidrs.iter().map(|cidr| (r.id.as_str(), *cidr)))
    }

    fn get(&self, id: &str) -> Option<&OwnedRecord> {
        self.records.get(self.by_id.get(id)?)
    }

    pub fn of(&self, id: &str) -> &[Cidr] {
        self.get(id).map_or(&[], |r| &r.cidrs)
    }

    pub fn is_container(&self, id: &str) -> bool {
        self.get(id).is_some_and(|r| r.is_container)
    }

    pub fn owner(&self, addr: Address) -> Option<&str> {
        let record = self.records.get(self.by_addr.get(&addr)?)?;
        Some(&record.id)
    }

    /// Nothing happens if the address is owned already.
    pub fn add(&mut self, id: &str, is_container: bool, cidr: Cidr) {
        if self.by_addr.contains_key(&cidr.addr) {
            return;
        }
        let key = *self.by_id.entry(id.to_owned()).or_insert(self.next);
        self.next = self.next.max(key.saturating_add(1));
        let record = self.records.entry(key).or_insert_with(|| OwnedRecord {
            id: id.to_owned(),
            is_container,
            cidrs: Vec::new(),
        });
        record.is_container |= is_container;
        record.cidrs.push(cidr);
        self.by_addr.insert(cidr.addr, key);
        self.changed.insert(key);
    }

    /// False if the ID does not own it.
    pub fn remove(&mut self, id: &str, addr: Address) -> bool {
        let Some(&key) = self.by_id.get(id).filter(|k| self.by_addr.get(&addr) == Some(k)) else {
            return false;
        };
        self.by_addr.remove(&addr);
        if let Some(record) = self.records.get_mut(&key) {
            record.cidrs.retain(|c| c.addr != addr);
            if record.cidrs.is_empty() {
                self.records.remove(&key);
                self.by_id.remove(id);
            }
        }
        self.changed.insert(key);
        true
    }

    /// What the ID owned.
    pub fn remove_all(&mut self, id: &str) -> Vec<Cidr> {
        let cidrs = self.of(id).to_vec();
        for cidr in &cidrs {
            self.remove(id, cidr.addr);
        }
        cidrs
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn cidr(addr: Address) -> Cidr {
        Cidr { addr, prefix_len: 24 }
    }

    #[test]
    fn records() {
        let mut owned = Owned::default();
        owned.add("b", false, cidr(1));
        owned.add("a", true, cidr(2));
        owned.add("b", true, cidr(3));
        owned.add("c", true, cidr(3));
        assert_eq!(owned.owner(3), Some("b"));
        assert!(owned.is_container("b") && !owned.is_container("c"));
        let changes = owned.take_changes();
        let records: BTreeMap<u64, OwnedRecord> = changes.into_iter().map(|(n, r)| (n, r.unwrap())).collect();
        assert_eq!(records[&0].cidrs, [cidr(1), cidr(3)]);
        assert_eq!(records[&1].id, "a");
        assert!(owned.take_changes().is_empty());

        let mut owned = Owned::from_records(records.clone());
        assert!(owned.take_changes().is_empty() && owned.records().eq(records.values()));
        assert!(!owned.remove("a", 1));
        assert!(owned.remove("b", 1));
        assert_eq!(owned.take_changes()[&0].as_ref().unwrap().cidrs, [cidr(3)]);
        assert_eq!(owned.owner(1), None);
        assert_eq!(owned.remove_all("b"), [cidr(3)]);
        assert_eq!(owned.take_changes(), BTreeMap::from([(0, None)]));
        assert_eq!(owned.remove_all("b"), []);
        owned.add("b", false, cidr(9));
        let ids: Vec<&str> = owned.records().map(|r| r.id.as_str()).collect();
        assert_eq!(ids, ["a", "b"], "the younger comes last");
    }
}
