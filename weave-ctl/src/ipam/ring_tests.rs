//! Tests of the ring and of its merge.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::address::{Address, Cidr, Range};
use super::ring::{Entry, Ring, RingError};
use super::space::Space;
use crate::mesh::name::PeerName;

fn peer(number: u64) -> PeerName {
    PeerName::from_u64(number).unwrap()
}

fn ip(text: &str) -> Address {
    text.parse::<std::net::Ipv4Addr>().unwrap().into()
}

fn entry(token: Address, owner: u64, version: u32, free: u32) -> Entry {
    let peer = peer(owner);
    Entry {
        token,
        peer,
        version,
        free,
    }
}

/// A ring over 0..100 as held by a peer.
fn ring(holder: u64, entries: &[Entry]) -> Ring {
    let mut ring = Ring::new(Range { start: 0, end: 100 }, peer(holder));
    ring.entries = entries.to_vec();
    ring
}

fn tokens(ring: &Ring) -> Vec<(String, u64)> {
    let text = |e: &Entry| std::net::Ipv4Addr::from(e.token).to_string();
    ring.entries.iter().map(|e| (text(e), e.peer.as_u64())).collect()
}

#[test]
fn initial_division() {
    let universe = "10.32.0.0/12".parse::<Cidr>().unwrap().range();
    let divided = |n: u64| {
        let mut ring = Ring::new(universe, peer(1));
        ring.divide((1..=n).rev().chain([1]).map(peer).collect());
        assert_eq!(ring.seeds, (1..=n).map(peer).collect::<Vec<_>>());
        assert!(ring.check().is_ok());
        ring
    };
    let starts = |n| tokens(&divided(n)).into_iter().map(|t| t.0).collect::<Vec<_>>();
    assert_eq!(starts(3), ["10.32.0.0", "10.40.0.0", "10.44.0.0"]);
    assert_eq!(
        starts(5),
        ["10.32.0.0", "10.36.0.0", "10.40.0.0", "10.44.0.0", "10.46.0.0"]
    );
    assert_eq!(divided(2).entries[1], entry(ip("10.40.0.0"), 2, 0, 524_288));

    let mut small = Ring::new(Range { start: 8, end: 10 }, peer(1));
    small.divide((1..=5).map(peer).collect());
    assert_eq!(small.entries, [entry(8, 1, 0, 1), entry(9, 3, 0, 1)]);
}

#[test]
fn grants() {
    // One address out of the middle (control.md A.7).
    let mut ring = Ring::new("10.2.0.0/16".parse::<Cidr>().unwrap().range(), peer(2));
    ring.divide(vec![peer(1), peer(2)]);
    let one = Range {
        start: ip("10.2.200.1"),
        end: ip("10.2.200.2"),
    };
    ring.grant(one, peer(1));
    let names = tokens(&ring);
    let names: Vec<_> = names.iter().map(|(t, p)| (t.as_str(), *p)).collect();
    assert_eq!(
        names,
        [
            ("10.2.0.0", 1),
            ("10.2.128.0", 2),
            ("10.2.200.1", 1),
            ("10.2.200.2", 2)
        ]
    );
    assert_eq!(ring.entries[1], entry(ip("10.2.128.0"), 2, 1, 18433));
    assert_eq!(ring.entries[2], entry(ip("10.2.200.1"), 1, 0, 1));
    assert_eq!(ring.entries[3], entry(ip("10.2.200.2"), 2, 0, 14334));
    assert!(ring.check().is_ok());

    // Over several of our entries, up to the end of the universe.
    let mut ring = self::ring(
        1,
        &[
            entry(0, 2, 0, 10),
            entry(10, 1, 3, 90 - 70),
            entry(30, 1, 5, 7),
            entry(80, 1, 0, 20),
        ],
    );
    ring.grant(Range { start: 20, end: 100 }, peer(3));
    assert_eq!(
        ring.entries,
        [
            entry(0, 2, 0, 10),
            entry(10, 1, 4, 10),
            entry(20, 3, 0, 10),
            entry(30, 3, 6, 7),
            entry(80, 3, 1, 20)
        ]
    );

    // A whole entry.
    let mut ring = self::ring(1, &[entry(0, 1, 7, 50), entry(50, 2, 0, 50)]);
    ring.grant(Range { start: 0, end: 50 }, peer(2));
    assert_eq!(ring.entries, [entry(0, 2, 8, 50), entry(50, 2, 0, 50)]);
}

