//! Range trackers (control.md 1.15): what to add and what to remove outside IPAM, routes or sets of the
//! firewall, when the ranges that a peer owns have changed.

use super::address::{Cidr, Range};

/// Follows the ranges of one peer.
#[derive(Debug, Default)]
pub struct Tracker {
    current: Vec<Range>,
}

/// One change: first add, then remove, so that no address is without in between.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Change {
    /// New, ascending.
    pub add: Vec<Cidr>,
    /// No longer there, ascending.
    pub remove: Vec<Cidr>,
}

impl Tracker {
    /// The ranges are these now (ascending, disjoint). `None`: as before.
    pub fn update(&mut self, ranges: &[Range]) -> Option<Change> {
        let now = merged(ranges);
        let before = std::mem::replace(&mut self.current, now);
        let (before, after) = (cidrs(&before), cidrs(&self.current));
        let without = |all: &[Cidr], others: &[Cidr]| -> Vec<Cidr> {
            let new = all.iter().filter(|c| others.binary_search(c).is_err());
            new.copied().collect()
        };
        let change = Change {
            add: without(&after, &before),
            remove: without(&before, &after),
        };
        (change != Change::default()).then_some(change)
    }
}

/// The fewest, ascending.
fn cidrs(ranges: &[Range]) -> Vec<Cidr> {
    ranges.iter().flat_map(|range| range.cidrs()).collect()
}

/// Neighbours become one. The ranges must be ascending.
pub(super) fn merged(ranges: &[Range]) -> Vec<Range> {
    let mut merged: Vec<Range> = Vec::new();
    for range in ranges.iter().filter(|r| r.start < r.end) {
        match merged.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => merged.push(*range),
        }
    }
    merged
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_differs() {
        let range = |start, end| Range { start, end };
        let texts = |list: &[Cidr]| list.iter().map(Cidr::to_string).collect::<Vec<_>>();
        let mut tracker = Tracker::default();
        let first = tracker.update(&[range(0, 128), range(128, 256)]).unwrap();
        assert_eq!(
            (texts(&first.add), texts(&first.remove)),
            (vec!["0.0.0.0/24".to_owned()], vec![])
        );
        assert_eq!(tracker.update(&[range(0, 256)]), None);
        let given = tracker.update(&[range(0, 192), range(512, 516)]).unwrap();
        assert_eq!(texts(&given.add), ["0.0.0.0/25", "0.0.0.128/26", "0.0.2.0/30"]);
        assert_eq!(texts(&given.remove), ["0.0.0.0/24"]);
        let more = tracker.update(&[range(0, 192)]).unwrap();
        assert_eq!(
            (texts(&more.add), texts(&more.remove)),
            (vec![], vec!["0.0.2.0/30".to_owned()])
        );
    }

    fn addresses(cidrs: &BTreeSet<Cidr>) -> BTreeSet<u32> {
        let ranges = cidrs.iter().map(|c| c.range());
        ranges.flat_map(|r| r.start..r.end).collect()
    }

    proptest! {
        /// Whoever follows the changes has just the addresses owned, in as few CIDRs as possible; while it
        /// adds and before it removes, none of those that stay is missing.
        #[test]
        fn changes_add_up(steps in proptest::collection::vec(proptest::collection::btree_set(0u32..64, 0..64), 1..20)) {
            let mut tracker = Tracker::default();
            let mut followed: BTreeSet<Cidr> = BTreeSet::new();
            for owned in steps {
                let ranges: Vec<Range> = owned.iter().map(|a| Range { start: *a, end: a + 1 }).collect();
                let before = addresses(&followed);
                if let Some(change) = tracker.update(&ranges) {
                    for cidr in &change.add {
                        prop_assert!(followed.insert(*cidr), "added twice");
                    }
                    prop_assert!(addresses(&followed).is_superset(&before));
                    for cidr in &change.remove {
                        prop_assert!(followed.remove(cidr), "removed what was not there");
                    }
                }
                prop_assert_eq!(addresses(&followed), owned);
                let sorted: Vec<Cidr> = followed.iter().copied().collect();
                for pair in sorted.windows(2) {
                    let (a, b) = (pair[0], pair[1]);
                    let twin = a.prefix_len == b.prefix_len && a.range().end == b.addr;
                    let aligned = u64::from(a.addr).is_multiple_of(2 * a.size());
                    prop_assert!(!(twin && aligned), "{a} and {b} are one");
                }
            }
        }
    }
}
