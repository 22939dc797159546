//! How much a mesh holds, so that whoever runs it for long can see that nothing grows without bound.

use super::core::Mesh;

/// Numbers of things held.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Peers in the topology, ourselves included.
    pub peers: usize,
    /// Connections of all of them.
    pub links: usize,
    /// Our own connections.
    pub connections: usize,
    /// Addresses dialled, or to be dialled.
    pub targets: usize,
    /// Messages that wait to be written, on all connections.
    pub messages: usize,
    /// Gossip slots that are occupied, on all connections.
    pub slots: usize,
    /// Items that wait for new routes.
    pub waiting: usize,
}

impl Mesh {
    /// What it holds now.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        let queued = self.conns.values().map(|c| c.queue.overflow());
        let (messages, slots) = queued.fold((0, 0), |(m, s), q| (m + q.messages, s + q.slots));
        Sizes {
            peers: self.peers.len(),
            links: self.peers.iter().map(|p| p.connections.len()).sum(),
            connections: self.conns.len(),
            targets: self.targets.iter().count(),
            messages,
            slots,
            waiting: self.waiting.len(),
        }
    }
}
