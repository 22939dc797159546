//! The scenarios.

use std::time::Duration;

use rand::RngExt;
use rand::seq::SliceRandom;

use super::cluster::Cluster;
use super::figures::Figures;
use super::options::{Options, Scenario};
use super::world::Doom;

/// Peers join within so many seconds.
const JOINING: u64 = 20;
/// Seconds at rest that are measured.
const REST: u64 = 120;
/// Most that a clock is wrong, in seconds.
const SKEW: i64 = 3600;

/// Runs it; a property that does not hold ends the process, telling how to repeat it.
#[must_use]
pub fn run(options: &Options) -> Figures {
    let mut cluster = Cluster::new(options);
    join(&mut cluster);
    if options.scenario == Scenario::Big {
        leave_and_return(&mut cluster);
        part(&mut cluster, 2);
        part(&mut cluster, 3);
        skew_clocks(&mut cluster);
    }
    cluster.world.run(REST);
    cluster.agree("at rest");
    cluster.figures()
}

/// Each begins at a moment of its own; clients do not wait for anything.
fn join(cluster: &mut Cluster) {
    cluster.set_faults(true);
    let mut order: Vec<usize> = (0..cluster.world.nodes.len()).collect();
    order.shuffle(&mut cluster.world.rng);
    let pause = Duration::from_secs(JOINING) / order.len() as u32;
    for node in order {
        let told = cluster.told[node].clone();
        cluster.world.connect(node, &told);
        cluster.world.run_for(pause);
    }
    cluster.tell("all have begun");
    cluster.live(20);
    cluster.agree("joined");
}

/// 30 % leave, and all come back. Half of them crash, of these some in the middle of a turn; the others stop or
/// give everything away for good and return as new.
fn leave_and_return(cluster: &mut Cluster) {
    cluster.set_faults(true);
    let peers = cluster.world.nodes.len();
    let mut victims: Vec<usize> = (0..peers).collect();
    victims.shuffle(&mut cluster.world.rng);
    victims.truncate((peers * 3).div_ceil(10));
    let (crashing, leaving) = victims.split_at(victims.len() / 2);
    let mut reset = Vec::new();
    for &node in leaving {
        cluster.leaving[node] = true;
        // A founder that forgets everything would found the cluster once more.
        if node >= cluster.founders && cluster.world.rng.random() {
            cluster.book.borrow_mut().free_all(node);
            cluster.world.act(node, |peer, out| peer.ipam.depart(out));
            reset.push(node);
        } else {
            cluster.world.act(node, |peer, _| peer.ipam.stop());
            cluster.world.stop(node);
        }
    }
    cluster.tell(&format!(
        "{} hand over, {} stop",
        reset.len(),
        leaving.len() - reset.len()
    ));
    cluster.live(5);
    for &node in &reset {
        cluster.world.stop(node);
    }
    for &node in crashing {
        match cluster.world.rng.random_range(0..3) {
            0 => cluster.world.crash(node),
            1 => cluster.world.doom(node, Doom::BeforeSaving),
            _ => cluster.world.doom(node, Doom::BeforeSending),
        }
    }
    cluster.tell(&format!("{} crash", crashing.len()));
    let away = cluster.world.rng.random_range(20..90);
    cluster.live(away);
    let mut back = victims.clone();
    back.shuffle(&mut cluster.world.rng);
    for node in back {
        cluster.start(node, reset.contains(&node));
        cluster.world.run_for(Duration::from_millis(300));
    }
    cluster.tell("all are back");
    cluster.live(10);
    cluster.agree("left, back");
}

/// The network falls into so many parts for a while; some peers restart meanwhile, some connections break.
fn part(cluster: &mut Cluster, parts: usize) {
    cluster.set_faults(true);
    let peers = cluster.world.nodes.len();
    let sides: Vec<usize> = (0..peers)
        .map(|_| cluster.world.rng.random_range(0..parts))
        .collect();
    cluster.world.partition(|node| sides[node]);
    cluster.tell(&format!("{parts} parts"));
    for _ in 0..1 + peers / 20 {
        let node = cluster.any();
        cluster.world.crash(node);
        cluster.live(2);
        cluster.start(node, false);
    }
    cluster.world.lose_connections(20);
    let apart = cluster.world.rng.random_range(30..90);
    cluster.live(apart);
    cluster.world.partition(|_| 0);
    cluster.tell("one part again");
    cluster.live(10);
    cluster.agree(if parts == 2 { "2 parts" } else { "3 parts" });
}

/// Clocks that were right are wrong by up to an hour, either way.
fn skew_clocks(cluster: &mut Cluster) {
    cluster.set_faults(true);
    for node in 0..cluster.world.nodes.len() {
        cluster.world.nodes[node].skew = cluster.world.rng.random_range(-SKEW..=SKEW);
    }
    cluster.world.lose_connections(10);
    cluster.live(40);
    cluster.agree("clocks skewed");
}
