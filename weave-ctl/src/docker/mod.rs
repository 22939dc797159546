//! Docker: looking containers up (control.md 4.1).

mod lookup;

pub use lookup::{DockerContainer, list_running, resolve};
