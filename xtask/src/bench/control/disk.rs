//! How long the disk takes to keep 4 KB, which bounds what a durable answer can take.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

const BLOCK: usize = 4096;
const BLOCKS: u64 = 64;
const TIMES: u64 = 200;

/// Times of fdatasync after a write of 4 KB, in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Disk {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
}

/// Measures in that folder, in a file whose blocks are there already.
pub fn measure(folder: &Path) -> Result<Disk> {
    let path = folder.join("fdatasync-probe");
    let file = File::create_new(&path)?;
    // It goes when it is closed.
    std::fs::remove_file(&path)?;
    for block in 0..BLOCKS {
        file.write_all_at(&[0; BLOCK], block * BLOCK as u64)?;
    }
    file.sync_all()?;
    let mut times = Vec::new();
    for number in 0..TIMES {
        let start = Instant::now();
        file.write_all_at(&[number as u8; BLOCK], number % BLOCKS * BLOCK as u64)?;
        file.sync_data()?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    Ok(Disk {
        p50: percentile(&times, 50),
        p99: percentile(&times, 99),
    })
}

/// Of sorted values.
pub fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let index = sorted.len() * percent / 100;
    sorted.get(index).or(sorted.last()).copied().unwrap_or(f64::NAN)
}
