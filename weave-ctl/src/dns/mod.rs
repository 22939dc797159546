//! WeaveDNS: names of containers, the same on every host (control.md section 2).

pub mod answer;
#[cfg(test)]
mod answer_tests;
mod batch;
mod cache;
pub mod counters;
pub mod entry;
mod gossip;
pub mod names;
mod reconcile;
mod resolv;
pub mod server;
#[cfg(test)]
mod server_tests;
#[cfg(test)]
mod sim;
mod sockets;
mod tcp;
mod udp;
mod upstream;
mod wire;
pub mod zone;