#[test]
fn ownership_wraps_around() {
    let ring = ring(
        1,
        &[
            entry(10, 2, 0, 0),
            entry(40, 1, 0, 0),
            entry(60, 2, 0, 0),
            entry(90, 1, 0, 0),
        ],
    );
    let r = |start, end| Range { start, end };
    assert_eq!(ring.owned_ranges(peer(1)), [r(0, 10), r(40, 60), r(90, 100)]);
    assert_eq!(ring.owned_ranges(peer(2)), [r(10, 40), r(60, 90)]);
    let owners: Vec<_> = [0, 10, 39, 40, 95]
        .iter()
        .map(|a| ring.owner(*a).unwrap().as_u64())
        .collect();
    assert_eq!(owners, [1, 2, 2, 1, 1]);
    assert_eq!(self::ring(1, &[]).owner(5), None);
    let single = self::ring(1, &[entry(30, 1, 0, 100)]);
    assert_eq!(single.owned_ranges(peer(1)), [r(0, 30), r(30, 100)]);
    assert!(single.check().is_ok());

    let mut ring = ring;
    assert!(ring.report_free(|r| r.size()));
    assert_eq!(ring.entries[3], entry(90, 1, 1, 20));
    assert!(!ring.report_free(|r| r.size()));
}

#[test]
fn transfers_outrank_small_changes() {
    let mut ring = ring(1, &[entry(0, 2, 4, 9), entry(50, 1, 3, 0), entry(60, 2, 0, 40)]);
    let moved = ring.transfer(peer(2), peer(1));
    assert_eq!(
        moved,
        [Range { start: 0, end: 50 }, Range { start: 60, end: 100 }]
    );
    assert_eq!(
        ring.entries,
        [entry(0, 1, 104, 9), entry(50, 1, 3, 0), entry(60, 1, 100, 40)]
    );
}

#[test]
fn whom_to_ask() {
    let ring = ring(
        1,
        &[
            entry(0, 2, 0, 10),
            entry(20, 3, 0, 5),
            entry(40, 1, 0, 5),
            entry(60, 4, 0, 0),
            entry(80, 5, 0, 20),
        ],
    );
    let mut rng = SmallRng::seed_from_u64(1);
    let mut ask = |start, end| {
        let mut peers = ring.peers_with_space(Range { start, end }, &mut rng);
        peers.sort_unstable();
        peers.iter().map(|p| p.as_u64()).collect::<Vec<_>>()
    };
    assert_eq!(ask(0, 100), [2, 3, 5]);
    assert_eq!(ask(20, 80), [3]);
    assert_eq!(ask(19, 81), [2, 3, 5]);
    assert_eq!(ask(40, 80), [] as [u64; 0]);
    let mut first = [0; 6];
    for _ in 0..1000 {
        let order = ring.peers_with_space(Range { start: 0, end: 100 }, &mut rng);
        first[order[0].as_u64() as usize] += 1;
    }
    assert!(
        first[5] > first[2] && first[2] > first[3] && first[3] > 0,
        "{first:?}"
    );
    assert_eq!(ring.heir(|p| p.as_u64() > 2), Some(peer(3)));
    assert_eq!(ring.heir(|p| p.as_u64() == 1), None);
}

#[test]
fn invariants() {
    let text = |entries: &[Entry]| ring(1, entries).check().unwrap_err().to_string();
    assert_eq!(text(&[entry(5, 1, 0, 0), entry(3, 1, 0, 0)]), "Ring not sorted");
    assert_eq!(
        text(&[entry(5, 1, 0, 0), entry(5, 1, 0, 0)]),
        "Token appears twice in ring"
    );
    assert_eq!(
        text(&[entry(5, 1, 0, 0), entry(100, 1, 0, 0)]),
        "Token is out of range"
    );
    assert_eq!(
        text(&[entry(5, 1, 0, 6), entry(10, 1, 0, 0)]),
        "Entry 0.0.0.5-0.0.0.10 reporting too much free space: 6 > 5"
    );
    assert!(ring(1, &[entry(5, 1, 0, 0), entry(10, 1, 0, 95)]).check().is_ok());
}

/// Merges with all our addresses in use, or all free. Returns the text of the error.
fn merge(ours: &mut Ring, theirs: &Ring, in_use: bool) -> Result<bool, String> {
    ours.merge(theirs, |_| in_use).map_err(|e| e.to_string())
}

