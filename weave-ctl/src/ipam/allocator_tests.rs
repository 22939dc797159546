//! Tests of single allocators, and of a few on a network that works.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use super::address::{Address, Cidr};
use super::allocator::{Allocator, CHANNEL, Config, Persisted};
use super::message::{State, Unicast};
use super::mode::InitMode;
use super::operations::{ANONYMOUS, ClaimOptions, MAX_PENDING, Reply};
use super::ring::Ring;
use super::sim::{FakeOutlet, Sent, UNIX, peer};
use crate::mesh::channel::{Channel, Outlet};
use crate::mesh::name::PeerName;

pub(super) fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

pub(super) fn ip(text: &str) -> Address {
    text.parse::<Ipv4Addr>().unwrap().into()
}

pub(super) fn config(index: usize, universe: &str, mode: InitMode) -> Config {
    Config {
        name: peer(index),
        nickname: format!("host{}", index + 1),
        uid: 100 + index as u64,
        universe: cidr(universe),
        default_subnet: cidr(universe),
        mode,
        seed: 7,
    }
}

/// Peers in one process; what they send arrives at once and in order.
pub(super) struct Net {
    pub allocators: Vec<Allocator>,
    pub out: FakeOutlet,
    pub cut_off: Vec<usize>,
}

impl Net {
    pub fn new(universe: &str, targets: usize, modes: &[InitMode]) -> Self {
        let make =
            |(index, mode): (usize, &InitMode)| Allocator::new(config(index, universe, mode.clone()), None);
        Self {
            allocators: modes.iter().enumerate().map(make).collect(),
            out: FakeOutlet {
                known: (0..modes.len()).map(peer).collect(),
                targets,
                ..FakeOutlet::default()
            },
            cut_off: Vec::new(),
        }
    }

    pub fn cut_off(&mut self, n: usize) {
        self.cut_off.push(n);
        self.out.known.remove(&peer(n));
    }

    /// One step at `n`, and all that follows from it.
    pub fn at<R>(&mut self, n: usize, run: impl FnOnce(&mut Allocator, &mut dyn Outlet) -> R) -> R {
        let result = run(&mut self.allocators[n], &mut self.out);
        let mut queue: VecDeque<(usize, Sent)> = self.out.sent.drain(..).map(|s| (n, s)).collect();
        while let Some((from, sent)) = queue.pop_front() {
            let (to, payload) = match sent {
                Sent::Unicast(to, payload) => (vec![to.as_u64() as usize - 1], Some(payload)),
                Sent::Broadcast => ((0..self.allocators.len()).filter(|t| *t != from).collect(), None),
            };
            for to in to {
                if self.cut_off.contains(&to) || self.cut_off.contains(&from) {
                    continue;
                }
                let (name, receiver) = (peer(from), to);
                match &payload {
                    Some(payload) => self.allocators[receiver]
                        .on_unicast(&mut self.out, name, payload)
                        .unwrap(),
                    None => {
                        let state = self.encoded(from);
                        self.allocators[receiver]
                            .on_broadcast(&mut self.out, name, &state)
                            .unwrap();
                    }
                }
                queue.extend(self.out.sent.drain(..).map(|s| (to, s)));
            }
        }
        result
    }

    pub fn encoded(&mut self, n: usize) -> Vec<u8> {
        let data = self.allocators[n].full_state(&mut self.out).unwrap();
        self.allocators[n].encode(UNIX, &data)
    }

    pub fn gossip(&mut self) {
        for from in 0..self.allocators.len() {
            for to in 0..self.allocators.len() {
                let state = self.encoded(from);
                self.at(to, |a, out| a.on_gossip(out, &state).map(|_| ()))
                    .unwrap();
            }
        }
    }

    pub fn allocate(&mut self, n: usize, id: &str, subnet: &str) -> Option<String> {
        self.at(n, |a, out| a.allocate(out, 1, id, cidr(subnet), true));
        self.answer(n)
    }

    pub fn claim(&mut self, n: usize, id: &str, text: &str) -> Option<String> {
        self.at(n, |a, out| {
            a.claim(out, 2, id, cidr(text), ClaimOptions::default())
        });
        self.answer(n)
    }

