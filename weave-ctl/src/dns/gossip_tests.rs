//! Tests of the messages, with those of originals.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use proptest::prelude::*;

use super::super::sim::{FakeOutlet, UNIX, peer};
use super::*;
use crate::mesh::gob::tests::{unhex, vector};

/// What original daemons sent when names were added and deleted.
fn captured(name: &str) -> Vec<u8> {
    let lines = include_str!("testdata/captured.txt").lines();
    let mut found = lines.filter_map(|line| line.split_once(' '));
    unhex(found.find(|(n, _)| *n == name).unwrap().1)
}

fn entry(
    container: &str,
    origin: u64,
    addr: u32,
    name: &str,
    (version, tombstone): (u64, i64),
) -> (Id, State) {
    let origin = PeerName::from_u64(origin).unwrap();
    let id = Id::new(container, origin, addr, name).unwrap();
    (id, State { version, tombstone })
}

fn outlet() -> FakeOutlet {
    FakeOutlet {
        unix: UNIX,
        known: (0..3).map(peer).collect(),
        ..FakeOutlet::default()
    }
}

fn from_original() -> FakeOutlet {
    let neighbour = Some(Neighbour {
        name: peer(1),
        original: true,
    });
    FakeOutlet {
        neighbour,
        ..outlet()
    }
}

fn names() -> Names {
    Names::new(peer(0), "weave.local")
}

#[test]
fn bytes_are_the_originals() {
    let two = entry("c2", 1, 0x0a20_0002, "Two.weave.local.", (1, UNIX + 1));
    let one = entry("c1", 1, 0x0a20_0001, "one.weave.local.", (0, 0));
    // In storage order the other one comes first.
    assert!(one.0 < two.0);
    let both = vec![(&one.0, one.1), (&two.0, two.1)];
    assert_eq!(encode(UNIX, both), vector("dns-two"));
    assert_eq!(encode(UNIX, Vec::new()), vector("dns-none"));
    let decoded = decode(&vector("dns-two")).unwrap();
    assert_eq!((decoded.timestamp, decoded.skipped), (UNIX, 0));
    assert_eq!(decoded.entries, [two, one]);
    assert!(decode(&vector("dns-none")).unwrap().entries.is_empty());
}

#[test]
fn messages_of_real_peers() {
    let at = 1_795_290_652;
    for (name, container, origin, addr, hostname, state, sent) in [
        ("one", "c1", 1, 0x0a20_0001, "one.weave.local.", (0, 0), at),
        ("two", "c2", 2, 0x0a28_0001, "two.weave.local.", (0, 0), at),
        ("two-B", "c2", 2, 0x0a28_0001, "Two-B.weave.local.", (0, 0), at),
        (
            "two-gone",
            "c2",
            2,
            0x0a28_0001,
            "two.weave.local.",
            (1, at + 1),
            at + 1,
        ),
        (
            "two-B-gone",
            "c2",
            2,
            0x0a28_0001,
            "Two-B.weave.local.",
            (1, at + 2),
            at + 2,
        ),
    ] {
        let decoded = decode(&captured(name)).unwrap();
        let expected = entry(container, 0x7a00_0000_0000 + origin, addr, hostname, state);
        assert_eq!(
            (decoded.timestamp, decoded.entries),
            (sent, vec![expected]),
            "{name}"
        );
    }
}

#[test]
fn gossip_passes_on_what_is_new_and_broadcasts_pass_on_what_came() {
    let (mut names, mut out) = (names(), from_original());
    let (gossip, other) = (vector("dns-two"), {
        let three = entry("c3", 2, 3, "three.weave.local.", (0, 0));
        let stranger = entry("c4", 99, 4, "four.weave.local.", (0, 0));
        encode(UNIX, vec![(&three.0, three.1), (&stranger.0, stranger.1)])
    });
    // Entries of ..01 are ours: the live one is from an earlier life, so others are told that it is gone.
    assert!(names.on_gossip(&mut out, &gossip).unwrap().is_some());
    assert_eq!(out.broadcasts.len(), 1);
    let corrected = names.encode(UNIX, &out.broadcasts.remove(0));
    let gone = entry("c1", 1, 0x0a20_0001, "one.weave.local.", (1, UNIX));
    assert_eq!(decode(&corrected).unwrap().entries, [gone]);

    let news = names.on_gossip(&mut out, &other).unwrap().unwrap();
    let three = entry("c3", 2, 3, "three.weave.local.", (0, 0));
    assert_eq!(
        decode(&names.encode(UNIX, &news)).unwrap().entries,
        std::slice::from_ref(&three)
    );
    assert!(
        names.on_gossip(&mut out, &other).unwrap().is_none(),
        "nothing new"
    );
    let relayed = names.on_broadcast(&mut out, peer(1), &other).unwrap().unwrap();
    assert_eq!(decode(&names.encode(UNIX, &relayed)).unwrap().entries, [three]);
    names.on_unicast(&mut out, peer(1), &gossip).unwrap();
    assert!(out.broadcasts.is_empty());

    // What waits for a connection becomes one message.
    let all = names.full_state(&mut out).unwrap();
    let count =
        |names: &mut Names, data: &GossipData| decode(&names.encode(UNIX, data)).unwrap().entries.len();
    assert_eq!(count(&mut names, &all), 3);
    let both = names.merge(news.clone(), relayed);
    assert_eq!(count(&mut names, &both), 1);
    let both = names.merge(news, all);
    assert_eq!(count(&mut names, &both), 3);
}

