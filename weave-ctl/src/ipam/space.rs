//! The addresses of this peer: which are in use and which are free (control.md 1.5).

use std::collections::BTreeMap;

use super::address::{Address, Range};

/// Sorted disjoint ranges; neighbours are coalesced.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct RangeSet {
    /// Start to end.
    ranges: BTreeMap<Address, Address>,
}

impl RangeSet {
    fn insert(&mut self, range: Range) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        // Every range that touches the new one is swallowed by it.
        while let Some((&s, &e)) = self.ranges.range(..=end).next_back() {
            if e < start {
                break;
            }
            start = start.min(s);
            end = end.max(e);
            self.ranges.remove(&s);
        }
        self.ranges.insert(start, end);
    }

    fn remove(&mut self, range: Range) {
        let hit: Vec<Range> = self.overlapping(range).collect();
        for part in hit {
            // `part` is clipped; the stored range around it is cut in up to two.
            let Some((&s, &e)) = self.ranges.range(..=part.start).next_back() else {
                continue;
            };
            self.ranges.remove(&s);
            if s < part.start {
                self.ranges.insert(s, part.start);
            }
            if part.end < e {
                self.ranges.insert(part.end, e);
            }
        }
    }

    fn contains(&self, addr: Address) -> bool {
        let before = self.ranges.range(..=addr).next_back();
        before.is_some_and(|(_, &end)| addr < end)
    }

    /// The parts inside `range`, ascending, clipped to it.
    fn overlapping(&self, range: Range) -> impl Iterator<Item = Range> {
        let first = self.ranges.range(..=range.start).next_back();
        let first = first.map_or(range.start, |(&s, _)| s);
        let until = range.end.max(first);
        self.ranges.range(first..until).filter_map(move |(&start, &end)| {
            let clipped = Range {
                start: start.max(range.start),
                end: end.min(range.end),
            };
            (clipped.start < clipped.end).then_some(clipped)
        })
    }

    fn count(&self, range: Range) -> u32 {
        self.overlapping(range).map(Range::size).sum()
    }
}

/// Counts of free addresses in disjoint ranges that are asked for again and again, so that a step costs the
/// same however scattered the free addresses are.
#[derive(Debug, Default, Clone)]
struct Counts(BTreeMap<Address, (Address, u32)>);

impl Counts {
    fn get(&self, range: Range) -> Option<u32> {
        let &(end, count) = self.0.get(&range.start)?;
        (end == range.end).then_some(count)
    }

    fn keep(&mut self, range: Range, count: u32) {
        while let Some((&start, &(end, _))) = self.0.range(..range.end).next_back()
            && end > range.start
        {
            self.0.remove(&start);
        }
        self.0.insert(range.start, (range.end, count));
    }

    fn changed(&mut self, addr: Address, by: i32) {
        if let Some((_, (end, count))) = self.0.range_mut(..=addr).next_back()
            && addr < *end
        {
            *count = count.saturating_add_signed(by);
        }
    }
}

/// What this peer may hand out, and what it has handed out.
#[derive(Debug, Default, Clone)]
pub struct Space {
    used: RangeSet,
    free: RangeSet,
    /// Both together.
    all: RangeSet,
    counts: Counts,
}

/// An address cannot be claimed or freed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpaceError {
    /// It is in use, or not ours.
    #[error("Address {0} is not free to claim")]
    NotFree(std::net::Ipv4Addr),
    /// It is not in use.
    #[error("Address {0} is not in use")]
    NotInUse(std::net::Ipv4Addr),
}

impl Space {
    /// Takes the lowest free address inside `range`.
    pub fn allocate(&mut self, range: Range) -> Option<Address> {
        let addr = self.free.overlapping(range).next()?.start;
        self.move_to_used(addr);
        Some(addr)
    }

    /// Takes the highest free address inside `range`.
    pub fn allocate_last(&mut self, range: Range) -> Option<Address> {
        let addr = self.free.overlapping(range).last()?.end - 1;
        self.move_to_used(addr);
        Some(addr)
    }

    /// Takes that address.
    pub fn claim(&mut self, addr: Address) -> Result<(), SpaceError> {
        if !self.free.contains(addr) {
            return Err(SpaceError::NotFree(addr.into()));
        }
        self.move_to_used(addr);
        Ok(())
    }

    /// Gives an address back.
    pub fn free(&mut self, addr: Address) -> Result<(), SpaceError> {
        if !self.used.contains(addr) {
            return Err(SpaceError::NotInUse(addr.into()));
        }
        self.used.remove(single(addr));
        self.free.insert(single(addr));
        self.counts.changed(addr, 1);
        Ok(())
    }

