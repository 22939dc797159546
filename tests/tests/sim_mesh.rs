//! What holds for the mesh alone, whatever the seed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;

use rand::RngExt;
use rand::seq::SliceRandom;

use weave_tests::sim::toy::{self, Toy, Toys};
use weave_tests::sim::{Settings, World as AnyWorld, name};

type World = AnyWorld<Toys>;

/// What a debug build can do in a few seconds.
const LARGE: usize = 32;

fn settings(seed: u64, peers: usize) -> Settings {
    Settings {
        seed,
        peers,
        discovery: true,
        conn_limit: 0,
        same_short_id: false,
    }
}

fn world(settings: Settings) -> World {
    World::new(settings, |_| Toys::default())
}

/// A random tree plus some more links, all dialled as direct peers: by each the ones returned.
fn sparse(world: &mut World) -> Vec<Vec<usize>> {
    let mut dials = vec![Vec::new(); world.nodes.len()];
    let mut order: Vec<usize> = (0..world.nodes.len()).collect();
    order.shuffle(&mut world.rng);
    for i in 1..order.len() {
        let mut to = vec![order[world.rng.random_range(0..i)]];
        if world.rng.random_range(0..3) == 0 {
            to.push(order[world.rng.random_range(0..i)]);
        }
        world.connect(order[i], &to);
        dials[order[i]] = to;
    }
    dials
}

/// Everybody is told one other peer; discovery does the rest.
fn joined(settings: Settings) -> World {
    let mut world = world(settings);
    for node in 1..world.nodes.len() {
        let to = world.rng.random_range(0..node);
        world.connect(node, &[to]);
    }
    world
}

#[test]
fn discovery_makes_a_full_mesh() {
    for (seed, peers) in (0..12).map(|s| (s, 2 + s as usize)).chain([(100, 25)]) {
        let mut world = joined(settings(seed, peers));
        world.until("a full mesh", 120, World::full_mesh);
        assert!(
            !world.closed.keys().any(|reason| reason.contains("keep up")),
            "{:?}",
            world.closed
        );
    }
}

/// The cold start of a full mesh of a hundred is gigabytes of gossip: too much for every day.
#[test]
fn a_large_full_mesh() {
    let mut world = joined(settings(1, LARGE));
    world.until("a large full mesh", 120, World::full_mesh);
    world.lose_connections(20);
    world.run(2);
    world.until("a large full mesh again", 600, World::full_mesh);
}

/// Restarts and lost connections; each peer dials the same ones as before.
fn shake(world: &mut World, dials: &[Vec<usize>]) {
    let peers = world.nodes.len();
    for _ in 0..6 {
        let node = world.rng.random_range(0..peers);
        world.crash(node);
        let pause = world.rng.random_range(0..5);
        world.run(pause);
        world.restart(node, Toys::default(), &dials[node]);
    }
    world.lose_connections(10);
    world.run(3);
}

#[test]
fn a_hundred_peers_in_a_sparse_mesh() {
    for seed in 200..202 {
        let mut world = world(Settings {
            discovery: false,
            ..settings(seed, 100)
        });
        let dials = sparse(&mut world);
        world.until("a sparse mesh", 120, World::settled);
        shake(&mut world, &dials);
        world.partition(|n| n / 50);
        world.run(40);
        world.partition(|_| 0);
        world.until("a sparse mesh again", 900, World::settled);
    }
}

#[test]
fn sparse_meshes_without_discovery() {
    for (seed, peers) in (0..20).map(|s| (s, 3 + s as usize)).chain([(50, 100)]) {
        let mut world = world(Settings {
            discovery: false,
            ..settings(seed, peers)
        });
        sparse(&mut world);
        world.until("a sparse mesh", 120, World::settled);
    }
}

/// Those who come first must not fill up among themselves and shut out the others, nor one that comes back.
#[test]
fn a_connection_limit_is_kept_and_nobody_is_shut_out() {
    for seed in 0..6 {
        let mut world = joined(Settings {
            conn_limit: 5,
            ..settings(seed, 16)
        });
        world.until("a limited mesh", 300, World::settled);
        let node = world.rng.random_range(1..16);
        world.crash(node);
        world.run(40);
        world.restart(node, Toys::default(), &[node - 1]);
        world.until("a limited mesh again", 300, World::settled);
        world.partition(|n| n % 2);
        world.run(60);
        world.partition(|_| 0);
        world.until("a healed limited mesh", 900, World::settled);
        for node in &world.nodes {
            assert!(node.mesh.own().unwrap().connections.len() <= 5);
        }
    }
}

#[test]
fn equal_short_ids_become_unique() {
    for seed in 0..6 {
        let mut world = joined(Settings {
            same_short_id: true,
            ..settings(seed, 12)
        });
        world.until("unique short IDs", 120, World::full_mesh);
    }
}

#[test]
fn restarted_peers_are_believed_again() {
    for seed in 0..8 {
        let mut world = joined(settings(seed, 8));
        world.until("a full mesh", 120, World::full_mesh);
        for round in 0..3 {
            let node = world.rng.random_range(0..8);
            world.crash(node);
            if world.rng.random() {
                world.run(world.settings.seed % 7);
            }
            world.restart(node, Toys::default(), &[(node + 1 + round) % 8]);
        }
        world.until("a full mesh after restarts", 600, World::full_mesh);
    }
}