    /// `rmpeer`, to which nobody objects.
    pub fn remove(&mut self, n: usize, text: &str) -> String {
        self.at(n, |a, out| a.remove_peer(out, 8, text, false));
        self.allocators[n].take_said();
        self.out.now += Duration::from_secs(1);
        self.at(n, |a, out| a.on_deadline(out));
        self.answer(n).unwrap()
    }

    pub fn answer(&mut self, n: usize) -> Option<String> {
        let mut replies = self.allocators[n].take_replies();
        assert!(replies.len() <= 1);
        Some(show(replies.pop()?.1))
    }

    pub fn tokens(&self, n: usize) -> Vec<String> {
        let text = |e: &super::ring::Entry| format!("{} {}", Ipv4Addr::from(e.token), e.peer.as_u64());
        self.allocators[n].ring().entries.iter().map(text).collect()
    }

    pub fn status(&self, n: usize) -> crate::api::report::Ipam {
        self.allocators[n].report(&self.out)
    }
}

pub(super) fn show(reply: Reply) -> String {
    match reply {
        Reply::Allocated(cidr) => cidr.to_string(),
        Reply::Done => "done".to_owned(),
        Reply::Cancelled => "cancelled".to_owned(),
        Reply::Removed(count) => count.to_string(),
        Reply::Adopted(adopted) => format!("{adopted:?}"),
        Reply::Failed(error) => error.to_string(),
    }
}

pub(super) fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// control.md A.7.
#[test]
fn walk_through() {
    let mut net = Net::new("10.2.0.0/16", 1, &[InitMode::default(), InitMode::default()]);
    assert_eq!(net.allocate(0, "foo", "10.2.0.0/16"), some("10.2.0.1/16"));
    assert_eq!(net.tokens(0), ["10.2.0.0 1", "10.2.128.0 2"]);
    assert_eq!(net.allocate(0, "bar", "10.2.5.0/24"), some("10.2.5.1/24"));
    assert_eq!(net.allocate(0, ANONYMOUS, "10.2.0.0/16"), some("10.2.0.2/16"));
    let owned = net.allocators[0].owned();
    assert_eq!(owned[2], ("10.2.0.2".to_owned(), vec![cidr("10.2.0.2/16")]));
    assert_eq!(net.claim(0, "remote", "10.2.200.1/16"), some("done"));
    let expected = ["10.2.0.0 1", "10.2.128.0 2", "10.2.200.1 1", "10.2.200.2 2"];
    assert_eq!(net.tokens(0), expected);
    assert_eq!(net.tokens(1), expected);
    net.cut_off(1);
    assert_eq!(net.remove(0, "host2"), "32767");
    assert_eq!(net.remove(0, "host2"), "0");
    assert_eq!(net.remove(0, "host1"), "0");
    assert_eq!(net.remove(0, "nobody"), "0");
    assert_eq!(net.allocators[0].our_ranges(), [cidr("10.2.0.0/16").range()]);

    let mut net = Net::new("10.2.0.0/16", 0, &[InitMode::default(), InitMode::Observer]);
    assert_eq!(net.allocate(1, "first", "10.2.0.0/16"), some("10.2.128.0/16"));
}

/// The addresses and ring of three original peers, the first of which was alone at first.
#[test]
fn like_three_original_peers() {
    let seed = |n| InitMode::Seed(vec![peer(n)]);
    let mut net = Net::new(
        "10.32.0.0/12",
        0,
        &[seed(0), InitMode::Observer, InitMode::Observer],
    );
    let subnet = "10.32.0.0/12";
    assert_eq!(net.allocate(0, "c1", subnet), some("10.32.0.1/12"));
    net.gossip();
    assert_eq!(net.allocate(1, "c2", subnet), some("10.44.0.0/12"));
    // The third happened to ask the second.
    net.cut_off(0);
    assert_eq!(net.allocate(2, "c3", subnet), some("10.47.0.0/12"));
    net.cut_off.clear();
    net.out.known.insert(peer(0));
    let state = net.encoded(1);
    net.at(0, |a, out| a.on_gossip(out, &state).map(|_| ())).unwrap();
    let report = net.status(0);
    let entries = report
        .entries
        .iter()
        .map(|e| (e.token.as_str(), e.size, e.nickname.as_str(), e.version));
    let expected = [
        ("10.32.0.0", 786_432, "host1", 3),
        ("10.44.0.0", 196_608, "host2", 3),
        ("10.47.0.0", 65_536, "host3", 0),
    ];
    assert_eq!(entries.collect::<Vec<_>>(), expected);
    assert_eq!((report.active_ips, report.range_num_ips), (1, 1_048_576));
}

