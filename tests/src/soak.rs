//! A long stay on a bad network: sleeve must neither leak, nor lose its connection, nor a byte.

use std::fmt;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::ends::{answered, attach_all, connection_address, everybody_reaches_everybody, outer};
use crate::impair::{Counts, Impairments, Relay};
use crate::lab::{Host, Lab, Options, Plan};
use crate::process::{Background, LIMIT};
use crate::traffic::bulk_tcp;

/// One stay.
#[derive(Debug, Clone, Copy)]
pub struct Soak {
    /// With a password.
    pub sealed: bool,
    /// How long, the warm-up included.
    pub time: Duration,
    /// Not compared: buffers and caches fill at first.
    pub warm_up: Duration,
    /// The network.
    pub impairments: Impairments,
    /// By how many MB the daemon's memory may grow after the warm-up.
    pub growth: f64,
}

/// What a daemon uses at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// Resident memory in MB.
    pub memory: f64,
    /// Open file descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
}

impl Usage {
    fn most(self, other: Self) -> Self {
        Self {
            memory: self.memory.max(other.memory),
            descriptors: self.descriptors.max(other.descriptors),
            threads: self.threads.max(other.threads),
        }
    }
}

/// What came out of a stay that held.
#[derive(Debug)]
pub struct Summary {
    /// Path: plain or sealed.
    pub name: &'static str,
    /// Bytes over TCP that arrived and were compared.
    pub bytes: u64,
    /// Seconds that they took.
    pub seconds: f64,
    /// Pings sent and answered, and answers that came more than once.
    pub pings: (u32, usize, usize),
    /// Of each daemon: the most it used until the warm-up ended, and the most afterwards.
    pub usage: Vec<(Usage, Usage)>,
    /// What the network did.
    pub network: Counts,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.bytes as f64 * 8.0 / self.seconds / 1e6;
        let (sent, answered, doubled) = self.pings;
        writeln!(
            f,
            "{}: {} MB over TCP in {:.0} s ({rate:.0} Mb/s), all as sent; {answered} of {sent} pings answered, {doubled} twice",
            self.name,
            self.bytes >> 20,
            self.seconds
        )?;
        for (number, (early, late)) in self.usage.iter().enumerate() {
            writeln!(
                f,
                "  daemon {}: memory {:.1} MB, then at most {:.1} MB; descriptors {}, then {}; threads {}, then {}",
                number + 1,
                early.memory,
                late.memory,
                early.descriptors,
                late.descriptors,
                early.threads,
                late.threads
            )?;
        }
        let Counts {
            passed,
            lost,
            reordered,
            duplicated,
        } = self.network;
        write!(
            f,
            "  network: {passed} frames passed, {lost} lost, {reordered} reordered, {duplicated} doubled"
        )
    }
}

impl Soak {
    /// Loss 2 %, reordering 10 %, duplicates 2 %.
    pub fn new(sealed: bool, time: Duration) -> Self {
        Self {
            sealed,
            time,
            warm_up: (time / 3).min(Duration::from_secs(60)),
            impairments: Impairments {
                loss: 2,
                reorder: 10,
                duplicate: 2,
                seed: 1 + u64::from(sealed),
            },
            growth: 4.0,
        }
    }

