//! Tests of rings that do not fit together, and of the ways out.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use super::adopt::Adopted;
use super::allocator::Allocator;
use super::allocator_tests::{Net, cidr, config, show};
use super::conflicts::MAX_CONFLICTS;
use super::mode::InitMode;
use super::operations::Reply;
use super::sim::{FakeOutlet, UNIX, peer};
use crate::mesh::channel::{Channel, Neighbour};

const SUBNET: &str = "10.2.0.0/24";

fn seed(n: usize) -> InitMode {
    InitMode::Seed(vec![peer(n)])
}

/// Two peers that began apart, each with containers, and have now met.
fn two_clusters() -> Net {
    let mut net = Net::new(SUBNET, 0, &[seed(0), seed(1)]);
    // The first two addresses are in use on both sides.
    for (n, ids) in [(0, &["a1", "a2"][..]), (1, &["b1", "b2", "b3", "b4"][..])] {
        for id in ids {
            net.allocators[n].allocate(&mut net.out, 1, id, cidr(SUBNET), true);
        }
        net.allocators[n].take_replies();
        net.out.sent.clear();
    }
    net.gossip();
    net
}

fn neighbour(n: usize, original: bool) -> Neighbour {
    let name = peer(n);
    Neighbour { name, original }
}

fn texts(allocator: &Allocator) -> Vec<String> {
    allocator.conflicts().map(|c| c.text.clone()).collect()
}

fn adopted(net: &mut Net, n: usize, from: Option<&str>) -> Adopted {
    net.at(n, |a, out| a.adopt(out, 9, from));
    for _ in 0..3 {
        if let Some((_, reply)) = net.allocators[n].take_replies().pop() {
            match reply {
                Reply::Adopted(adopted) => return adopted,
                other => panic!("{}", show(other)),
            }
        }
        net.out.now += Duration::from_secs(5);
        net.at(n, |a, out| a.tick(out));
    }
    panic!("no answer");
}

#[test]
fn a_conflict_is_kept_and_told_and_goes_by_itself() {
    let mut net = two_clusters();
    let text = "IP allocation was seeded by different peers (received: [00:00:00:00:00:02(host2)], \
                ours: [00:00:00:00:00:01(host1)])";
    assert_eq!(texts(&net.allocators[0]), [text]);
    let since = |net: &Net| net.status(0).conflicts[0].since_seconds;
    net.out.now += Duration::from_secs(40);
    net.gossip();
    assert_eq!(since(&net), 40);
    // It is the original that must not get our ring again, not one of ours.
    assert!(!net.allocators[0].wants_gossip(neighbour(1, true)));
    assert!(net.allocators[0].wants_gossip(neighbour(1, false)));
    assert!(net.allocators[0].wants_gossip(neighbour(2, true)));
    assert!(
        net.allocators[0].reconcile().is_none(),
        "the full state tells when it is over"
    );
    // A broadcast from there is not passed on.
    let state = net.encoded(1);
    let heard = net.allocators[0].on_broadcast(&mut net.out, peer(1), &state);
    assert!(matches!(heard, Ok(None)));
    // The other side begins anew, without a ring.
    net.allocators[1] = Allocator::new(config(1, SUBNET, InitMode::default()), None);
    let state = net.encoded(1);
    net.out.neighbour = Some(neighbour(1, true));
    net.at(0, |a, out| a.on_gossip(out, &state).map(drop)).unwrap();
    net.out.neighbour = None;
    assert_eq!(texts(&net.allocators[0]), [] as [&str; 0]);
    net.gossip();
    assert_eq!(net.allocators[1].ring().seeds, [peer(0)]);
    assert_eq!(net.status(1).conflicts, []);
}

#[test]
fn conflicts_are_bounded_and_forgotten() {
    let mut net = Net::new(SUBNET, 0, &[seed(0)]);
    for n in 1..=MAX_CONFLICTS + 5 {
        let mut other = Net::new(SUBNET, 0, &[]);
        other
            .allocators
            .push(Allocator::new(config(n, SUBNET, seed(n)), None));
        let state = other.encoded(0);
        net.out.known.insert(peer(n));
        net.at(0, |a, out| a.on_gossip(out, &state).map(drop)).unwrap();
    }
    assert_eq!(net.allocators[0].conflicts().count(), MAX_CONFLICTS);
    net.out.known = [peer(0), peer(MAX_CONFLICTS)].into();
    net.at(0, |a, out| a.tick(out));
    assert_eq!(net.allocators[0].conflicts().count(), 1, "of those who are here");
    assert!(
        !net.allocators[0].wants_gossip(neighbour(MAX_CONFLICTS - 1, true)),
        "it may be back soon"
    );
    net.out.now += Duration::from_secs(601);
    net.at(0, |a, out| a.tick(out));
    assert!(net.allocators[0].wants_gossip(neighbour(MAX_CONFLICTS - 1, true)));
}

