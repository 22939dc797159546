//! A cluster of real daemons: how soon it has converged, and what it does at rest.

use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use weave_tests::lab::{Host, Lab, netns};
use weave_tests::load::{self, CONTROL};
use weave_tests::process::{self, LIMIT};
use weave_tests::soak::sample;

/// Until all have joined.
const CONVERGED: Duration = Duration::from_secs(300);

/// What all peers together did at rest.
#[derive(Debug, Clone, Copy)]
pub struct Rest {
    /// Bytes that one peer sent on its control connections in a minute, with TCP and IP headers; the mean.
    pub sent: f64,
    /// CPU seconds of all daemons in a minute.
    pub cpu: f64,
    /// Resident memory in MB.
    pub memory_mean: f64,
    /// Of the largest.
    pub memory_most: f64,
}

impl fmt::Display for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "at rest: {:.1} KB sent a peer and minute, {:.2} s CPU of all a minute, memory {:.1} MB mean, {:.1} MB most",
            self.sent / 1024.0,
            self.cpu,
            self.memory_mean,
            self.memory_most
        )
    }
}

/// Launches all hosts at once, each told of all. Seconds until every connection of each is established and all
/// have the same ring.
pub fn converge(lab: &Lab) -> Result<f64> {
    let addresses: Vec<String> = lab.hosts().iter().map(|h| h.address().to_string()).collect();
    let start = Instant::now();
    std::thread::scope(|scope| {
        let launches: Vec<_> = lab
            .hosts()
            .iter()
            .map(|host| {
                let others = addresses.iter().filter(|a| **a != host.address().to_string());
                let args: Vec<&str> = others.map(String::as_str).collect();
                scope.spawn(move || {
                    host.launch(&args)?;
                    // Asks for the first division of the range.
                    get(host, "/ring").map(drop)
                })
            })
            .collect();
        launches
            .into_iter()
            .try_for_each(|launch| launch.join().map_err(|_| anyhow!("a launch panicked"))?)
    })?;
    process::wait_for("all peers to converge", CONVERGED, || {
        let mut rings = Vec::new();
        for host in lab.hosts() {
            rings.push(ring_when_connected(host, lab.hosts().len() - 1)?);
        }
        let first = rings.first().context("no hosts")?;
        ensure!(rings.iter().all(|ring| ring == first), "the rings differ");
        Ok(Some(()))
    })?;
    Ok(start.elapsed().as_secs_f64())
}

fn get(host: &Host, path: &str) -> Result<String> {
    let address = CONTROL.parse()?;
    netns::inside(host.netns(), || load::get(address, path, LIMIT))
}

/// The ring entries (start, owner, version) of a host with that many established connections.
fn ring_when_connected(host: &Host, connections: usize) -> Result<Vec<(String, String, u64)>> {
    let report: Value = serde_json::from_str(&get(host, "/report")?)?;
    let all = report["Router"]["Connections"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let established = all.iter().filter(|c| c["State"] == "established").count();
    ensure!(
        established == connections,
        "{} has {established} of {connections} connections",
        host.name()
    );
    let entries = report["IPAM"]["Entries"].as_array().context("no ring")?;
    let entry = |entry: &Value| {
        let text = |name: &str| entry[name].as_str().map(str::to_owned);
        Some((text("Token")?, text("Peer")?, entry["Version"].as_u64()?))
    };
    let ring: Option<Vec<_>> = entries.iter().map(entry).collect();
    let ring = ring.context("odd ring")?;
    ensure!(!ring.is_empty(), "{} has no ring", host.name());
    Ok(ring)
}

/// New connections are busy at first: quick heartbeats, the search for the path's MTU.
const SETTLE: Duration = Duration::from_secs(20);

/// Leaves the cluster alone for so many seconds, once it is at rest.
pub fn rest(lab: &Lab, seconds: u64) -> Result<Rest> {
    for host in lab.hosts() {
        count_control_traffic(host)?;
    }
    let pids: Vec<i32> = lab.hosts().iter().flat_map(Host::daemon_pids).collect();
    std::thread::sleep(SETTLE);
    let (cpu, sent) = (cpu_seconds(&pids)?, bytes_sent(lab)?);
    let start = Instant::now();
    // What is measured is time going by.
    std::thread::sleep(Duration::from_secs(seconds));
    let (cpu, sent) = (cpu_seconds(&pids)? - cpu, bytes_sent(lab)? - sent);
    let minutes = start.elapsed().as_secs_f64() / 60.0;
    let memory = pids
        .iter()
        .map(|pid| Ok(sample(*pid)?.memory))
        .collect::<Result<Vec<f64>>>()?;
    Ok(Rest {
        sent: sent / minutes / lab.hosts().len() as f64,
        cpu: cpu / minutes,
        memory_mean: memory.iter().sum::<f64>() / memory.len() as f64,
        memory_most: memory.into_iter().fold(0.0, f64::max),
    })
}

/// A counter of what leaves by the port of the control connections.
fn count_control_traffic(host: &Host) -> Result<()> {
    for rule in [
        "add table inet bench",
        "add chain inet bench out { type filter hook output priority 0 ; }",
        "add rule inet bench out tcp sport 6783 counter",
        "add rule inet bench out tcp dport 6783 counter",
    ] {
        let mut words = vec!["nft"];
        words.extend(rule.split(' '));
        netns::run_in(host.netns(), &words)?.ok()?;
    }
    Ok(())
}

fn bytes_sent(lab: &Lab) -> Result<f64> {
    let mut sum = 0.0;
    for host in lab.hosts() {
        let list = netns::run_in(host.netns(), &["nft", "list", "table", "inet", "bench"])?.ok()?;
        let bytes = list
            .split(" bytes ")
            .skip(1)
            .filter_map(|rest| rest.split_whitespace().next());
        sum += bytes.filter_map(|word| word.parse::<f64>().ok()).sum::<f64>();
    }
    Ok(sum)
}

/// User and system time of all these processes.
fn cpu_seconds(pids: &[i32]) -> Result<f64> {
    // SAFETY: sysconf has no memory effects.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    let mut ticks = 0.0;
    for pid in pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name, in parentheses, may contain anything.
        let after_name = stat.rsplit(") ").next().unwrap_or_default();
        let times = after_name.split(' ').skip(11).take(2);
        ticks += times.filter_map(|word| word.parse::<f64>().ok()).sum::<f64>();
    }
    Ok(ticks / per_second)
}
