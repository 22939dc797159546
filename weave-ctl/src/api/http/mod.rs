//! The HTTP listeners of control.md 3.1: control, status, metrics; on TCP or a Unix socket.

mod attachments;
mod expose;
mod guard;
mod names;
mod params;
mod reply;
mod routes;
mod serve;
#[cfg(test)]
mod tests;

pub use guard::Guard;
pub use routes::{control_router, metrics_router, status_router};
pub use serve::{BindError, Listener, serve};
