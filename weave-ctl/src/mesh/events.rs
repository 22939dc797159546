//! What goes into the mesh and what comes out of it.

use std::net::SocketAddr;

use super::ConnId;
use super::handshake::Features;
use super::message::Message;
use super::name::{PeerName, ShortId};
use super::targets::ResolvedPeer;

/// What a mesh is made with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Our name.
    pub name: PeerName,
    /// Our display name.
    pub nickname: String,
    /// Random and not zero, fresh at every start (wire.md 1.2).
    pub uid: u64,
    /// The short ID to begin with: random, or the one we had before.
    pub short_id: ShortId,
    /// Our TCP port, taken to be everybody's.
    pub port: u16,
    /// Connections at most; 0 for no limit.
    pub conn_limit: usize,
    /// Dial peers that others know?
    pub discovery: bool,
    /// Of the random numbers.
    pub seed: u64,
}

/// A connection whose handshake is done (wire.md 2.2-2.5).
#[derive(Debug, Clone)]
pub struct Introduction {
    /// The driver's number for it.
    pub conn: ConnId,
    /// We dialled.
    pub outbound: bool,
    /// The address of [`Output::Dial`], if we dialled.
    pub dialled: Option<SocketAddr>,
    /// The remote end of the TCP connection.
    pub remote: SocketAddr,
    /// What the remote says of itself.
    pub features: Features,
    /// The `ConnID` in our own features.
    pub our_conn_id: u64,
}

/// What happens to a mesh.
#[derive(Debug, Clone)]
pub enum Input {
    /// A deadline has passed.
    Tick,
    /// Answered by [`Output::Added`], or by [`Output::Close`] with the reason for the refusal.
    Introduced(Box<Introduction>),
    /// A message was read and decoded.
    Received {
        /// Where.
        conn: ConnId,
        /// What.
        message: Message,
    },
    /// The connection has ended, or its overlay has failed; ignored if the mesh closed it itself.
    Closed {
        /// Which.
        conn: ConnId,
        /// Why, for `status connections`.
        error: String,
    },
    /// No connection came of an [`Output::Dial`].
    DialFailed {
        /// Its target.
        target: SocketAddr,
        /// Why.
        error: String,
        /// TCP was connected, and the handshake failed: counts as a termination.
        connected: bool,
    },
    /// The handshake of a connection that we accepted has failed.
    AcceptFailed {
        /// Who it was.
        remote: SocketAddr,
        /// Why.
        error: String,
    },
    /// `weave connect`, and the peers given at launch.
    Connect {
        /// Names are resolved already.
        peers: Vec<ResolvedPeer>,
        /// Forget all earlier ones first.
        replace: bool,
    },
    /// A direct peer's name has been looked up again and leads to another address.
    Moved(ResolvedPeer),
    /// `weave forget`: texts as they were given. Closes nothing.
    Forget {
        /// Unknown ones are ignored.
        peers: Vec<String>,
    },
    /// The overlay: our heartbeat was acknowledged on this connection (wire.md 2.10).
    Established {
        /// Which.
        conn: ConnId,
    },
    /// The overlay has something to tell its other end over TCP (wire.md 7.4).
    OverlayControl {
        /// Where.
        conn: ConnId,
        /// Index into the common overlay list.
        index: u8,
        /// Overlay's tag.
        tag: u8,
        /// Overlay's data.
        data: Vec<u8>,
    },
    /// Closes every connection and dials no more.
    Shutdown,
}

/// What the driver is to do or to know, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Dial and shake hands; answered by exactly one `Introduced` or `DialFailed` with this target.
    Dial {
        /// Address.
        target: SocketAddr,
    },
    /// The connection is part of the mesh: prepare and confirm its overlay, then start reading.
    Added {
        /// Which.
        conn: ConnId,
        /// Who.
        remote: PeerName,
        /// The same number at both ends (wire.md 1.6).
        conn_uid: u64,
        /// Theirs.
        features: Box<Features>,
        /// We dialled.
        outbound: bool,
        /// Their address.
        remote_addr: SocketAddr,
    },
    /// Send this last message on a connection that was not added, then close it; [`Output::Close`] follows.
    Farewell {
        /// Which.
        conn: ConnId,
        /// The message's body.
        body: Vec<u8>,
    },
    /// Close the TCP connection. No `Closed` is needed.
    Close {
        /// Which.
        conn: ConnId,
        /// Why.
        reason: String,
    },
    /// An added connection is gone, whoever ended it: stop its overlay.
    Removed {
        /// Which.
        conn: ConnId,
        /// Who.
        remote: PeerName,
    },
    /// There is something to send: call [`super::core::Mesh::poll_send`] whenever the writer is free, until it
    /// returns `None`.
    Ready {
        /// Which.
        conn: ConnId,
    },
    /// Tag 7 has arrived.
    OverlayControlReceived {
        /// Where.
        conn: ConnId,
        /// Index into the common overlay list: not checked.
        index: u8,
        /// Overlay's tag.
        tag: u8,
        /// Overlay's data.
        data: Vec<u8>,
    },
    /// Data frames may have to go another way now.
    RoutesChanged,
    /// Some short ID has another owner, or its first one, or none.
    ShortIdsChanged,
    /// We have another short ID now.
    OwnShortIdChanged(ShortId),
    /// Another live peer has our name, and it is for us to take another: why. Said again while it lasts.
    NameTaken(String),
    /// The topology has dropped this peer.
    PeerGone(PeerName),
}

/// Things refused or dropped since the start.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Entries of topology updates that could not be read.
    pub topology_entries_skipped: u64,
    /// Topology messages that could not be read at all, or were unicasts.
    pub topology_messages_skipped: u64,
    /// Entries of topology updates beyond a bound.
    pub topology_entries_refused: u64,
    /// Unicasts that we could not pass on: no route, or no connection.
    pub unicasts_unroutable: u64,
    /// Unicasts and broadcasts that came back to us, or would go back to their sender.
    pub loops_cut: u64,
    /// Messages for others that found a queue full.
    pub relays_dropped: u64,
    /// Messages for others that came faster than we pass them on.
    pub relays_limited: u64,
    /// Messages on channels that we do not relay, as there are too many.
    pub channels_refused: u64,
    /// Own messages larger than a frame may be.
    pub oversized: u64,
    /// Messages of neighbours that reconcile which could not be read.
    pub reconcile_skipped: u64,
    /// Records that were not asked for, as too many have been.
    pub asks_refused: u64,
}

/// Messages of one kind.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Their number.
    pub messages: u64,
    /// Their payloads.
    pub bytes: u64,
}

impl Sent {
    pub(super) fn add(&mut self, bytes: usize) {
        self.messages += 1;
        self.bytes += bytes as u64;
    }
}

impl Counters {
    /// All of them with their names.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 11] {
        [
            ("topology_entries_skipped", self.topology_entries_skipped),
            ("topology_messages_skipped", self.topology_messages_skipped),
            ("topology_entries_refused", self.topology_entries_refused),
            ("unicasts_unroutable", self.unicasts_unroutable),
            ("loops_cut", self.loops_cut),
            ("relays_dropped", self.relays_dropped),
            ("relays_limited", self.relays_limited),
            ("channels_refused", self.channels_refused),
            ("oversized", self.oversized),
            ("reconcile_skipped", self.reconcile_skipped),
            ("asks_refused", self.asks_refused),
        ]
    }
}
