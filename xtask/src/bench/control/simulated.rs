//! The gossip of clusters that are larger than the machine: the pure cores on a virtual network, at rest.

use anyhow::{Context, Result};
use weave_tests::sim::{Options, Scenario, run};

use super::table::Row;

/// Most connections of a simulated peer, as by default of the daemon.
const CONN_LIMIT: usize = 200;

/// Lets that many peers join and rest, with an address each, every one of them new.
pub fn rows(peers: usize) -> Result<Vec<Row>> {
    let figures = run(&Options {
        seed: 1,
        peers,
        conn_limit: CONN_LIMIT,
        originals: 0,
        scenario: Scenario::Idle,
        verbose: false,
    });
    println!("{figures}");
    let rest = figures.phases.last().context("nothing was simulated")?;
    let each = |bytes: u64| bytes as f64 / peers as f64;
    let minutes = rest.time.as_secs_f64() / 60.0;
    let sent = each(rest.traffic.total().bytes) / 1024.0 / minutes;
    let what = |text: &str| format!("{peers} simulated peers: {text}");
    Ok(vec![
        Row::fact(&what("gossip a peer at rest, KB a minute"), sent),
        Row::fact(
            &what("memory a peer, MB"),
            each(figures.memory) / f64::from(1 << 20),
        ),
    ])
}
