//! Tests of `rmpeer` by several at once, and of `--reclaim-after`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeSet;
use std::time::Duration;

use super::allocator_tests::{Net, show};
use super::mode::InitMode;
use super::sim::peer;
use super::talk::{CHANNEL, Say, Talk};
use crate::mesh::channel::{Channel, GossipData};
use crate::mesh::name::PeerName;

const SUBNET: &str = "10.2.0.0/24";

/// So many peers that share a ring.
fn net(count: usize) -> Net {
    let seeds = InitMode::Seed((0..count).map(peer).collect());
    let mut net = Net::new(SUBNET, 0, &vec![seeds; count]);
    net.gossip();
    net
}

/// What is said arrives, until nobody says anything more.
fn talk(net: &mut Net) {
    while let Some(from) = (0..net.allocators.len()).find(|n| !net.allocators[*n].said.is_empty()) {
        for (to, say) in net.allocators[from].take_said() {
            let all = 0..net.allocators.len();
            for n in all.filter(|n| *n != from && to.is_none_or(|to| to == peer(*n))) {
                if !net.cut_off.contains(&n) && !net.cut_off.contains(&from) {
                    net.at(n, |a, out| a.on_say(out, peer(from), say.clone()));
                }
            }
        }
    }
}

/// Ticks of those who are there.
fn pass(net: &mut Net, seconds: u64) {
    for _ in 0..seconds / 5 {
        net.out.now += Duration::from_secs(5);
        for n in 0..net.allocators.len() {
            if !net.cut_off.contains(&n) {
                net.at(n, |a, out| a.tick(out));
            }
        }
        talk(net);
    }
}

fn owners(net: &Net, n: usize) -> BTreeSet<PeerName> {
    net.allocators[n].ring().owners()
}

fn flag(net: &mut Net, who: &[usize]) {
    for n in who {
        net.allocators[*n].set_reclaim_after(Some(Duration::from_secs(60)));
    }
}

#[test]
fn a_peer_that_is_there_is_not_removed() {
    let mut net = net(2);
    net.at(0, |a, out| a.remove_peer(out, 8, "host2", false));
    let answer = net.answer(0).unwrap();
    assert!(
        answer.contains("00:00:00:00:00:02(host2) is still connected"),
        "{answer}"
    );
    assert!(
        answer.contains("weave status peers") && answer.contains("--force"),
        "{answer}"
    );
    net.at(0, |a, out| a.remove_peer(out, 8, "host2", true));
    assert_eq!(net.answer(0), None, "others may object");
    net.out.now += Duration::from_secs(1);
    net.at(0, |a, out| a.on_deadline(out));
    assert_eq!(net.answer(0).unwrap(), "128");
}

#[test]
fn of_two_that_remove_the_same_peer_one_is_told_so() {
    let mut net = net(3);
    net.cut_off(2);
    for n in [1, 0] {
        net.at(n, |a, out| a.remove_peer(out, 8, "host3", false));
    }
    talk(&mut net);
    net.out.now += Duration::from_secs(1);
    for n in [0, 1] {
        net.at(n, |a, out| a.on_deadline(out));
    }
    assert_eq!(net.answer(0).unwrap(), "64");
    let refused = net.answer(1).unwrap();
    assert!(
        refused.starts_with("00:00:00:00:00:01(host1) is taking over from 00:00:00:00:00:03(host3)"),
        "{refused}"
    );
    assert_eq!(owners(&net, 1), [peer(0), peer(1)].into());
}

/// The news of the takeover has not arrived yet: the one who has done it objects.
#[test]
fn a_takeover_of_a_moment_ago_is_not_repeated() {
    let mut net = net(3);
    net.cut_off(2);
    let before = net.allocators[1].ring().clone();
    net.remove(0, "host3");
    net.allocators[1].ring = before;
    net.at(1, |a, out| a.remove_peer(out, 8, &peer(2).to_string(), false));
    talk(&mut net);
    assert!(net.answer(1).unwrap().contains("has just done so"));
    // Nobody waits for an answer that was given up.
    net.out.now += Duration::from_secs(61);
    net.at(1, |a, out| a.remove_peer(out, 9, &peer(2).to_string(), false));
    net.allocators[1].cancel(9);
    assert_eq!(net.allocators[1].next_deadline(), None);
}

#[test]
fn a_majority_reclaims_the_space_of_an_absent_peer() {
    let mut net = net(3);
    flag(&mut net, &[0, 1]);
    pass(&mut net, 20);
    net.cut_off(2);
    pass(&mut net, 60);
    assert_eq!(owners(&net, 0).len(), 3, "too early");
    assert_eq!(net.status(0).entries[2].unreachable_seconds, Some(55));
    pass(&mut net, 20);
    assert_eq!(owners(&net, 0), [peer(0), peer(1)].into());
    assert_eq!(owners(&net, 1), [peer(0), peer(1)].into());
    assert_eq!(net.allocators[0].our_ranges().len(), 2);
    // What was taken over is used last, and from the top.
    let given: Vec<String> = (0..129)
        .map(|n| net.allocate(0, &format!("c{n}"), SUBNET).unwrap())
        .collect();
    assert_eq!(
        (given[0].as_str(), given[126].as_str()),
        ("10.2.0.1/24", "10.2.0.127/24")
    );
    assert_eq!(given[127..], ["10.2.0.254/24", "10.2.0.253/24"]);
}

