//! What must be true when all trouble is over.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use weave_ctl::api::report::{Report, State};

use super::http;
use super::world::{Member, World};
use crate::lab::{Host, Lab};
use crate::process::wait_for;
use crate::soak::{Usage, sample};

/// Only what never comes takes so long.
const CONVERGENCE: Duration = Duration::from_secs(240);

/// Waits until all daemons agree and reach each other by the fast path; how long that took.
///
/// # Errors
/// What is still missing after a long time.
pub fn converged(lab: &Lab) -> Result<Duration> {
    let start = Instant::now();
    wait_for("the cluster to be right again", CONVERGENCE, || {
        let reports: Vec<Report> = lab.hosts().iter().map(http::report).collect::<Result<_>>()?;
        agree(lab, &reports).map(Some)
    })?;
    Ok(start.elapsed())
}

fn agree(lab: &Lab, reports: &[Report]) -> Result<()> {
    let names: BTreeSet<String> = lab.hosts().iter().map(Host::peer_name).collect();
    let first = reports.first().and_then(|report| report.ipam.as_ref());
    let ring = &first.context("no IPAM")?.entries;
    for (host, report) in lab.hosts().iter().zip(reports) {
        let others: BTreeSet<&str> = names
            .iter()
            .map(String::as_str)
            .filter(|n| *n != host.peer_name())
            .collect();
        one(report, ring, &names, &others).with_context(|| format!("on {}", host.name()))?;
    }
    Ok(())
}

fn one(
    report: &Report,
    ring: &[weave_ctl::api::report::RingEntry],
    names: &BTreeSet<String>,
    others: &BTreeSet<&str>,
) -> Result<()> {
    let router = &report.router;
    let up = |state: &State| *state == State::Established;
    let fast: Vec<&str> = router
        .connections
        .iter()
        .filter(|connection| up(&connection.state) && connection.info.contains("fastdp"))
        .map(|connection| connection.info.as_str())
        .collect();
    ensure!(
        fast.len() == others.len(),
        "{} of {} connections are established on fastdp: {:#?}",
        fast.len(),
        others.len(),
        router.connections
    );
    let known: BTreeSet<&str> = router.peers.iter().map(|peer| peer.name.as_str()).collect();
    ensure!(
        known == names.iter().map(String::as_str).collect(),
        "peers known: {known:?}"
    );
    for peer in &router.peers {
        let established = peer.connections.iter().filter(|c| c.established).count();
        ensure!(
            established == others.len(),
            "{} connections of {} are known",
            established,
            peer.name
        );
    }
    let routes: BTreeSet<&str> = router
        .unicast_routes
        .iter()
        .filter(|route| route.dest == route.via)
        .map(|route| route.dest.as_str())
        .filter(|dest| others.contains(dest))
        .collect();
    ensure!(routes == *others, "direct routes: {routes:?}");
    let fastdp = report.fast_datapath.as_ref().context("no fast path")?;
    let hops: BTreeSet<&str> = fastdp.next_hops.iter().map(|hop| hop.peer.as_str()).collect();
    ensure!(hops == *others, "next hops: {hops:?}");
    let ipam = report.ipam.as_ref().context("no IPAM")?;
    let plain = |ring: &[weave_ctl::api::report::RingEntry]| -> Vec<(String, u64, String, u64)> {
        ring.iter()
            .map(|e| (e.token.clone(), e.size, e.peer.clone(), e.version))
            .collect()
    };
    ensure!(
        plain(&ipam.entries) == plain(ring),
        "another ring: {:#?}\nand {ring:#?}",
        ipam.entries
    );
    let size: u64 = ipam.entries.iter().map(|entry| entry.size).sum();
    ensure!(
        size == ipam.range_num_ips,
        "{size} of {} addresses are owned",
        ipam.range_num_ips
    );
    let stranger = ipam
        .entries
        .iter()
        .find(|entry| !names.contains(&entry.peer) || !entry.is_known_peer);
    ensure!(stranger.is_none(), "a stranger owns {stranger:?}");
    ensure!(
        ipam.pending_claims.is_empty() && ipam.pending_allocates.is_empty() && ipam.conflicts.is_empty(),
        "something waits: {:?} {:?} {:?}",
        ipam.pending_claims,
        ipam.pending_allocates,
        ipam.conflicts
    );
    Ok(())
}

/// No address belongs to two, and everybody still has what they were given.
///
/// # Errors
/// Who has what they should not, or lacks it.
pub fn addresses(lab: &Lab, world: &World<'_>) -> Result<()> {
    let mut owners: BTreeMap<Ipv4Addr, String> = BTreeMap::new();
    for host in lab.hosts() {
        for (id, address) in http::owned(host)? {
            let owner = format!("{id} on {}", host.name());
            if let Some(other) = owners.insert(address, owner.clone()) {
                return Err(anyhow!("{address} belongs to {other} and to {owner}"));
            }
        }
    }
    for Member { host, address, .. } in &world.members {
        let name = lab.host(host + 1)?.name();
        let owner = owners.get(address);
        ensure!(
            owner.is_some_and(|owner| owner.ends_with(&format!(" on {name}"))),
            "{address} was attached on {name}, and belongs to {owner:?}"
        );
    }
    for ((host, id), address) in &world.held {
        let wanted = format!("{id} on {}", lab.host(host + 1)?.name());
        let owner = owners.get(address);
        ensure!(
            owner == Some(&wanted),
            "{address} was given to {wanted}, and belongs to {owner:?}"
        );
    }
    Ok(())
}