    fn move_to_used(&mut self, addr: Address) {
        self.free.remove(single(addr));
        self.used.insert(single(addr));
        self.counts.changed(addr, -1);
    }

    /// Removes and returns a part of the free addresses in `range`, to be given to another peer.
    ///
    /// The largest CIDR-aligned block is chosen, the later one when several are equal; if it is more
    /// than half of what is free, only its upper half.
    pub fn donate(&mut self, range: Range) -> Option<Range> {
        let mut best: Option<Range> = None;
        let mut free = 0;
        for chunk in self.free.overlapping(range) {
            free += chunk.size();
            let block = largest_aligned(chunk);
            if best.is_none_or(|b| block.size() >= b.size()) {
                best = Some(block);
            }
        }
        let mut chosen = best?;
        if chosen.size() > free / 2 {
            chosen.start += chosen.size() / 2;
        }
        self.free.remove(chosen);
        self.all.remove(chosen);
        self.counts = Counts::default();
        Some(chosen)
    }

    /// Everything in `owned` that is in neither set becomes free. Nothing is removed.
    pub fn extend(&mut self, owned: &[Range]) {
        self.counts = Counts::default();
        for &range in owned {
            self.all.insert(range);
            let known = self.used.overlapping(range).chain(self.free.overlapping(range));
            let mut known: Vec<Range> = known.collect();
            known.sort_unstable();
            let mut next = range.start;
            for part in known {
                self.free.insert(Range {
                    start: next,
                    end: part.start,
                });
                next = part.end;
            }
            self.free.insert(Range {
                start: next,
                end: range.end,
            });
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Number of free addresses inside `range`.
    #[must_use]
    pub fn count_free(&self, range: Range) -> u32 {
        self.free.count(range)
    }

    /// As [`Space::count_free`], and remembers it: for ranges that are asked for after every step.
    pub fn recount_free(&mut self, range: Range) -> u32 {
        if let Some(count) = self.counts.get(range) {
            return count;
        }
        let count = self.free.count(range);
        self.counts.keep(range, count);
        count
    }

    /// Number of free addresses in all.
    #[must_use]
    pub fn total_free(&self) -> u32 {
        self.free.ranges.iter().map(|(s, e)| e - s).sum()
    }

    /// Number of addresses in use.
    #[must_use]
    pub fn total_used(&self) -> u32 {
        self.used.ranges.iter().map(|(s, e)| e - s).sum()
    }

    /// Does the space (used and free together) consist of exactly these ranges?
    #[must_use]
    pub fn covers_exactly(&self, owned: &[Range]) -> bool {
        let mut expected = RangeSet::default();
        for &range in owned {
            expected.insert(range);
        }
        self.all == expected
    }
}

fn single(addr: Address) -> Range {
    Range {
        start: addr,
        end: addr.saturating_add(1),
    }
}

/// The largest CIDR-aligned block chosen from a non-empty range (control.md 1.5, last paragraph but one).
fn largest_aligned(range: Range) -> Range {
    let (a, n) = (range.start, range.size());
    let s = 1 << n.max(1).ilog2();
    let r = a % s;
    let block = |start: Address, size: u32| Range {
        start,
        end: start + size,
    };
    if r == 0 {
        return block(a, s);
    }
    if s - r <= n - s {
        return block(a + (s - r), s);
    }
    let h = s / 2;
    if h >= r {
        block(a + (h - r), h)
    } else {
        block(a + (s - r), h)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn range(start: Address, end: Address) -> Range {
        Range { start, end }
    }

    fn ip(text: &str) -> Address {
        text.parse::<std::net::Ipv4Addr>().unwrap().into()
    }

    #[test]
    fn aligned_blocks_of_the_specification() {
        assert_eq!(largest_aligned(range(3, 18)), range(8, 16));
        assert_eq!(largest_aligned(range(0, 7)), range(0, 4));
        let chunk = range(ip("10.2.0.1"), ip("10.2.1.2"));
        assert_eq!(largest_aligned(chunk), range(ip("10.2.0.128"), ip("10.2.1.0")));
    }

    #[test]
    fn donations_seen_between_original_peers() {
        let mut space = Space::default();
        space.extend(&[range(ip("10.32.0.0"), ip("10.48.0.0"))]);
        let subnet = range(ip("10.32.0.0"), ip("10.48.0.0"));
        space.claim(ip("10.32.0.1")).unwrap();
        assert_eq!(
            space.donate(subnet),
            Some(range(ip("10.44.0.0"), ip("10.48.0.0")))
        );

        let mut space = Space::default();
        space.extend(&[range(ip("10.44.0.0"), ip("10.48.0.0"))]);
        assert_eq!(
            space.allocate(range(ip("10.32.0.1"), ip("10.47.255.255"))),
            Some(ip("10.44.0.0"))
        );
        assert_eq!(
            space.donate(subnet),
            Some(range(ip("10.47.0.0"), ip("10.48.0.0")))
        );
    }

    #[test]
    fn the_last_address_is_given_whole() {
        let mut space = Space::default();
        space.extend(&[range(7, 8)]);
        assert_eq!(space.donate(range(0, 100)), Some(range(7, 8)));
        assert_eq!(space.donate(range(0, 100)), None);
    }

    #[test]
    fn errors() {
        let mut space = Space::default();
        space.extend(&[range(ip("10.0.0.0"), ip("10.0.0.4"))]);
        space.claim(ip("10.0.0.1")).unwrap();
        let again = space.claim(ip("10.0.0.1")).unwrap_err();
        assert_eq!(again.to_string(), "Address 10.0.0.1 is not free to claim");
        assert!(space.claim(ip("10.0.0.4")).is_err());
        assert!(space.free(ip("10.0.0.2")).is_err());
        space.free(ip("10.0.0.1")).unwrap();
        assert!(space.covers_exactly(&[range(ip("10.0.0.0"), ip("10.0.0.4"))]));
        assert_eq!((space.total_free(), space.total_used()), (4, 0));
    }

    #[derive(Debug, Clone)]
    enum Op {
        Extend(Range),
        Allocate(Range),
        Claim(Address),
        Free(Address),
        Donate(Range),
    }

    fn any_op() -> impl Strategy<Value = Op> {
        let any_range = || (0..64u32, 0..20u32).prop_map(|(s, n)| range(s, s + n));
        prop_oneof![
            any_range().prop_map(Op::Extend),
            any_range().prop_map(Op::Allocate),
            (0..64u32).prop_map(Op::Claim),
            (0..64u32).prop_map(Op::Free),
            any_range().prop_map(Op::Donate),
        ]
    }

    fn addresses(set: &RangeSet) -> BTreeSet<Address> {
        set.ranges.iter().flat_map(|(&s, &e)| s..e).collect()
    }

    proptest! {
        #[test]
        fn behaves_like_two_plain_sets(ops in proptest::collection::vec(any_op(), 1..60)) {
            let mut space = Space::default();
            let (mut used, mut free) = (BTreeSet::new(), BTreeSet::new());
            for op in ops {
                match op {
                    Op::Extend(r) => {
                        space.extend(&[r]);
                        free.extend((r.start..r.end).filter(|a| !used.contains(a)));
                    }
                    Op::Allocate(r) => {
                        let lowest = free.iter().copied().find(|a| r.contains(*a));
                        prop_assert_eq!(space.allocate(r), lowest);
                        if let Some(a) = lowest {
                            free.remove(&a);
                            used.insert(a);
                        }
                    }
                    Op::Claim(a) => {
                        prop_assert_eq!(space.claim(a).is_ok(), free.remove(&a));
                        if space.used.contains(a) { used.insert(a); }
                    }
                    Op::Free(a) => {
                        prop_assert_eq!(space.free(a).is_ok(), used.remove(&a));
                        if space.free.contains(a) { free.insert(a); }
                    }
                    Op::Donate(r) => {
                        let before = free.iter().filter(|a| r.contains(**a)).count();
                        let given = space.donate(r);
                        prop_assert_eq!(given.is_some(), before > 0);
                        if let Some(g) = given {
                            prop_assert!(g.size().is_power_of_two() && g.start % g.size() == 0);
                            prop_assert!(g.start >= r.start && g.end <= r.end);
                            prop_assert!(g.size() as usize <= before.div_ceil(2));
                            for a in g.start..g.end { prop_assert!(free.remove(&a)); }
                        }
                    }
                }
                prop_assert_eq!(&addresses(&space.used), &used);
                prop_assert_eq!(&addresses(&space.free), &free);
                prop_assert_eq!(&addresses(&space.all), &(&used | &free));
                for (start, end) in [(0, 16), (16, 50), (50, 64), (8, 30)] {
                    let range = Range { start, end };
                    prop_assert_eq!(space.recount_free(range), space.count_free(range));
                }
                for set in [&space.used, &space.free, &space.all] {
                    let mut last = None;
                    for (&s, &e) in &set.ranges {
                        prop_assert!(s < e && last.is_none_or(|l| l < s), "not coalesced");
                        last = Some(e);
                    }
                }
                let all = Range { start: 10, end: 40 };
                prop_assert_eq!(space.count_free(all) as usize, free.iter().filter(|a| all.contains(**a)).count());
            }
        }
    }
}
