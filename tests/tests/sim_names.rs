//! Names of WeaveDNS on simulated meshes: who knows which, after additions, deletions, crashes and partitions.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use rand::RngExt;

use weave_ctl::dns::entry::Id;
use weave_ctl::dns::names::{CHANNEL, Filter, Names, TOMBSTONE_LIFE};
use weave_ctl::mesh::channel::{Channel, Channels, Outlet};
use weave_tests::sim::{Faults, Settings, Site, World as AnyWorld, name, node_of};

const DOMAIN: &str = "weave.local.";

/// A peer with WeaveDNS.
struct Dns {
    names: Names,
    /// It was launched with `--no-dns`.
    off: bool,
}

impl Dns {
    fn new(node: usize) -> Self {
        Self {
            names: Names::new(name(node), DOMAIN),
            off: false,
        }
    }
}

impl Channels for Dns {
    fn names(&self) -> Vec<&'static str> {
        if self.off { Vec::new() } else { vec![CHANNEL] }
    }
    fn get(&mut self, name: &str) -> Option<&mut dyn Channel> {
        (name == CHANNEL && !self.off).then_some(&mut self.names as &mut dyn Channel)
    }
}

impl Site for Dns {
    const CHANNEL: &'static str = CHANNEL;
    const CHORE: Option<Duration> = Some(Duration::from_secs(5));

    fn chore(&mut self, out: &mut dyn Outlet) {
        self.names.tick(out);
    }
}

type World = AnyWorld<Dns>;

/// What the owners of names know: node and name.
type Model = BTreeSet<(usize, String)>;

fn world(seed: u64, peers: usize, original: impl Fn(usize) -> bool) -> (World, Model) {
    let settings = Settings {
        seed,
        peers,
        discovery: seed.is_multiple_of(2),
        conn_limit: 0,
        same_short_id: false,
    };
    let mut world = World::new(settings, Dns::new);
    for (n, node) in world.nodes.iter_mut().enumerate() {
        node.original = original(n);
    }
    for node in 1..peers {
        let to = world.rng.random_range(0..node);
        world.connect(node, &[to]);
    }
    (world, Model::new())
}

fn add(world: &mut World, model: &mut Model, node: usize, what: &str) {
    world.act(node, |dns, out| dns.names.register(out, "c", 1, what).unwrap());
    model.insert((node, format!("{what}.{DOMAIN}")));
}

fn delete(world: &mut World, model: &mut Model, node: usize, what: &str) {
    let filter = Filter {
        name: Some(what.to_owned()),
        ..Filter::default()
    };
    world.act(node, |dns, out| dns.names.remove(out, &filter));
    model.remove(&(node, format!("{what}.{DOMAIN}")));
}

/// Everybody knows the names of those that run, and no other.
fn agreed(world: &World, model: &Model) -> Result<(), String> {
    let up = world.up();
    let expected: Model = model.iter().filter(|(n, _)| up.contains(n)).cloned().collect();
    for node in up.into_iter().filter(|node| !world.nodes[*node].site.off) {
        let live = world.nodes[node].site.names.entries();
        let live = live.filter(|(_, state)| state.is_live()).map(|(id, _)| id);
        let live: Model = live
            .map(|id: &Id| (node_of(id.origin()), id.hostname().to_owned()))
            .collect();
        if live != expected {
            let lacks: Vec<_> = expected.difference(&live).collect();
            let wrong: Vec<_> = live.difference(&expected).collect();
            return Err(format!("{node} lacks {lacks:?} and has {wrong:?}"));
        }
    }
    Ok(())
}

fn until_agreed(world: &mut World, model: &Model, what: &str, limit: u64) {
    world.until(what, limit, |world| agreed(world, model));
}

