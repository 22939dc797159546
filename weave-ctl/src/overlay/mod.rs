//! Carrying frames between peers: the overlay switch and its paths.

pub mod fastdp;
pub mod forwarding;
pub mod pace;
pub mod sleeve;
pub(crate) mod sockopt;
pub mod switch;
