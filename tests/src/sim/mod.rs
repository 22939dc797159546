//! A seeded simulator: the pure cores of many peers in one process, on a network that delays, breaks and parts.
//!
//! [`World`] is the network with a mesh at every peer; what runs beside the mesh is a [`Site`]: [`toy::Toys`]
//! for properties of the mesh alone, [`Peer`] for the product's peers with their allocators. [`run`] runs a
//! scenario of these. Time is virtual, and a seed repeats a run exactly.
// A simulator that is wrong about itself shall stop there.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod big;
mod book;
mod check;
mod cluster;
mod figures;
mod link;
mod options;
mod peer;
mod soak;
pub mod toy;
mod traffic;
mod world;

use std::net::SocketAddr;
use std::time::Duration;

use weave_ctl::mesh::Now;
use weave_ctl::mesh::channel::{Channels, Outlet};
use weave_ctl::mesh::name::PeerName;

pub use big::run;
pub use figures::{Figures, Phase};
pub use link::Faults;
pub use options::{Options, Scenario};
pub use peer::Peer;
pub use soak::soak;
pub use traffic::{Kind, Sent, Traffic};
pub use world::{Doom, Node, World};

/// Everybody's TCP port.
const PORT: u16 = 6783;

/// What a world is made with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Of all dice.
    pub seed: u64,
    /// How many.
    pub peers: usize,
    /// Do peers dial those that others know?
    pub discovery: bool,
    /// Connections of a peer at most; 0 for no limit.
    pub conn_limit: usize,
    /// All begin with short ID 0.
    pub same_short_id: bool,
}

/// What runs beside the mesh of a simulated peer: its channels, and what it saves and answers. In each turn
/// something happens first, then it is saved, then answered, and only then sent, as in the daemon.
pub trait Site: Channels {
    /// The channel on whose behalf [`World::act`] sends.
    const CHANNEL: &'static str;
    /// Time between two chores, if it has any.
    const CHORE: Option<Duration> = None;
    /// What the channel's owner does from time to time.
    fn chore(&mut self, _out: &mut dyn Outlet) {}
    /// Puts on its disk what must outlive a crash.
    fn save(&mut self) {}
    /// Answers its clients.
    fn answer(&mut self, _now: Now) {}
}

/// The name of a simulated peer.
#[must_use]
pub fn name(node: usize) -> PeerName {
    PeerName::from_u64(0x0200_0000_0000 + node as u64 + 1).unwrap()
}

/// The number of a peer with such a name.
#[must_use]
pub fn node_of(name: PeerName) -> usize {
    (name.as_u64() - 0x0200_0000_0001) as usize
}

fn ip(node: usize) -> [u8; 4] {
    [10, 0, (node / 250) as u8, (node % 250) as u8 + 1]
}

/// Where a simulated peer listens.
#[must_use]
pub fn address(node: usize) -> SocketAddr {
    SocketAddr::from((ip(node), PORT))
}

fn node_at(addr: SocketAddr) -> Option<usize> {
    let SocketAddr::V4(v4) = addr else { return None };
    let [_, _, high, low] = v4.ip().octets();
    (addr.port() == PORT).then(|| usize::from(high) * 250 + usize::from(low) - 1)
}
