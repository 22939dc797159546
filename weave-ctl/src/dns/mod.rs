//! WeaveDNS: names of containers, the same on every host (control.md section 2).

pub mod answer;
#[cfg(test)]
mod answer_tests;
mod batch;
mod cache;
pub mod counters;
mod resolv;
pub mod server;
#[cfg(test)]
mod server_tests;
mod tcp;
mod udp;
mod upstream;
mod wire;
pub mod zone;
