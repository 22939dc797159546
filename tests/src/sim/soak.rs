//! Seed after seed.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::big::run;
use super::options::Options;

/// Runs small clusters, and every tenth time a larger one, from a first seed on for as long as that; tells how many
/// held. An error names the command that repeats the run which did not; why is on stderr.
pub fn soak(time: Duration, first: u64) -> Result<String> {
    let (begin, mut seed) = (Instant::now(), first);
    while begin.elapsed() < time {
        let options = match seed % 10 {
            0 => Options {
                conn_limit: 30,
                ..Options::new(seed, 100)
            },
            _ => Options::small(seed),
        };
        let repeat = options.to_string();
        std::thread::spawn(move || run(&options))
            .join()
            .map_err(|_| anyhow!("a simulated cluster did not hold; again with: {repeat}"))?;
        seed += 1;
    }
    Ok(format!(
        "simulated clusters: {} held, seeds {first} to {}",
        seed - first,
        seed - 1
    ))
}
