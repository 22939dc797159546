//! One path measured once: TCP, round trips, packets, CPU.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use weave_tests::lab::netns;
use weave_tests::process::{self, Background, LIMIT};

use super::pingpong::RoundTrip;
use super::udp::Udp;

const IPERF: u16 = 5201;
const PINGPONG: u16 = 5301;
const UDP: u16 = 5302;

/// A way from one network namespace to another.
#[derive(Debug)]
pub struct Path {
    /// Column in the table.
    pub name: &'static str,
    from: String,
    address: Ipv4Addr,
    // Killed with the path.
    _servers: Vec<Background>,
}

/// What one round found on one path.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sample {
    /// Gb/s with one stream.
    pub tcp1: f64,
    /// Gb/s with four streams.
    pub tcp4: f64,
    /// Round trip in microseconds.
    pub p50: f64,
    /// Round trip in microseconds.
    pub p99: f64,
    /// 64-byte packets a second that arrived at less than 1 % loss.
    pub udp: f64,
    /// CPU milliseconds, of all cores, for each gigabit of the single stream.
    pub cpu: f64,
}

/// How long the parts of a sample take.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Seconds for each iperf3 run.
    pub tcp: u64,
    /// Milliseconds of round trips.
    pub pingpong: u64,
    /// Milliseconds for each of the trials that search for the packet rate.
    pub udp: u64,
}

impl Path {
    /// Starts the servers at the receiving end, on the last core.
    pub fn new(name: &'static str, from: &str, to: &str, address: Ipv4Addr) -> Result<Self> {
        let me = std::env::current_exe()?;
        let me = me.to_str().context("odd path of xtask")?;
        let (pingpong, udp) = (format!("{address}:{PINGPONG}"), format!("{address}:{UDP}"));
        let commands: [(&[&str], u16); 3] = [
            (&["iperf3", "-s"], IPERF),
            (&[me, "pingpong-server", &pingpong], PINGPONG),
            (&[me, "udp-receiver", &udp], UDP),
        ];
        let mut servers = Vec::new();
        for (words, port) in commands {
            let server = Background::start(&mut pinned(to, cores().1, words)?)?;
            process::wait_for(&format!("`{}` to listen", words.join(" ")), LIMIT, || {
                Ok(netns::listens(server.pid(), port).then_some(()))
            })?;
            servers.push(server);
        }
        Ok(Self {
            name,
            from: from.to_owned(),
            address,
            _servers: servers,
        })
    }

    /// Measures everything once.
    pub fn sample(&self, times: Times) -> Result<Sample> {
        let before = busy_milliseconds()?;
        let (tcp1, gigabits) = self.iperf3(1, times)?;
        let cpu = (busy_milliseconds()? - before) / gigabits;
        let (tcp4, _) = self.iperf3(4, times)?;
        let RoundTrip { p50, p99 } = self.own(&["pingpong-client"], PINGPONG, times.pingpong)?;
        let Udp { delivered, .. } = self.own(&["udp-sender"], UDP, times.udp)?;
        Ok(Sample {
            tcp1,
            tcp4,
            p50,
            p99,
            udp: delivered,
            cpu,
        })
    }

    /// Received Gb/s, and gigabits in all.
    fn iperf3(&self, streams: u32, times: Times) -> Result<(f64, f64)> {
        let (address, streams, seconds) = (
            self.address.to_string(),
            streams.to_string(),
            times.tcp.to_string(),
        );
        let words = ["iperf3", "-J", "-c", &address, "-P", &streams, "-t", &seconds];
        let report: Value = serde_json::from_str(&self.run(&words)?)?;
        let sum = &report["end"]["sum_received"];
        let rate = sum["bits_per_second"].as_f64().context("iperf3 gave no rate")?;
        let bytes = sum["bytes"].as_f64().context("iperf3 gave no sum")?;
        Ok((rate / 1e9, bytes * 8.0 / 1e9))
    }

    fn own<T: DeserializeOwned>(&self, task: &[&str], port: u16, milliseconds: u64) -> Result<T> {
        let me = std::env::current_exe()?;
        let (target, time) = (format!("{}:{port}", self.address), milliseconds.to_string());
        let mut words = vec![me.to_str().context("odd path of xtask")?];
        words.extend(task);
        words.extend([target.as_str(), time.as_str()]);
        Ok(serde_json::from_str(&self.run(&words)?)?)
    }

    fn run(&self, words: &[&str]) -> Result<String> {
        let output = process::run(&mut pinned(&self.from, cores().0, words)?, LIMIT)?;
        output
            .ok()
            .with_context(|| format!("on the path {:?}", self.name))
    }
}

/// Where the sender and the receiver run: far from each other, and always there.
fn cores() -> (usize, usize) {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    (0, if count > 1 { 1 } else { 0 })
}

fn pinned(netns: &str, core: usize, words: &[&str]) -> Result<Command> {
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string()]).args(words);
    netns::enter(&mut command, netns)?;
    Ok(command)
}

/// Time that all cores together were not idle since boot.
fn busy_milliseconds() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<f64> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq; the guest columns are in user already.
    let busy: f64 = [0, 1, 2, 5, 6]
        .iter()
        .filter_map(|column| ticks.get(*column))
        .sum();
    // SAFETY: sysconf has no memory effects.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    Ok(busy * 1000.0 / per_second)
}

/// Waits until an address answers, so that the first run does not measure ARP.
pub fn warm_up(from: &str, address: Ipv4Addr) -> Result<()> {
    process::wait_for(
        &format!("an answer from {address}"),
        Duration::from_secs(60),
        || {
            netns::run_in(from, &["ping", "-n", "-c", "1", "-W", "1", &address.to_string()])?
                .ok()
                .map(Some)
        },
    )
    .map(drop)
}
