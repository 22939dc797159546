//! Docker: looking containers up (control.md 4.1), following their lives (control.md 1.12), and keeping them
//! attached (control.md 4.3).

pub mod attachment;
mod client;
pub mod endpoint;
pub mod events;
pub mod hosts;
pub mod keeper;
mod lookup;
pub mod plugin;
pub mod process;
pub mod proxy;
pub mod resolver;
pub mod tls;
pub mod wait_folders;

pub use lookup::{
    DockerContainer, Life, WAIT_PROGRAM, ask_default, find_at, is_gone, kill, life, list_all_at,
    list_running, resolve, resolve_at,
};
