//! Docker: looking containers up (control.md 4.1) and following their lives (control.md 1.12).

mod client;
pub mod events;
pub mod keeper;
mod lookup;
pub mod proxy;
pub mod wait_folders;

pub use lookup::{DockerContainer, is_gone, list_running, resolve, resolve_at};