#[test]
fn adopting_the_other_ring() {
    let mut net = two_clusters();
    let adopted = adopted(&mut net, 1, None);
    let own = |list: &[(&str, &str)]| -> Vec<(String, super::address::Cidr)> {
        list.iter().map(|(id, c)| ((*id).to_owned(), cidr(c))).collect()
    };
    assert_eq!(adopted.kept, own(&[("b3", "10.2.0.3/24"), ("b4", "10.2.0.4/24")]));
    assert_eq!(adopted.lost, own(&[("b1", "10.2.0.1/24"), ("b2", "10.2.0.2/24")]));
    assert_eq!(adopted.waiting, []);
    net.gossip();
    let rings: Vec<_> = net
        .allocators
        .iter()
        .map(|a| (&a.ring().entries, &a.ring().seeds))
        .collect();
    assert_eq!(rings[0], rings[1]);
    assert_eq!(net.status(0).conflicts, []);
    let told = net.status(1).lost;
    assert_eq!(
        (told[0].ident.as_str(), told[0].address.as_str()),
        ("b1", "10.2.0.1")
    );
    assert_eq!(told.len(), 2);
    // What is kept is handed out to nobody else; what is lost is replaced.
    assert_eq!(net.allocate(0, "a3", SUBNET).unwrap(), "10.2.0.5/24");
    assert_eq!(net.allocators[1].lookup("b1", None), []);
    assert!(net.allocate(1, "b1", SUBNET).is_some());
    net.allocators[1].free_all("b1").unwrap();
    assert_eq!(net.status(1).lost.len(), 1);
    net.allocators[1].free_all("b2").unwrap();
    assert_eq!(net.status(1).lost, []);
    // Once more does no harm.
    net.at(1, |a, out| a.adopt(out, 9, Some("host1")));
    assert_eq!(
        show(net.allocators[1].take_replies().pop().unwrap().1),
        "there is no conflict with host1; see 'weave status ipam'"
    );
}

/// Two hosts of ours, one after the other, take the ring of a third: nothing is left to be told, also while nobody
/// says anything new.
#[test]
fn the_second_to_adopt_has_no_conflict_with_the_first() {
    let ours = InitMode::Seed(vec![peer(1), peer(2)]);
    let mut net = Net::new(SUBNET, 0, &[seed(0), ours.clone(), ours]);
    net.gossip();
    let count = |net: &Net, n: usize| net.status(n).conflicts.len();
    assert_eq!([0, 1, 2].map(|n| count(&net, n)), [2, 1, 1]);
    adopted(&mut net, 1, Some("host1"));
    net.gossip();
    assert_eq!([0, 1, 2].map(|n| count(&net, n)), [1, 1, 2]);
    net.cut_off(0);
    net.cut_off(1);
    net.out.known.extend([peer(0), peer(1)]);
    net.at(2, |a, out| a.adopt(out, 9, Some("host1")));
    assert_eq!(count(&net, 2), 0);
}

#[test]
fn an_adoption_survives_a_restart_half_way() {
    let mut net = two_clusters();
    net.cut_off(0);
    let mut disk = None;
    net.allocators[1].take_changes().unwrap().apply(&mut disk);
    net.at(1, |a, out| a.adopt(out, 9, Some("host1")));
    net.allocators[1].take_changes().unwrap().apply(&mut disk);
    net.allocators[1] = Allocator::new(config(1, SUBNET, seed(1)), disk);
    assert_eq!(net.allocators[1].ring().seeds, [peer(0)]);
    // Not to be told again before it is known whether it can stay.
    assert_eq!(net.allocate(1, "b3", SUBNET), None);
    net.cut_off.clear();
    net.out.known.insert(peer(0));
    // Until it has our new ring, the other side gives us nothing.
    net.gossip();
    net.out.now += Duration::from_secs(5);
    net.at(1, |a, out| a.tick(out));
    assert_eq!(net.answer(1).unwrap(), "10.2.0.3/24");
    assert_eq!(net.status(1).lost, [], "one refusal is not enough");
    net.out.now += Duration::from_secs(5);
    net.at(1, |a, out| a.tick(out));
    assert_eq!(net.status(1).lost.len(), 2);
}