/// Bodies of answers recorded from an original peer.
#[test]
fn answers_of_an_original_peer() {
    let seeds = InitMode::Seed(vec![peer(0), peer(1)]);
    let mut net = Net::new("10.32.0.0/12", 0, &[seeds.clone(), seeds]);
    net.gossip();
    let subnet = "10.32.0.0/12";
    assert_eq!(net.allocate(0, "c1", subnet), some("10.32.0.1/12"));
    assert_eq!(net.allocate(0, "x1", subnet), some("10.32.0.2/12"));
    assert_eq!(net.allocate(0, "x1", "10.32.0.0/16"), some("10.32.0.2/16"));
    let lookup = |net: &Net, subnet: Option<&str>| net.allocators[0].lookup("x1", subnet.map(cidr));
    assert_eq!(lookup(&net, Some("10.32.0.0/16")), [cidr("10.32.0.2/12")]);
    assert_eq!(lookup(&net, Some("10.33.0.0/16")), []);
    assert_eq!(lookup(&net, None), [cidr("10.32.0.2/12")]);
    assert_eq!(
        net.allocate(0, "x1", "10.99.0.0/24"),
        some("range 10.99.0.0/24 out of bounds: 10.32.0.0/12")
    );
    assert_eq!(
        net.allocate(0, "x1", "10.32.0.0/31"),
        some("invalid subnet - smaller than minimum size 4: 10.32.0.0/31")
    );
    assert_eq!(net.claim(0, "x2", "10.33.7.7/12"), some("done"));
    assert_eq!(net.claim(0, "x2", "10.33.7.7/12"), some("done"));
    assert_eq!(
        net.claim(0, "x3", "10.33.7.7/12"),
        some("address 10.33.7.7/12 is already owned by x2")
    );
    assert_eq!(net.allocate(1, "there", subnet), some("10.40.0.0/12"));
    assert_eq!(
        net.claim(0, "x3", "10.40.0.0/12"),
        some("address 10.40.0.0/12 is owned by other peer 00:00:00:00:00:02 (host2)")
    );
    // Outside the universe.
    assert_eq!(net.claim(0, "x3", "192.168.9.9/24"), some("done"));
    assert_eq!(
        net.claim(0, "x4", "192.168.9.9/24"),
        some("address 192.168.9.9/24 already in use by x3")
    );
    assert_eq!(net.claim(0, ANONYMOUS, "192.168.9.9/24"), some("done"));
    // Anonymous.
    assert_eq!(net.claim(0, ANONYMOUS, "10.33.7.8/12"), some("done"));
    assert_eq!(net.claim(0, ANONYMOUS, "10.33.7.8/12"), some("done"));
    assert_eq!(net.claim(0, ANONYMOUS, "10.33.7.7/12"), some("done"));
    assert_eq!(
        net.claim(0, "x5", "10.33.7.8/12"),
        some("address 10.33.7.8/12 already in use")
    );
    let mut free = |id: &str, addr: &str| {
        let freed = net.allocators[0].free(id, ip(addr));
        freed.map_err(|e| e.to_string())
    };
    assert_eq!(
        free("x1", "10.33.9.9"),
        Err("Free: address 10.33.9.9 not found for x1".to_owned())
    );
    assert_eq!(free("x2", "10.33.7.7"), Ok(()));
    assert_eq!(free("10.33.7.8", "10.33.7.8"), Ok(()));
    let mut free_all = |id: &str| net.allocators[0].free_all(id).map_err(|e| e.to_string());
    assert_eq!(free_all("x1"), Ok(()));
    assert_eq!(free_all("x1"), Err("Delete: no addresses for x1".to_owned()));
    assert_eq!(net.claim(0, "x6", "10.33.7.7/12"), some("done"));
    assert_eq!(net.allocate(0, "x7", subnet), some("10.32.0.2/12"));
}

