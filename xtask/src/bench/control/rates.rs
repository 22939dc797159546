//! Allocations and frees a second over HTTP connections that are kept.

use std::fmt;
use std::process::Command;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use weave_tests::lab::{Host, netns};
use weave_tests::load::{self, CONTROL, Request};
use weave_tests::process;
use weave_tests::soak::sample;

use super::disk::{self, Disk, percentile};

/// Longest that one series may take.
const LIMIT: Duration = Duration::from_secs(300);

/// One series of requests.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Series {
    /// A second.
    pub rate: f64,
    /// Latency in microseconds, median.
    pub p50: f64,
    /// Latency in microseconds, 99th percentile.
    pub p99: f64,
}

/// What one daemon did.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Rates {
    /// Seconds from the start of `launch` to its end: HTTP is up then.
    pub launch: f64,
    pub allocate: Series,
    pub free: Series,
    /// The disk, before and after the series.
    pub disk: Disk,
    /// Resident, in MB: before, and with all addresses.
    pub memory_before: f64,
    pub memory_full: f64,
}

impl fmt::Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, series) in [("allocations", self.allocate), ("frees", self.free)] {
            writeln!(
                f,
                "{:6.0} {what} a second, p50 {:.0} us, p99 {:.0} us",
                series.rate, series.p50, series.p99
            )?;
        }
        let Disk { p50, p99 } = self.disk;
        writeln!(f, "fdatasync p50 {p50:.0} us, p99 {p99:.0} us")?;
        write!(
            f,
            "{:.1} MB before, {:.1} MB with all addresses",
            self.memory_before, self.memory_full
        )
    }
}

/// On a host without a daemon: launches it, allocates and frees.
pub fn measure(host: &Host, addresses: usize, connections: usize) -> Result<Rates> {
    let start = Instant::now();
    host.launch(&[])?;
    let launch = start.elapsed().as_secs_f64();
    let pids = host.daemon_pids();
    let pid = *pids.first().context("no daemon")?;
    // The first ring is made, and a connection has been served.
    own(host, "allocate", 1, 1)?;
    own(host, "free", 1, 1)?;
    let memory_before = sample(pid)?.memory;
    let before = disk::measure(&host.data_dir())?;
    let allocate = own(host, "allocate", addresses, connections)?;
    let memory_full = sample(pid)?.memory;
    let free = own(host, "free", addresses, connections)?;
    let after = disk::measure(&host.data_dir())?;
    Ok(Rates {
        launch,
        allocate,
        free,
        disk: Disk {
            p50: before.p50.midpoint(after.p50),
            p99: before.p99.max(after.p99),
        },
        memory_before,
        memory_full,
    })
}

/// This very program on the host, on the last core.
fn own(host: &Host, task: &str, addresses: usize, connections: usize) -> Result<Series> {
    let me = std::env::current_exe()?;
    let core = std::thread::available_parallelism().map_or(0, |cores| cores.get() - 1);
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string()]).arg(me);
    command.args([
        "http-load",
        task,
        &addresses.to_string(),
        &connections.to_string(),
    ]);
    netns::enter(&mut command, host.netns())?;
    let printed = process::run(&mut command, LIMIT)?.ok()?;
    Ok(serde_json::from_str(&printed)?)
}

/// Sends the requests to the daemon of the network namespace that we are in; prints [`Series`] as JSON.
pub fn load(task: &str, addresses: usize, connections: usize) -> Result<()> {
    let request = match task {
        "allocate" => Request::allocate,
        _ => Request::free,
    };
    ensure!(connections > 0, "over no connection");
    // As long as a container's ID.
    let id = |number: usize| format!("{number:064x}");
    let scripts: Vec<Vec<Request>> = (0..connections)
        .map(|first| {
            (first..addresses)
                .step_by(connections)
                .map(|n| request(&id(n)))
                .collect()
        })
        .collect();
    let load = load::run(CONTROL.parse()?, &scripts, LIMIT, &AtomicUsize::new(0))?;
    let mut times = Vec::with_capacity(addresses);
    for answer in load.answers.iter().flatten() {
        ensure!(answer.status < 300, "{answer:?}");
        times.push(answer.microseconds);
    }
    ensure!(
        times.len() == addresses,
        "{} answers to {addresses} requests",
        times.len()
    );
    times.sort_by(f64::total_cmp);
    let series = Series {
        rate: addresses as f64 / load.seconds,
        p50: percentile(&times, 50),
        p99: percentile(&times, 99),
    };
    println!("{}", serde_json::to_string(&series)?);
    Ok(())
}
