//! Weave: a container network without a central store.
//!
//! Pure state machines (`mesh`, `ipam`, `overlay`) sit in the middle; `daemon` wires them to
//! sockets, clocks, netlink and BPF maps; `cli` and `api` are what people and scripts talk to.

pub mod api;
pub mod artifact;
pub mod cli;
pub mod daemon;
pub mod dns;
pub mod docker;
pub mod doctor;
pub mod identity;
pub mod ipam;
pub mod legacy;
pub mod mesh;
pub mod net;
pub mod overlay;
pub mod store;

/// Version of this program, as shown and as sent.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
