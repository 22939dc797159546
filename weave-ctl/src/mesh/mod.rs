//! The mesh: who is in the cluster, how to reach them, and gossip (`spec/wire.md` sections 1-5).
//!
//! Everything here but `transport` is pure: no sockets, clocks, tasks or randomness of its own.

#[cfg(test)]
pub(crate) mod capture;
pub mod census;
pub mod channel;
pub mod claim;
pub mod collisions;
mod connections;
pub mod core;
pub mod crypto;
pub mod events;
#[doc(hidden)]
pub mod fuzzing;
pub mod gob;
pub mod gossip;
pub mod handshake;
pub mod limit;
pub mod message;
pub mod name;
pub mod peers;
pub mod queue;
pub mod reconcile;
pub mod routes;
mod sending;
pub mod short_ids;
pub mod sizes;
pub mod status;
pub mod summary;
pub mod surrogate;
pub mod targets;
pub mod transport;
pub mod trusted;

/// Time since an arbitrary start, as told by whoever drives a state machine.
pub type Now = std::time::Duration;

/// Local number of one TCP connection (also of an attempt that got as far as the handshake); never
/// reused within a process, never sent.
pub type ConnId = u64;
