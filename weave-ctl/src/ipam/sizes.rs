//! How much an allocator holds, so that whoever runs it for long can see that nothing grows without bound.

use super::allocator::Allocator;

/// Numbers of things held.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Ring entries.
    pub entries: usize,
    /// Peers whose nickname is remembered, ourselves included.
    pub nicknames: usize,
    /// Operations that wait.
    pub pending: usize,
    /// Dead containers that still have their addresses.
    pub dead: usize,
}

impl Allocator {
    /// What it holds now.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        let pending = &self.pending;
        Sizes {
            entries: self.ring.entries.len(),
            nicknames: self.nicknames.len(),
            pending: pending.primes.len() + pending.claims.len() + pending.allocates.len(),
            dead: self.dead.len(),
        }
    }
}