#[test]
fn a_list_may_name_an_entry_twice_and_what_makes_no_sense_is_skipped() {
    let (mut names, mut out) = (names(), from_original());
    let three = entry("c3", 2, 3, "three.weave.local.", (0, 0));
    let later = (
        three.0.clone(),
        State {
            version: 1,
            tombstone: UNIX,
        },
    );
    let payload = encode(
        UNIX,
        vec![(&three.0, three.1), (&later.0, later.1), (&three.0, three.1)],
    );
    assert!(names.on_gossip(&mut out, &payload).unwrap().is_some());
    assert_eq!(names.entries().collect::<Vec<_>>(), [(&later.0, later.1)]);

    // One letter of the name becomes a blank.
    let mut payload = encode(UNIX, vec![(&three.0, three.1)]);
    let at = payload.windows(5).position(|w| w == b"three").unwrap();
    payload[at] = b' ';
    assert!(names.on_gossip(&mut out, &payload).unwrap().is_none());
    assert_eq!(names.skipped(), 1);
    assert!(names.on_broadcast(&mut out, peer(1), b"junk").unwrap().is_none());
    assert_eq!((names.skipped(), names.entries().count()), (2, 1));
}

#[test]
fn clocks_that_differ_end_no_connection() {
    let (mut names, mut out) = (names(), from_original());
    let hour = 3600;
    let live = entry("c3", 2, 3, "three.weave.local.", (0, 0));
    let dead = entry("c3", 2, 3, "four.weave.local.", (1, UNIX + 2 * hour - 60));
    let payload = encode(UNIX + 2 * hour, vec![(&live.0, live.1), (&dead.0, dead.1)]);
    assert!(names.on_gossip(&mut out, &payload).unwrap().is_some());
    assert_eq!(names.entries().count(), 2);
    // By its own clock the deletion is a minute old.
    assert_eq!(names.age(&dead.0), Duration::from_secs(60));
    // An original would refuse our time, so it gets its own; others get ours.
    let time = |names: &mut Names, neighbour: Option<Neighbour>| {
        let data = names.full_state(&mut outlet()).unwrap();
        decode(&names.encode_for(neighbour.unwrap(), UNIX, &data))
            .unwrap()
            .timestamp
    };
    assert_eq!(time(&mut names, out.neighbour), UNIX + 2 * hour);
    let other = Neighbour {
        name: peer(2),
        original: true,
    };
    assert_eq!(time(&mut names, Some(other)), UNIX);
    // It has been set right.
    names.on_gossip(&mut out, &encode(UNIX + 5, Vec::new())).unwrap();
    assert_eq!(time(&mut names, out.neighbour), UNIX);
}

proptest! {
    #[test]
    fn damaged_messages_never_panic(at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>()) {
        let (mut names, mut out) = (names(), from_original());
        let mut bytes = vector("dns-two");
        let index = at.index(bytes.len());
        bytes[index] = byte;
        let _ = names.on_gossip(&mut out, &bytes);
        let _ = names.on_gossip(&mut out, &bytes[..cut.index(bytes.len())]);
        let _ = names.on_broadcast(&mut out, peer(1), &bytes);
        let mut wanted = names.stamps();
        let mut records = names.records(&mut wanted, usize::MAX);
        if !records.is_empty() {
            let index = at.index(records.len());
            records[index] = byte;
            let _ = names.apply(&mut out, peer(1), &records);
            let _ = names.apply(&mut out, peer(1), &records[..cut.index(records.len())]);
        }
        prop_assert!(names.size() <= 16);
    }
}