#[test]
fn another_range_cannot_be_adopted() {
    let mut net = Net::new(SUBNET, 0, &[seed(0), seed(1)]);
    net.allocators[1] = Allocator::new(config(1, "10.3.0.0/24", InitMode::default()), None);
    net.gossip();
    assert_eq!(texts(&net.allocators[1]).len(), 1);
    net.at(1, |a, out| a.adopt(out, 9, None));
    let answer = show(net.allocators[1].take_replies().pop().unwrap().1);
    assert!(
        answer.contains("received: 10.2.0.0/24, ours: 10.3.0.0/24"),
        "{answer}"
    );
    assert!(answer.contains("the same --ipalloc-range"), "{answer}");
}

/// A peer whose space was taken over comes back, with containers.
#[test]
fn a_removed_peer_comes_back() {
    let seeds = InitMode::Seed(vec![peer(0), peer(1)]);
    let mut net = Net::new(SUBNET, 0, &[seeds.clone(), seeds]);
    net.gossip();
    assert_eq!(net.allocate(1, "b1", SUBNET).unwrap(), "10.2.0.128/24");
    assert_eq!(net.allocate(1, "b2", SUBNET).unwrap(), "10.2.0.129/24");
    net.cut_off(1);
    net.at(0, |a, out| a.take_over(out, peer(1)));
    assert_eq!(net.claim(0, "a1", "10.2.0.129/24").unwrap(), "done");
    net.cut_off.clear();
    net.out.known.insert(peer(1));
    net.gossip();
    net.out.now += Duration::from_secs(5);
    net.at(1, |a, out| a.tick(out));
    net.gossip();
    let rings: Vec<_> = net.allocators.iter().map(|a| &a.ring().entries).collect();
    assert_eq!(rings[0], rings[1]);
    assert_eq!(net.allocators[1].lookup("b1", None), [cidr("10.2.0.128/24")]);
    assert_eq!(net.allocators[1].lookup("b2", None), []);
    let told = net.status(1).lost;
    assert_eq!(
        (told.len(), told[0].ident.as_str(), told[0].address.as_str()),
        (1, "b2", "10.2.0.129")
    );
    assert_eq!(net.status(0).conflicts, []);
}

/// An original would not yield, but close the connection: told after two states, and nothing more is sent.
#[test]
fn an_original_that_was_removed_comes_back() {
    let seeds = InitMode::Seed(vec![peer(0), peer(1)]);
    let mut net = Net::new(SUBNET, 0, &[seeds.clone(), seeds]);
    net.gossip();
    net.allocate(1, "b1", SUBNET);
    let theirs = net.encoded(1);
    net.cut_off(1);
    net.at(0, |a, out| a.take_over(out, peer(1)));
    net.out.neighbour = Some(neighbour(1, true));
    for _ in 0..2 {
        assert_eq!(net.allocators[0].conflicts().count(), 0);
        net.at(0, |a, out| a.on_gossip(out, &theirs).map(drop)).unwrap();
        assert!(
            net.allocators[0].reconcile().is_some(),
            "our own kind goes on with digests"
        );
    }
    assert!(!net.allocators[0].wants_gossip(neighbour(1, true)));
    let text = texts(&net.allocators[0]).concat();
    assert!(
        text.contains("Received update for IP range I own at 10.2.0.128"),
        "{text}"
    );
    // Its ring can be had as well.
    net.out.neighbour = None;
    net.at(0, |a, out| a.adopt(out, 9, None));
    assert_eq!(net.allocators[0].our_ranges(), [cidr("10.2.0.0/25").range()]);
    assert!(net.allocators[0].wants_gossip(neighbour(1, true)));
}

#[test]
fn clocks_of_neighbours() {
    let mut net = two_clusters();
    let state = net.encoded(1);
    let payload = super::message::State::decode(&state).unwrap().encode(UNIX + 3600);
    net.out.neighbour = Some(neighbour(1, false));
    net.allocators[0].on_gossip(&mut net.out, &payload).unwrap();
    assert_eq!(
        net.allocators[0].clock_skew().collect::<Vec<_>>(),
        [(peer(1), 3600)]
    );
    assert_eq!(net.status(0).clock_skew[0].seconds, 3600);
    net.allocators[0].on_peer_gone(&mut FakeOutlet::default(), peer(1));
    assert_eq!(net.allocators[0].clock_skew().count(), 0);
}
