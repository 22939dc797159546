//! The fast path: BPF programs at the interfaces, fed through maps (`spec/wire.md` section 8).

pub mod attach;
pub mod datapath;
pub mod heartbeat;
pub mod loader;
pub mod maps;
pub mod object;
pub mod sender;
pub mod xdp;