#[test]
fn merge_errors() {
    let base = ring(1, &[entry(0, 1, 2, 50), entry(50, 2, 0, 50)]);
    let check = |theirs: &[Entry], text: &str| {
        let mut ours = base.clone();
        assert_eq!(merge(&mut ours, &ring(2, theirs), true), Err(text.to_owned()));
        assert_eq!(ours, base, "nothing may change");
    };
    let name = |n: u64| peer(n).to_string();
    check(
        &[entry(0, 1, 2, 20), entry(20, 3, 0, 0), entry(50, 2, 0, 50)],
        &format!(
            "Peer {} says it owns the IP range from 0.0.0.20, which I think I own",
            name(3)
        ),
    );
    check(
        &[entry(0, 3, 2, 50), entry(50, 2, 0, 50)],
        &format!(
            "Inconsistent entries for 0.0.0.0: owned by {} but incoming message says {}",
            name(1),
            name(3)
        ),
    );
    // An original does not yield; that is foreseen.
    let theirs = ring(2, &[entry(0, 3, 9, 50), entry(50, 2, 0, 50)]);
    let text = "Received update for IP range I own at 0.0.0.0 v2: incoming message says owner ";
    let unused = base.clone();
    let mut used = base.clone();
    used.entries[0].free = 49;
    assert_eq!(theirs.refused_by(&unused), None);
    let refused = theirs.refused_by(&used).map(|e| e.to_string());
    assert_eq!(refused, Some(format!("{text}{} v9", name(3))));
    assert_eq!(merge(&mut used, &theirs, true), Ok(true));
    assert_eq!(used.entries, theirs.entries);
    check(
        &[entry(0, 1, 2, 51), entry(50, 2, 0, 50)],
        "Entry 0.0.0.0-0.0.0.50 reporting too much free space: 51 > 50",
    );

    let mut last_is_ours = ring(1, &[entry(0, 2, 0, 50), entry(50, 1, 0, 50)]);
    let theirs = ring(2, &[entry(0, 2, 0, 50), entry(50, 1, 0, 10), entry(60, 2, 0, 0)]);
    let text = format!(
        "Peer {} says it owns the IP range from 0.0.0.60, which I think I own",
        name(2)
    );
    assert_eq!(merge(&mut last_is_ours, &theirs, false), Err(text));

    let mut ours = ring(1, &[entry(0, 2, 3, 60)]);
    let theirs = ring(2, &[entry(0, 2, 2, 50), entry(50, 3, 0, 50)]);
    assert_eq!(
        merge(&mut ours, &theirs, false),
        Err(
            "Merge of incoming data causes: Entry 0.0.0.0-0.0.0.50 reporting too much free space: 60 > 50"
                .into()
        )
    );
}

#[test]
fn merge_compares_seeds_before_ranges() {
    let mut ours = ring(1, &[]);
    ours.divide(vec![peer(1)]);
    let mut theirs = Ring::new(Range { start: 0, end: 200 }, peer(2));
    theirs.divide(vec![peer(2)]);
    assert_eq!(
        ours.clone().merge(&theirs, |_| false),
        Err(RingError::DifferentSeeds)
    );
    let mut unseeded = ring(1, &[]);
    assert_eq!(unseeded.merge(&theirs, |_| false), Err(RingError::DifferentRange));
    theirs = ring(2, &[entry(0, 2, 0, 100)]);
    theirs.seeds = vec![peer(2)];
    assert_eq!(unseeded.merge(&theirs, |_| false), Ok(true));
    assert_eq!(
        (&unseeded.entries, &unseeded.seeds),
        (&theirs.entries, &theirs.seeds)
    );
}

/// Our entries, theirs, the result, and whether it counts as a change.
type Decision<'a> = (&'a [Entry], &'a [Entry], &'a [Entry], bool);

