//! Pings that never stop, and which of the lost ones somebody has to answer for.

use std::net::Ipv4Addr;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;

use crate::ends::answered;
use crate::lab::Container;
use crate::process::{Background, LIMIT};

/// Seconds between pings.
const INTERVAL: f64 = 0.2;
/// What the clock of ping and ours may be apart, in seconds: no more than the start of a process.
const SLACK: f64 = 2.0;

/// Seconds since 1970, as ping prints them.
pub fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs_f64()
}

/// One host's container pings another's.
#[derive(Debug)]
pub struct Ping {
    /// Host of the one that asks, and of the other.
    pub pair: (usize, usize),
    start: f64,
    process: Background,
}

impl Ping {
    /// Starts.
    ///
    /// # Errors
    /// If ping cannot be run.
    pub fn start(pair: (usize, usize), from: &Container, to: Ipv4Addr) -> Result<Self> {
        let interval = INTERVAL.to_string();
        Ok(Self {
            pair,
            start: now(),
            process: from.spawn(&["ping", "-n", "-D", "-i", &interval, &to.to_string()])?,
        })
    }

    /// Ends it; the times at which pings left that were not answered, and how many left.
    ///
    /// # Errors
    /// If ping does not end.
    pub fn finish(self) -> Result<Pinged> {
        let output = self.process.interrupt(LIMIT)?;
        Ok(Pinged {
            pair: self.pair,
            sent: transmitted(&output.stdout),
            lost: lost(&output.stdout, self.start),
        })
    }
}

/// What became of a [`Ping`].
#[derive(Debug, Clone)]
pub struct Pinged {
    /// As of [`Ping::pair`].
    pub pair: (usize, usize),
    /// Pings sent.
    pub sent: u32,
    /// When those left that were not answered.
    pub lost: Vec<f64>,
}

fn transmitted(printed: &str) -> u32 {
    let line = printed.lines().find(|line| line.contains("packets transmitted"));
    line.and_then(|line| line.split(' ').next()?.parse().ok())
        .unwrap_or(0)
}

fn lost(printed: &str, start: f64) -> Vec<f64> {
    let mut answers = answered(printed);
    answers.sort_unstable();
    let time = |line: &str| -> Option<(u32, f64)> {
        let at = line.strip_prefix('[')?.split(']').next()?.parse().ok()?;
        Some((*answered(line).first()?, at))
    };
    let times: Vec<(u32, f64)> = printed.lines().filter_map(time).collect();
    let sent = transmitted(printed);
    let mut lost = Vec::new();
    let (mut number, mut at) = (0, start);
    // Between two answers time passes evenly; ping keeps its pace on the whole.
    for next in 1..=sent {
        match answers.binary_search(&next) {
            Ok(_) => {
                let known = times.iter().find(|(number, _)| *number == next);
                (number, at) = (next, known.map_or(at, |(_, at)| *at));
            }
            Err(_) => lost.push(at + f64::from(next - number) * INTERVAL),
        }
    }
    lost
}

/// What a disturbance touches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All pairs with this host.
    Host(usize),
    /// This pair.
    Pair(usize, usize),
    /// Pairs whose ends are on different sides.
    Split(Vec<bool>),
}

impl Scope {
    fn touches(&self, (a, b): (usize, usize)) -> bool {
        match self {
            Self::Host(host) => *host == a || *host == b,
            Self::Pair(c, d) => (a.min(b), a.max(b)) == (*c.min(d), *c.max(d)),
            Self::Split(side) => side.get(a) != side.get(b),
        }
    }
}

/// Something that costs pings, or may.
#[derive(Debug, Clone)]
struct Disturbance {
    scope: Scope,
    from: f64,
    to: Option<f64>,
    /// How long the network may take to get over it.
    margin: f64,
    /// Packets pass while it lasts, but for the margin at both ends: only then, if a controller that
    /// ought to act is away, they do not.
    passes: bool,
}

/// All that happened, as far as it excuses lost pings.
#[derive(Debug, Default)]
pub struct Excuses {
    disturbances: Vec<Disturbance>,
    /// Hosts without a controller that acts.
    headless: Vec<(usize, f64, Option<f64>)>,
}

/// After a link or a host has come back: connections are dialled again.
const RECONNECT: f64 = 30.0;
/// To leave a path and to return to it.
const SWITCH: f64 = 6.0;

impl Excuses {
    /// Packets do not pass from now on.
    pub fn breaks(&mut self, scope: Scope) {
        self.add(scope, RECONNECT, false);
    }

    /// The fast path is blocked from now on.
    pub fn blocks(&mut self, scope: Scope) {
        self.add(scope, SWITCH, true);
    }