    fn name(&self) -> &'static str {
        if self.sealed { "sealed" } else { "plain" }
    }

    /// Two hosts on sleeve for this. `plan` is [`Plan::mesh`] of 2, with the `weave-ctl` to use.
    pub fn plan(&self, plan: Plan) -> Plan {
        let options = Options::new().no_fastdp();
        plan.options(if self.sealed {
            options.password("correct horse battery staple")
        } else {
            options
        })
    }

    /// Stays on a lab of [`Soak::plan`].
    ///
    /// # Errors
    /// If a byte differs, the connection is lost, the daemon restarts, or it uses ever more.
    pub fn run(&self, lab: &Lab) -> Result<Summary> {
        self.stay(lab).with_context(|| format!("soak, {}", self.name()))
    }

    fn stay(&self, lab: &Lab) -> Result<Summary> {
        let relay = Relay::start(lab, lab.host(1)?, self.impairments)?;
        lab.launch_all(&[])?;
        let ends = attach_all(lab)?;
        everybody_reaches_everybody(&ends)?;
        let (one, two) = outer(&ends)?;
        let (first, second) = (lab.host(1)?, lab.host(2)?);
        first.wait_connection_to(second, &["established", "sleeve"])?;
        second.wait_connection_to(first, &["established", "sleeve"])?;
        let connection = connection_address(first, second)?;
        let daemons = [pid(first)?, pid(second)?];

        let ping = one.0.spawn(&["ping", "-n", "-i", "0.05", &two.1.to_string()])?;
        let stop = AtomicBool::new(false);
        let start = Instant::now();
        let (bytes, usage) = std::thread::scope(|scope| {
            let transfers = scope.spawn(|| {
                let mut bytes = 0u64;
                while !stop.load(Ordering::SeqCst) {
                    for (from, to) in [(one, two), (two, one)] {
                        bulk_tcp(from.0.netns(), to.0.netns(), to.1, CHUNK)
                            .with_context(|| format!("after {bytes} bytes of whole transfers"))?;
                        bytes += CHUNK as u64;
                    }
                }
                Ok::<_, anyhow::Error>(bytes)
            });
            let usage = self.watch(&daemons, start, || transfers.is_finished());
            stop.store(true, Ordering::SeqCst);
            let bytes = transfers.join().map_err(|_| anyhow!("the transfer panicked"))??;
            Ok::<_, anyhow::Error>((bytes, usage?))
        })?;
        let seconds = start.elapsed().as_secs_f64();
        let pings = self.pings(ping)?;
        let now = connection_address(first, second)?;
        ensure!(
            now == connection,
            "the connection {connection} was lost; now {now}"
        );
        ensure!(
            [pid(first)?, pid(second)?] == daemons,
            "a daemon has been restarted"
        );
        self.judge(&usage)?;
        let network = relay.counts();
        ensure!(
            network.lost > 0 && network.reordered > 0 && network.duplicated > 0,
            "the network was good: {network:?}"
        );
        Ok(Summary {
            name: self.name(),
            bytes,
            seconds,
            pings,
            usage,
            network,
        })
    }

    /// Samples the daemons every second until the time is over.
    fn watch(&self, daemons: &[i32], start: Instant, over: impl Fn() -> bool) -> Result<Vec<(Usage, Usage)>> {
        let mut usage = vec![(Usage::default(), Usage::default()); daemons.len()];
        let mut minutes = 0;
        while start.elapsed() < self.time && !over() {
            std::thread::sleep(Duration::from_secs(1));
            if start.elapsed().as_secs() / 60 > minutes {
                minutes += 1;
                let memory: Vec<String> = usage
                    .iter()
                    .map(|(early, late): &(Usage, Usage)| format!("{:.1}", early.most(*late).memory))
                    .collect();
                println!(
                    "{}: {minutes} min, memory at most {} MB",
                    self.name(),
                    memory.join(" and ")
                );
            }
            for (pid, (early, late)) in daemons.iter().zip(&mut usage) {
                let sample = sample(*pid).context("a daemon has ended")?;
                let most = if start.elapsed() < self.warm_up {
                    &mut *early
                } else {
                    &mut *late
                };
                *most = most.most(sample);
            }
        }
        Ok(usage)
    }

    fn judge(&self, usage: &[(Usage, Usage)]) -> Result<()> {
        for (early, late) in usage {
            ensure!(
                late.memory <= early.memory + self.growth,
                "memory grows: {:.1} MB after the warm-up, later {:.1} MB",
                early.memory,
                late.memory
            );
            // A question to the control API takes a descriptor, and may wake a thread, for a moment.
            ensure!(
                late.descriptors <= early.descriptors + 8,
                "descriptors leak: {early:?}, later {late:?}"
            );
            ensure!(
                late.threads <= early.threads + 8,
                "threads leak: {early:?}, later {late:?}"
            );
        }
        Ok(())
    }

    fn pings(&self, ping: Background) -> Result<(u32, usize, usize)> {
        let output = ping.interrupt(LIMIT)?;
        let answers = answered(&output.stdout);
        let doubled = output.stdout.matches("(DUP!)").count();
        let sent = answers.iter().copied().max().unwrap_or(0);
        // Lost on two ways, and where the transfer fills a queue.
        ensure!(
            answers.len() * 2 > sent as usize,
            "{} of {sent} pings answered",
            answers.len()
        );
        ensure!(
            !self.sealed || doubled == 0,
            "{doubled} sealed packets were taken twice"
        );
        Ok((sent, answers.len(), doubled))
    }
}

const CHUNK: usize = 4 << 20;

fn pid(host: &Host) -> Result<i32> {
    match host.daemon_pids().as_slice() {
        [pid] => Ok(*pid),
        pids => anyhow::bail!("{} daemons run on {}", pids.len(), host.name()),
    }
}

/// What the process uses now.
///
/// # Errors
/// If it is gone.
pub fn sample(pid: i32) -> Result<Usage> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let rest = status.lines().find_map(|line| line.strip_prefix(name));
        let number = rest.and_then(|rest| rest.split_whitespace().next());
        number
            .and_then(|number| number.parse::<u32>().ok())
            .with_context(|| format!("no {name} in its status"))
    };
    Ok(Usage {
        memory: f64::from(field("VmRSS:")?) / 1024.0,
        descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
        threads: field("Threads:")? as usize,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_told_from_noise() {
        let soak = Soak::new(false, Duration::from_secs(600));
        assert_eq!(soak.warm_up, Duration::from_secs(60));
        let usage = |memory, descriptors, threads| Usage {
            memory,
            descriptors,
            threads,
        };
        let early = usage(12.0, 40, 4);
        assert!(soak.judge(&[(early, usage(15.9, 41, 4)), (early, early)]).is_ok());
        for (late, what) in [
            (usage(16.1, 40, 4), "memory grows"),
            (usage(12.0, 49, 4), "descriptors leak"),
            (usage(12.0, 40, 13), "threads leak"),
        ] {
            let error = soak.judge(&[(early, early), (early, late)]).unwrap_err();
            assert!(error.to_string().starts_with(what), "{error}");
        }
    }

    #[test]
    fn what_this_process_uses() {
        let usage = sample(std::process::id().cast_signed()).unwrap();
        assert!(
            usage.memory > 0.5 && usage.descriptors > 2 && usage.threads > 0,
            "{usage:?}"
        );
        assert!(sample(-1).is_err());
    }
}
