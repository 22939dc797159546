//! The daemon: wires the pure cores to sockets, clocks, netlink and BPF maps.

mod attachments;
mod chores;
mod connections;
mod core;
mod dns;
mod event;
mod exposure;
mod gate;
mod handle;
mod host;
mod inherited;
mod keeper;
mod logging;
mod mtu;
mod names;
mod naming;
mod neighbours;
mod overlays;
mod paths;
mod plugin;
mod proxy;
mod report;
mod requests;
mod saver;
mod settle;
mod start;

pub use overlays::TAP;
pub use start::run;
