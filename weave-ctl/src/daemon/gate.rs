//! Who may introduce itself now: bounds on handshakes per source and in total, so that one hostile
//! source takes nothing from the others (wire.md W6).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::mesh::Now;
use crate::mesh::limit::{Bucket, Rate};

/// Handshakes going on at once, in total. Each may hold as much memory as a features map may have.
pub const MAX_TOTAL: usize = 256;
/// Handshakes going on at once from one source.
pub const MAX_PER_SOURCE: usize = 16;
/// Handshakes of one source: as many as the original takes of all sources together (wire.md 2.1).
const RATE: Rate = Rate {
    burst: 20,
    every: Duration::from_millis(50),
};
/// Sources remembered at most.
const MAX_SOURCES: usize = 4096;

#[derive(Debug)]
struct Source {
    active: usize,
    begun: Bucket,
}

/// The bookkeeping.
#[derive(Debug, Default)]
pub struct Gate {
    sources: HashMap<IpAddr, Source>,
    total: usize,
    refused: u64,
}

impl Gate {
    /// May this source begin a handshake? If so, [`Self::done`] has to follow.
    pub fn enter(&mut self, now: Now, source: IpAddr) -> bool {
        let entered = self.try_enter(now, of(source));
        if !entered {
            self.refused += 1;
        }
        entered
    }

    fn try_enter(&mut self, now: Now, source: IpAddr) -> bool {
        if self.total >= MAX_TOTAL {
            return false;
        }
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            self.sources.retain(|_, s| s.active > 0 || !s.begun.is_full(now));
            if self.sources.len() >= MAX_SOURCES {
                return false;
            }
        }
        let known = self.sources.entry(source).or_insert(Source {
            active: 0,
            begun: Bucket::new(now),
        });
        if known.active >= MAX_PER_SOURCE || !known.begun.take(now, RATE) {
            return false;
        }
        known.active += 1;
        self.total += 1;
        true
    }

    /// A handshake that was let in has ended.
    pub fn done(&mut self, now: Now, source: IpAddr) {
        let source = of(source);
        self.total = self.total.saturating_sub(1);
        if let Some(known) = self.sources.get_mut(&source) {
            known.active = known.active.saturating_sub(1);
            if known.active == 0 && known.begun.is_full(now) {
                self.sources.remove(&source);
            }
        }
    }

    /// How many were not let in since this was last asked.
    pub fn take_refused(&mut self) -> u64 {
        std::mem::take(&mut self.refused)
    }
}

/// An IPv6 host has a whole /64.
fn of(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn host(n: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + n).to_be_bytes())
    }

    /// How many of 1000 attempts at the same time get in.
    fn storm(gate: &mut Gate, now: Now, source: IpAddr) -> usize {
        (0..1000).filter(|_| gate.enter(now, source)).count()
    }

    #[test]
    fn one_source_takes_nothing_from_the_others() {
        let mut gate = Gate::default();
        assert_eq!(storm(&mut gate, Now::ZERO, host(1)), MAX_PER_SOURCE);
        assert!(gate.enter(Now::ZERO, host(2)));
        assert_eq!(gate.take_refused(), 1000 - MAX_PER_SOURCE as u64);
        assert!(!gate.enter(Duration::from_secs(60), host(1)), "they go on");
        gate.done(Duration::from_secs(60), host(1));
        assert!(gate.enter(Duration::from_secs(60), host(1)));
    }

    #[test]
    fn quick_handshakes_are_limited_too() {
        let mut gate = Gate::default();
        let mut count = 0;
        for millis in 0..10_000 {
            let now = Duration::from_millis(millis);
            if gate.enter(now, host(1)) {
                gate.done(now, host(1));
                count += 1;
            }
        }
        let wanted = RATE.burst + 10_000 / 50;
        assert!((wanted - 1..=wanted).contains(&count), "{count}");
    }

    #[test]
    fn all_sources_together_are_bounded_and_forgotten() {
        let mut gate = Gate::default();
        let entered = (0..10_000).filter(|n| gate.enter(Now::ZERO, host(*n))).count();
        assert_eq!(entered, MAX_TOTAL);
        for n in 0..MAX_TOTAL as u32 {
            gate.done(Duration::from_secs(5), host(n));
        }
        assert_eq!((gate.total, gate.sources.len()), (0, 0));
        for n in 0..10_000 {
            let now = Duration::from_micros(n.into());
            if gate.enter(now, host(n)) {
                gate.done(now, host(n));
            }
        }
        assert!(gate.sources.len() <= MAX_SOURCES, "also without a pause");
    }

    #[test]
    fn what_a_source_is() {
        let of = |text: &str| of(text.parse().unwrap()).to_string();
        assert_eq!(of("::ffff:10.0.0.1"), "10.0.0.1");
        assert_eq!(of("fd00::1:2:3:4"), "fd00::");
        assert_eq!(of("fd00:0:0:1::4"), "fd00:0:0:1::");
    }
}