#[test]
fn names_survive_what_happens_to_peers_and_deleted_ones_stay_deleted() {
    for seed in 0..6 {
        // None of them, some, or all gossip as originals do.
        let (mut world, mut model) = world(seed, 9, |n| match seed % 3 {
            0 => false,
            1 => n % 3 == 0,
            _ => true,
        });
        for node in 0..9 {
            // No clock is right. With originals they must be nearly so, or a tombstone stays for long.
            let most = if seed % 3 == 0 { 3600 } else { 100 };
            world.nodes[node].skew = (seed as i64 - 3) * (node as i64 % 3) * most;
            add(&mut world, &mut model, node, "same");
            add(&mut world, &mut model, node, &format!("own{node}"));
        }
        until_agreed(&mut world, &model, "names of all", 120);

        // A name is deleted while a part of the network is away, and one host restarts without its names.
        world.partition(|node| usize::from(node > 5));
        world.run(10);
        delete(&mut world, &mut model, 0, "same");
        delete(&mut world, &mut model, 7, "own7");
        add(&mut world, &mut model, 8, "late");
        world.crash(3);
        model.retain(|(node, _)| *node != 3);
        world.restart(3, Dns::new(3), &[0, 7]);
        world.run(30);
        add(&mut world, &mut model, 3, "again");
        world.partition(|_| 0);
        world.faults = Faults {
            lost: 50,
            doubled: 50,
            overtaken: 50,
        };
        until_agreed(&mut world, &model, "names after a partition", 600);
        world.run(90);
        agreed(&world, &model).unwrap();
        world.faults = Faults::default();

        // Names that come and go.
        for round in 0..60 {
            let node = world.rng.random_range(0..9);
            let what = format!("n{}", world.rng.random_range(0..3));
            match round % 2 {
                0 => add(&mut world, &mut model, node, &what),
                _ => delete(&mut world, &mut model, node, &what),
            }
            world.run_for(Duration::from_millis(300));
        }
        world.crash(8);
        until_agreed(&mut world, &model, "names after all that", 120);

        // What was deleted is forgotten in the end, and nothing comes back from anywhere.
        world.run(TOMBSTONE_LIFE.as_secs() + 900);
        agreed(&world, &model).unwrap();
        for node in world.up() {
            let names = &world.nodes[node].site.names;
            let live = model.iter().filter(|(n, _)| *n != 8).count();
            assert_eq!(names.entries().count(), live, "seed {seed}, {node}");
            assert_eq!(names.skipped(), 0);
        }
    }
}

/// Not only with the digests of every half minute, and over many hops.
#[test]
fn a_change_is_known_everywhere_within_seconds() {
    for (seed, originals) in [(1, false), (3, true)] {
        let (mut world, mut model) = world(seed, 16, |n| originals && n % 4 == 1);
        until_agreed(&mut world, &model, "a mesh", 60);
        world.until("a mesh", 120, World::settled);
        world.run(31);
        for round in 0..8 {
            add(&mut world, &mut model, round, "new");
            until_agreed(&mut world, &model, "a new name", 3);
            delete(&mut world, &mut model, round, "new");
            until_agreed(&mut world, &model, "a deletion", 3);
        }
    }
}

/// As those do that never heard of WeaveDNS.
#[test]
fn peers_without_dns_pass_names_on() {
    let settings = Settings {
        seed: 5,
        peers: 5,
        discovery: false,
        conn_limit: 0,
        same_short_id: false,
    };
    let mut world: World = AnyWorld::new(settings, Dns::new);
    let mut model = Model::new();
    for node in 1..5 {
        world.nodes[node].site.off = (1..4).contains(&node);
        world.connect(node, &[node - 1]);
    }
    world.until("a line", 120, World::settled);
    for node in [0, 4] {
        add(&mut world, &mut model, node, &format!("own{node}"));
    }
    until_agreed(&mut world, &model, "names at both ends", 30);
    delete(&mut world, &mut model, 4, "own4");
    until_agreed(&mut world, &model, "a deletion at both ends", 30);
    // Nothing of it goes in circles.
    let before = world.traffic.clone();
    world.run(300);
    let messages = world.traffic.since(&before).total().messages;
    assert!(messages < 5 * 300, "{messages} messages at rest");
}
