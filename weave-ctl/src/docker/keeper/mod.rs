//! Keeps Docker's containers attached: those that wait for it in `/w/w` are attached whenever they start
//! (control.md 4.3), one attempt a container at a time.

pub mod waiters;

use std::sync::Arc;

use waiters::Waiters;
pub use waiters::{Expected, Outcome};

/// The way to the keeper. Clones share everything.
#[derive(Clone, Default)]
pub struct Keeper {
    waiters: Arc<Waiters>,
}

impl Keeper {
    /// Registers somebody who is about to ask Docker to start a container, whose full ID is given.
    #[must_use]
    pub fn expect_start(&self, id: &str) -> Expected {
        self.waiters.expect(id)
    }

    /// Waits until no start of that container is under way.
    pub async fn settled(&self, id: &str) {
        self.waiters.settled(id).await;
    }

    /// For tests that play Docker's part.
    #[cfg(test)]
    pub(in crate::docker) fn waiters(&self) -> &Waiters {
        &self.waiters
    }
}