/// What others remember has a higher version than a fresh start will reach by itself.
#[test]
fn a_restarted_peer_overtakes_what_others_remember_of_it() {
    for seed in 0..8 {
        let mut world = world(Settings {
            discovery: false,
            ..settings(seed, 4)
        });
        for n in 1..4 {
            world.connect(n, &[n - 1]);
        }
        for _ in 0..4 {
            world.until("a line", 120, World::settled);
            world.crash(3);
            world.restart(3, Toys::default(), &[2]);
        }
        world.until("a line", 120, World::settled);
        world.crash(2);
        world.restart(2, Toys::default(), &[1, 3]);
        world.until("a line again", 120, World::settled);
    }
}

#[test]
fn dead_peers_are_forgotten_by_all() {
    for seed in 0..6 {
        let mut world = joined(settings(seed, 9));
        for node in &mut world.nodes {
            node.site.toy = Some(Toy::default());
        }
        world.until("a full mesh", 120, World::full_mesh);
        world.crash(3);
        world.crash(7);
        world.until("two fewer", 60, World::full_mesh);
        for node in world.nodes.iter().filter(|n| n.up) {
            let gone: BTreeSet<_> = node.site.toy.as_ref().unwrap().gone.iter().copied().collect();
            assert!(
                gone.contains(&name(3)) && gone.contains(&name(7)),
                "channels are told: {gone:?}"
            );
        }
    }
}

#[test]
fn partitions_heal() {
    for seed in 0..6 {
        let mut world = joined(settings(seed, 10));
        world.until("a full mesh", 120, World::full_mesh);
        world.partition(|n| n % 2);
        for half in 0..2 {
            let group: Vec<usize> = (0..10).filter(|n| n % 2 == half).collect();
            world.until("one half", 120, |w| w.settled_among(&group));
        }
        world.run(seed * 20);
        world.partition(|_| 0);
        // Only direct peers are dialled across: nobody else is remembered.
        world.until("a healed mesh", 900, World::full_mesh);
    }
}

#[test]
fn unicasts_arrive_once_and_broadcasts_everywhere_through_peers_without_the_channel() {
    for seed in 0..10 {
        let peers = 14;
        let mut world = world(Settings {
            discovery: false,
            ..settings(seed, peers)
        });
        for n in (0..peers).filter(|n| n % 3 != 2) {
            world.nodes[n].site.toy = Some(Toy::default());
        }
        sparse(&mut world);
        world.until("a sparse mesh", 120, World::settled);
        let with_toy: Vec<usize> = (0..peers)
            .filter(|n| world.nodes[*n].site.toy.is_some())
            .collect();
        for &from in &with_toy {
            for &to in with_toy.iter().filter(|to| **to != from) {
                world.act(from, |_, out| {
                    out.unicast(name(to), vec![from as u8, to as u8]).unwrap()
                });
            }
            world.act(from, |_, out| out.broadcast(toy::data([from as u64])));
        }
        world.run(5);
        for &here in &with_toy {
            let toy = world.nodes[here].site.toy.as_mut().unwrap();
            toy.unicasts.sort();
            toy.broadcasts.sort();
            let others = with_toy.iter().filter(|n| **n != here);
            let unicasts: Vec<_> = others
                .clone()
                .map(|n| (name(*n), vec![*n as u8, here as u8]))
                .collect();
            let broadcasts: Vec<_> = others
                .map(|n| (name(*n), (*n as u64).to_be_bytes().to_vec()))
                .collect();
            assert_eq!(toy.unicasts, unicasts, "seed {seed}, at {here}");
            assert_eq!(toy.broadcasts, broadcasts, "seed {seed}, at {here}");
        }
    }
}

#[test]
fn gossip_reaches_everybody_through_peers_without_the_channel() {
    for seed in 0..6 {
        let peers = 12;
        let mut world = world(Settings {
            discovery: false,
            ..settings(seed, peers)
        });
        // A line, in which every second peer only relays.
        for n in 1..peers {
            world.connect(n, &[n - 1]);
        }
        world.until("a line", 120, World::settled);
        for n in (0..peers).step_by(2) {
            world.nodes[n].site.toy = Some(Toy {
                numbers: BTreeSet::from([n as u64]),
                ..Toy::default()
            });
        }
        world.until("all numbers everywhere", 600, |w| {
            let full = |t: &Toy| t.numbers.len() == peers / 2;
            let lagging = w
                .nodes
                .iter()
                .filter_map(|n| n.site.toy.as_ref())
                .filter(|t| !full(t))
                .count();
            if lagging == 0 {
                Ok(())
            } else {
                Err(format!("{lagging} do not know all"))
            }
        });
    }
}

#[test]
fn a_channel_that_rejects_closes_the_connection_and_says_why() {
    let mut world = world(settings(3, 2));
    for node in &mut world.nodes {
        node.site.toy = Some(Toy::default());
    }
    world.connect(0, &[1]);
    world.until("a pair", 60, World::full_mesh);
    let poison = u64::from_be_bytes(toy::POISON.try_into().unwrap());
    world.nodes[1].site.toy.as_mut().unwrap().numbers.insert(poison);
    world.until("a reason", 60, |w| {
        let status = w.nodes[0].mesh.connections_status(w.now);
        let found = status
            .iter()
            .any(|s| s.error.as_deref() == Some("the toy is broken"));
        if found { Ok(()) } else { Err(format!("{status:?}")) }
    });
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let mut world = joined(settings(42, 10));
        world.run(60);
        (
            world.handled,
            world.traffic.clone(),
            world
                .nodes
                .iter()
                .map(|n| n.mesh.own().cloned())
                .collect::<Vec<_>>(),
        )
    };
    assert_eq!(run(), run());
}