#[test]
fn a_claim_whose_owner_cannot_be_reached() {
    let seeds = InitMode::Seed(vec![peer(0), peer(1)]);
    let mut net = Net::new("10.2.0.0/16", 0, &[seeds.clone(), seeds]);
    net.cut_off(1);
    assert_eq!(net.claim(0, "a", "10.2.200.1/16"), None);
    for _ in 0..4 {
        net.at(0, |a, out| a.tick(out));
        assert_eq!(net.answer(0), None);
    }
    assert_eq!(net.status(0).pending_claims[0].cidr.addr, "10.2.200.1");
    net.at(0, |a, out| a.tick(out));
    assert_eq!(
        net.answer(0),
        some(
            "address 10.2.200.1/16 is owned by other peer 00:00:00:00:00:02 - unknown relay destination: 00:00:00:00:00:02"
        )
    );
    // Answered at once where the caller says that it does not matter; still claimed later.
    let options = ClaimOptions {
        is_container: true,
        no_error_on_unknown: true,
    };
    net.at(0, |a, out| a.claim(out, 3, "b", cidr("10.2.200.2/16"), options));
    assert_eq!(net.answer(0), some("done"));
    assert_eq!(net.allocators[0].lookup("b", None), []);
    net.allocators[0].cancel(3);
    net.cut_off.clear();
    net.out.known.insert(peer(1));
    net.at(0, |a, out| a.tick(out));
    assert_eq!(net.answer(0), None);
    assert_eq!(net.allocators[0].lookup("b", None), [cidr("10.2.200.2/16")]);
}

#[test]
fn waiting_for_consensus() {
    let mut net = Net::new("10.32.0.0/12", 1, &[InitMode::default()]);
    assert_eq!(net.status(0).paxos, None);
    assert_eq!(net.allocate(0, "zz", "10.32.0.0/12"), None);
    net.at(0, |a, out| a.prime(out, 9));
    net.at(0, |a, out| a.tick(out));
    let report = net.status(0);
    let json = serde_json::to_string(&report).unwrap();
    // As reported by an original peer in that state.
    let expected = r#"{"Paxos":{"Elector":true,"KnownNodes":1,"Quorum":2},"Range":"10.32.0.0/12","RangeNumIPs":1048576,"ActiveIPs":0,"DefaultSubnet":"10.32.0.0/12","Entries":null,"PendingClaims":null,"PendingAllocates":["zz 10.32.0.0/12"]}"#;
    assert_eq!(json, expected);
    // Another voter comes.
    net.allocators.push(Allocator::new(
        config(1, "10.32.0.0/12", InitMode::default()),
        None,
    ));
    net.out.known.insert(peer(1));
    net.at(0, |a, out| a.tick(out));
    let replies = net.allocators[0].take_replies();
    let replies: Vec<_> = replies
        .into_iter()
        .map(|(request, r)| (request, show(r)))
        .collect();
    assert_eq!(replies, [(9, "done".to_owned()), (1, "10.32.0.1/12".to_owned())]);
    assert_eq!(net.tokens(1), ["10.32.0.0 1", "10.40.0.0 2"]);
}

/// Nobody has a ring; an observer's request makes those who vote begin.
#[test]
fn observers_call_elections() {
    let count = InitMode::Consensus(Some(2));
    let mut net = Net::new("10.2.0.0/16", 0, &[count.clone(), InitMode::Observer]);
    assert_eq!(net.allocate(1, "a", "10.2.0.0/16"), None);
    assert_eq!(net.status(1).paxos.map(|p| p.elector), Some(false));
    assert_eq!(
        net.status(0).paxos.map(|p| (p.elector, p.quorum)),
        Some((true, 2))
    );
    net.allocators
        .push(Allocator::new(config(2, "10.2.0.0/16", count), None));
    net.out.known.insert(peer(2));
    net.at(1, |a, out| a.tick(out));
    net.at(0, |a, out| a.tick(out));
    assert!(net.answer(1).is_some());
    assert_eq!(net.allocators[1].ring().seeds, [peer(0), peer(2)]);
}

