//! WeaveDNS: names of containers, the same on every host (control.md section 2).

pub mod entry;
mod gossip;
pub mod names;
mod reconcile;
#[cfg(test)]
mod sim;
pub mod zone;
