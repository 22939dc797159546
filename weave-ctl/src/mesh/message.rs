//! Messages on the TCP control connection, after the handshake (wire.md 2.6, 3.5.2, 4.1, 7.4).

use super::name::PeerName;

/// Largest message body, in bytes, either way (wire.md 2.6).
pub const MAX_BODY: usize = 10 * 1024 * 1024;

/// A gossip message's outer part (wire.md 3.5.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Channel name.
    pub channel: String,
    /// Tag 4: the neighbour that sent it; tags 5 and 6: the originator.
    pub source: PeerName,
    /// Opaque to the mesh.
    pub payload: Vec<u8>,
}

/// One message (tags of wire.md 2.6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Tag 0.
    Heartbeat,
    /// Tag 4.
    Gossip(Envelope),
    /// Tag 5. `raw` is the whole body as received, for forwarding byte for byte (`None` when ours).
    Unicast {
        /// Destination.
        to: PeerName,
        /// The rest.
        envelope: Envelope,
        /// Body as received, tag included.
        raw: Option<Vec<u8>>,
    },
    /// Tag 6.
    Broadcast(Envelope),
    /// Tag 7: index into the common overlay list, the overlay's tag, its data.
    OverlayControl {
        /// Index into the list of common overlays.
        index: u8,
        /// Meaning depends on the overlay.
        tag: u8,
        /// Meaning depends on the tag.
        data: Vec<u8>,
    },
}