#[test]
fn merge_decisions() {
    let cases: &[Decision<'_>] = &[
        // Ours is newer.
        (
            &[entry(0, 2, 5, 1)],
            &[entry(0, 3, 4, 2)],
            &[entry(0, 2, 5, 1)],
            false,
        ),
        // The same: free is not compared.
        (
            &[entry(0, 2, 5, 1)],
            &[entry(0, 2, 5, 2)],
            &[entry(0, 2, 5, 1)],
            false,
        ),
        // Conflict: more free space wins, ours on a tie.
        (
            &[entry(0, 2, 5, 1)],
            &[entry(0, 3, 5, 2)],
            &[entry(0, 3, 5, 2)],
            true,
        ),
        (
            &[entry(0, 2, 5, 1)],
            &[entry(0, 3, 5, 1)],
            &[entry(0, 2, 5, 1)],
            false,
        ),
        // Theirs is newer.
        (
            &[entry(0, 2, 5, 1)],
            &[entry(0, 2, 6, 2)],
            &[entry(0, 2, 6, 2)],
            true,
        ),
        // An echo of our own past.
        (
            &[entry(0, 1, 5, 1)],
            &[entry(0, 1, 8, 2)],
            &[entry(0, 1, 9, 1)],
            false,
        ),
        // Given away by somebody else while we use none of it.
        (
            &[entry(0, 1, 5, 1)],
            &[entry(0, 3, 8, 2)],
            &[entry(0, 3, 8, 2)],
            true,
        ),
        // A new token inside a range of ours that we do not use; our free count is clamped.
        (
            &[entry(0, 1, 0, 50), entry(50, 2, 0, 9)],
            &[entry(20, 3, 0, 5)],
            &[entry(0, 1, 0, 20), entry(20, 3, 0, 5), entry(50, 2, 0, 9)],
            true,
        ),
        // Somebody else's ranges come from anywhere.
        (
            &[entry(0, 2, 0, 50)],
            &[entry(0, 2, 1, 50), entry(50, 3, 0, 50)],
            &[entry(0, 2, 1, 50), entry(50, 3, 0, 50)],
            true,
        ),
    ];
    for (ours, theirs, expected, changed) in cases {
        let mut merged = ring(1, ours);
        assert_eq!(
            merge(&mut merged, &ring(2, theirs), false),
            Ok(*changed),
            "{ours:?} {theirs:?}"
        );
        assert_eq!(merged.entries, *expected);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Merge { at: usize, from: usize },
    Donate { from: usize, to: usize, range: Range },
    Allocate { at: usize, range: Range },
    Restart { at: usize },
}

fn any_step() -> impl Strategy<Value = Step> {
    let who = || 0..4usize;
    let range = || {
        (0..250u32, 1..256u32).prop_map(|(start, n)| Range {
            start,
            end: (start + n).min(256),
        })
    };
    prop_oneof![
        4 => (who(), who()).prop_map(|(at, from)| Step::Merge { at, from }),
        2 => (who(), who(), range()).prop_map(|(from, to, range)| Step::Donate { from, to, range }),
        2 => (who(), range()).prop_map(|(at, range)| Step::Allocate { at, range }),
        1 => who().prop_map(|at| Step::Restart { at }),
    ]
}

proptest! {
    /// Whatever owners do and whoever merges with whom: no merge fails, no two peers own an address, and
    /// once everybody has heard of everything all rings are equal.
    #[test]
    fn merges_converge(steps in proptest::collection::vec(any_step(), 1..80)) {
        let universe = Range { start: 0, end: 256 };
        let mut peers: Vec<(Ring, Space)> = (1..=4).map(|n| {
            let mut ring = Ring::new(universe, peer(n));
            ring.divide((1..=4).map(peer).collect());
            let mut space = Space::default();
            space.extend(&ring.owned_ranges(ring.peer));
            (ring, space)
        }).collect();
        let merge = |peers: &mut [(Ring, Space)], at: usize, from: usize| {
            let theirs = peers[from].0.clone();
            let (ring, space) = &mut peers[at];
            let changed = ring.merge(&theirs, |r| space.count_free(r) != r.size())?;
            space.extend(&ring.owned_ranges(ring.peer));
            Ok::<_, RingError>(changed)
        };
        for step in steps {
            match step {
                Step::Merge { at, from } => { merge(&mut peers, at, from)?; }
                Step::Donate { from, to, range } if from != to => {
                    let to = peers[to].0.peer;
                    let (ring, space) = &mut peers[from];
                    if let Some(given) = space.donate(range) {
                        ring.grant(given, to);
                    }
                }
                Step::Donate { .. } => {}
                Step::Allocate { at, range } => { peers[at].1.allocate(range); }
                Step::Restart { at } => {
                    // What is not in use is learnt again from the ring.
                    let (ring, space) = &mut peers[at];
                    space.extend(&ring.owned_ranges(ring.peer));
                }
            }
            for (ring, space) in &mut peers {
                ring.report_free(|r| space.count_free(r));
                prop_assert_eq!(ring.check(), Ok(()));
                prop_assert!(space.covers_exactly(&ring.owned_ranges(ring.peer)));
            }
            for addr in 0..256 {
                let claims = peers.iter().filter(|(ring, _)| ring.owner(addr) == Some(ring.peer));
                prop_assert!(claims.count() <= 1, "two owners of {addr}");
            }
        }
        for _ in 0..2 {
            for (at, from) in (0..4).flat_map(|at| (0..4).map(move |from| (at, from))) {
                merge(&mut peers, at, from)?;
            }
        }
        for (ring, _) in &peers[1..] {
            prop_assert_eq!(&ring.entries, &peers[0].0.entries);
        }
    }
}