#[test]
fn cancelling() {
    let mut net = Net::new("10.2.0.0/16", 1, &[InitMode::default()]);
    net.at(0, |a, out| {
        a.allocate(out, 1, "a", cidr("10.2.0.0/16"), true);
        a.allocate(out, 2, "b", cidr("10.2.0.0/16"), true);
        a.claim(out, 3, "b", cidr("10.2.0.9/16"), ClaimOptions::default());
        a.prime(out, 4);
        a.allocate(out, 5, "c", cidr("10.2.0.0/16"), true);
    });
    let replies = |net: &mut Net| -> BTreeMap<u64, String> {
        let replies = net.allocators[0].take_replies();
        replies
            .into_iter()
            .map(|(request, r)| (request, show(r)))
            .collect()
    };
    net.allocators[0].cancel(1);
    assert_eq!(replies(&mut net), BTreeMap::new());
    net.at(0, |a, out| a.container_died(out, "b"));
    let cancelled = "cancelled".to_owned();
    assert_eq!(
        replies(&mut net),
        BTreeMap::from([(2, cancelled.clone()), (3, cancelled.clone())])
    );
    net.allocators[0].stop();
    assert_eq!(
        replies(&mut net),
        BTreeMap::from([(4, "done".to_owned()), (5, cancelled.clone())])
    );
    net.at(0, |a, out| a.allocate(out, 6, "d", cidr("10.2.0.0/16"), true));
    assert_eq!(replies(&mut net), BTreeMap::from([(6, cancelled)]));
}

#[test]
fn waiting_operations_are_bounded() {
    let mut net = Net::new("10.2.0.0/16", 0, &[InitMode::Observer]);
    net.allocators[0].pending.primes = vec![0; MAX_PENDING];
    assert!(
        net.allocate(0, "a", "10.2.0.0/16")
            .unwrap()
            .starts_with("too many requests")
    );
    assert!(
        net.claim(0, "a", "10.2.0.1/16")
            .unwrap()
            .starts_with("too many requests")
    );
}

#[test]
fn containers() {
    let mut net = Net::new("10.2.0.0/16", 0, &[InitMode::default()]);
    for id in ["a", "b", "c", "d"] {
        net.allocate(0, id, "10.2.0.0/16");
    }
    assert_eq!(net.claim(0, "fixed", "10.2.0.5/16"), some("done"));
    assert_eq!(net.claim(0, "a", "192.168.0.1/24"), some("done"));
    let owners = |net: &Net| {
        net.allocators[0]
            .owned()
            .into_iter()
            .map(|(id, _)| id)
            .collect::<Vec<_>>()
            .join(" ")
    };
    for id in ["a", "b", "c", "fixed"] {
        net.at(0, |a, out| a.container_died(out, id));
    }
    // A dead container's address outside the universe may be taken over at once, one inside not.
    assert_eq!(net.claim(0, "e", "192.168.0.1/24"), some("done"));
    assert_eq!(
        net.claim(0, "e", "10.2.0.1/16"),
        some("address 10.2.0.1/16 is already owned by a")
    );
    net.out.now = Duration::from_secs(20);
    net.at(0, |a, out| a.tick(out));
    net.allocators[0].container_started("b");
    assert_eq!(net.allocate(0, "c", "10.2.0.0/16"), some("10.2.0.3/16"));
    net.out.now = Duration::from_secs(31);
    net.at(0, |a, out| a.tick(out));
    assert_eq!(owners(&net), "b c d fixed e");
    net.allocators[0].container_destroyed("b");
    net.allocators[0].container_destroyed("fixed");
    assert_eq!(owners(&net), "c d fixed e");
    net.allocators[0].retain_containers(&["d".to_owned()]);
    assert_eq!(owners(&net), "d fixed e");
    assert_eq!(net.allocate(0, "new", "10.2.0.0/16"), some("10.2.0.1/16"));
}

#[test]
fn containers_that_ended_while_docker_was_out_of_sight() {
    let mut net = Net::new("10.2.0.0/16", 0, &[InitMode::default()]);
    for id in ["a", "b", "c"] {
        net.allocate(0, id, "10.2.0.0/16");
    }
    let died = |net: &mut Net| net.at(0, |a, out| a.containers_died_except(out, &["b".to_owned()]));
    died(&mut net);
    net.out.now = Duration::from_secs(20);
    // Told again, they have not died later than they did; `c` has been started again.
    died(&mut net);
    net.allocators[0].container_started("c");
    net.out.now = Duration::from_secs(31);
    net.at(0, |a, out| a.tick(out));
    let owners: Vec<String> = net.allocators[0].owned().into_iter().map(|(id, _)| id).collect();
    assert_eq!(owners, ["b", "c"]);
}

