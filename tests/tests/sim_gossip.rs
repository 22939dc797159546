//! What travels between peers that reconcile, and between these and originals.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use rand::RngExt;

use weave_tests::sim::toy::Toys;
use weave_tests::sim::{Faults, Sent, Settings, Traffic, World as AnyWorld};

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
