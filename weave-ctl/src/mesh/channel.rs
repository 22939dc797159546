//! What a gossip channel (IP allocation, DNS) is to the mesh, and the mesh to a channel.

use std::any::Any;
use std::sync::Arc;

use super::Now;
use super::name::PeerName;
use super::reconcile::Reconcile;

/// Data a channel has handed to the mesh to be sent. It may wait in a slot and be merged with
/// later data before [`Channel::encode`] turns it into bytes (wire.md 4.5). Shared, as the same item waits for
/// several neighbours.
pub type GossipData = Arc<dyn Any + Send + Sync>;

/// A channel rejects what a neighbour sent. The connection that delivered it is closed with this
/// text as its reason, as an original peer would do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Rejected(pub String);

/// A unicast could not be sent (wire.md 4.6).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnicastError {
    /// Nobody we know leads there.
    #[error("unknown relay destination: {0}")]
    NoRoute(PeerName),
    /// The next hop is not connected.
    #[error("unable to find connection to relay peer {0}")]
    NotConnected(PeerName),
}

/// Feature that names a peer's program and version; originals have none.
pub const FEATURE_IMPLEMENTATION: &str = "Implementation";

/// The neighbour whose message is being handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Its name.
    pub name: PeerName,
    /// It runs the original program: it closes a connection over gossip that it cannot merge.
    pub original: bool,
}

/// What a channel may ask of the mesh while it handles something.
pub trait Outlet {
    /// Monotonic time.
    fn now(&self) -> Now;
    /// Unix time in seconds.
    fn unix_now(&self) -> i64;
    /// Is the peer in the topology? (Ourselves included.)
    fn is_known(&self, peer: PeerName) -> bool;
    /// Nickname from the topology.
    fn nickname(&self, peer: PeerName) -> Option<String>;
    /// Direct targets that may still be tried (control.md 1.11 "Quorum").
    fn active_targets(&self) -> usize;
    /// Who delivered the message that is being handled; `None` when nobody did.
    fn neighbour(&self) -> Option<Neighbour> {
        None
    }
    /// Send to one peer on this channel; queued after the present call returns.
    fn unicast(&mut self, to: PeerName, payload: Vec<u8>) -> Result<(), UnicastError>;
    /// Send to everybody along our broadcast tree; queued after the present call returns.
    fn broadcast(&mut self, data: GossipData);
    /// Send to random neighbours, who pass on what is news to them; queued after the present call returns.
    fn gossip(&mut self, data: GossipData);
}

/// One named gossip channel (wire.md 4.1). Pure: time comes from the [`Outlet`].
pub trait Channel {
    /// Tag 5 addressed to us.
    fn on_unicast(&mut self, out: &mut dyn Outlet, from: PeerName, payload: &[u8]) -> Result<(), Rejected>;
    /// Tag 6: returns what to pass on along the tree of its originator `from`.
    fn on_broadcast(
        &mut self,
        out: &mut dyn Outlet,
        from: PeerName,
        payload: &[u8],
    ) -> Result<Option<GossipData>, Rejected>;
    /// Tag 4 from a neighbour: returns what was new, to pass on to random neighbours.
    fn on_gossip(&mut self, out: &mut dyn Outlet, payload: &[u8]) -> Result<Option<GossipData>, Rejected>;
    /// Everything we know: sent every 30 s and to a new neighbour.
    fn full_state(&mut self, out: &mut dyn Outlet) -> Option<GossipData>;
    /// Two queued items become one.
    fn merge(&self, old: GossipData, new: GossipData) -> GossipData;
    /// Bytes of a queued item, at the moment it is sent (`unix_now` in seconds).
    fn encode(&mut self, unix_now: i64, data: &GossipData) -> Vec<u8>;
    /// The same for one neighbour, for channels that speak differently to some.
    fn encode_for(&mut self, neighbour: Neighbour, unix_now: i64, data: &GossipData) -> Vec<u8> {
        let _ = neighbour;
        self.encode(unix_now, data)
    }
    /// May our gossip and broadcasts go to this neighbour now? Asked just before [`Channel::encode_for`].
    fn wants_gossip(&self, neighbour: Neighbour) -> bool {
        let _ = neighbour;
        true
    }
    /// How this channel's state reaches new peers record by record; `None` if it cannot, or not now: they get
    /// what originals get.
    fn reconcile(&mut self) -> Option<&mut dyn Reconcile> {
        None
    }
    /// The topology has dropped this peer (wire.md 4.2.6).
    fn on_peer_gone(&mut self, out: &mut dyn Outlet, peer: PeerName);
}

/// The channels of one peer, by name. Names not found are relayed by a surrogate.
pub trait Channels {
    /// The names, for periodic gossip.
    fn names(&self) -> Vec<&'static str>;
    /// The channel of that name.
    fn get(&mut self, name: &str) -> Option<&mut dyn Channel>;
}

/// No channels at all.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoChannels;

impl Channels for NoChannels {
    fn names(&self) -> Vec<&'static str> {
        Vec::new()
    }
    fn get(&mut self, _: &str) -> Option<&mut dyn Channel> {
        None
    }
}
