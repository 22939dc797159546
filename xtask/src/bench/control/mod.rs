//! `cargo xtask bench control`: what the control plane does, needs and sends.
//!
//! Real daemons on hosts of labs. What the original was measured at on such a machine stands beside it.

mod cluster;
mod disk;
mod rates;
mod simulated;
mod table;

use std::fs;

use anyhow::Result;
use serde_json::json;
use weave_tests::lab::{Options, Plan};

pub use self::rates::load;
use self::table::Row;
use crate::released::is_released_and_root;
use crate::shell::{heading, target};

/// The original's figures (Weave Net 2.8.1 on two cores, medians of three runs).
mod original {
    pub const ALLOCATIONS: f64 = 1470.0;
    pub const FREES: f64 = 1420.0;
    pub const P50: f64 = 570.0;
    pub const P99: f64 = 3600.0;
    pub const MEMORY: f64 = 52.0;
    pub const MEMORY_1000: f64 = 61.0;
    pub const LAUNCH: f64 = 0.28;
    pub const THREE_PEERS: f64 = 1.4;
    /// CPU seconds a minute.
    pub const IDLE_CPU: f64 = 0.02;
}

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Hosts of the large cluster
    #[arg(long, default_value_t = 30)]
    pub peers: u8,
    /// Seconds of rest in which traffic, memory and CPU of the cluster are measured
    #[arg(long, default_value_t = 60)]
    pub rest: u64,
    /// Only the rates and latencies of requests
    #[arg(long)]
    pub rates_only: bool,
    /// Peers of the simulated clusters
    #[arg(long, value_delimiter = ',', default_values_t = [100, 500])]
    pub simulated: Vec<usize>,
    #[arg(long, hide = true)]
    pub built: bool,
}

/// Measures, prints the table, writes target/bench-control.json.
pub fn run(arguments: Arguments) -> Result<()> {
    if !is_released_and_root(arguments.built)? {
        return Ok(());
    }
    let machine = super::machine()?;
    println!("{machine}");
    let mut rows = rates()?;
    if !arguments.rates_only {
        rows.extend(three_peers()?);
        rows.extend(many_peers(arguments.peers, arguments.rest)?);
        for peers in arguments.simulated {
            heading(&format!("{peers} simulated peers"));
            rows.extend(simulated::rows(peers)?);
        }
    }
    heading("Result");
    println!("{}\n", table::render(&rows));
    println!("- {machine}");
    let path = target().join("bench-control.json");
    let all = json!({ "machine": machine, "rows": rows });
    fs::write(&path, serde_json::to_string_pretty(&all)?)?;
    println!("\n{}", path.display());
    Ok(())
}

fn rates() -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (addresses, connections) in [(1000, 1), (1000, 32), (10_000, 1), (10_000, 32)] {
        heading(&format!("{addresses} addresses, {connections} connections"));
        let name = format!("bench-rate{addresses}x{connections}");
        let lab = super::paths::released(Plan::mesh(1)).build(&name)?;
        let host = lab.host(1)?;
        let found = rates::measure(host, addresses, connections)?;
        println!("{found}");
        let what = |text: &str| format!("{text}, {addresses} over {connections} connections");
        let against = |figure| (connections == 1).then_some(figure);
        if rows.is_empty() {
            rows.push(Row::less(
                "launch to HTTP up, s",
                found.launch,
                Some(original::LAUNCH),
            ));
            rows.push(Row::less(
                "memory of a daemon alone, MB",
                found.memory_before,
                Some(original::MEMORY),
            ));
        }
        rows.extend([
            Row::more(
                &what("allocations a second"),
                found.allocate.rate,
                Some(original::ALLOCATIONS),
            ),
            Row::less(
                &what("allocation p50, us"),
                found.allocate.p50,
                against(original::P50),
            ),
            Row::less(
                &what("allocation p99, us"),
                found.allocate.p99,
                against(original::P99),
            ),
            Row::more(&what("frees a second"), found.free.rate, Some(original::FREES)),
            Row::less(&what("free p50, us"), found.free.p50, None),
            Row::less(&what("free p99, us"), found.free.p99, None),
            Row::fact("disk meanwhile: fdatasync of 4 KB p50, us", found.disk.p50),
            Row::fact("disk meanwhile: fdatasync of 4 KB p99, us", found.disk.p99),
            Row::less(
                &what("memory with the addresses, MB"),
                found.memory_full,
                (addresses == 1000).then_some(original::MEMORY_1000),
            ),
        ]);
        lab.remove()?;
    }
    Ok(rows)
}

fn three_peers() -> Result<Vec<Row>> {
    heading("Three peers");
    let mut seconds = Vec::new();
    for attempt in 0..3 {
        let lab = super::paths::released(Plan::mesh(3)).build(&format!("bench-three{attempt}"))?;
        let took = cluster::converge(&lab)?;
        println!("{took:.2} s to converge");
        seconds.push(took);
        lab.remove()?;
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN);
    Ok(vec![Row::less(
        "3 peers from launch to converged, s",
        median,
        Some(original::THREE_PEERS),
    )])
}

fn many_peers(peers: u8, rest: u64) -> Result<Vec<Row>> {
    heading(&format!("{peers} peers"));
    let plan = super::paths::released(Plan::mesh(peers).options(Options::new()));
    let lab = plan.build("bench-many")?;
    let what = |text: &str| format!("{peers} peers: {text}");
    let seconds = cluster::converge(&lab)?;
    println!("{seconds:.2} s to converge");
    let idle = cluster::rest(&lab, rest)?;
    println!("{idle}");
    let peers = f64::from(peers);
    let rows = vec![
        Row::fact(&what("from launch to converged, s"), seconds),
        Row::fact(
            &what("control traffic a peer at rest, KB a minute"),
            idle.sent / 1024.0,
        ),
        Row::less(
            &what("CPU a peer at rest, s a minute"),
            idle.cpu / peers,
            Some(original::IDLE_CPU),
        ),
        Row::fact(&what("CPU of all at rest, % of a core"), idle.cpu / 60.0 * 100.0),
        Row::less(
            &what("memory of a daemon, MB, the largest"),
            idle.memory_most,
            Some(original::MEMORY),
        ),
        Row::less(
            &what("memory of a daemon, MB, mean"),
            idle.memory_mean,
            Some(original::MEMORY),
        ),
    ];
    lab.remove()?;
    Ok(rows)
}
