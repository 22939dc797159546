//! What the daemons of a path need in memory, before the rounds and after them.

use std::fmt;
use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;
use weave_tests::soak::sample;

/// The largest of the daemons, in megabytes.
#[derive(Debug, Serialize)]
pub struct Memory {
    path: &'static str,
    /// Resident before the first round.
    before: f64,
    /// Resident after the last.
    after: f64,
    /// The most it ever was.
    most: f64,
    #[serde(skip)]
    pids: Vec<i32>,
}

impl Memory {
    /// Before the rounds.
    pub fn of(path: &'static str, pids: Vec<i32>) -> Result<Self> {
        let before = resident(&pids)?;
        Ok(Self {
            path,
            before,
            after: before,
            most: before,
            pids,
        })
    }

    /// After the rounds.
    pub fn measure_again(&mut self) -> Result<()> {
        self.after = resident(&self.pids)?;
        for pid in &self.pids {
            self.most = self.most.max(high_water(*pid)?);
        }
        Ok(())
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "resident memory of a daemon, {}: {:.1} MB before the rounds, {:.1} MB after them, {:.1} MB at most",
            self.path, self.before, self.after, self.most
        )
    }
}

fn resident(pids: &[i32]) -> Result<f64> {
    let mut largest = 0.0;
    for pid in pids {
        largest = f64::max(largest, sample(*pid)?.memory);
    }
    Ok(largest)
}

fn high_water(pid: i32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("no VmHWM")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes / 1024.0)
}
