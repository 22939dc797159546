//! The daemon: wires the pure cores to sockets, clocks, netlink and BPF maps.

mod connections;
mod core;
mod event;
mod handle;
mod logging;
mod mtu;
mod neighbours;
pub mod options;
mod report;
mod requests;
pub mod reset;
mod start;

pub use logging::Level;
pub use options::Options;
pub use start::run;
