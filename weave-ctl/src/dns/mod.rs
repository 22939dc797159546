//! WeaveDNS: names of containers, the same on every host (control.md section 2).

pub mod zone;