#[test]
fn without_a_majority_of_all_owners_nothing_is_reclaimed() {
    // The second votes not: an original, or one without the option.
    let mut three = net(3);
    flag(&mut three, &[0]);
    three.cut_off(2);
    pass(&mut three, 600);
    assert_eq!(owners(&three, 0).len(), 3);
    // Two of four are no majority.
    let mut four = net(4);
    flag(&mut four, &[0, 1]);
    four.cut_off(2);
    four.cut_off(3);
    pass(&mut four, 600);
    assert_eq!(owners(&four, 0).len(), 4);
    // The peer is seen again before the time is over.
    let mut short = net(3);
    flag(&mut short, &[0, 1]);
    for _ in 0..5 {
        short.cut_off(2);
        pass(&mut short, 50);
        short.cut_off.clear();
        short.out.known.insert(peer(2));
        pass(&mut short, 5);
    }
    assert_eq!(owners(&short, 0).len(), 3);
}

/// Two propose at once, as one does not hear the other; the votes arrive in any order.
#[test]
fn of_two_proposers_at_most_one_takes_over() {
    for order in 0..4 {
        let mut net = net(5);
        flag(&mut net, &[0, 1, 2, 3]);
        net.cut_off(4);
        // The question of the first is lost; the second's turn comes ten seconds later.
        for _ in 0..17 {
            net.out.now += Duration::from_secs(5);
            for n in 0..4 {
                net.allocators[n].tick(&mut net.out);
            }
            net.out.sent.clear();
        }
        let asks: Vec<Say> = (0..2)
            .map(|n| net.allocators[n].take_said().pop().unwrap().1)
            .collect();
        assert!(asks.iter().all(|a| matches!(a, Say::Ask { .. })), "{asks:?}");
        let mut votes = Vec::new();
        for voter in [2, 3] {
            let first = (order >> (voter - 2)) & 1;
            for by in [first, 1 - first] {
                let ask = asks[by].clone();
                net.at(voter, |a, out| a.on_say(out, peer(by), ask));
            }
            votes.extend(
                net.allocators[voter]
                    .take_said()
                    .into_iter()
                    .map(|(to, vote)| (voter, to.unwrap(), vote)),
            );
        }
        assert_eq!(votes.len(), 2, "one vote each");
        for (voter, to, vote) in votes {
            let to = to.as_u64() as usize - 1;
            let mut out = super::sim::FakeOutlet {
                now: net.out.now,
                known: net.out.known.clone(),
                ..Default::default()
            };
            net.allocators[to].on_say(&mut out, peer(voter), vote);
        }
        let takers = (0..2).filter(|n| !owners(&net, *n).contains(&peer(4))).count();
        let agreed = order == 0 || order == 3;
        assert_eq!(takers, usize::from(agreed), "order {order}");
    }
}

/// Whose space may be taken over hands out nothing new.
#[test]
fn out_of_sight_of_a_majority_addresses_are_withheld() {
    let mut net = net(3);
    flag(&mut net, &[0]);
    // At first nobody knows for how long we were away.
    assert_eq!(net.allocate(0, "a", SUBNET), None);
    net.allocators[0].cancel(1);
    pass(&mut net, 20);
    assert_eq!(net.allocate(0, "a", SUBNET).unwrap(), "10.2.0.1/24");
    net.out.known = [peer(0)].into();
    pass(&mut net, 25);
    assert_eq!(net.allocate(0, "b", SUBNET).unwrap(), "10.2.0.2/24");
    pass(&mut net, 5);
    assert_eq!(net.allocate(0, "c", SUBNET), None);
    assert_eq!(net.allocate(0, "a", SUBNET).unwrap(), "10.2.0.1/24", "as before");
    assert_eq!(net.claim(0, "d", "10.2.0.9/24"), None);
    assert!(net.status(0).withheld);
    net.allocators[0].cancel(2);
    net.out.known = [peer(0), peer(1)].into();
    pass(&mut net, 40);
    assert!(
        net.status(0).withheld,
        "what the others decided may not have arrived"
    );
    pass(&mut net, 5);
    let answers = net.allocators[0].take_replies();
    assert_eq!(
        answers.into_iter().map(|(_, r)| show(r)).collect::<Vec<_>>(),
        ["10.2.0.3/24"]
    );
    assert!(!net.status(0).withheld);
}

#[test]
fn what_is_said_is_passed_on_and_what_is_not_understood_is_not() {
    let mut talk = Talk::default();
    let mut out = super::sim::FakeOutlet::default();
    let say = Say::Intend { peer: peer(3) };
    let bytes = say.encode();
    assert!(talk.on_broadcast(&mut out, peer(1), &bytes).unwrap().is_some());
    for bad in [&b""[..], b"{}", b"\xff\n", &vec![b'\n'; 1 << 20]] {
        assert!(talk.on_broadcast(&mut out, peer(1), bad).unwrap().is_none());
        talk.on_unicast(&mut out, peer(1), bad).unwrap();
    }
    assert_eq!(talk.take_heard(), [(peer(1), say.clone())]);
    // Two that wait for the same neighbour go together.
    let data = |say: &Say| -> GossipData { std::sync::Arc::new(say.encode()) };
    let both = talk.merge(data(&say), data(&Say::Object { peer: peer(4) }));
    let payload = talk.encode(0, &both);
    talk.on_unicast(&mut out, peer(1), &payload).unwrap();
    assert_eq!(talk.take_heard().len(), 2);
    for _ in 0..10_000 {
        talk.on_unicast(&mut out, peer(1), &bytes).unwrap();
    }
    assert!(talk.take_heard().len() <= 256);
    assert_ne!(CHANNEL, super::allocator::CHANNEL);
}