#[test]
fn bad_unicasts_are_ignored() {
    let mut net = Net::new("10.2.0.0/16", 0, &[InitMode::default()]);
    net.allocate(0, "a", "10.2.0.0/16");
    let before = net.allocators[0].ring().clone();
    for payload in [&[] as &[u8], &[3], &[255, 1, 2], &[0], &[1, 0xff], &[2, 9, 9]] {
        assert_eq!(
            net.allocators[0].on_unicast(&mut net.out, peer(1), payload),
            Ok(())
        );
    }
    assert_eq!(*net.allocators[0].ring(), before);
    assert_eq!(net.allocators[0].messages_skipped(), 6);
}

/// Neither a message that cannot be read nor a ring that cannot be: nothing of it is used or passed on, and
/// the connection stays.
#[test]
fn bad_gossip_is_skipped() {
    let mut net = Net::new("10.2.0.0/16", 0, &[InitMode::default()]);
    net.allocate(0, "a", "10.2.0.0/16");
    let before = net.allocators[0].ring().clone();
    let mut ring = before.clone();
    ring.peer = peer(1);
    ring.entries[0].token = ip("10.9.0.0");
    ring.entries[0].version += 9;
    let state = State {
        nicknames: BTreeMap::from([(peer(7), "bad".to_owned())]),
        ring: Some(ring),
        ..State::default()
    };
    let allocator = &mut net.allocators[0];
    for payload in [vec![], vec![9, 9, 9], state.encode(UNIX)] {
        assert!(matches!(allocator.on_gossip(&mut net.out, &payload), Ok(None)));
        let heard = allocator.on_broadcast(&mut net.out, peer(1), &payload);
        assert!(matches!(heard, Ok(None)));
    }
    assert_eq!(*allocator.ring(), before);
    assert_eq!(allocator.messages_skipped(), 6);
    assert_eq!(allocator.conflicts().count(), 0);
    assert_eq!(allocator.nicknames.len(), 1);
}

fn rejection(ours: Allocator, theirs: &mut Net) -> String {
    let mut ours = ours;
    let state = theirs.encoded(0);
    assert!(matches!(ours.on_gossip(&mut theirs.out, &state), Ok(None)));
    ours.conflicts().next().unwrap().text.clone()
}

#[test]
fn clusters_that_do_not_fit_together() {
    let mut net = Net::new("10.32.0.0/12", 0, &[InitMode::default()]);
    net.allocate(0, "a", "10.32.0.0/12");
    let seeded = Allocator::new(
        config(1, "10.32.0.0/12", InitMode::Seed(vec![peer(1), peer(2)])),
        None,
    );
    assert_eq!(
        rejection(seeded, &mut net),
        "IP allocation was seeded by different peers (received: [00:00:00:00:00:01(host1)], \
         ours: [00:00:00:00:00:02(host2) 00:00:00:00:00:03])"
    );
    let ranged = Allocator::new(config(1, "10.40.0.0/16", InitMode::default()), None);
    assert_eq!(
        rejection(ranged, &mut net),
        "Incompatible IP allocation ranges (received: 10.32.0.0/12, ours: 10.40.0.0/16)"
    );
}

/// As a new store would have it.
fn persist(allocator: &mut Allocator) -> Persisted {
    let mut saved = None;
    allocator.take_changes().unwrap().apply(&mut saved);
    saved.unwrap()
}

#[test]
fn restarts() {
    let mut net = Net::new("10.2.0.0/16", 0, &[InitMode::default()]);
    assert_eq!(net.allocators[0].take_changes(), None);
    net.allocate(0, "a", "10.2.0.0/16");
    let saved = persist(&mut net.allocators[0]);
    assert_eq!(net.allocators[0].take_changes(), None);

    let restart = |config: Config| Allocator::new(config, Some(saved.clone()));
    let mut same = restart(config(0, "10.2.0.0/16", InitMode::Seed(vec![peer(5)])));
    assert_eq!(same.lookup("a", None), [cidr("10.2.0.1/16")]);
    assert_eq!(same.ring().seeds, [peer(0)]);
    assert_eq!(same.take_changes(), None);
    same.allocate(&mut net.out, 1, "b", cidr("10.2.0.0/16"), true);
    assert_eq!(same.take_replies()[0].1, Reply::Allocated(cidr("10.2.0.2/16")));

    // Another name, or another range: what was saved is overwritten.
    for other in [
        config(1, "10.2.0.0/16", InitMode::Observer),
        config(0, "10.3.0.0/16", InitMode::Observer),
    ] {
        let name = other.name;
        let mut fresh = restart(other);
        assert!(!fresh.has_ring() && fresh.owned().is_empty());
        let saved = persist(&mut fresh);
        assert!(saved.peer == name && saved.ring.is_empty() && saved.owned.is_empty());
    }
    // A ring that makes no sense.
    let mut broken = saved.clone();
    broken.ring.entries[0].token = 1;
    let allocator = Allocator::new(config(0, "10.2.0.0/16", InitMode::Observer), Some(broken));
    assert!(!allocator.has_ring());
}

