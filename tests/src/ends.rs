//! Containers on the hosts of a lab, and what is asked of the network between them.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::lab::{Container, Host, Lab};
use crate::process::{self, LIMIT, Output};
use crate::traffic::bulk_tcp;

/// A container and its address.
pub type End = (Container, Ipv4Addr);

/// A container on each host, with addresses from IPAM.
///
/// # Errors
/// If one cannot be made or attached.
pub fn attach_all(lab: &Lab) -> Result<Vec<End>> {
    lab.hosts().iter().map(|host| host.attached("c")).collect()
}

/// The first end and the last.
///
/// # Errors
/// If there are fewer than two.
pub fn outer(ends: &[End]) -> Result<(&End, &End)> {
    match ends {
        [first, .., last] => Ok((first, last)),
        _ => anyhow::bail!("fewer than two containers"),
    }
}

/// All pairs, both directions.
///
/// # Errors
/// If an answer does not come.
pub fn everybody_reaches_everybody(ends: &[End]) -> Result<()> {
    for (from, own) in ends {
        for (_, target) in ends.iter().filter(|(_, target)| target != own) {
            from.wait_ping(*target)?;
        }
    }
    Ok(())
}

/// A transfer of `bytes` in each direction, compared on arrival.
///
/// # Errors
/// As [`bulk_tcp`].
pub fn both_ways(one: &End, two: &End, bytes: usize) -> Result<()> {
    bulk_tcp(one.0.netns(), two.0.netns(), two.1, bytes).context("there")?;
    bulk_tcp(two.0.netns(), one.0.netns(), one.1, bytes).context("back")
}

/// Sends three packets of `size` bytes of IP, with DF (`do`) or without (`dont`).
///
/// # Errors
/// If ping cannot be run; no answer is no error here.
pub fn ping_size(from: &Container, to: Ipv4Addr, size: u32, df: &str) -> Result<Output> {
    let (payload, to) = ((size - 28).to_string(), to.to_string());
    #[rustfmt::skip]
    let words = ["ping", "-n", "-c", "3", "-i", "0.2", "-W", "2", "-M", df, "-s", &payload, &to];
    from.exec(&words)
}

/// Waits until a ping of 10,000 bytes, which is fragmented on the way, is answered.
///
/// # Errors
/// If none is for a long time.
pub fn wait_large_ping(from: &Container, to: Ipv4Addr) -> Result<()> {
    process::wait_for(&format!("an answer of 10,000 bytes from {to}"), LIMIT, || {
        ping_size(from, to, 10_000, "dont")?.ok().map(Some)
    })
    .map(drop)
}

/// Makes the container forget who has which address.
///
/// # Errors
/// If `ip` fails.
pub fn forget_neighbours(container: &Container) -> Result<()> {
    container
        .exec(&["ip", "neighbor", "flush", "dev", "ethwe"])?
        .ok()
        .map(drop)
}

/// Waits until a broadcast ping of the first of them is answered by all the others.
///
/// # Errors
/// If one stays silent.
pub fn broadcast_reaches_all(ends: &[End], from: usize) -> Result<()> {
    for (container, _) in ends {
        container
            .exec(&["sysctl", "-qw", "net.ipv4.icmp_echo_ignore_broadcasts=0"])?
            .ok()?;
    }
    let (sender, own) = ends.get(from).context("no such container")?;
    let what = format!("all to answer the broadcast of {own}");
    process::wait_for(&what, Duration::from_secs(60), || {
        let words = [
            "ping",
            "-n",
            "-b",
            "-c",
            "3",
            "-i",
            "0.2",
            "-W",
            "1",
            "10.47.255.255",
        ];
        let answers = sender.exec(&words)?;
        for (_, address) in ends.iter().filter(|(_, address)| address != own) {
            let answer = format!(" from {address}: ");
            ensure!(answers.stdout.contains(&answer), "none{answer}{answers}");
        }
        Ok(Some(()))
    })
}

/// Sequence numbers of the answers that a ping has printed, in order; doubles are left out.
pub fn answered(ping: &str) -> Vec<u32> {
    let number = |line: &str| line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse().ok();
    ping.lines()
        .filter(|line| line.contains(" time=") && !line.contains("(DUP!)"))
        .filter_map(number)
        .collect()
}

/// The longest run of pings without an answer before the last answer.
pub fn longest_silence(ping: &str) -> u32 {
    let mut numbers = answered(ping);
    numbers.sort_unstable();
    let pairs = numbers.windows(2);
    pairs
        .filter_map(|pair| Some(pair.get(1)? - pair.first()? - 1))
        .max()
        .unwrap_or(0)
}

/// The address column of the connection to `other`: it changes when the connection is made anew.
///
/// # Errors
/// If there is no established connection.
pub fn connection_address(host: &Host, other: &Host) -> Result<String> {
    let line = host
        .connection_to(other)?
        .with_context(|| format!("no connection from {} to {}", host.name(), other.name()))?;
    ensure!(line.contains(" established "), "{line}");
    line.split(' ').nth(1).map(str::to_owned).context("an odd line")
}

#[cfg(test)]
mod tests {
    use super::{answered, longest_silence};

    #[test]
    fn what_ping_prints() {
        let printed = "PING 10.32.0.2 (10.32.0.2) 56(84) bytes of data.
64 bytes from 10.32.0.2: icmp_seq=1 ttl=64 time=0.05 ms
64 bytes from 10.32.0.2: icmp_seq=2 ttl=64 time=0.05 ms
64 bytes from 10.32.0.2: icmp_seq=2 ttl=64 time=0.09 ms (DUP!)
From 10.32.0.1 icmp_seq=3 Destination Host Unreachable
64 bytes from 10.32.0.2: icmp_seq=7 ttl=64 time=0.05 ms
64 bytes from 10.32.0.2: icmp_seq=6 ttl=64 time=40.2 ms
";
        assert_eq!(answered(printed), [1, 2, 7, 6]);
        assert_eq!(longest_silence(printed), 3);
        assert_eq!(longest_silence(""), 0);
    }
}
