//! How often something may happen: a token bucket.

use std::time::Duration;

use super::Now;

/// What goes through a [`Bucket`].
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// That many at once.
    pub burst: u32,
    /// Then one more each time this has gone by.
    pub every: Duration,
}

/// How much of what is not for us we pass on for one neighbour (wire.md W13).
///
/// Gossip has no hop limit. Where topologies disagree, a message may go round in circles, and nothing but
/// this keeps it from filling every link.
pub const RELAYED: Rate = Rate {
    burst: 2000,
    every: Duration::from_millis(5),
};

/// A token bucket, which only knows when it will be full.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    full_at: Now,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub fn new(now: Now) -> Self {
        Self { full_at: now }
    }

    /// Takes a token; false if there is none. Always to be asked with the same rate.
    pub fn take(&mut self, now: Now, rate: Rate) -> bool {
        let full_at = self.full_at.max(now) + rate.every;
        let taken = full_at <= now + rate.every * rate.burst;
        if taken {
            self.full_at = full_at;
        }
        taken
    }

    /// Is nothing missing from it?
    #[must_use]
    pub fn is_full(&self, now: Now) -> bool {
        self.full_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_rate() {
        let mut limit = Bucket::new(Now::ZERO);
        let taken = |limit: &mut Bucket, at: u64| {
            let now = Now::from_millis(at);
            (0..10_000).filter(|_| limit.take(now, RELAYED)).count()
        };
        assert_eq!(taken(&mut limit, 0), 2000);
        assert_eq!(taken(&mut limit, 4), 0);
        assert_eq!(
            taken(&mut limit, 7),
            1,
            "what is left of an interval counts later"
        );
        assert_eq!(taken(&mut limit, 10), 1);
        assert_eq!(taken(&mut limit, 1010), 200);
        assert_eq!(taken(&mut limit, 3_600_000), 2000);
    }
}