    fn add(&mut self, scope: Scope, margin: f64, passes: bool) {
        self.disturbances.push(Disturbance {
            scope,
            from: now(),
            to: None,
            margin,
            passes,
        });
    }

    /// It is over.
    pub fn ends(&mut self, scope: &Scope) {
        for open in &mut self.disturbances {
            if open.scope == *scope && open.to.is_none() {
                open.to = Some(now());
            }
        }
    }

    /// The host's controller is away. Alone that costs no ping.
    pub fn headless(&mut self, host: usize) {
        self.headless.push((host, now(), None));
    }

    /// It is back.
    pub fn headed(&mut self, host: usize) {
        for (which, _, to) in &mut self.headless {
            if *which == host && to.is_none() {
                *to = Some(now());
            }
        }
    }

    /// May a ping of `pair` that left at `at` be lost?
    pub fn excuse(&self, pair: (usize, usize), at: f64) -> bool {
        let mut mine = self.disturbances.iter().filter(|one| one.scope.touches(pair));
        mine.any(|one| {
            let to = one.to.unwrap_or(f64::INFINITY);
            let mut end = to + one.margin;
            let mut whole = !one.passes;
            // A controller that was away during that, or just before, starts to act only when it is back.
            for (host, from, back) in &self.headless {
                let back = back.unwrap_or(f64::INFINITY);
                let concerns = *host == pair.0 || *host == pair.1;
                if concerns && *from <= end && back + RECONNECT >= one.from {
                    whole = true;
                    end = end.max(back + RECONNECT);
                }
            }
            let inside = at >= one.from - SLACK && at <= end + SLACK;
            let switching = at <= one.from + one.margin + SLACK || at >= to - SLACK;
            inside && (whole || switching)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "PING 10.32.0.2 (10.32.0.2) 56(84) bytes of data.
[1000.100000] 64 bytes from 10.32.0.2: icmp_seq=1 ttl=64 time=0.05 ms
[1000.300000] 64 bytes from 10.32.0.2: icmp_seq=2 ttl=64 time=0.05 ms
[1000.900000] 64 bytes from 10.32.0.2: icmp_seq=5 ttl=64 time=0.05 ms

--- 10.32.0.2 ping statistics ---
6 packets transmitted, 3 received, 50% packet loss, time 1001ms
";

    #[test]
    fn when_lost_pings_left() {
        let lost = lost(PRINTED, 1000.0);
        let tenths: Vec<i64> = lost.iter().map(|at| (at * 10.0).round() as i64).collect();
        assert_eq!(tenths, [10005, 10007, 10011]);
    }

    fn open_since(scope: Scope, from: f64, to: f64, margin: f64, passes: bool) -> Disturbance {
        let to = Some(to);
        Disturbance {
            scope,
            from,
            to,
            margin,
            passes,
        }
    }

    #[test]
    fn a_cut_link_excuses_its_host_only_and_for_a_while() {
        let cut = open_since(Scope::Host(1), 100.0, 110.0, RECONNECT, false);
        let excuses = Excuses {
            disturbances: vec![cut],
            headless: Vec::new(),
        };
        assert!(excuses.excuse((1, 0), 105.0) && excuses.excuse((2, 1), 130.0));
        assert!(!excuses.excuse((2, 0), 105.0));
        assert!(!excuses.excuse((1, 0), 90.0) && !excuses.excuse((1, 0), 150.0));
    }

    #[test]
    fn a_blocked_path_excuses_the_change_only_unless_a_controller_is_away() {
        let block = open_since(Scope::Pair(0, 1), 100.0, 150.0, SWITCH, true);
        let mut excuses = Excuses {
            disturbances: vec![block],
            headless: Vec::new(),
        };
        assert!(excuses.excuse((1, 0), 103.0) && excuses.excuse((0, 1), 152.0));
        assert!(!excuses.excuse((1, 0), 125.0));
        excuses.headless.push((2, 100.0, Some(110.0)));
        assert!(!excuses.excuse((1, 0), 125.0), "not one of the two");
        excuses.headless.push((1, 90.0, Some(120.0)));
        assert!(excuses.excuse((1, 0), 125.0));
        assert!(!excuses.excuse((1, 0), 200.0));
    }

    #[test]
    fn a_partition_excuses_what_crosses_it() {
        let split = open_since(Scope::Split(vec![true, false, true]), 0.0, 10.0, RECONNECT, false);
        let excuses = Excuses {
            disturbances: vec![split],
            headless: Vec::new(),
        };
        assert!(excuses.excuse((0, 1), 5.0) && !excuses.excuse((0, 2), 5.0));
    }
}
