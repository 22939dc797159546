//! Sleeve: frames in UDP through userspace, the path that always works (wire.md 6).
//!
//! ```text
//! containers -- bridge/BPF -- TAP -- worker threads -- UDP 6783 -- other peers
//!                                        ^
//!                    forwarder (pure, in the daemon's loop): heartbeats, path MTU, who is where
//! ```
//! Three parts: what is pure (`packet`, `seal`, `forwarder`, `icmp`, `fragment`, `macs`), what moves
//! bytes (`engine` and its workers), and the types between them and the daemon's loop, here.

mod checksum;
pub mod cipher;
mod coalesce;
pub mod counters;
pub mod engine;
#[cfg(test)]
mod engine_tests;
mod forward;
pub mod forwarder;
pub mod fragment;
#[doc(hidden)]
pub mod fuzzing;
#[cfg(test)]
mod golden_tests;
pub mod icmp;
mod incoming;
pub mod macs;
#[cfg(test)]
mod offload_tests;
mod outbox;
mod outgoing;
pub mod packet;
pub mod pmtu;
pub mod seal;
mod segment;
mod shared;
mod snapshot;
mod socket;
mod tap;
mod vxlan;

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::mesh::ConnId;
use crate::mesh::crypto::SessionKey;
use crate::mesh::name::PeerName;

/// The overlay's name in `Overlays` (wire.md 7.1).
pub const SLEEVE: &str = "sleeve";

/// What the loop sends to one neighbour besides the containers' frames: zero MAC addresses, type zero
/// (wire.md 6.4). On the DF path but for the fragmentation test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// 22 bytes.
    Heartbeat {
        /// UID of the connection.
        conn_uid: u64,
    },
    /// 60001 bytes on the non-DF path.
    FragmentationTest,
    /// 60000 bytes, to be told that they are too many (wire.md 6.5).
    MtuProvocation,
    /// `mtu` + 14 bytes.
    MtuTest {
        /// Overlay MTU under test, bytes.
        mtu: u16,
    },
}

/// What the workers tell the loop of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrived {
    /// A heartbeat, from this UDP address.
    Heartbeat {
        /// UID it carries.
        conn_uid: u64,
        /// Whence.
        from: SocketAddrV4,
    },
    /// All 60001 bytes were zero.
    FragmentationTest,
    /// A frame of `mtu` + 14 bytes has come.
    MtuTest {
        /// Overlay MTU that was tested, bytes.
        mtu: u16,
    },
    /// Something sent on the DF path was longer than the path's MTU (EMSGSIZE).
    TooBig {
        /// The kernel's idea of it, bytes of IP packet.
        path_mtu: u16,
    },
}

/// How large things may be towards one neighbour; changes as its path is measured (wire.md 6.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Overlay MTU: longest inner IP packet in bytes.
    pub mtu: u16,
    /// Longest UDP payload in bytes on the DF path, and the size up to which frames are aggregated.
    pub max_payload: u16,
    /// IP fragments arrive (wire.md 6.6).
    pub fragmentation: bool,
}

/// Sealing of one connection (wire.md 6.3).
#[derive(Clone)]
pub struct Session {
    /// The key of wire.md 2.4.
    pub key: SessionKey,
    /// We dialled: decides the direction bit of the nonces.
    pub outbound: bool,
}

/// Facts of a new connection.
#[derive(Clone)]
pub struct NewLink {
    /// The loop's number for it.
    pub conn: ConnId,
    /// Who is at the other end; packets carry this name.
    pub remote: PeerName,
    /// `None`: in clear.
    pub session: Option<Session>,
    /// Plain data is taken from the neighbour's own IP address only (W14). Off for original peers,
    /// whose non-DF path may have another address than the rest.
    pub strict_source: bool,
}

/// What may change about a connection while it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkState {
    /// Our end: outer source address.
    pub local: Ipv4Addr,
    /// Their end, once known (wire.md 6.5).
    pub remote: Option<SocketAddrV4>,
    /// Sizes.
    pub limits: Limits,
}

/// How a frame leaves for its next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// By sleeve, on this connection.
    Sleeve(ConnId),
    /// By VXLAN (wire.md 8.1), which the workers write themselves when they relay from sleeve to the
    /// fast path. DF set; the VNI is made of the short IDs of the frame's source and destination.
    Vxlan {
        /// Outer destination.
        remote: SocketAddrV4,
        /// Outer source.
        local: Ipv4Addr,
    },
}

/// Everything the workers look up, replaced as a whole when it changes.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    /// Longest IP packet that this host's containers take, bytes. Neighbours may send longer ones, as
    /// sleeve carries more than the fast path; 0: anything goes.
    pub mtu: u16,
    /// Peers that own a short ID, our own among them.
    pub by_id: BTreeMap<u16, PeerName>,
    /// The same the other way round.
    pub ids: HashMap<PeerName, u16>,
    /// All peers known, with or without a short ID, our own among them. Frames of others are dropped.
    pub known: std::collections::HashSet<PeerName>,
    /// First hop to each other peer that can be reached. Absent: no route.
    pub unicast: HashMap<PeerName, Hop>,
    /// Where floods go on, by origin (wire.md 4.4), our own under our own name. With BPF the hops on
    /// the fast path are left out for floods that BPF hands us: see [`FrameSource`].
    pub floods: HashMap<PeerName, FloodTree>,
}

/// Our place in the tree of one origin.
#[derive(Debug, Clone, Default)]
pub struct FloodTree {
    /// The neighbour that passes its floods on to us: from another they go no further.
    pub from: Option<PeerName>,
    /// To whom we pass them on.
    pub hops: Vec<(PeerName, Hop)>,
}

/// Who decides where frames of containers go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameSource {
    /// The BPF programs: each frame on the TAP begins with a [`weave_common::SleevePrefix`] that names
    /// source and destination peer. For a flood the destination is ourselves, and the workers send it
    /// to the hops of the origin's tree that are [`Hop::Sleeve`] (BPF has served the others). Frames for
    /// containers are written with an 802.1Q tag in front whose VID is the short ID of the source peer
    /// (no tag if it has none); BPF takes it off, learns, delivers, and floods onward, unless the tag has
    /// [`weave_common::LEAF_TAG`].
    Bpf,
    /// Nobody: the TAP is an ordinary port of the bridge. The workers learn MAC addresses and look
    /// them up (wire.md 6.9), flood to all hops, and flood onward what they receive.
    Bridge,
}
