//! Who waits until a container of Docker is attached. The daemon attaches those that wait in `/w/w` whenever they
//! start (control.md 4.3), one attempt a container at a time.

pub mod waiters;

use std::sync::Arc;

use tokio::sync::Notify;
use waiters::Waiters;
pub use waiters::{Expected, Outcome};

/// The way to who is waited for. Clones share everything.
#[derive(Clone, Default)]
pub struct Keeper {
    waiters: Arc<Waiters>,
    needed: Arc<Notify>,
}

impl Keeper {
    /// Registers somebody who is about to ask Docker to start a container, whose full ID is given.
    #[must_use]
    pub fn expect_start(&self, id: &str) -> Expected {
        self.needed.notify_one();
        self.waiters.expect(id)
    }

    /// Waits until no start of that container is under way.
    pub async fn settled(&self, id: &str) {
        self.waiters.settled(id).await;
    }

    /// The table, for who attaches.
    #[must_use]
    pub fn waiters(&self) -> &Waiters {
        &self.waiters
    }

    /// Told when Docker's events are needed at once.
    #[must_use]
    pub fn needed(&self) -> &Notify {
        &self.needed
    }
}