/// Of three voters the first two decide. The second forgets nothing when it restarts, so the third cannot
/// bring about another decision with it.
#[test]
fn a_restarted_voter_keeps_its_promise() {
    let mode = InitMode::Consensus(Some(3));
    let mut second = Allocator::new(config(1, "10.2.0.0/16", mode.clone()), None);
    let mut first = Allocator::new(config(0, "10.2.0.0/16", mode.clone()), None);
    let mut out = FakeOutlet::default();
    let exchange = |from: &mut Allocator, to: &mut Allocator, out: &mut FakeOutlet| {
        let data = from.full_state(out).unwrap();
        let state = from.encode(UNIX, &data);
        to.on_broadcast(out, peer(7), &state).unwrap();
    };
    first.prime(&mut out, 1);
    exchange(&mut first, &mut second, &mut out);
    exchange(&mut second, &mut first, &mut out);
    exchange(&mut first, &mut second, &mut out);
    let saved = Some(persist(&mut second));
    exchange(&mut second, &mut first, &mut out);
    // The second dies before it hears of the ring.
    assert_eq!(first.ring().seeds, [peer(0), peer(1)]);

    let restarted = Config {
        uid: 999,
        ..config(1, "10.2.0.0/16", mode.clone())
    };
    let mut second = Allocator::new(restarted, saved);
    let mut third = Allocator::new(config(2, "10.2.0.0/16", mode), None);
    third.prime(&mut out, 1);
    for _ in 0..3 {
        exchange(&mut third, &mut second, &mut out);
        exchange(&mut second, &mut third, &mut out);
    }
    third.tick(&mut out);
    for _ in 0..3 {
        exchange(&mut third, &mut second, &mut out);
        exchange(&mut second, &mut third, &mut out);
    }
    assert_eq!(third.ring().seeds, [peer(0), peer(1)]);
}

#[test]
fn departure() {
    let seeds = InitMode::Seed(vec![peer(0), peer(1)]);
    let modes = [seeds.clone(), seeds, InitMode::Observer];
    let mut net = Net::new("10.2.0.0/16", 0, &modes);
    net.gossip();
    net.allocate(0, "a", "10.2.0.0/16");
    net.at(0, |a, out| a.depart(out));
    assert_eq!(net.allocators[1].our_ranges(), [cidr("10.2.0.0/16").range()]);
    assert_eq!(net.allocators[0].our_ranges(), []);
    assert!(persist(&mut net.allocators[0]).owned.is_empty());
    assert_eq!(net.allocate(0, "b", "10.2.0.0/16"), some("cancelled"));
    // The last owner leaves to one who owns nothing yet.
    net.cut_off(0);
    net.at(1, |a, out| a.depart(out));
    assert_eq!(net.allocators[2].our_ranges(), [cidr("10.2.0.0/16").range()]);
    assert!(net.allocate(2, "c", "10.2.0.0/16").is_some());
}

/// Space granted by somebody who had not yet heard of the departure goes back.
#[test]
fn gifts_to_the_departed() {
    let seeds = InitMode::Seed(vec![peer(0), peer(1)]);
    let mut net = Net::new("10.2.0.0/24", 0, &[seeds.clone(), seeds]);
    net.gossip();
    net.at(0, |a, out| a.depart(out));
    let late = Unicast::SpaceRequest(cidr("10.2.0.0/24").range()).encode(UNIX);
    net.at(1, |a, out| a.on_unicast(out, peer(0), &late)).unwrap();
    assert_eq!(net.allocators[1].our_ranges(), [cidr("10.2.0.0/24").range()]);
}

