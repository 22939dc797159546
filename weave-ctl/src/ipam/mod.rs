//! IP address allocation (`spec/control.md` section 1). Pure.

pub mod address;
pub mod adopt;
pub mod allocator;
#[cfg(test)]
mod allocator_tests;
#[cfg(test)]
mod conflict_tests;
pub mod conflicts;
mod containers;
mod gossip;
mod merge;
pub mod message;
pub mod mode;
pub mod operations;
pub mod owned;
pub mod paxos;
pub mod persist;
pub mod reclaim;
mod reconcile;
mod removal;
pub mod ring;
#[cfg(test)]
mod ring_tests;
#[cfg(test)]
mod sim;
pub mod sizes;
pub mod space;
mod status;
mod strays;
mod takeover;
#[cfg(test)]
mod takeover_tests;
pub mod talk;
pub mod tracker;
