//! What travels between peers that reconcile, and between these and originals.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use rand::RngExt;

use weave_ctl::mesh::core::Input;
use weave_ctl::mesh::message::{Envelope, Message};
use weave_tests::sim::toy::Toys;
use weave_tests::sim::{Faults, Sent, Settings, Traffic, World as AnyWorld, name};

type World = AnyWorld<Toys>;

const TOPOLOGY: (u8, &str) = (4, "topology");
const RECONCILE: (u8, &str) = (17, "");

fn world(seed: u64, peers: usize, discovery: bool, original: impl Fn(usize) -> bool) -> World {
    let settings = Settings {
        seed,
        peers,
        discovery,
        conn_limit: 0,
        same_short_id: false,
    };
    let mut world = World::new(settings, |_| Toys::default());
    for (n, node) in world.nodes.iter_mut().enumerate() {
        node.original = original(n);
    }
    world
}

/// Everybody is told one other peer.
fn join(world: &mut World, from: usize) {
    for node in from.max(1)..world.nodes.len() {
        let to = world.rng.random_range(0..node);
        world.connect(node, &[to]);
    }
}

fn of(traffic: &Traffic, kind: (u8, &str)) -> Sent {
    let found = traffic.iter().find(|(k, _)| *k == kind);
    found.map(|(_, sent)| sent).unwrap_or_default()
}

/// Nobody got what it does not understand.
fn understood(world: &World) {
    for node in &world.nodes {
        assert_eq!(node.mesh.counters().reconcile_skipped, 0);
    }
}

#[test]
fn new_peers_never_send_full_state_and_in_rest_next_to_nothing() {
    let mut world = world(1, 24, true, |_| false);
    join(&mut world, 0);
    world.until("a full mesh", 120, World::full_mesh);
    world.run(60);
    let before = world.traffic.clone();
    world.run(300);
    let rest = world.traffic.since(&before);
    let each = of(&rest, RECONCILE).bytes / 24 / 5;
    assert!((1..2000).contains(&each), "{each} bytes per peer and minute");
    assert_eq!(of(&world.traffic, TOPOLOGY), Sent::default());
    understood(&world);
}

#[test]
fn a_join_costs_a_fraction() {
    let bytes = |originals: bool| {
        let mut world = world(2, 24, true, |_| originals);
        for node in 1..20 {
            world.connect(node, &[node - 1]);
        }
        let first: Vec<usize> = (0..20).collect();
        let joined = |w: &mut World| {
            let full = |n: &usize| w.nodes[*n].mesh.own().unwrap().connections.len() == 19;
            if first.iter().all(full) {
                Ok(())
            } else {
                Err(String::new())
            }
        };
        world.until("twenty", 120, joined);
        let before = world.traffic.clone();
        join(&mut world, 20);
        world.until("all", 120, World::full_mesh);
        world.traffic.since(&before).total().bytes
    };
    let (ours, theirs) = (bytes(false), bytes(true));
    assert!(ours * 4 < theirs, "{ours} bytes, originals {theirs}");
}

#[test]
fn mixed_meshes_settle() {
    for seed in 0..6 {
        let discovery = seed % 2 == 0;
        let mut world = world(seed, 15, discovery, |n| n % 3 == seed as usize % 3);
        join(&mut world, 0);
        world.until("a mixed mesh", 120, World::settled);
        for _ in 0..4 {
            let node = world.rng.random_range(1..15);
            world.crash(node);
            let pause = world.rng.random_range(0..5);
            world.run(pause);
            world.restart(node, Toys::default(), &[node - 1, (node + 1) % 15]);
        }
        world.lose_connections(8);
        world.run(3);
        world.until("a mixed mesh again", 600, World::settled);
        world.run(120);
        assert!(of(&world.traffic, TOPOLOGY).messages > 0 && of(&world.traffic, RECONCILE).messages > 0);
        understood(&world);
    }
}

#[test]
fn what_is_lost_or_comes_twice_or_late_is_made_good() {
    for seed in 0..4 {
        let mut world = world(seed, 14, true, |n| seed > 1 && n % 4 == 0);
        world.faults = Faults {
            lost: 100,
            doubled: 100,
            overtaken: 100,
        };
        join(&mut world, 0);
        world.until("a full mesh", 900, World::full_mesh);
        world.crash(3);
        world.run(20);
        world.restart(3, Toys::default(), &[5]);
        world.lose_connections(10);
        world.run(3);
        world.until("a full mesh again", 900, World::full_mesh);
    }
}

/// News travels as fast as it does between originals: not only with the digests of every half minute.
#[test]
fn changes_are_known_everywhere_within_seconds() {
    let mut world = world(5, 30, false, |_| false);
    for node in 1..30 {
        world.connect(node, &[(node - 1) / 2]);
    }
    world.until("a tree", 60, World::settled);
    world.run(31);
    for round in 0..5 {
        world.connect(29 - round, &[20 - round]);
        world.until("one link more", 8, World::settled);
    }
}

/// All are full, and then somebody comes who knows only one of them; later one of them returns.
#[test]
fn full_peers_let_in_who_has_no_other_way() {
    for seed in 0..8 {
        let mut world = world(seed, 13, true, |n| seed % 2 == 1 && n % 4 == 3);
        world.settings.conn_limit = 4;
        for node in 0..13 {
            world.restart(node, Toys::default(), &[]);
        }
        for node in 1..12 {
            world.connect(node, &[node - 1]);
        }
        let all: Vec<usize> = (0..12).collect();
        world.until("twelve", 300, |w| w.settled_among(&all));
        // Everybody takes in as many as it may, for the sake of the test.
        for node in 0..12 {
            world.connect(node, &[(node + 3) % 12, (node + 5) % 12]);
        }
        world.run(120);
        world.connect(12, &[seed as usize]);
        world.until("the thirteenth", 120, World::settled);
        world.crash(4);
        world.run(60);
        world.restart(4, Toys::default(), &[7]);
        world.until("the one who comes back", 120, World::settled);
        for node in &world.nodes {
            assert!(node.mesh.own().unwrap().connections.len() <= 4);
        }
    }
}

/// As where topologies disagree and something goes round in circles: what comes to be relayed without end.
#[test]
fn what_is_relayed_is_limited() {
    let mut world = world(7, 3, false, |_| false);
    world.connect(0, &[1]);
    world.connect(1, &[2]);
    world.until("a line", 60, World::settled);
    let before = world.traffic.clone();
    let conn = world.nodes[1].mesh.connection_to(name(0)).unwrap();
    for tick in 0..400 {
        for _ in 0..100 {
            let envelope = Envelope {
                channel: "any".to_owned(),
                source: name(0),
                payload: vec![tick as u8; 10],
            };
            let message = if tick % 2 == 0 {
                Message::Broadcast(envelope)
            } else {
                let (to, raw) = (name(2), None);
                Message::Unicast { to, envelope, raw }
            };
            world.input(1, Input::Received { conn, message });
        }
        world.run_for(Duration::from_millis(10));
    }
    let relayed = world.traffic.since(&before);
    let relayed = of(&relayed, (5, "other")).messages + of(&relayed, (6, "other")).messages;
    assert!((1000..3000).contains(&relayed), "{relayed} of 40000 were relayed");
    assert!(world.nodes[1].mesh.counters().relays_limited > 30_000);
    // Nothing else suffers.
    world.run(10);
    world.settled().unwrap();
}
