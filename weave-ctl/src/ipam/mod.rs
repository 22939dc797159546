//! IP address allocation (`spec/control.md` section 1). Pure.

pub mod address;
pub mod allocator;
#[cfg(test)]
mod allocator_tests;
mod containers;
mod gossip;
mod merge;
pub mod message;
pub mod mode;
pub mod operations;
pub mod owned;
pub mod paxos;
pub mod persist;
mod reconcile;
pub mod ring;
#[cfg(test)]
mod ring_tests;
#[cfg(test)]
mod sim;
pub mod sizes;
pub mod space;
mod status;
mod takeover;
