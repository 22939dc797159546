//! The proxy in front of Docker's API (control.md 4.2 to 4.8): containers that are started through it are attached.

pub mod rules;
