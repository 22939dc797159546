//! How much of what is not for us we pass on for one neighbour (wire.md W13): a token bucket.
//!
//! Gossip has no hop limit. Where topologies disagree, a message may go round in circles, and nothing but
//! this keeps it from filling every link.

use std::time::Duration;

use super::Now;

/// Messages that may come at once.
pub const RELAY_BURST: u32 = 2000;
/// One more each time this has gone by: 200 in a second.
pub const RELAY_INTERVAL: Duration = Duration::from_millis(5);

/// See the module's description.
#[derive(Debug, Clone, Copy)]
pub struct RelayLimit {
    left: u32,
    /// Until when what has gone by is counted.
    counted: Now,
}

impl RelayLimit {
    /// A full bucket.
    #[must_use]
    pub fn new(now: Now) -> Self {
        Self {
            left: RELAY_BURST,
            counted: now,
        }
    }

    /// Takes a token; false if there is none.
    pub fn take(&mut self, now: Now) -> bool {
        let gone = now.saturating_sub(self.counted).as_millis() / RELAY_INTERVAL.as_millis();
        if gone > 0 {
            let gone = u32::try_from(gone).unwrap_or(RELAY_BURST).min(RELAY_BURST);
            self.counted = if gone == RELAY_BURST {
                now
            } else {
                self.counted + RELAY_INTERVAL * gone
            };
            self.left = (self.left + gone).min(RELAY_BURST);
        }
        let taken = self.left.checked_sub(1);
        self.left = taken.unwrap_or(0);
        taken.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_rate() {
        let mut limit = RelayLimit::new(Now::ZERO);
        let taken = |limit: &mut RelayLimit, at: u64| {
            let now = Now::from_millis(at);
            (0..10_000).filter(|_| limit.take(now)).count()
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
