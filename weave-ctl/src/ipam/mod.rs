//! IP address allocation (`spec/control.md` section 1). Pure.

pub mod address;
mod merge;
pub mod message;
pub mod mode;
pub mod paxos;
pub mod ring;
#[cfg(test)]
mod ring_tests;
pub mod space;