/// All pairs of containers, both directions, each host's at the same time.
///
/// # Errors
/// If an answer does not come.
pub fn reachability(lab: &Lab, members: &[Member]) -> Result<usize> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..lab.hosts().len())
            .map(|host| {
                scope.spawn(move || {
                    for from in members.iter().filter(|member| member.host == host) {
                        for to in members.iter().filter(|to| to.address != from.address) {
                            from.container
                                .wait_ping(to.address)
                                .with_context(|| format!("from {} on h{}", from.address, host + 1))?;
                        }
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow!("a ping panicked"))?)
    })?;
    Ok(members.len() * members.len().saturating_sub(1))
}

/// What a host uses, its containers left out.
#[derive(Debug, Clone, Copy)]
pub struct Use {
    /// The daemon.
    pub usage: Usage,
    /// Pins below `WEAVE_BPF_DIR` but for those of containers' ports.
    pins: usize,
    /// Ports of the bridge but for those of containers.
    ports: usize,
    /// Rules of nftables, in bytes of their text.
    rules: usize,
    /// The database in bytes.
    pub database: u64,
}

/// What each host uses now.
///
/// # Errors
/// If a daemon is gone.
pub fn uses(lab: &Lab, members: &[Member]) -> Result<Vec<Use>> {
    let on = |index: usize| members.iter().filter(|member| member.host == index).count();
    let hosts = lab.hosts().iter().enumerate();
    hosts.map(|(index, host)| use_of(host, on(index))).collect()
}

fn use_of(host: &Host, containers: usize) -> Result<Use> {
    let pids = host.daemon_pids();
    let [pid] = pids.as_slice() else {
        return Err(anyhow!("{} daemons run on {}", pids.len(), host.name()));
    };
    let ports = host
        .exec(&["ip", "-o", "link", "show", "master", "weave"])?
        .ok()?;
    let rules = host.exec(&["nft", "list", "ruleset"])?.ok()?;
    Ok(Use {
        usage: sample(*pid)?,
        pins: files(host.bpf_dir())?.0.wrapping_sub(containers),
        ports: ports.lines().count().wrapping_sub(containers),
        rules: rules.trim().len(),
        database: files(&host.data_dir())?.1,
    })
}

/// How many files are below `dir`, and how many bytes of databases.
fn files(dir: &Path) -> Result<(usize, u64)> {
    let (mut count, mut bytes) = (0, 0);
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            let (files, more) = files(&entry.path())?;
            (count, bytes) = (count + files, bytes + more);
            continue;
        }
        count += 1;
        if entry.path().extension().is_some_and(|ext| ext == "redb") {
            bytes += entry.metadata()?.len();
        }
    }
    Ok((count, bytes))
}

/// By how many MB a daemon's memory may exceed that of the start.
const GROWTH: f64 = 8.0;
/// The database may become as long as this, in bytes.
const DATABASE: u64 = 8 << 20;

/// Nothing has leaked: of each host, what was used at the start and what is used now.
///
/// # Errors
/// What has.
pub fn leaks(lab: &Lab, before: &[Use], after: &[Use]) -> Result<()> {
    for (host, (before, after)) in lab.hosts().iter().zip(before.iter().zip(after)) {
        leak(before, after).with_context(|| format!("on {}: {before:?}, later {after:?}", host.name()))?;
    }
    Ok(())
}

fn leak(before: &Use, after: &Use) -> Result<()> {
    let (early, late) = (before.usage, after.usage);
    ensure!(late.memory <= early.memory * 1.25 + GROWTH, "memory grows");
    // A question to the control API takes a descriptor, and may wake a thread, for a moment.
    ensure!(late.descriptors <= early.descriptors + 8, "descriptors leak");
    ensure!(late.threads <= early.threads + 8, "threads leak");
    ensure!(after.pins == before.pins, "BPF maps or links are left");
    ensure!(after.ports == before.ports, "ports of the bridge are left");
    ensure!(after.rules == before.rules, "rules of nftables are left");
    ensure!(
        after.database <= before.database.max(DATABASE),
        "the database grows"
    );
    Ok(())
}

/// No daemon has panicked or met an error of its own.
///
/// # Errors
/// The lines that say so.
pub fn logs(lab: &Lab) -> Result<()> {
    for host in lab.hosts() {
        let log = host.log();
        let bad: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("panicked") || line.contains(" ERROR "))
            .take(10)
            .collect();
        ensure!(bad.is_empty(), "the log of {}: {bad:#?}", host.name());
    }
    Ok(())
}
