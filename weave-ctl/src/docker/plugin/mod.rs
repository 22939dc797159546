//! Network plugins of Docker (control.md 4.9, 4.10): libnetwork's remote driver protocol, HTTP POST of JSON on Unix
//! sockets.
//!
//! [`server`] reads and writes the messages, [`driver`] does what the network driver is asked for, [`ipam`] what the
//! IPAM driver is asked for; [`containers`] looks after containers that have started, [`network`] after the network
//! `weave`; [`options`] keeps what networks were made with, [`record`] what is to be removed in the end, and [`standby`] is for
//! when the daemon is away.

pub mod containers;
pub mod driver;
pub mod ipam;
pub mod messages;
pub mod network;
pub mod options;
pub mod record;
pub mod server;
pub mod standby;

pub use driver::{Driver, Plugin};
