//! The topology payload: peers and their connections (wire.md 3.5.3).

use super::name::{PeerName, ShortId};

/// One peer as told by gossip, with its complete list of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSummary {
    /// The peer.
    pub name: PeerName,
    /// Display name.
    pub nickname: String,
    /// Which incarnation; 0 for a placeholder.
    pub uid: u64,
    /// Raised by the peer itself on each change.
    pub version: u64,
    /// `None` when it has none, or one out of range (wire.md W12).
    pub short_id: Option<ShortId>,
    /// Its side of each of its connections.
    pub connections: Vec<ConnectionSummary>,
}

/// One directed connection as claimed by the peer it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionSummary {
    /// The other end.
    pub name: PeerName,
    /// `ip:port` of the other end as the reporting peer sees it.
    pub remote_addr: String,
    /// The reporting peer dialled.
    pub outbound: bool,
    /// At the reporting peer.
    pub established: bool,
}
