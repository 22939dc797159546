//! What a run has cost.

use std::fmt;
use std::time::Duration;

use super::Traffic;

/// One part of a run.
#[derive(Debug, Clone)]
pub struct Phase {
    /// What happened.
    pub what: &'static str,
    /// Virtual time from its end until all agreed.
    pub agreed_after: Duration,
    /// Virtual time of it all.
    pub time: Duration,
    /// All that was sent in that time.
    pub traffic: Traffic,
}

/// A run that held.
#[derive(Debug, Clone)]
pub struct Figures {
    /// How many peers.
    pub peers: usize,
    /// In order.
    pub phases: Vec<Phase>,
    /// Ring entries at the end.
    pub entries: usize,
    /// Answers with an address, and claims that were refused.
    pub answers: (u64, u64),
    /// Longest wait for an answer.
    pub longest: Duration,
    /// Events.
    pub events: u64,
    /// Real time.
    pub wall: Duration,
    /// Resident memory of the process in bytes.
    pub memory: u64,
}

impl Figures {
    /// Bytes per peer of the whole run.
    #[must_use]
    pub fn bytes_per_peer(&self) -> u64 {
        let bytes: u64 = self.phases.iter().map(|p| p.traffic.total().bytes).sum();
        bytes / self.peers as u64
    }
}

/// What runs for the same peers have in common with nothing: equal for equal seeds.
impl PartialEq for Figures {
    fn eq(&self, other: &Self) -> bool {
        let told = |figures: &Self| {
            let phases = figures.phases.iter();
            let phases = phases.map(|p| (p.what, p.agreed_after, p.time, p.traffic.clone()));
            (phases.collect::<Vec<_>>(), figures.events, figures.answers)
        };
        told(self) == told(other)
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peers = self.peers as f64;
        let each = |n: u64| n as f64 / peers;
        writeln!(
            f,
            "{:<14} {:>10} {:>8} {:>14} {:>14} {:>18}",
            "", "agreed s", "time s", "msgs/peer", "kB/peer", "kB/peer/minute"
        )?;
        for phase in &self.phases {
            let total = phase.traffic.total();
            let seconds = phase.time.as_secs_f64();
            let kilobytes = each(total.bytes) / 1e3;
            writeln!(
                f,
                "{:<14} {:>10.0} {:>8.0} {:>14.1} {:>14.1} {:>18.2}",
                phase.what,
                phase.agreed_after.as_secs_f64(),
                seconds,
                each(total.messages),
                kilobytes,
                kilobytes / seconds * 60.0
            )?;
            for ((tag, channel), sent) in phase.traffic.iter().filter(|(_, sent)| sent.messages > 0) {
                writeln!(
                    f,
                    "  tag {tag:<2} {channel:<12} {:>11} {:>14.1} {:>14.1}",
                    "",
                    each(sent.messages),
                    each(sent.bytes) / 1e3
                )?;
            }
        }
        write!(
            f,
            "{} peers: {} addresses granted, {} claims refused, longest wait {:.0} s; {} ring entries; \
             {} events in {:.1} s; {:.2} MB resident per peer",
            self.peers,
            self.answers.0,
            self.answers.1,
            self.longest.as_secs_f64(),
            self.entries,
            self.events,
            self.wall.as_secs_f64(),
            each(self.memory) / 1e6
        )
    }
}

/// Resident memory of this process in bytes; 0 where that cannot be told.
#[must_use]
pub fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}
