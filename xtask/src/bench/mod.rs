//! `cargo xtask bench`: our overlays against the bare underlay, the kernel's own VXLAN, and a userspace
//! tunnel.
//!
//! Machines drift while one measures, so the paths take turns, round after round, and what is
//! compared are the ratios within a round. Sender and receiver are pinned to a core each.

pub mod control;
pub mod dns;
pub mod docker;
mod measure;
mod memory;
pub mod metrics;
mod paths;
pub mod pingpong;
mod report;
pub mod udp;
mod wireguard;

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use weave_tests::lab::{Host, Lab, Options, Plan};
use weave_tests::process;

use self::measure::Times;
use self::memory::Memory;
use self::report::{Series, Spread, spread};
use crate::released::is_released_and_root;
use crate::shell::{heading, target};

/// Measures, prints the table, writes target/bench.json.
pub fn run(rounds: usize, quick: bool, built: bool) -> Result<()> {
    let rounds = if quick { rounds.min(2) } else { rounds.max(1) };
    if !is_released_and_root(built)? {
        return Ok(());
    }
    let machine = machine()?;
    println!("{machine}");

    heading("Launch to first ping");
    let launches = (0..if quick { 1 } else { 3 })
        .map(launch_to_ping)
        .collect::<Result<Vec<_>>>()?;
    let launch = spread(launches);
    println!("{:.2} s [{:.2}, {:.2}]", launch.median, launch.min, launch.max);

    let plain = Plan::mesh(2).build("bench-plain")?;
    let ours = paths::released(Plan::mesh(2)).build("bench-ours")?;
    let line = paths::released(Plan::line(3)).build("bench-line")?;
    let no_fastdp = Options::new().no_fastdp();
    let sealed = no_fastdp.clone().password("correct horse battery staple");
    let sleeve = paths::released(Plan::mesh(2).options(no_fastdp)).build("bench-sleeve")?;
    let sealed = paths::released(Plan::mesh(2).options(sealed)).build("bench-sealed")?;
    let mut paths = vec![
        paths::native(&plain)?,
        paths::kernel_vxlan(&plain)?,
        paths::weave(DIRECT, &ours, "established fastdp")?,
        paths::weave(RELAYED, &line, "established fastdp")?,
        paths::weave("sleeve", &sleeve, "established sleeve")?,
        paths::weave("sleeve, password", &sealed, "established encrypted sleeve")?,
    ];
    let tunnel = wireguard::between(&plain)?;
    if let Some(tunnel) = &tunnel {
        paths.push(tunnel.path()?);
    }
    let mut memory = vec![
        Memory::of(DIRECT, daemons(&ours))?,
        Memory::of("sleeve", daemons(&sleeve))?,
        Memory::of("sleeve, password", daemons(&sealed))?,
    ];
    if let Some(tunnel) = &tunnel {
        memory.push(Memory::of("wireguard-go", tunnel.pids())?);
    }
    let times = if quick {
        Times {
            tcp: 1,
            pingpong: 700,
            udp: 200,
        }
    } else {
        Times {
            tcp: 3,
            pingpong: 2000,
            udp: 400,
        }
    };
    let mut series: Vec<Series> = paths
        .iter()
        .map(|path| Series {
            path: path.name,
            rounds: Vec::new(),
        })
        .collect();
    for round in 1..=rounds {
        heading(&format!("Round {round} of {rounds}"));
        for (path, series) in paths.iter().zip(&mut series) {
            let sample = path.sample(times)?;
            println!(
                "{:<16} TCP {:5.1} / {:5.1} Gb/s   {:6.1} us   {:4.0} kpps   {:5.1} ms CPU per Gb",
                path.name,
                sample.tcp1,
                sample.tcp4,
                sample.p50,
                sample.udp / 1000.0,
                sample.cpu
            );
            series.rounds.push(sample);
        }
    }
    for memory in &mut memory {
        memory.measure_again()?;
    }
    let of = |name: &str| series.iter().find(|series| series.path == name);
    let relayed = match (of(RELAYED), of(DIRECT)) {
        (Some(relayed), Some(direct)) => report::tcp_ratio(relayed, direct),
        _ => spread([]),
    };
    heading("Result");
    println!(
        "Medians of {rounds} rounds; after = the median and [lowest, highest] of the ratios to native.\n"
    );
    println!("{}\n", report::table(&series));
    println!("- {machine}");
    println!(
        "- relayed to direct, TCP 1 stream: {:.2} [{:.2}, {:.2}]",
        relayed.median, relayed.min, relayed.max
    );
    println!(
        "- launch to first ping: {:.2} s [{:.2}, {:.2}]",
        launch.median, launch.min, launch.max
    );
    for memory in &memory {
        println!("- {memory}");
    }
    write(&machine, &series, launch, relayed, &memory)?;

    drop(paths);
    drop(tunnel);
    for lab in [plain, ours, line, sleeve, sealed] {
        lab.remove()?;
    }
    Ok(())
}

const DIRECT: &str = "weave";
const RELAYED: &str = "weave, relayed";

fn daemons(lab: &Lab) -> Vec<i32> {
    lab.hosts().iter().flat_map(Host::daemon_pids).collect()
}

fn write(machine: &str, series: &[Series], launch: Spread, relayed: Spread, memory: &[Memory]) -> Result<()> {
    let all = json!({
        "machine": machine,
        "throughput": report::json(series),
        "launch_to_first_ping_seconds": launch,
        "relayed_to_direct_tcp": relayed,
        "memory": memory,
    });
    let path = target().join("bench.json");
    fs::write(&path, serde_json::to_string_pretty(&all)?)?;
    println!("\n{}", path.display());
    Ok(())
}

/// From the start of the first launch until two containers reach each other, in seconds. Hosts and
/// containers are there before.
fn launch_to_ping(attempt: usize) -> Result<f64> {
    let lab = paths::released(Plan::mesh(2)).build(&format!("bench-launch{attempt}"))?;
    let (first, second) = (lab.host(1)?, lab.host(2)?);
    let (one, two) = (first.container("c1")?, second.container("c2")?);
    let start = Instant::now();
    first.launch(&[])?;
    second.launch(&[&first.address().to_string()])?;
    first.attach(&one, &[])?;
    let address = second
        .attach(&two, &[])?
        .first()
        .copied()
        .context("attach printed no address")?;
    process::wait_for(
        &format!("an answer from {address}"),
        Duration::from_secs(60),
        || {
            // Not -W 1: a lost first packet must not cost more than it does.
            let ping = one.exec(&[
                "ping",
                "-n",
                "-c",
                "1",
                "-i",
                "0.01",
                "-W",
                "0.05",
                &address.to_string(),
            ])?;
            ping.ok().map(Some)
        },
    )?;
    Ok(start.elapsed().as_secs_f64())
}

/// What it was measured on.
fn machine() -> Result<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or("unknown CPU");
    let model = model.trim_start_matches([' ', '\t', ':']);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let iperf3 = process::run(Command::new("iperf3").arg("--version"), process::LIMIT)?.ok()?;
    let iperf3 = iperf3.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    Ok(format!(
        "kernel {}, {cores} cores, {model}, {iperf3}",
        kernel.trim()
    ))
}