/// The ring says that ranges which we do not use belong to somebody else: they are not handed out.
#[test]
fn lost_ranges_are_not_handed_out() {
    let seeds = InitMode::Seed(vec![peer(0), peer(1)]);
    let mut net = Net::new("10.2.0.0/24", 0, &[seeds]);
    assert_eq!(net.at(0, |a, out| a.take_over(out, peer(1))), 128);
    assert_eq!(net.allocate(0, "a", "10.2.0.128/25"), some("10.2.0.129/25"));
    let mut theirs: Ring = net.allocators[0].ring().clone();
    theirs.entries[0].peer = peer(1);
    theirs.entries[0].version += 50;
    let state = State {
        ring: Some(theirs),
        ..State::default()
    };
    net.at(0, |a, out| a.on_gossip(out, &state.encode(UNIX)).map(|_| ()))
        .unwrap();
    assert_eq!(net.allocators[0].our_ranges(), [cidr("10.2.0.128/25").range()]);
    assert_eq!(net.allocate(0, "b", "10.2.0.0/24"), some("10.2.0.128/24"));
    assert_eq!(net.allocate(0, "c", "10.2.0.0/25"), None);
    // Back again; one of them goes to "c" at once.
    net.out.known.insert(peer(1));
    assert_eq!(net.at(0, |a, out| a.take_over(out, peer(1))), 127);
    assert_eq!(net.answer(0), some("10.2.0.1/25"));
}

#[test]
fn nicknames_come_and_go() {
    let mut net = Net::new("10.2.0.0/16", 0, &[InitMode::default(), InitMode::Observer]);
    let strangers = (2..9).map(|n| (peer(n), "x".to_owned()));
    let renamed = [(peer(0), "not-me".to_owned())];
    let state = State {
        nicknames: strangers.chain(renamed).collect(),
        ..State::default()
    };
    net.at(0, |a, out| a.on_gossip(out, &state.encode(UNIX)).map(|_| ()))
        .unwrap();
    assert_eq!(net.allocators[0].nicknames.len(), 8);
    net.allocators[0].on_peer_gone(&mut net.out, peer(2));
    assert_eq!(net.allocators[0].nicknames.len(), 7);
    assert_eq!(net.allocators[0].nicknames[&peer(0)], "host1");
    net.allocate(1, "a", "10.2.0.0/16");
    net.gossip();
    let names: Vec<PeerName> = net.allocators[1].nicknames.keys().copied().collect();
    assert!(names.contains(&peer(0)) && names.contains(&peer(1)));
}

/// What three original peers told each other while they agreed, allocated, claimed and donated.
#[test]
fn captured_peers() {
    use crate::mesh::{capture, message::Message};
    let mut allocator = Allocator::new(config(8, "10.32.0.0/24", InitMode::Observer), None);
    let mut out = FakeOutlet::default();
    let mut counts = [0; 3];
    for stream in capture::streams(capture::IPAM).values() {
        let (_, _, bodies) = capture::parts(stream);
        for body in bodies.iter().skip(1) {
            let (kind, envelope) = match Message::decode(body) {
                Ok(Some(Message::Gossip(envelope))) => (0, envelope),
                Ok(Some(Message::Broadcast(envelope))) => (1, envelope),
                Ok(Some(Message::Unicast { envelope, .. })) => (2, envelope),
                _ => continue,
            };
            if envelope.channel != CHANNEL {
                continue;
            }
            counts[kind] += 1;
            let payload = &envelope.payload;
            if kind == 2 {
                let message = Unicast::decode(payload).unwrap();
                assert_eq!(Unicast::decode(&message.encode(UNIX)), Ok(message));
                allocator.on_unicast(&mut out, envelope.source, payload).unwrap();
            } else {
                let state = State::decode(payload).unwrap();
                assert_eq!(State::decode(&state.encode(UNIX)), Ok(state));
                allocator.on_gossip(&mut out, payload).unwrap();
            }
        }
    }
    assert!(counts.iter().all(|c| *c > 3), "{counts:?}");
    let ring = allocator.ring();
    let seeds: Vec<String> = ring.seeds.iter().map(PeerName::to_string).collect();
    assert_eq!(seeds, ["7a:00:00:00:00:01", "7a:00:00:00:00:03"]);
    assert_eq!(ring.check(), Ok(()));
    let nicknames: Vec<&str> = allocator.nicknames.values().map(String::as_str).collect();
    assert_eq!(nicknames, ["host9", "host1", "host2", "host3"]);
}
